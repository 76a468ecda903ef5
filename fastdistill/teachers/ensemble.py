# SPDX-License-Identifier: MIT
"""Several teachers as one: the mean of their sharpened policies, or one drawn for each state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Observations to log-probabilities: ``log(mean over teachers of softmax(values / T))``.

    Each teacher is sharpened with its own temperature, so that Q-values and policies go together.
    The result is a policy (kind ``log_probs``) and is not sharpened again.

    Args:
        members: Each maps ``[batch, *obs_shape]`` to ``[batch, actions]``.
        temperatures: Of each.

    Source: Rusu et al. 2015 distill one teacher; means of policies are those of Hinton et al.
    2015, Distilling the Knowledge in a Neural Network.
    """

    def __init__(self, members: Sequence[nn.Module], temperatures: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures = tuple(temperatures)

    def forward(self, obs: Tensor) -> Tensor:
        """``[batch, *obs_shape]`` to ``[batch, actions]`` float32."""
        # In float64: a gap of 5 at a temperature of 0.01 is a log-probability of -500.
        policies = torch.stack(
            [
                torch.log_softmax(member(obs).double() / temperature, dim=1)
                for member, temperature in zip(self.members, self.temperatures, strict=True)
            ]
        )
        return (policies.logsumexp(dim=0) - math.log(len(policies))).float()


class DrawnEnsemble(nn.Module):
    """Observations to log-probabilities of one of the teachers, drawn for each state.

    The draw is a hash of the state: a state has the same teacher whenever it is asked about, on
    any device, so nothing is to be remembered in order to go on from a checkpoint.

    Args:
        members: See ``Ensemble``.
        temperatures: Of each.
    """

    def __init__(self, members: Sequence[nn.Module], temperatures: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures = tuple(temperatures)

    def forward(self, obs: Tensor) -> Tensor:
        """``[batch, *obs_shape]`` to ``[batch, actions]`` float32."""
        drawn = draw(obs, len(self.members))
        rows = [(drawn == number).nonzero().squeeze(1) for number in range(len(self.members))]
        # Who has no rows is not asked: not every module can answer an empty batch.
        policies = [
            torch.log_softmax(member(obs[own]).double() / temperature, dim=1).float()
            for member, temperature, own in zip(self.members, self.temperatures, rows, strict=True)
            if len(own) or not len(obs)
        ]
        return torch.cat(policies)[torch.cat(rows).argsort()]


def draw(obs: Tensor, number: int) -> Tensor:
    """For each row one of ``number`` teachers, ``[batch]`` int64, all as often over many states.

    A multiply-add hash of the row's bytes in words of 64 bits, mixed by the steps of SplitMix64
    (Steele et al. 2014): integers, so the same on any device.
    """
    data = obs.flatten(1).contiguous().view(torch.uint8)
    words = nn.functional.pad(data, (0, -data.shape[1] % 8)).view(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (words.shape[1],), generator=generator)
    mixed = (words * (factors | 1).to(obs.device)).sum(dim=1)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
    return (mixed & (1 << 62) - 1) % number
