# SPDX-License-Identifier: MIT
"""Parallel Q-learning: a network that learns lambda-returns of what it has just played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.envs import EnvSpec, Step
from fastdistill.networks import QNetwork
from fastdistill.training.optimizing import clip_gradients, make_optimizer, set_learning_rate
from fastdistill.training.state import learner_tensors, restore_learner


class PqnLearner:
    """A network and its optimizer: one ``update`` per batch of transitions.

    Attributes:
        network: Learns; there is no target network.
        optimizer: Adam. The authors' RAdam is Adam with a warm-up; fused Adam and a warm-up take
            0.7 ms for its 5 ms.
    """

    def __init__(
        self, network: QNetwork, *, learning_rate: float, max_gradient_norm: float, bfloat16: bool
    ) -> None:
        self.network = network
        self.optimizer = make_optimizer("adam", network, learning_rate)
        self._max_gradient_norm = max_gradient_norm
        self._bfloat16 = bfloat16

    def update(
        self, obs: Tensor, action: Tensor, returns: Tensor, learning_rate: float
    ) -> dict[str, Tensor]:
        """Regress the values of the actions taken on their returns, one gradient step.

        Args:
            obs: ``[batch, *obs_shape]``.
            action: ``[batch]`` int64.
            returns: ``[batch]`` float32.
            learning_rate: Of this step.

        Returns:
            Scalars ``td_loss``, ``q_values`` and ``gradient_norm`` (before clipping).
        """
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self._bfloat16):
            q = self.network(obs)
        taken = q.gather(1, action[:, None]).squeeze(1)
        loss = 0.5 * (taken - returns).square().mean()
        self.network.zero_grad()
        loss.backward()
        norm = clip_gradients(self.network, self._max_gradient_norm)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        return {
            "td_loss": loss.detach(),
            "q_values": taken.detach().mean(),
            "gradient_norm": norm,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that learns."""
        return learner_tensors(self.network, self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        restore_learner(self.network, self.optimizer, tensors)


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
