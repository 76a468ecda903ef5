# SPDX-License-Identifier: MIT
"""Acting: a policy's values of what the lanes show, and epsilon-greedy actions from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Observations [batch, ...] on the policy's device -> action values or logits [batch, actions].
Policy = Callable[[Tensor], Tensor]


def usable_device(device: torch.device | str) -> torch.device:
    """A device that can be computed on here.

    Raises:
        ValueError: There is none of that name, or this build of torch cannot use it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"usable_device: device must be one that torch has here, got {str(device)!r}: {reason}"
        ) from error
    return found


@torch.inference_mode()
def policy_values(
    policy: Policy,
    obs: NDArray[Any] | Tensor,
    device: torch.device | str,
    *,
    bfloat16: bool = False,
) -> Tensor:
    """What a policy says of observations, ``[lanes, actions]`` on its device.

    Args:
        policy: Asked without gradients.
        obs: ``[lanes, *obs_shape]``.
        device: Of the policy.
        bfloat16: Whether it computes under bfloat16 autocast.
    """
    device = torch.device(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        return policy(torch.as_tensor(obs, device=device))


def epsilon_greedy(
    greedy: NDArray[np.int64], epsilon: float, num_actions: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Replace each greedy action by a random one with probability ``epsilon``."""
    random = rng.integers(num_actions, size=len(greedy))
    explores = rng.random(len(greedy)) < epsilon
    return np.where(explores, random, greedy)
