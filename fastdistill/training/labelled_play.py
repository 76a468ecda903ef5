# SPDX-License-Identifier: MIT
"""Labelled play: whoever drives, the teacher's view of every state, and a replay of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv
from fastdistill.teachers import Teacher
from fastdistill.training.collector import Collector, into_replay
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import DRIVER_STEPS, Drivers
from fastdistill.training.labelled_rows import LabelledRows
from fastdistill.training.learners.student import Student
from fastdistill.training.ranks import ALONE, Ranks
from fastdistill.training.shares import lane_groups
from fastdistill.training.state import select, under
from fastdistill.training.task import Task


class _Stage(NamedTuple):
    """Where a task is played."""

    env: LaneEnv
    drivers: Drivers
    collector: Collector


class LabelledPlay(LabelledRows):
    """Tasks under play, one environment each, and the labelled states that students learn from."""

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
        ranks: Ranks = ALONE,
    ) -> None:
        lanes = envs[0].num_lanes
        super().__init__(
            tasks,
            [lanes] * len(tasks),
            counters,
            frame_dtype=envs[0].obs.dtype.name,
            replay_capacity=replay_capacity,
            seed=seed,
            ranks=ranks,
        )
        self._stages = []
        groups = lane_groups(lanes, len(tasks))
        for place, (task, env, group) in enumerate(zip(tasks, envs, groups, strict=True)):
            networks = [student.player(place) for student in students]
            drivers = Drivers(task.teacher, networks, lanes, width=self._width, bfloat16=bfloat16)
            store = into_replay(
                self.replay, clip_rewards=False, columns=("teacher_logits",), lanes=group
            )
            collector = Collector(
                env, drivers, store, counters, seed=seed, task=place, part=(ranks.rank,)
            )
            self._stages.append(_Stage(env, drivers, collector))

    def reset(self, again: int = 0) -> None:
        """Begin.

        Args:
            again: Where lanes begin anew in a run that has gone on for a while: any number that
                is not 0, for other games than before.
        """
        part = (self._ranks.rank, again)
        for place, (env, _, collector) in enumerate(self._stages):
            env.reset(streams.words(self._seed, streams.TRAINING, place, part))
            collector.rng = streams.generator(self._seed, streams.ACTING, place, part)

    def step(self, epsilon: float, students_share: float | None) -> None:
        """One step of every lane, game after game.

        Args:
            epsilon: Share of random actions.
            students_share: Share of the lanes that students drive; None where only the teacher
                ever does.
        """
        counters = self._counters
        lanes = self._num_lanes * self._ranks.world
        draws = counters.step // lanes % DRIVER_STEPS == 0
        for _, drivers, collector in self._stages:
            if students_share is not None and draws:
                drivers.draw(students_share, collector.rng)
            # Before its first update a student has no input statistics, and nothing to say.
            drivers.students_ready = counters.updates > 0
            collector.step(epsilon)
        counters.step += lanes

    def take_up(self, place: int, teacher: Teacher) -> None:
        """From now on another teacher of a task labels, and drives where the last one did."""
        self.tasks[place].teacher = teacher
        self._stages[place].drivers.teacher = teacher

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
        state = self.tasks_state()
        for place, (_, drivers, collector) in enumerate(self._stages):
            lanes, card = collector.state()
            tensors |= under(f"env{place}", lanes)
            state["tasks"][place] |= {"collector": card, "drivers": drivers.state()}
        return tensors, state

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        self.restore_tasks(card, {"collector": {}, "drivers": {}})
        for place, (_, drivers, collector) in enumerate(self._stages):
            own = card["tasks"][place]
            collector.restore(select(tensors, f"env{place}"), own["collector"])
            drivers.restore(own["drivers"])
