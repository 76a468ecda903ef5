# SPDX-License-Identifier: MIT
"""Small DQNs that begin from a weak teacher, beside small DQNs that begin from nothing.

Stated before the first run: the guided network's final score is above its guide's, with intervals
that do not touch, and a DQN of the same size without a guide needs at least twice the agent steps
for that score, on Pong and on Q*bert, two seeds each. Whatever comes out is what the page shows.

The guides are trained first, and end early: at about half of what a DQN comes to. Each run is kept
in benchmarks/results/guided, the guides' with their weights, so that runs of several days and
machines come together; of them the table of docs/guided.md is written.

    python benchmarks/guided_scores.py runs/guided_scores --run
    python benchmarks/guided_scores.py runs/guided_scores --run guide_pong guided_pong_seed1
    python benchmarks/guided_scores.py runs/guided_scores
"""

from __future__ import annotations

from pathlib import Path

import pages
import records

from fastdistill.evaluation.statistics import Interval
from fastdistill.networks.checkpoint import copy_checkpoint
from fastdistill.report.results import Player, read_results

RECORDS = Path(__file__).parent / "results" / "guided"
# Where a guide ends (mean of 50 training games), and the guided runs' steps.
GAMES = {"pong": (-2.0, 150_000), "qbert": (1_000.0, 300_000)}
SEEDS = (1, 2)
ALONE = 2.5  # times the guided runs' steps


def commands() -> dict[str, list[str]]:
    """Run -> what makes it; the guides first."""
    found = {}
    for game, (weak, _) in GAMES.items():
        found[f"guide_{game}"] = (
            f"{dqn(game, 1_000_000)} --stop-at-return {weak} --score-episodes 0 --seed 9"
        )
    for game, (_, steps) in GAMES.items():
        guide = f"benchmarks/results/guided/guide_{game}/teacher"
        for seed in SEEDS:
            found[f"guided_{game}_seed{seed}"] = f"{dqn(game, steps)} --guide {guide} --seed {seed}"
            found[f"alone_{game}_seed{seed}"] = f"{dqn(game, int(ALONE * steps))} --seed {seed}"
    return {name: words.split() for name, words in found.items()}


def dqn(game: str, steps: int) -> str:
    """A small DQN, judged every 15,000 steps."""
    return (
        f"teacher dqn --game {game} --size 7% --total-steps {steps} "
        "--checkpoint-every-steps 15000 --no-tensorboard"
    )


def keep(run: Path) -> None:
    """Record a finished run; a guide with its weights, which other runs need."""
    records.keep(run, RECORDS / run.name)
    if run.name.startswith("guide_"):
        copy_checkpoint(run / "teacher", RECORDS / run.name / "teacher")


def render() -> str:
    """The table of docs/guided.md."""
    runs = sorted(path.parent for path in RECORDS.glob("guided_*/evaluation.json"))
    if not runs:
        return "Not measured yet.\n"
    alone = {
        path.parent.name: read_results(path.parent)
        for path in sorted(RECORDS.glob("alone_*/evaluation.json"))
    }
    found = {run.name: read_results(run) for run in runs}
    places = records.where({name: [one] for name, one in {**found, **alone}.items()})
    lines = [
        f"From `benchmarks/results/guided`, made on {places}. Scores: mean of 30 fresh episodes, "
        "epsilon 0.01, with a 95% bootstrap interval. The last columns: agent steps at the first "
        "checkpoint whose ten games reach the guided network's score, of the DQNs without a guide.",
        "",
        "| run | its guide | the guided network | its steps | steps without a guide |",
        "|---|---|---|---|---|",
    ]
    for name, results in found.items():
        (student,) = results.students
        assert student.score is not None
        assert results.teacher.score is not None
        needed = [
            steps_to(one.teacher, student.score.value)
            for other, one in alone.items()
            if one.game == results.game
        ]
        steps = student.curves["score"].at[-1] if "score" in student.curves else 0.0
        lines.append(
            f"| {name.replace('_', ' ')} | {cell(results.teacher.score)} | {cell(student.score)} | "
            f"{steps:,.0f} | {'; '.join(needed) or '-'} |"
        )
    return "\n".join([*lines, ""])


def steps_to(player: Player, score: float) -> str:
    """Agent steps until a checkpoint scores as much."""
    curve = player.curves["score"]
    reached = curve.at[curve.mean >= score]
    return f"{reached[0]:,.0f}" if len(reached) else f"more than {curve.at[-1]:,.0f}"


def cell(interval: Interval) -> str:
    """A value and its interval."""
    return f"{interval.value:,.1f} [{interval.low:,.1f}, {interval.high:,.1f}]"


def main() -> None:
    """Runs what is missing if asked, keeps what is finished, writes the page."""
    arguments = records.parse(__doc__, Path("runs/guided_scores"), commands())
    if arguments.run is not None:
        for name in arguments.run or commands():  # a guide is kept before others need it
            records.run_missing(arguments.folder, RECORDS, commands(), [name])
            if (arguments.folder / name / "evaluation.json").exists():
                keep(arguments.folder / name)
    for path in sorted(arguments.folder.glob("*/evaluation.json")):
        keep(path.parent)
    pages.write_part("docs/guided.md", "guided_scores.py", render())


if __name__ == "__main__":
    main()
