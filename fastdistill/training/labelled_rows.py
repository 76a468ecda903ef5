# SPDX-License-Identifier: MIT
"""Labelled states in a replay, wherever they are from, and the batches that students learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.training.counters import Counters
from fastdistill.training.inputs import STATISTICS_BATCHES, STATISTICS_ROWS, InputStatistics
from fastdistill.training.ranks import ALONE, Ranks
from fastdistill.training.run import say
from fastdistill.training.shares import Shares, rows_of, sample_tasks
from fastdistill.training.state import check_state
from fastdistill.training.targets import auto_temperature
from fastdistill.training.task import Task

# What the state of one task is like, see ``check_state``; sources have more of their own in it.
_TASK = {"temperature": 0.0, "levels": (None, [0.0])}


class Lesson(NamedTuple):
    """A batch of labelled states, ordered by task.

    Attributes:
        obs: ``[batch, *obs_shape]``, of all tasks.
        labels: Each task's ``[rows, actions]`` float32 values of its teacher; rows may be 0.
    """

    obs: Tensor
    labels: tuple[Tensor, ...]


class LabelledRows:
    """Labelled states of several tasks.

    Whoever fills the replay (emulators here, shards, actors elsewhere) is a subclass.

    Attributes:
        tasks: What the states are of.
        replay: States with the teachers' values of them, drawn uniformly within a task. Labels of
            a task with fewer actions than others end in zeros.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        lanes_per_task: Sequence[int],
        counters: Counters,
        *,
        frame_dtype: str,
        replay_capacity: int,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.tasks = list(tasks)
        spec = tasks[0].spec
        self._width = max(task.spec.num_actions for task in tasks)
        self._num_lanes = sum(lanes_per_task)
        self._ranks = ranks
        self.replay = PrioritizedReplay(
            replay_capacity,
            self._num_lanes,
            frame_shape=spec.frame_shape,
            frame_dtype=frame_dtype,
            stack=spec.stack,
            priority_exponent=0,
            columns={"teacher_logits": ((self._width,), "float32")},
            seed=streams.native_seed(seed, streams.LEARNING, (ranks.rank,)),
            lanes_per_task=list(lanes_per_task),
        )
        self._seed = seed
        self._counters = counters
        self._shares = Shares([task.weight for task in tasks])

    def measure(self) -> list[tuple[Tensor, Tensor]]:
        """Each task's mean and deviation of what was seen; on the way its automatic temperature."""
        found = [self._measure(place, task) for place, task in enumerate(self.tasks)]
        temperatures = torch.tensor([task.temperature for task in self.tasks], dtype=torch.float64)
        self._ranks.take_from_first([temperatures, *(part for both in found for part in both)])
        for task, temperature in zip(self.tasks, temperatures.tolist(), strict=True):
            task.temperature = temperature
        return found

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

    def obs_of(self, place: int, rows: int) -> Tensor:
        """So many observations of one task, drawn uniformly."""
        counts = [0] * len(self.tasks)
        counts[place] = rows
        return sample_tasks(self.replay, counts, next_obs=False).obs

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
        """Let others play meanwhile, in whatever is played here."""
        yield

    def metrics(self) -> dict[str, float]:
        """What is recorded of it."""
        return {"replay/size": len(self.replay)}

    def tasks_state(self) -> dict[str, Any]:
        """Each task's own, and the shares, as plain JSON types."""
        tasks = [{"temperature": task.temperature, "levels": task.levels} for task in self.tasks]
        return {"tasks": tasks, "shares": self._shares.state()}

    def restore_tasks(self, card: dict[str, Any], more: dict[str, Any]) -> None:
        """The reverse of ``tasks_state``.

        Args:
            card: Whose ``tasks`` may hold more of each.
            more: What that is like, see ``check_state``.
        """
        check_state(card, {"shares": [0.0], "tasks": [{**more, **_TASK}]}, "source")
        if not len(card["tasks"]) == len(card["shares"]) == len(self.tasks):
            raise ValueError(
                f"source.tasks must be of {len(self.tasks)} games, got {len(card['tasks'])}"
            )
        self._shares.restore(card["shares"])
        for task, own in zip(self.tasks, card["tasks"], strict=True):
            task.temperature = own["temperature"]
            task.levels = None if own["levels"] is None else tuple(own["levels"])
