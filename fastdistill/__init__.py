# SPDX-License-Identifier: MIT
"""Policy distillation with fused native losses and a lock-free prioritized replay."""

from fastdistill._native import has_cuda_kernels
from fastdistill.api import distill, distill_online
from fastdistill.envs import EnvSpec
from fastdistill.evaluation import Evaluation, evaluate, verify_teacher
from fastdistill.export import export
from fastdistill.losses import (
    DistillLoss,
    distill_jsd,
    distill_kl,
    distill_kl_topk,
    distill_loss_and_grad,
    distill_mse,
    distill_nll,
    distill_reverse_kl,
    td_loss,
)
from fastdistill.networks import load_network, load_weights
from fastdistill.recipes.distill import DistillResult
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.teachers import Teacher, load_teacher

__version__ = "0.1.0"

__all__ = [
    "DistillLoss",
    "DistillResult",
    "EnvSpec",
    "Evaluation",
    "PrioritizedReplay",
    "ReplayBatch",
    "Teacher",
    "distill",
    "distill_jsd",
    "distill_kl",
    "distill_kl_topk",
    "distill_loss_and_grad",
    "distill_mse",
    "distill_nll",
    "distill_online",
    "distill_reverse_kl",
    "evaluate",
    "export",
    "has_cuda_kernels",
    "load_network",
    "load_teacher",
    "load_weights",
    "td_loss",
    "verify_teacher",
]
