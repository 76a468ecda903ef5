# SPDX-License-Identifier: MIT
"""Policy distillation with fused native losses and a lock-free prioritized replay."""

from fastdistill._native import has_cuda_kernels
from fastdistill.losses import (
    DistillLoss,
    distill_jsd,
    distill_kl,
    distill_loss_and_grad,
    distill_mse,
    distill_nll,
    distill_reverse_kl,
    td_loss,
)
from fastdistill.replay import PrioritizedReplay, ReplayBatch

__version__ = "0.1.0"

__all__ = [
    "DistillLoss",
    "PrioritizedReplay",
    "ReplayBatch",
    "distill_jsd",
    "distill_kl",
    "distill_loss_and_grad",
    "distill_mse",
    "distill_nll",
    "distill_reverse_kl",
    "has_cuda_kernels",
    "td_loss",
]
