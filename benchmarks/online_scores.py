# SPDX-License-Identifier: MIT
"""A DQN while it learns, and students that follow it: who is steadier, who plays better at the end.

Stated before the first run: from a third of the training on, the spread of each student's score
from checkpoint to checkpoint, the luck of the games taken out, is below the DQN's, on Pong and on
Q*bert; and the score of each student's best checkpoint at the end is within the DQN's interval or
above it. Whatever comes out is what the page shows. The DQNs are of 25% of the paper's parameters,
with students of that size and of 7%, for the sake of time.

Each run is kept in benchmarks/results/online, so that runs of several days and machines come
together; of them the tables of docs/online.md are written.

    python benchmarks/online_scores.py runs/online_scores --run
    python benchmarks/online_scores.py runs/online_scores --run pong_seed1
    python benchmarks/online_scores.py runs/online_scores
"""

from __future__ import annotations

from pathlib import Path

import pages
import records

from fastdistill.evaluation.statistics import Interval, seeds_score
from fastdistill.report.results import Results, read_results
from fastdistill.report.steadiness import Steadiness, read_steadiness

RECORDS = Path(__file__).parent / "results" / "online"
# Steadiness is measured from a third on, where Pong's one leap should be over; Q*bert's games
# differ most, and are short.
GAMES = {
    "pong": "--total-steps 600000 --score-episodes 5 --evaluation-episodes 30",
    "qbert": "--total-steps 400000 --score-episodes 30 --evaluation-episodes 100",
}
SEEDS = (1, 2, 3)


def commands() -> dict[str, list[str]]:
    """Run -> what makes it."""
    return {
        f"{game}_seed{seed}": (
            f"online --game {game} --size 25% --student 25%,7% --temperature auto {own} "
            f"--seed {seed} --checkpoint-every-steps 20000 --no-tensorboard"
        ).split()
        for game, own in GAMES.items()
        for seed in SEEDS
    }


def render() -> str:
    """The tables of docs/online.md."""
    runs = sorted(path.parent for path in RECORDS.glob("*/evaluation.json"))
    if not runs:
        return "Not measured yet.\n"
    found = {run: read_results(run) for run in runs}
    places = records.where({run.name: [results] for run, results in found.items()})
    lines = [
        f"From `benchmarks/results/online`, made on {places}. Score: mean of fresh episodes of "
        "each network's best checkpoint, epsilon 0.01, with a 95% bootstrap interval (seeds are "
        "resampled, then their episodes). Spread: as above, in points, run by run, with its own "
        "95% interval.",
        "",
    ]
    for game in dict.fromkeys(results.game for results in found.values()):
        own = {run: results for run, results in found.items() if results.game == game}
        lines += render_game(game, own)
    return "\n".join(lines)


def render_game(game: str, runs: dict[Path, Results]) -> list[str]:
    """Markdown of one game: a line for each network, over its runs."""
    spreads: dict[str, list[Steadiness]] = {}
    returns: dict[str, list[tuple[float, ...]]] = {}
    for run, results in runs.items():
        for row in read_steadiness(run, results):
            spreads.setdefault(row.label.split("_seed")[0], []).append(row)
        returns.setdefault("the DQN", []).extend(results.teacher.returns)
        for player in results.students:
            returns.setdefault(player.names[0].split("_seed")[0], []).extend(player.returns)
    names = ", ".join(f"`{run.name}`" for run in runs)
    lines = [
        f"**{game}** ({names})",
        "",
        "| network | score | spread of each run | luck of a score |",
        "|---|---|---|---|",
    ]
    for label, rows in spreads.items():
        each = "; ".join(f"{row.spread:,.2f} [{row.low:,.2f}, {row.high:,.2f}]" for row in rows)
        luck = sum(row.luck for row in rows) / len(rows)
        score = cell(seeds_score(returns[label]))
        lines.append(f"| {label.replace('_', ' ')} | {score} | {each} | {luck:,.2f} |")
    return [*lines, ""]


def cell(interval: Interval) -> str:
    """A value and its interval."""
    return f"{interval.value:,.1f} [{interval.low:,.1f}, {interval.high:,.1f}]"


def main() -> None:
    """Runs what is missing if asked, keeps what is finished, writes the page."""
    arguments = records.parse(__doc__, Path("runs/online_scores"), commands())
    if arguments.run is not None:
        records.run_missing(arguments.folder, RECORDS, commands(), arguments.run)
    for path in sorted(arguments.folder.glob("*/evaluation.json")):
        records.keep(path.parent, RECORDS / path.parent.name)
    pages.write_part("docs/online.md", "online_scores.py", render())


if __name__ == "__main__":
    main()
