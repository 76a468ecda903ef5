# SPDX-License-Identifier: MIT
"""Types of the native module `_core`; a test compares this file with the module."""

from types import ModuleType
from typing import Any

from torch import Tensor

def bind_torch(torch: ModuleType) -> bool:
    """Connects to the loaded torch; False if its thread pool was not found."""

# Losses; arguments are checked here, meanings are those of fastdistill.losses.

def distill(
    kind: int,
    student: Tensor,
    teacher: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    teacher_temperature: float,
    student_temperature: float,
    beta: float,
    reduction: str,
    with_grad: bool,
    out_grad: Tensor | None,
    function: str,
    /,
) -> tuple[Tensor, Any]:  # Any: None exactly where with_grad is False
    """(loss, grad or None) of one distillation loss; see fastdistill.losses for the meaning."""

def td(
    kind: int,
    q: Tensor,
    action: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    with_grad: bool,
    /,
) -> tuple[Tensor, Tensor, Any]:
    """(loss, td_abs, grad or None) of td_loss; see fastdistill.losses."""

def cpu_isa() -> str:
    """The instruction set of the CPU kernels: baseline, avx2 or avx512."""
