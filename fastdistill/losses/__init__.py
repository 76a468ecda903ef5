# SPDX-License-Identifier: MIT
"""Distillation losses and DQN's temporal-difference loss, usable alone in any torch code.

``functions``, ``topk`` and ``td`` are what callers see, ``autograd`` and ``ops`` carry it through
torch, ``reference`` is the same in plain torch. docs/losses.md has formulas and numeric policy.
"""

from fastdistill.losses.functions import (
    DistillLoss,
    distill_jsd,
    distill_kl,
    distill_loss_and_grad,
    distill_mse,
    distill_nll,
    distill_reverse_kl,
)
from fastdistill.losses.td import td_loss
from fastdistill.losses.topk import distill_kl_topk

__all__ = [
    "DistillLoss",
    "distill_jsd",
    "distill_kl",
    "distill_kl_topk",
    "distill_loss_and_grad",
    "distill_mse",
    "distill_nll",
    "distill_reverse_kl",
    "td_loss",
]
