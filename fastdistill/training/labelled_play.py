# SPDX-License-Identifier: MIT
"""Labelled play: whoever drives, the teacher's view of every state, and a replay of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.training.collector import Collector, into_replay
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import DRIVER_STEPS, Drivers
from fastdistill.training.inputs import STATISTICS_BATCHES, STATISTICS_ROWS, InputStatistics
from fastdistill.training.learners.student import Student
from fastdistill.training.run import say
from fastdistill.training.shares import Shares, lane_groups, rows_of, sample_tasks
from fastdistill.training.state import check_state, select, under
from fastdistill.training.targets import auto_temperature
from fastdistill.training.task import Task


class Lesson(NamedTuple):
    """A batch of labelled states, ordered by task.

    Attributes:
        obs: ``[batch, *obs_shape]``, of all tasks.
        labels: Each task's ``[rows, actions]`` float32 values of its teacher; rows may be 0.
    """

    obs: Tensor
    labels: tuple[Tensor, ...]


class _Stage(NamedTuple):
    """Where a task is played."""

    task: Task
    env: LaneEnv
    drivers: Drivers
    collector: Collector


class LabelledPlay:
    """Tasks under play, and the labelled states that students learn from.

    Attributes:
        tasks: What is played, one environment each.
        replay: States with the teachers' values of them, drawn uniformly within a task. Labels of
            a task with fewer actions than others end in zeros.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        envs: Sequence[LaneEnv],
        students: Sequence[Student],
        counters: Counters,
        *,
        replay_capacity: int,
        seed: int,
        bfloat16: bool,
    ) -> None:
        self.tasks = list(tasks)
        spec, lanes = tasks[0].spec, envs[0].num_lanes
        self._width = max(task.spec.num_actions for task in tasks)
        self.replay = PrioritizedReplay(
            replay_capacity,
            lanes * len(tasks),
            frame_shape=spec.frame_shape,
            frame_dtype=envs[0].obs.dtype.name,
            stack=spec.stack,
            priority_exponent=0,
            columns={"teacher_logits": ((self._width,), "float32")},
            seed=streams.native_seed(seed, streams.LEARNING),
            lanes_per_task=[lanes] * len(tasks),
        )
        self._seed = seed
        self._counters = counters
        self._shares = Shares([task.weight for task in tasks])
        self._num_lanes = lanes * len(tasks)
        self._stages = []
        groups = lane_groups(lanes, len(tasks))
        for place, (task, env, group) in enumerate(zip(tasks, envs, groups, strict=True)):
            networks = [student.player(place) for student in students]
            drivers = Drivers(task.teacher, networks, lanes, width=self._width, bfloat16=bfloat16)
            store = into_replay(
                self.replay, clip_rewards=False, columns=("teacher_logits",), lanes=group
            )
            collector = Collector(env, drivers, store, counters, seed=seed, task=place)
            self._stages.append(_Stage(task, env, drivers, collector))

    def reset(self) -> None:
        """Begin."""
        for place, stage in enumerate(self._stages):
            stage.env.reset(streams.words(self._seed, streams.TRAINING, place))

    def step(self, epsilon: float, students_share: float | None) -> None:
        """One step of every lane, game after game.

        Args:
            epsilon: Share of random actions.
            students_share: Share of the lanes that students drive; None where only the teacher
                ever does.
        """
        counters = self._counters
        draws = counters.step // self._num_lanes % DRIVER_STEPS == 0
        for _, _, drivers, collector in self._stages:
            if students_share is not None and draws:
                drivers.draw(students_share, collector.rng)
            # Before its first update a student has no input statistics, and nothing to say.
            drivers.students_ready = counters.updates > 0
            collector.step(epsilon)
        counters.step += self._num_lanes

    def measure(self) -> list[tuple[Tensor, Tensor]]:
        """Each task's mean and deviation of what was seen; on the way its automatic temperature."""
        return [self._measure(place, task) for place, task in enumerate(self.tasks)]

    def _measure(self, place: int, task: Task) -> tuple[Tensor, Tensor]:
        labels: list[Tensor] = []
        statistics = InputStatistics(task.spec)
        counts = [0] * len(self.tasks)
        counts[place] = STATISTICS_ROWS
        for _ in range(STATISTICS_BATCHES):
            batch = sample_tasks(self.replay, counts, next_obs=False)
            labels.append(batch.columns["teacher_logits"][:, : task.spec.num_actions].clone())
            statistics.add(batch.obs)
        if task.temperature == 0.0:
            task.temperature = auto_temperature(torch.cat(labels))
            of = f" of {task.name}" if len(self.tasks) > 1 else ""
            say(f"temperature{of} {task.temperature:.3g}, fitted to the teacher's values")
        return statistics.mean_and_std()

    def sample(self, batch_size: int) -> Lesson:
        """Observations and the teachers' values of them, on the teachers' device."""
        batch = sample_tasks(self.replay, self._shares.take(batch_size), next_obs=False)
        self._counters.lap("replay")
        return self._lesson(batch)

    def _lesson(self, batch: ReplayBatch) -> Lesson:
        device = self.tasks[0].teacher.device
        obs = batch.obs.to(device, non_blocking=True)
        labels = batch.columns["teacher_logits"].to(device, non_blocking=True)
        if len(self.tasks) == 1:
            return Lesson(obs, (labels,))
        parts = torch.split(labels, rows_of(batch, len(self.tasks)))
        own = [
            part[:, : task.spec.num_actions].contiguous()
            for part, task in zip(parts, self.tasks, strict=True)
        ]
        return Lesson(obs, tuple(own))

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Let others play in environments that the caller lent, and go on where this one was."""
        lent = [(stage.env, stage.env.state()) for stage in self._stages if stage.env.is_lent]
        yield
        for env, state in lent:
            env.restore(state)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay: tensors, and plain JSON types."""
        tensors: dict[str, Tensor] = {}
        cards = []
        for place, (task, _, drivers, collector) in enumerate(self._stages):
            lanes, card = collector.state()
            tensors |= under(f"env{place}", lanes)
            cards.append(
                {
                    "collector": card,
                    "drivers": drivers.state(),
                    "temperature": task.temperature,
                    "levels": task.levels,
                }
            )
        return tensors, {"tasks": cards, "shares": self._shares.state()}

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        task_state = {"collector": {}, "drivers": {}, "temperature": 0.0, "levels": (None, [0.0])}
        check_state(card, {"shares": [0.0], "tasks": [task_state]}, "source")
        if not len(card["tasks"]) == len(card["shares"]) == len(self.tasks):
            raise ValueError(
                f"source.tasks must be of {len(self.tasks)} games, got {len(card['tasks'])}"
            )
        self._shares.restore(card["shares"])
        for place, (task, _, drivers, collector) in enumerate(self._stages):
            own = card["tasks"][place]
            collector.restore(select(tensors, f"env{place}"), own["collector"])
            drivers.restore(own["drivers"])
            task.temperature = own["temperature"]
            task.levels = None if own["levels"] is None else tuple(own["levels"])
