# SPDX-License-Identifier: MIT
"""Small DQNs that begin from a weak teacher, beside small DQNs that begin from nothing.

Stated before the first run: the guided network's final score is above its guide's, with intervals
that do not touch, and a DQN of the same size without a guide needs at least twice the agent steps
to be better than the guide, on Pong and on Q*bert, two seeds each. Better than the guide: the mean
of three checkpoints in a row, of both networks alike, is above the guide's interval. Whatever comes
out is what the page shows.

The guides are trained first, and end early: with the first network that plays about half as well as
a DQN comes to. Each run is kept in benchmarks/results/guided, of the guides their networks, so that
runs of several days and machines come together; of them the table of docs/guided.md is written.

    python benchmarks/guided_scores.py runs/guided_scores --run
    python benchmarks/guided_scores.py runs/guided_scores --run guide_pong guided_pong_seed1
    python benchmarks/guided_scores.py runs/guided_scores
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pages
import records
import tyro

from fastdistill.evaluation.statistics import Interval
from fastdistill.networks.checkpoint import copy_checkpoint, read_card
from fastdistill.recipes import dqn as dqn_recipe
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.report.results import Player, read_results

RECORDS = Path(__file__).parent / "results" / "guided"
SEEDS = (1, 2)
IN_A_ROW = 3  # checkpoints


class Game(NamedTuple):
    """What is played.

    Attributes:
        goal: Mean score of a checkpoint at which a guide ends.
        steps: Agent steps of a guided run.
        alone_steps: Of one without a guide.
        score_episodes: Of a checkpoint; Q*bert's games differ most, and are the shorter ones.
        evaluation_episodes: At the end.
    """

    goal: float
    steps: int
    alone_steps: int
    score_episodes: int
    evaluation_episodes: int


GAMES = {
    "pong": Game(-2.0, 150_000, 375_000, 5, 30),
    "qbert": Game(1_000.0, 300_000, 750_000, 30, 100),
}


def commands() -> dict[str, list[str]]:
    """Run -> what makes it; the guides first."""
    # The training games' returns lag 50 games behind: each checkpoint's own score ends a guide.
    found = {
        f"guide_{game}": f"{dqn(game, 1_000_000, 5_000)} --seed 9 --evaluation-episodes 0"
        for game in GAMES
    }
    for game, plan in GAMES.items():
        guide = f"benchmarks/results/guided/guide_{game}/teacher"
        for seed in SEEDS:
            own = f"--seed {seed} --evaluation-episodes {plan.evaluation_episodes}"
            found[f"guided_{game}_seed{seed}"] = f"{dqn(game, plan.steps)} --guide {guide} {own}"
            found[f"alone_{game}_seed{seed}"] = f"{dqn(game, plan.alone_steps)} {own}"
    return {name: words.split() for name, words in found.items()}


def dqn(game: str, steps: int, every_steps: int = 15_000) -> str:
    """A small DQN, judged every so many steps."""
    return (
        f"teacher dqn --game {game} --size 7% --total-steps {steps} --no-tensorboard "
        f"--checkpoint-every-steps {every_steps} --score-episodes {GAMES[game].score_episodes}"
    )


class GoalReached:
    """Ends a guide's training: its best network so far reaches the goal."""

    def __init__(self, teacher: Path, goal: float) -> None:
        self._teacher, self._goal, self._seen = teacher, goal, 0

    @property
    def requested(self) -> bool:
        """Whether the network that was saved last is good enough."""
        if not self._teacher.exists() or self._teacher.stat().st_mtime_ns == self._seen:
            return False
        self._seen = self._teacher.stat().st_mtime_ns
        mean = json.loads(self._teacher.read_text())["scoring"]["mean"]
        return mean is not None and mean >= self._goal


def train_guide(name: str, run: Path) -> None:
    """Train a guide to its goal and keep its network; an interrupted one goes on."""
    record = RECORDS / name / "teacher"
    if record.with_suffix(".json").exists():
        return
    words = commands()[name][2:]
    config = tyro.cli(DqnConfig, args=[*words, "--run-dir", str(run)])
    stop = GoalReached(run / "teacher.json", GAMES[config.game].goal)
    dqn_recipe.train(config, resume=(run / "config.json").exists(), stop=stop)
    copy_checkpoint(run / "teacher", record)


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
        f"From `benchmarks/results/guided`, made on {places}. Scores: mean of fresh episodes, "
        "epsilon 0.01, with a 95% bootstrap interval; of a guide also the agent steps that it was "
        "trained for, which no other column counts. The last columns: agent steps until three "
        "checkpoints in a row are, in the mean, above the guide's interval; without a guide that "
        "is of the DQNs of both seeds. A guided run's steps include its guide's play.",
        "",
        "| run | its guide | the guided network | after steps | better than the guide after | "
        "without a guide |",
        "|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        (student,) = results.students
        assert student.score is not None
        assert results.teacher.score is not None
        level = results.teacher.score.high
        needed = [
            steps_to(one.teacher, level) for one in alone.values() if one.game == results.game
        ]
        lines.append(
            f"| {name.replace('_', ' ')} | {cell(results.teacher.score)}, "
            f"{guide_steps(results.game):,} steps | {cell(student.score)} | "
            f"{student.curves['score'].at[-1]:,.0f} | {steps_to(student, level)} | "
            f"{'; '.join(needed) or '-'} |"
        )
    return "\n".join([*lines, ""])


def guide_steps(game: str) -> int:
    """Agent steps that a game's guide was trained for."""
    return int(read_card(RECORDS / f"guide_{game}" / "teacher")["trained_steps"])


def steps_to(player: Player, level: float) -> str:
    """Agent steps until checkpoints in a row score more than a level: one may only be lucky."""
    curve = player.curves["score"]
    if len(curve.mean) >= IN_A_ROW:
        means = np.convolve(curve.mean, np.full(IN_A_ROW, 1 / IN_A_ROW), mode="valid")
        reached = curve.at[IN_A_ROW - 1 :][means > level]
        if len(reached):
            return f"{reached[0]:,.0f}"
    return f"more than {curve.at[-1]:,.0f}"


def cell(interval: Interval) -> str:
    """A value and its interval."""
    return f"{interval.value:,.1f} [{interval.low:,.1f}, {interval.high:,.1f}]"


def main() -> None:
    """Runs what is missing if asked, keeps what is finished, writes the page."""
    arguments = records.parse(__doc__, Path("runs/guided_scores"), commands())
    if arguments.run is not None:
        for name in arguments.run or commands():  # guides first: others need them
            if name.startswith("guide_"):
                train_guide(name, arguments.folder / name)
            else:
                records.run_missing(arguments.folder, RECORDS, commands(), [name])
    for path in sorted(arguments.folder.glob("*/evaluation.json")):
        records.keep(path.parent, RECORDS / path.parent.name)
    pages.write_part("docs/guided.md", "guided_scores.py", render())


if __name__ == "__main__":
    main()
