# SPDX-License-Identifier: MIT
"""What plays elsewhere for a learner here: an actor, what it is asked for, and what it hands over.

Nothing in here knows that Ray carries it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdistill import streams
from fastdistill.envs import EnvSpec, Episode, Step, make_env
from fastdistill.teachers import Teacher
from fastdistill.training.collector import Collector
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import DRIVER_STEPS, Drivers
from fastdistill.training.recording import Recording

# Steps of each lane in a block. Drivers are drawn anew with each, as they are in play here.
BLOCK_STEPS = DRIVER_STEPS


@dataclass(frozen=True)
class Plan:
    """What an actor is made from.

    Attributes:
        spec: Of the environment.
        num_lanes: Its own.
        teacher: On the CPU.
        networks: Of the students' games, on the CPU.
        bfloat16: Whether they compute under bfloat16 autocast.
        seed: Of the run.
        task: Its place.
    """

    spec: EnvSpec
    num_lanes: int
    teacher: Teacher
    networks: list[nn.Module]
    bfloat16: bool
    seed: int
    task: int


class Order(NamedTuple):
    """What an actor is asked for.

    Attributes:
        life: Rises when the actor has died; with a new one the lanes begin anew.
        number: Of the block in that life, from 0.
        epsilon: Share of random actions.
        students_share: Share of the lanes that students drive; None where none ever does.
        updates: Of the weights that the students drive with; 0 before there are any.
    """

    life: int
    number: int
    epsilon: float
    students_share: float | None
    updates: int


class Block(NamedTuple):
    """What an actor hands over.

    Attributes:
        order: What it was asked for.
        rows: ``[steps, lanes, ...]`` each: ``frames``, those of ``shards.ROWS``, and
            ``teacher_logits``.
        episodes: That ended in it.
        checksum: CRC-32 of all the rest.
    """

    order: Order
    rows: dict[str, NDArray[Any]]
    episodes: tuple[Episode, ...]
    checksum: int

    def is_whole(self, order: Order) -> bool:
        """Whether it is what was asked for, and as it was sent."""
        return self.order == order and self.checksum == checksum(order, self.rows)


def checksum(order: Order, rows: dict[str, NDArray[Any]]) -> int:
    """CRC-32 of a block's order and rows."""
    found = zlib.crc32(repr(tuple(order)).encode())
    for name in sorted(rows):
        found = zlib.crc32(np.ascontiguousarray(rows[name]).data, zlib.crc32(name.encode(), found))
    return found


class Reborn(RuntimeError):  # noqa: N818 (it names what happened)
    """The process that had these lanes and these weights is no more."""


class Actor:
    """What runs in an actor's process."""

    def __init__(self, plan: Plan, place: int) -> None:
        """Args:
        plan: Of all actors of the task.
        place: Among them.
        """  # noqa: D205
        torch.set_num_threads(1)
        self._plan = plan
        self._place = place
        self._life = -1
        lanes, spec = plan.num_lanes, plan.spec
        env = make_env(
            spec.name, lanes, preset=spec.preset or "classic", training=False, num_threads=1
        )
        self._drivers = Drivers(plan.teacher, plan.networks, lanes, bfloat16=plan.bfloat16)
        self._recording = Recording(lanes)
        self._episodes: list[Episode] = []
        self._collector = Collector(
            env, self._drivers, self._store, Counters(), seed=plan.seed, task=plan.task
        )

    def collect(self, order: Order, weights: list[dict[str, NDArray[Any]]] | None) -> Block:
        """Play a block.

        Args:
            order: What is asked for.
            weights: Each student's state, if it is another than before.

        Raises:
            Reborn: It began another process's games. Between two questions an actor can die, and be
                started again, without anybody's notice.
        """
        if order.life != self._life:
            if order.number > 0:
                raise Reborn(f"asked for block {order.number} of life {order.life}")
            self._life = order.life
            part = (self._place, order.life)
            words = streams.words(self._plan.seed, streams.TRAINING, self._plan.task, part)
            self._collector.env.reset(words)
            self._collector.rng = streams.generator(
                self._plan.seed, streams.ACTING, self._plan.task, part
            )
            self._recording.begins[:] = True
        if weights is not None:
            for network, state in zip(self._plan.networks, weights, strict=True):
                network.load_state_dict({name: torch.tensor(state[name]) for name in state})
        self._drivers.students_ready = order.updates > 0
        if order.students_share is not None:
            self._drivers.draw(order.students_share, self._collector.rng)
        self._episodes = []
        for _ in range(BLOCK_STEPS):
            self._collector.step(order.epsilon)
        rows = self._recording.take()
        return Block(order, rows, tuple(self._episodes), checksum(order, rows))

    def _store(self, obs: NDArray[Any], step: Step, said: dict[str, NDArray[Any]]) -> None:
        self._recording.store(obs, step, said)
        self._episodes.extend(step.episodes)
