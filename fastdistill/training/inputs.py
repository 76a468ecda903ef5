# SPDX-License-Identifier: MIT
"""Mean and deviation of what a network sees, from random play or from the replay.

Atari screens are a constant background with a few moving pixels; a network whose input has the
background taken out learns at once where one fed raw pixels first sits on a plateau.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastdistill.envs import EnvSpec, LaneEnv

# From the replay, in batches: all of it as float64 would be a gigabyte.
STATISTICS_BATCHES, STATISTICS_ROWS = 16, 256


class InputStatistics:
    """Mean and standard deviation of observations, batch by batch."""

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        self._total = self._squares = torch.zeros(())
        self._count = 0

    def add(self, obs: Tensor) -> None:
        """Take ``[batch, *obs_shape]``; of a stack the newest frame."""
        rows = obs[:, -1] if self._spec.stack > 1 else obs
        rows = rows.flatten(0, -3) if self._spec.is_image else rows
        # In float32 the sum of 256 squared bytes is still exact, and twice as quick.
        rows = rows.float() if rows.dtype == torch.uint8 else rows.double()
        self._total = self._total + rows.sum(0).double()
        self._squares = self._squares + (rows * rows).sum(0).double()
        self._count += len(rows)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Two float32 tensors, ``[height, width]`` or ``[features]``."""
        mean = self._total / self._count
        std = (self._squares / self._count - mean * mean).clamp_min(0).sqrt()
        return mean.float(), std.float()


def random_play_statistics(
    env: LaneEnv, *, num_steps: int = 500, seed: int | Sequence[int] = 0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the frames that random play shows.

    Args:
        env: Left wherever the random play ends: reset it before use.
        num_steps: Vector steps to take.
        seed: Of the reset and of the actions.

    Returns:
        Two float32 tensors, see ``InputStatistics.mean_and_std``.
    """
    rng = np.random.default_rng(seed)
    statistics = InputStatistics(env.spec)
    env.reset(seed)
    for _ in range(num_steps):
        statistics.add(torch.from_numpy(env.obs))
        env.step(rng.integers(env.spec.num_actions, size=env.num_lanes))
    return statistics.mean_and_std()
