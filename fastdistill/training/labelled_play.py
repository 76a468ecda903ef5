# SPDX-License-Identifier: MIT
"""Labelled play: whoever drives, the teacher's view of every state, and a replay of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv
from fastdistill.replay import PrioritizedReplay
from fastdistill.training.collector import Collector, into_replay
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import DRIVER_STEPS, Drivers
from fastdistill.training.inputs import STATISTICS_BATCHES, STATISTICS_ROWS, InputStatistics
from fastdistill.training.learners.student import Student
from fastdistill.training.run import say
from fastdistill.training.state import check_state, select, under
from fastdistill.training.targets import auto_temperature
from fastdistill.training.task import Task


class LabelledPlay:
    """A task under play, and the labelled states that students learn from.

    Attributes:
        task: What is played.
        replay: States with the teacher's values of them, drawn uniformly.
    """

    def __init__(
        self,
        task: Task,
        env: LaneEnv,
        students: Sequence[Student],
        counters: Counters,
        *,
        replay_capacity: int,
        seed: int,
        bfloat16: bool,
    ) -> None:
        self.task = task
        self.replay = PrioritizedReplay(
            replay_capacity,
            env.num_lanes,
            frame_shape=task.spec.frame_shape,
            frame_dtype=env.obs.dtype.name,
            stack=task.spec.stack,
            priority_exponent=0,
            columns={"teacher_logits": ((task.spec.num_actions,), "float32")},
            seed=streams.native_seed(seed, streams.LEARNING),
        )
        self._env = env
        self._seed = seed
        self._counters = counters
        self._drivers = Drivers(task.teacher, students, env.num_lanes, bfloat16=bfloat16)
        store = into_replay(self.replay, clip_rewards=False, columns=("teacher_logits",))
        self._collector = Collector(env, self._drivers, store, counters, seed=seed)

    def reset(self) -> None:
        """Begin."""
        self._env.reset(streams.words(self._seed, streams.TRAINING))

    def step(self, epsilon: float, students_share: float | None) -> None:
        """One step of every lane.

        Args:
            epsilon: Share of random actions.
            students_share: Share of the lanes that students drive; None where only the teacher
                ever does.
        """
        counters, lanes = self._counters, self._env.num_lanes
        if students_share is not None and counters.step // lanes % DRIVER_STEPS == 0:
            self._drivers.draw(students_share, self._collector.rng)
        # Before its first update a student has no input statistics, and nothing to say.
        self._drivers.students_ready = counters.updates > 0
        self._collector.step(epsilon)
        counters.step += lanes

    def measure(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what was seen; an automatic temperature is fitted on the way."""
        labels: list[Tensor] = []
        statistics = InputStatistics(self.task.spec)
        for _ in range(STATISTICS_BATCHES):
            batch = self.replay.sample(STATISTICS_ROWS, next_obs=False)
            labels.append(batch.columns["teacher_logits"].clone())
            statistics.add(batch.obs)
        if self.task.temperature == 0.0:
            self.task.temperature = auto_temperature(torch.cat(labels))
            say(f"temperature {self.task.temperature:.3g}, fitted to the teacher's values")
        return statistics.mean_and_std()

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Observations and the teacher's values of them, on the teacher's device."""
        batch = self.replay.sample(batch_size, next_obs=False)
        self._counters.lap("replay")
        device = self.task.teacher.device
        obs = batch.obs.to(device, non_blocking=True)
        return obs, batch.columns["teacher_logits"].to(device, non_blocking=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay: tensors, and plain JSON types."""
        lanes, collector = self._collector.state()
        return under("env", lanes), {
            "collector": collector,
            "drivers": self._drivers.state(),
            "temperature": self.task.temperature,
        }

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(card, {"collector": {}, "drivers": {}, "temperature": 0.0}, "source")
        self._collector.restore(select(tensors, "env"), card["collector"])
        self._drivers.restore(card["drivers"])
        self.task.temperature = card["temperature"]
