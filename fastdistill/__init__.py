# SPDX-License-Identifier: MIT
"""Policy distillation with fused native losses and a lock-free prioritized replay."""

from fastdistill._native import has_cuda_kernels
from fastdistill.evaluation import Evaluation, evaluate, verify_teacher
from fastdistill.export import export
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
from fastdistill.recipes.distill import DistillResult, distill
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.teachers import Teacher, load_teacher

__version__ = "0.1.0"

__all__ = [
    "DistillLoss",
    "DistillResult",
    "Evaluation",
    "PrioritizedReplay",
    "ReplayBatch",
    "Teacher",
    "distill",
    "distill_jsd",
    "distill_kl",
    "distill_loss_and_grad",
    "distill_mse",
    "distill_nll",
    "distill_reverse_kl",
    "evaluate",
    "export",
    "has_cuda_kernels",
    "load_teacher",
    "td_loss",
    "verify_teacher",
]
