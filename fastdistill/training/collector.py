# SPDX-License-Identifier: MIT
"""Collecting play: one task's lanes, who drives them, and where the rows go.

The only place that acts in a training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import EnvFault, LaneEnv, Policy, Step, epsilon_greedy, policy_values
from fastdistill.replay import PrioritizedReplay
from fastdistill.training.counters import Counters
from fastdistill.training.state import check_state, env_tensors, restore_env


class Choice(NamedTuple):
    """What a driver says of each lane.

    Attributes:
        greedy: ``[lanes]``, the action it would take.
        columns: What else is to be kept of it, ``[lanes, ...]`` each.
    """

    greedy: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


# What its state is like, see ``check_state``.
_STATE = {
    "rng": {
        "bit_generator": "PCG64", "state": {"state": 0, "inc": 0}, "has_uint32": 0, "uinteger": 0,
    }
}  # fmt: skip

# Says what to do in the lanes as they stand.
Driver = Callable[[LaneEnv], Choice]

# Takes the observations that were acted on, the step, and the driver's columns.
Store = Callable[[NDArray[Any], Step, dict[str, NDArray[Any]]], None]


class Collector:
    """One task's lanes, who drives them and where the rows go.

    Attributes:
        env: The lanes.
        rng: Random numbers of acting.
    """

    def __init__(
        self,
        env: LaneEnv,
        driver: Driver,
        store: Store,
        counters: Counters,
        *,
        seed: int,
        task: int = 0,
        part: streams.Part = (),
    ) -> None:
        self.env = env
        self.rng = streams.generator(seed, streams.ACTING, task, part)
        self._driver = driver
        self._store = store
        self._counters = counters

    def step(self, epsilon: float | None) -> None:
        """One step of every lane, into the store.

        Args:
            epsilon: Share of random actions; None for random play, which asks no driver.
        """
        env, counters = self.env, self._counters
        obs, drawn = env.obs, self.rng.bit_generator.state
        columns: dict[str, NDArray[Any]] = {}
        if epsilon is None:
            action = self.rng.integers(env.spec.num_actions, size=env.num_lanes)
        else:
            greedy, columns = self._driver(env)
            action = epsilon_greedy(greedy, epsilon, env.spec.num_actions, self.rng)
        counters.lap("act")
        try:
            step = env.step(action)
        except EnvFault:
            self.rng.bit_generator.state = drawn  # that step was none
            raise
        counters.add_episodes(step.episodes)
        counters.lap("env")
        self._store(obs, step, columns)
        counters.lap("replay")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from: tensors, and plain JSON types."""
        return env_tensors(self.env.state()), {"rng": self.rng.bit_generator.state}

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(card, _STATE, "collector")
        restore_env(self.env, tensors)
        self.rng.bit_generator.state = card["rng"]


def network_driver(network: Policy, device: torch.device, *, bfloat16: bool) -> Driver:
    """A network drives; the column ``value`` is its largest output."""

    def drive(env: LaneEnv) -> Choice:
        best = policy_values(network, env.obs, device, bfloat16=bfloat16).max(dim=1)
        return Choice(best.indices.cpu().numpy(), {"value": best.values.cpu().numpy()})

    return drive


def into_replay(
    replay: PrioritizedReplay,
    *,
    clip_rewards: bool,
    columns: tuple[str, ...] = (),
    lanes: NDArray[np.int64] | None = None,
) -> Store:
    """Rows go into a replay, with these of the driver's columns, into these of its lanes."""

    def store(obs: NDArray[Any], step: Step, said: dict[str, NDArray[Any]]) -> None:
        replay.append(
            step.frame,
            step.action,
            np.sign(step.reward) if clip_rewards else step.reward,
            step.terminated,
            step.truncated,
            boundary=step.boundary,
            lanes=lanes,
            **{name: said[name] for name in columns},
        )

    return store
