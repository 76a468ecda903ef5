# SPDX-License-Identifier: MIT
"""Play for a short while, learned from once and thrown away: PQN's rollout and its returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import EnvSpec, LaneEnv, Step
from fastdistill.networks import QNetwork
from fastdistill.training.collector import Collector, network_driver
from fastdistill.training.counters import Counters
from fastdistill.training.inputs import random_play_statistics


class Minibatch(NamedTuple):
    """Rows of a rollout.

    Attributes:
        obs: ``[batch, *obs_shape]``.
        action: ``[batch]`` int64.
        returns: ``[batch]`` float32.
    """

    obs: Tensor
    action: Tensor
    returns: Tensor


class RolloutPlay:
    """A game under play by the network that learns, rollout after rollout.

    Attributes:
        env: The game.
        rollout: The newest.
    """

    def __init__(
        self,
        env: LaneEnv,
        network: QNetwork,
        counters: Counters,
        *,
        rollout_steps: int,
        discount: float,
        trace_decay: float,
        clip_rewards: bool,
        seed: int,
        bfloat16: bool,
    ) -> None:
        self.env = env
        self._network = network
        self._counters = counters
        self._seed = seed
        self._discount = discount
        self._trace_decay = trace_decay
        device = network.obs_mean.device
        self.rollout = Rollout.allocate(
            env.spec, rollout_steps, env.num_lanes, device, clip_rewards=clip_rewards
        )
        self._driver = network_driver(network, device, bfloat16=bfloat16)
        self._collector = Collector(env, self._driver, self.rollout.store, counters, seed=seed)

    def reset(self, *, spread_steps: int) -> None:
        """Take the network's input statistics from random play, and start the lanes.

        Args:
            spread_steps: Random steps of each lane, over which the lanes start one by one.
        """
        statistics = streams.words(self._seed, streams.STATISTICS)
        self._network.set_obs_statistics(*random_play_statistics(self.env, seed=statistics))
        self.env.reset(streams.words(self._seed, streams.TRAINING))
        self.env.spread(spread_steps)

    def play(self, epsilon: float) -> None:
        """Fill the rollout with epsilon-greedy play and its lambda-returns."""
        for _ in range(len(self.rollout.obs)):
            self._collector.step(epsilon)
        last = self._driver(self.env)
        self.rollout.finish(
            last.columns["value"], discount=self._discount, trace_decay=self._trace_decay
        )
        self._counters.step += self.rollout.action.numel()
        self._counters.lap("act")

    def minibatches(self, batch_size: int, epochs: int) -> Iterator[Minibatch]:
        """Some passes over the rollout, each in an order of its own.

        Args:
            batch_size: Rows of each; fewer where the rollout has fewer. The rest of a pass is left
                out, other rows at each.
            epochs: Passes.
        """
        rollout = self.rollout
        obs, action = rollout.obs.flatten(0, 1), rollout.action.flatten()
        returns = rollout.returns.flatten()
        rows = np.flatnonzero(~rollout.boundary.ravel())
        batch_size = min(batch_size, len(rows))
        if not batch_size:  # the last rows of games, all of them
            return
        for _ in range(epochs):
            order = torch.from_numpy(self._collector.rng.permutation(rows)).to(obs.device)
            for chosen in torch.split(order, batch_size):
                if len(chosen) == batch_size:
                    yield Minibatch(obs[chosen], action[chosen], returns[chosen])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from, between two rollouts: tensors, and plain JSON types."""
        return self._collector.state()

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        self._collector.restore(tensors, card)


@dataclass(eq=False)
class Rollout:
    """What one playing phase leaves for the learning phase, ``[rollout_steps, lanes, ...]``.

    Attributes:
        obs: Observations, on the device.
        action: int64, on the device.
        returns: Lambda-returns, float32, on the device.
        value: Largest Q-value of each observation.
        reward: As learned from.
        terminated: The return ends at this row.
        boundary: Rows that are no transitions.
        clip_rewards: Whether to learn from the sign of the rewards.
        time_step: The next row to be written.
    """

    obs: Tensor
    action: Tensor
    returns: Tensor
    value: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    boundary: NDArray[np.bool_]
    clip_rewards: bool
    time_step: int = 0

    @classmethod
    def allocate(
        cls,
        spec: EnvSpec,
        rollout_steps: int,
        num_lanes: int,
        device: torch.device,
        *,
        clip_rewards: bool,
    ) -> Rollout:
        """Buffers to be filled again and again."""
        shape = (rollout_steps, num_lanes)
        return cls(
            obs=torch.empty((*shape, *spec.obs_shape), dtype=spec.obs_dtype, device=device),
            action=torch.zeros(shape, dtype=torch.int64, device=device),
            returns=torch.zeros(shape, device=device),
            value=np.zeros(shape, np.float32),
            reward=np.zeros(shape, np.float32),
            terminated=np.zeros(shape, np.bool_),
            boundary=np.zeros(shape, np.bool_),
            clip_rewards=clip_rewards,
        )

    def store(self, obs: NDArray[Any], step: Step, columns: dict[str, NDArray[Any]]) -> None:
        """Take one step of every lane, with the driver's column ``value``."""
        time_step = self.time_step % len(self.obs)
        self.obs[time_step].copy_(torch.from_numpy(obs))
        self.action[time_step].copy_(torch.from_numpy(step.action))
        self.value[time_step] = columns["value"]
        self.reward[time_step] = np.sign(step.reward) if self.clip_rewards else step.reward
        self.terminated[time_step] = step.terminated
        self.boundary[time_step] = step.boundary
        self.time_step += 1

    def finish(
        self, last_value: NDArray[np.float32], *, discount: float, trace_decay: float
    ) -> None:
        """Compute the returns of a full rollout; ``last_value`` is ``[lanes]``, of what follows."""
        returns = lambda_returns(
            self.reward,
            self.value,
            last_value,
            self.terminated,
            self.boundary,
            discount=discount,
            trace_decay=trace_decay,
        )
        self.returns.copy_(torch.from_numpy(returns))

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a post-mortem."""
        arrays = {name: value for name, value in vars(self).items() if hasattr(value, "shape")}
        return {name: torch.as_tensor(value) for name, value in arrays.items()}


def lambda_returns(
    reward: NDArray[np.float32],
    value: NDArray[np.float32],
    last_value: NDArray[np.float32],
    terminated: NDArray[np.bool_],
    boundary: NDArray[np.bool_],
    *,
    discount: float,
    trace_decay: float,
) -> NDArray[np.float32]:
    """Q(lambda) targets, computed backwards.

    ``G_t = r_t + discount * (1 - terminated_t) * (v_{t+1} + trace_decay * (G_{t+1} - v_{t+1}))``.
    A boundary row is worth its own value: an episode cut before it bootstraps from its final
    observation, and nothing leaks from the next episode.

    Args:
        reward: ``[steps, lanes]``.
        value: ``[steps, lanes]``, the largest Q-value of each row's observation.
        last_value: ``[lanes]``, that of the observation after the last row.
        terminated: ``[steps, lanes]``.
        boundary: ``[steps, lanes]``.
        discount: In [0, 1].
        trace_decay: In [0, 1].

    Source: Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning", section 4.
    """
    returns = np.empty_like(value)
    next_value, next_return = last_value, last_value
    for time_step in reversed(range(len(reward))):
        ahead = next_value + trace_decay * (next_return - next_value)
        target = reward[time_step] + discount * ahead * ~terminated[time_step]
        returns[time_step] = np.where(boundary[time_step], value[time_step], target)
        next_value, next_return = value[time_step], returns[time_step]
    return returns
