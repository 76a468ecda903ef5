# SPDX-License-Identifier: MIT
"""The full games by which a distillation's students are judged, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdistill.envs import LaneEnv
from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.tasks import play_env
from fastdistill.training.learners.student import OwnStudent
from fastdistill.training.publishing import publish_student
from fastdistill.training.run import Run
from fastdistill.training.students import Students
from fastdistill.training.task import Task


class Judges:
    """Environments of full games, one for each task, made when first wanted."""

    def __init__(self, config: DistillConfig, tasks: Sequence[Task]) -> None:
        self._config = config
        self._tasks = tasks
        self._games: list[LaneEnv] = []

    def games(self) -> list[LaneEnv]:
        """The environments; half a second to make, so only if they are wanted."""
        if not self._games:
            config = self._config
            lanes = max(config.score_episodes, min(config.evaluation_episodes, 10), 1)
            self._games = [
                play_env(
                    task.source,
                    lanes,
                    config.preset,
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
        self, run: Run[DistillConfig], students: Students, own: OwnStudent | None
    ) -> dict[str, Any]:
        """Play with teachers and students as they were saved, and write what comes out.

        Args:
            run: At its end.
            students: Of it.
            own: Makes them, if they are modules of the caller's.

        Returns:
            What ``evaluation.json`` holds; empty if no evaluation is wanted.
        """
        config = self._config
        if not config.evaluation_episodes:
            return {}
        records = [
            compare(
                Player("teacher", task.teacher, task.teacher.module, {}),
                students.players(own, place),
                env,
                episodes=config.evaluation_episodes,
                seed=config.seed,
                device=task.teacher.device,
            )
            for place, (task, env) in enumerate(zip(self._tasks, self.games(), strict=True))
        ]
        record = together(records) | {
            "training_seconds": run.at.training_seconds,
            "updates": run.at.updates,
            "commands": [config.command()],
        }
        publish_student(run.directory, students.learning[0].name)
        write_evaluation(run.directory, record)
        return record
