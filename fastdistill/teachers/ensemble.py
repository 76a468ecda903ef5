# SPDX-License-Identifier: MIT
"""Several teachers as one: the mean of their sharpened policies."""

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
