# SPDX-License-Identifier: MIT
"""Policy distillation with fused native losses and a lock-free prioritized replay."""

from importlib import import_module
from typing import TYPE_CHECKING

from fastdistill._native import has_cuda_kernels
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
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.teachers import Teacher, load_teacher

if TYPE_CHECKING:
    from fastdistill.api import distill, distill_online
    from fastdistill.recipes.distill import DistillResult

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

# Imported when first asked for: the recipes take longer than all the rest.
_MODULES = {
    "DistillResult": "fastdistill.recipes.distill",
    "distill": "fastdistill.api",
    "distill_online": "fastdistill.api",
}


if not TYPE_CHECKING:  # whose readers would take any name for one of these

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
