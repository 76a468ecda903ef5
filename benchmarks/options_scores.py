# SPDX-License-Identifier: MIT
"""What each option of a distillation brings, on four games: students of 7%, one option changed.

Keeps a record of each finished run in benchmarks/results/options, without weights, so that runs of
several days and machines come together; of the records the table of docs/options.md is written.
With --run what has no record is run first, one after another, and continued where it was
interrupted.

    python benchmarks/options_scores.py runs/options --run
    python benchmarks/options_scores.py runs/options --run breakout_auto breakout_gap
    python benchmarks/options_scores.py runs/options
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pages
import records
from render_tables import cell

from fastdistill.evaluation.statistics import over_games
from fastdistill.report.results import Results, read_results

RECORDS = Path(__file__).parent / "results" / "options"
GAMES = ("breakout", "freeway", "pong", "qbert")
# Of the command line -> value, or one for each game.
Options = dict[str, "str | float | tuple[float, ...]"]
# In float32 on every machine, or runs of several could not stand in one table.
BASE: Options = {"temperature": "auto", "total-updates": 10_000, "bfloat16": False}
# What is changed -> what the table calls it, and the options.
VARIANTS: dict[str, tuple[str, Options]] = {
    "auto": ("the base: temperature `auto`, 10,000 updates", {}),
    "paper": ("temperature 0.01", {"temperature": 0.01}),
    # Where the teacher, as it plays, has that share of the entropy of a uniform policy on average
    # (fastdistill.training.targets.auto_temperature; "auto" is a half).
    "sharper": (
        "sharper: a quarter of a uniform policy's entropy",
        {"temperature": (0.0257, 0.00998, 0.00414, 0.0822)},
    ),
    "softer": ("softer: three quarters of it", {"temperature": (0.101, 0.0349, 0.0253, 0.323)}),
    "teacher": ("the teacher drives", {"driver": "teacher"}),
    "mixture": ("from the teacher to the students (DAgger)", {"driver": "mixture"}),
    "gap": ("states weighted by the gap of the best two actions", {"weighting": "gap"}),
    "entropy": ("states weighted by entropy", {"weighting": "entropy"}),
    "batch_128": ("batches of 128", {"batch-size": 128}),
    "rate_0.001": ("learning rate 0.001 instead of 0.002", {"learning-rate": 0.001}),
    "rate_0.004": ("learning rate 0.004", {"learning-rate": 0.004}),
    "layer_norm": ("layer normalisation", {"layer-norm": True}),
    "layer_norm_rate_0.004": (
        "layer normalisation, learning rate 0.004",
        {"layer-norm": True, "learning-rate": 0.004},
    ),
    "bfloat16": (
        "bfloat16 (minutes on a CPU without it say nothing)",
        {"bfloat16": True},
    ),
    "steps_4": ("4 steps of play for each update instead of 8", {"steps-per-update": 4}),
    "first_20000": (
        "20,000 steps of the teacher's play first instead of 4,000",
        {"learning-starts-steps": 20_000},
    ),
    "updates_20000_steps_4": (
        "20,000 updates on the same steps of play",
        {"total-updates": 20_000, "steps-per-update": 4},
    ),
    "updates_20000": ("20,000 updates on twice the steps", {"total-updates": 20_000}),
}


def commands() -> dict[str, list[str]]:
    """Run -> what makes it: the last weights of two seeds, none of them chosen by a score."""
    found = {}
    for place, game in enumerate(GAMES):
        for name, (_, change) in VARIANTS.items():
            # Scored once, at the end: there agreement is measured, and nobody else could be kept.
            words = f"distill --teacher zoo:{game} --seeds 2 --no-tensorboard"
            words += " --score-every-updates 1000000 --score-episodes 5"
            for option, value in (BASE | change).items():
                if isinstance(value, bool):
                    words += f" --{option}" if value else f" --no-{option}"
                else:
                    words += f" --{option} {value[place] if isinstance(value, tuple) else value}"
            found[f"{game}_{name}"] = words.split()
    return found


def render(found: dict[str, Results]) -> str:
    """The table of docs/options.md."""
    if not found:
        return "Not measured yet.\n"
    places = records.where({name: [results] for name, results in found.items()})
    games = [game for game in GAMES if any(name.startswith(f"{game}_") for name in found)]
    lines = [
        f"From `benchmarks/results/options`, made on {places}. Students of 7% of the shipped "
        "teachers, their last weights: share of the teacher's score above random play, 30 full "
        "episodes of each of two seeds, which share their play, at epsilon 0.05, with 95% "
        "bootstrap intervals over seeds and episodes, and the minutes that training took.",
        "",
        f"| what is changed | {' | '.join(games)} | mean |",
        "|---" * (2 + len(games)) + "|",
    ]
    for name, (meaning, _) in VARIANTS.items():
        played = {game: found[f"{game}_{name}"] for game in games if f"{game}_{name}" in found}
        cells = [cell_of(played[game]) if game in played else "-" for game in games]
        if played:
            mean = mean_of(list(played.values())) if len(played) == len(games) else "-"
            lines.append(f"| {meaning} | {' | '.join(cells)} | {mean} |")
    return "\n".join([*lines, ""])


def cell_of(results: Results) -> str:
    """Of one run: the share, and the time."""
    minutes = (results.training_seconds or 0.0) / 60
    return f"{cell(results.students[0].percent, '%', 1)} {minutes:.1f} min"


def mean_of(runs: Sequence[Results]) -> str:
    """Of one variant, over the games."""
    together = over_games(
        [one.students[0].returns for one in runs],
        [one.teacher.returns[0] for one in runs],
        [one.random_score or 0.0 for one in runs],
        one_network=False,
    )
    return cell(together.percent, "%", 1)


def main() -> None:
    """Runs what is missing if asked, keeps what is finished, writes the page."""
    arguments = records.parse(__doc__, Path("runs/options"), commands())
    if arguments.run is not None:
        records.run_missing(arguments.folder, RECORDS, commands(), arguments.run)
    for path in sorted(arguments.folder.glob("*/evaluation.json")):
        records.keep(path.parent, RECORDS / path.parent.name)
    found = {
        path.parent.name: read_results(path.parent)
        for path in sorted(RECORDS.glob("*/evaluation.json"))
    }
    pages.write_part("docs/options.md", "options_scores.py", render(found))


if __name__ == "__main__":
    main()
