# SPDX-License-Identifier: MIT
"""The full games by which a distillation's students are judged, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdistill.envs import LaneEnv, make_env
from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.tasks import share_of_cores
from fastdistill.training.configuration import command_line
from fastdistill.training.learners.student import OwnStudent
from fastdistill.training.publishing import publish_student
from fastdistill.training.run import Run
from fastdistill.training.students import Students
from fastdistill.training.task import Task


class Judges:
    """Environments of full games, one for each task, made when first wanted."""

    def __init__(self, tasks: Sequence[Task], *, preset: str, num_lanes: int) -> None:
        self._tasks = tasks
        self._preset = preset
        self._num_lanes = num_lanes
        self._games: list[LaneEnv] = []

    def games(self) -> list[LaneEnv]:
        """The environments; half a second to make, so only if they are wanted."""
        if not self._games:
            self._games = [
                make_env(
                    task.source or task.name,
                    self._num_lanes,
                    preset=task.spec.preset or self._preset,
                    training=False,
                    num_threads=share_of_cores(),
                    view=task.student_view,
                    teacher_view=task.teacher.view,
                )
                for task in self._tasks
            ]
        return self._games

    def close(self) -> None:
        """Free the emulators."""
        for env in self._games:
            env.close()


def evaluate(
    config: DistillConfig,
    run: Run[DistillConfig],
    tasks: Sequence[Task],
    students: Students,
    judges: Judges,
    own: OwnStudent | None,
) -> dict[str, Any]:
    """Play with teachers and students as they were saved, and write what comes out.

    Args:
        config: ``evaluation_episodes`` full games of each; none where it is 0.
        run: At its end.
        tasks: Of it.
        students: Of it.
        judges: Where they play.
        own: Makes them, if they are modules of the caller's.

    Returns:
        What ``evaluation.json`` holds; empty if no evaluation is wanted.
    """
    if not config.evaluation_episodes:
        return {}
    records = [
        compare(
            _teacher(config, task),
            students.players(own, place),
            env,
            episodes=config.evaluation_episodes,
            seed=config.seed,
            device=task.teacher.device,
        )
        for place, (task, env) in enumerate(zip(tasks, judges.games(), strict=True))
    ]
    record = together(records) | {
        "training_seconds": run.at.training_seconds,
        "updates": run.at.updates,
        "commands": [command_line(config)],
    }
    publish_student(run.directory, students.learning[0].name)
    write_evaluation(run.directory, record)
    return record


def _teacher(config: DistillConfig, task: Task) -> Player:
    recorded = None
    if not config.evaluate_teacher:
        recorded = task.recorded_level(config.evaluation_episodes)
    return Player("teacher", task.teacher, task.teacher.module, {}, recorded)
