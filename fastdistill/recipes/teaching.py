# SPDX-License-Identifier: MIT
"""What the teacher recipes share: the loop, and the evaluation at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.networks import load_network, save_network
from fastdistill.recipes.best_teacher import MAX_LANES, judging_games
from fastdistill.recipes.teaching_config import TeachingConfig
from fastdistill.training.configuration import command_line
from fastdistill.training.guide import GUIDED, Guide
from fastdistill.training.run import Run


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher recipe ends with.

    Attributes:
        stopped: Told to stop before its time; it has left a checkpoint.
        step: Agent steps taken.
        recent_return: Mean of the last training episodes, None with fewer than 20.
        evaluation: What ``evaluation.json`` holds; empty if there was none.
    """

    stopped: bool
    step: int
    recent_return: float | None
    evaluation: dict[str, Any]


class Teaching(Protocol):
    """The parts of a teacher's training."""

    def begin(self) -> None:
        """Continue from a checkpoint, or from nothing."""

    def step(self) -> None:
        """Some play, and the updates that are then due."""

    def log(self) -> None:
        """Record what happened since the last record."""

    def judge(self, *, stopped: bool) -> bool:
        """Keep the network if it is the best so far; ``stopped``, there is no time to play."""

    def checkpoint(self) -> None:
        """Write everything to continue from."""


def teach(config: TeachingConfig, run: Run[Any], parts: Teaching) -> None:
    """The loop of every teacher recipe, to its end or to where it was told to stop."""

    def over() -> bool:
        return run.at.step >= config.total_steps or run.at.reached(config.stop_at_return)

    parts.begin()
    stopping, run.finished = False, over()  # a finished run may be resumed: not a step more
    while not (run.finished or stopping):
        parts.step()
        if run.due("log"):
            parts.log()
        run.finished = over()
        due, stopping = run.due("checkpoint"), run.stopping  # asked once: it can come at any moment
        if run.finished or stopping or due:
            # Where it would have been judged anyway it is judged, stopped or not.
            parts.judge(stopped=not (run.finished or due))
            parts.checkpoint()


def finish(
    config: TeachingConfig,
    run: Run[Any],
    device: torch.device,
    students: Callable[[int], Iterable[Player]] = lambda _: (),
    guide: Guide | None = None,
) -> TeacherResult:
    """Evaluate the teacher of a finished run; its score goes into its card, too.

    Args:
        config: ``evaluation_episodes`` full games of each.
        run: At its end, or where it was told to stop.
        device: Where they play.
        students: Those of each game, by its place, who play the same episodes.
        guide: Of the one game; the record then has it as the teacher, and the network beside it.
    """
    record: dict[str, Any] = {}
    if run.finished and config.evaluation_episodes:
        network, card = load_network(run.directory / "teacher")
        network = network.to(device)
        with judging_games(config, config.evaluation_episodes) as games:
            records = [
                compare(
                    *_sides(config, player, students(place), guide),
                    env,
                    episodes=config.evaluation_episodes,
                    seed=config.seed,
                    device=device,
                    epsilon=config.evaluation_epsilon,
                )
                for place, (env, player) in enumerate(
                    zip(games, map(network.for_task, range(len(games))), strict=True)
                )
            ]
        record = together(records)
        record |= {
            "training_seconds": run.at.training_seconds,
            "updates": run.at.updates,
            "commands": [command_line(config)],
        }
        kept = {key: value for key, value in card.items() if key not in ("format", "weights")}
        for own, played in zip(kept.get("games", [kept]), records, strict=True):
            own["scores"] = [_score(played, played["students"][0] if guide else played["teacher"])]
        save_network(run.directory / "teacher", network, kept)
        if len(records) == 1:  # returns of several games have no common scale
            summary = (record["students"][0] if guide else record["teacher"])["summary"]
            run.write(
                {
                    "eval/return_mean": summary["mean"]["value"],
                    "eval/return_std": summary["std"],
                    "eval/episodes": summary["episodes"],
                }
            )
        write_evaluation(run.directory, record)
    return TeacherResult(not run.finished, run.at.step, run.at.recent_return, record)


def _sides(
    config: TeachingConfig, network: nn.Module, students: Iterable[Player], guide: Guide | None
) -> tuple[Player, Iterable[Player]]:
    """Who is measured by whom."""
    if guide is None:
        return Player("teacher", network, network, {}), students
    teacher = guide.teacher
    facts = {"kind": GUIDED, "size": config.size_name, "seed": config.seed}
    return (
        Player("teacher", teacher, teacher.module, {}),
        [Player(GUIDED, network, network, facts)],
    )


def _score(record: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What a card says of an evaluation."""
    score = {key: record[key] for key in ("preset", "epsilon", "seed", "settings", "versions")}
    score["num_lanes"] = min(MAX_LANES, record["episodes"])
    of_it = ("returns", "lengths_steps", "truncated", "summary")
    return score | {key: entry[key] for key in of_it}
