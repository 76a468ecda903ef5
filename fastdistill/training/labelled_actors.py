# SPDX-License-Identifier: MIT
"""Labelled states from actors elsewhere: the learner's side.

An actor has lanes, the teacher and copies of the students that drive. It is asked for blocks of
rows, and may be asked for as many as ``AHEAD`` before the first has been taken: so it never waits
for a slower learner's next question, and never fills a slower learner's memory. Weights go with a
question, if there are newer ones than the actor has. A block says which one it is and carries a
checksum. An actor that died is started again by Ray; what it had not handed over is not missed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdistill.teachers import Teacher
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_rows import LabelledRows
from fastdistill.training.labelled_shards import LaneWriter
from fastdistill.training.learners.student import Student
from fastdistill.training.ray_actors import BLOCK_STEPS, Actor, Block, Order, Plan, Reborn
from fastdistill.training.ray_cluster import connect
from fastdistill.training.run import say
from fastdistill.training.state import check_state
from fastdistill.training.task import Task

# Blocks that an actor may be asked for and has not handed over.
AHEAD = 2
# An actor that has died so often without handing over anything in between is given up.
MAX_DEATHS = 20


class ActorsLost(RuntimeError):  # noqa: N818 (it names what happened)
    """An actor dies again and again."""


class _Remote:
    """An actor as the learner sees it."""

    def __init__(self, handle: Any, writer: LaneWriter) -> None:
        self.handle = handle
        self.writer = writer
        self.life = 0
        self.deaths = 0  # since it last handed over a block
        self.asked = 0  # blocks, in this life
        self.has = 0  # updates of the weights that it has, or is being sent
        self.pending: list[tuple[Any, Order, int]] = []  # and when it was asked for


class LabelledActors(LabelledRows):
    """Tasks under play by actors, and the labelled states that students learn from.

    Each step takes one block of each task. Students drove it with the weights of the moment when
    it was asked for, which is when the last block but ``AHEAD`` of the same actor was taken.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        students: Sequence[Student],
        counters: Counters,
        *,
        actors: int,
        num_lanes: int,
        replay_capacity: int,
        seed: int,
        bfloat16: bool,
    ) -> None:
        """Args:
        tasks: One set of actors each.
        students: Who may drive.
        counters: Of the run.
        actors: For each task.
        num_lanes: Of each actor.
        replay_capacity: States kept.
        seed: Of everything.
        bfloat16: Whether students compute under bfloat16 autocast.
        """  # noqa: D205
        lanes = actors * num_lanes
        super().__init__(
            tasks,
            [lanes] * len(tasks),
            counters,
            frame_dtype="uint8" if tasks[0].spec.is_image else "float32",
            replay_capacity=replay_capacity,
            seed=seed,
        )
        self._ray = connect()
        self._students = list(students)
        self._block_rows = BLOCK_STEPS * num_lanes
        self._plans: list[Any] = []
        self._weights: list[Any] = []  # of each task, as Ray keeps them
        self._weights_updates = 0
        self._restarts = self._questions = 0
        self._lags: list[int] = []
        # Default resources: the lease of a core to start on, none to run on.
        remote = self._ray.remote(max_restarts=-1, max_task_retries=0)(Actor)
        remote = remote.options(scheduling_strategy="SPREAD")
        self._actors: list[list[_Remote]] = []
        for place, task in enumerate(tasks):
            plan = Plan(
                spec=task.spec,
                num_lanes=num_lanes,
                teacher=_on_cpu(task.teacher),
                networks=[deepcopy(student.player(place)).cpu() for student in students],
                bfloat16=bfloat16,
                seed=seed,
                task=place,
            )
            # Kept: an actor that is started again reads it again.
            self._plans.append(self._ray.put(plan))
            first = place * lanes
            self._actors.append(
                [
                    _Remote(
                        remote.remote(self._plans[-1], actor),
                        LaneWriter(
                            self.replay,
                            np.arange(num_lanes) + first + actor * num_lanes,
                            task.spec,
                            self._width,
                        ),
                    )
                    for actor in range(actors)
                ]
            )

    def reset(self, again: int = 0) -> None:
        """Begin; lanes do so with the first question."""

    def step(self, epsilon: float, students_share: float | None) -> None:
        """A block of each task.

        Args:
            epsilon: Share of random actions.
            students_share: Share of the lanes that students drive; None where only the teacher
                ever does.

        Raises:
            ActorsLost: An actor dies again and again.
        """
        self._publish(students_share)
        for place, actors in enumerate(self._actors):
            taken = False
            while not taken:
                for actor in actors:
                    self._ask(actor, place, epsilon, students_share)
                waiting = {actor.pending[0][0]: actor for actor in actors}
                self._ray.wait(list(waiting), num_returns=1)
                ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
                self._counters.lap("wait")
                # What was asked for first has waited longest.
                oldest = min((waiting[one] for one in ready), key=lambda one: one.pending[0][2])
                taken = self._take(oldest)
                self._counters.lap("replay")
        self._counters.step += self._block_rows * len(self._actors)

    def _publish(self, students_share: float | None) -> None:
        """Hand Ray the students' weights, once for all actors."""
        updates = self._counters.updates
        if students_share is None or updates == self._weights_updates:
            return
        self._weights = [
            self._ray.put([_state(student.player(place)) for student in self._students])
            for place in range(len(self._actors))
        ]
        self._weights_updates = updates

    def _ask(
        self, actor: _Remote, place: int, epsilon: float, students_share: float | None
    ) -> None:
        while len(actor.pending) < AHEAD:
            news = self._weights[place] if actor.has != self._weights_updates else None
            actor.has = self._weights_updates
            order = Order(actor.life, actor.asked, epsilon, students_share, actor.has)
            self._questions += 1
            reference = actor.handle.collect.remote(order, news)
            actor.pending.append((reference, order, self._questions))
            actor.asked += 1

    def _take(self, actor: _Remote) -> bool:
        """The next block of an actor into its lanes; whether there was one."""
        reference, order, _ = actor.pending.pop(0)
        try:
            block: Block = self._ray.get(reference)
        except (self._ray.exceptions.RayActorError, Reborn) as error:  # dead, or started again
            self._begin_anew(actor, error)
            return False
        if not block.is_whole(order):
            say(f"left out: a block that is not as it was sent, number {order.number}")
            actor.writer.cut()
            return False
        actor.deaths = 0
        for step in range(BLOCK_STEPS):
            actor.writer.write({name: values[step] for name, values in block.rows.items()})
        self._counters.add_episodes(block.episodes)
        if order.students_share is not None:  # students may have driven
            self._lags.append(self._counters.updates - order.updates)
        return True

    def _begin_anew(self, actor: _Remote, error: Exception) -> None:
        """What an actor that died was asked for will not come; its lanes wait for other games."""
        actor.deaths += 1
        self._restarts += actor.deaths == 1
        if actor.deaths > MAX_DEATHS:
            raise ActorsLost(
                f"distill: actors must live long enough to play, got one that died {MAX_DEATHS} "
                f"times in a row: {' '.join(str(error).split())[:300]}"
            ) from error
        time.sleep(0.1 * (actor.deaths - 1))
        actor.writer.cut()
        actor.pending.clear()
        actor.life += 1
        actor.asked = actor.has = 0

    def metrics(self) -> dict[str, float]:
        """What is recorded of it since the last record."""
        lags, self._lags = self._lags, []
        values = {"actors/restarts": float(self._restarts)}
        if lags:
            values |= {
                "actors/weights_lag_mean": float(np.mean(lags)),
                "actors/weights_lag_max": float(max(lags)),
            }
        return {**super().metrics(), **values}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What there is to continue from: other games than so far, and the replay."""
        lives = [[actor.life for actor in actors] for actors in self._actors]
        return {}, {**self.tasks_state(), "lives": lives, "restarts": self._restarts}

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        self.restore_tasks(card, {})
        check_state(card, {"lives": [[0]], "restarts": 0}, "source")
        if [len(lives) for lives in card["lives"]] != [len(actors) for actors in self._actors]:
            raise ValueError(
                f"source.lives must be of {len(self._actors)} times {len(self._actors[0])} actors, "
                f"got {card['lives']}"
            )
        self._restarts = card["restarts"]
        for actors, lives in zip(self._actors, card["lives"], strict=True):
            for actor, life in zip(actors, lives, strict=True):
                actor.life = life + 1
                actor.writer.cut(everything=True)

    def close(self) -> None:
        """End the actors."""
        for actors in self._actors:
            for actor in actors:
                self._ray.kill(actor.handle)


def _on_cpu(teacher: Teacher) -> Teacher:
    module = deepcopy(teacher.module).cpu()
    return replace(teacher, module=module, device=torch.device("cpu"))


def _state(network: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
