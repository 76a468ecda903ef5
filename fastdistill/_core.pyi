# SPDX-License-Identifier: MIT
"""Types of the native module `_core`; a test compares this file with the module."""

from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
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

def distill_kl_topk(
    student: Tensor,
    values: Tensor,
    indices: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    teacher_temperature: float,
    student_temperature: float,
    tail: bool,
    reduction: str,
    with_grad: bool,
    /,
) -> tuple[Tensor, Any]:
    """(loss, grad or None) of distill_kl_topk; see fastdistill.losses."""

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

def pooled_bytes() -> int:
    """Memory that is kept for the gradients of later steps."""

def cpu_isa() -> str:
    """The instruction set of the CPU kernels: baseline, avx2 or avx512."""

# ---- convolutions; results are written into the arguments that are made for them ----

def has_convolutions(bfloat16: bool, /) -> bool:
    """Whether this CPU can run convolve in float32, or in bfloat16, and is allowed to."""

def convolve(
    input: Tensor,
    statistics: tuple[Tensor, Tensor, float] | None,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    relu: bool,
    output: Tensor,
    /,
) -> None:
    """Convolution of images or of uint8 frames; see fastdistill.networks.convolutions."""

def convolve_backward(
    input: Tensor,
    statistics: tuple[Tensor, Tensor, float] | None,
    weight: Tensor,
    stride: int,
    output: Tensor | None,
    grad_output: Tensor,
    grad_input: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor,
    /,
) -> None:
    """Its gradients, written into the last three arguments."""

# ---- replay ----

class InitialPriority:
    max: ClassVar[InitialPriority]
    max_live: ClassVar[InitialPriority]
    fixed: ClassVar[InitialPriority]
    name: str
    value: int

class WeightNormalization:
    batch: ClassVar[WeightNormalization]
    global_: ClassVar[WeightNormalization]
    none: ClassVar[WeightNormalization]
    name: str
    value: int

class ReplayConfig:
    def __init__(
        self,
        *,
        lane_capacity_steps: int,
        num_lanes: int,
        lanes_per_task: list[int],
        frame_bytes: int,
        column_bytes: list[int],
        stack: int,
        n_step: int,
        discount: float,
        repeat_first_frame: bool,
        priority_exponents: list[float],
        initial_priority: InitialPriority,
        fixed_initial_priority: float,
        seed: int,
    ) -> None: ...
    def required_bytes(self) -> int: ...

class ReplayBatch:
    def __init__(
        self,
        obs: npt.NDArray[Any],
        action: npt.NDArray[np.int64],
        reward: npt.NDArray[np.float32],
        discount: npt.NDArray[np.float32],
        next_obs: npt.NDArray[Any],  # without rows where it is not wanted
        weight: npt.NDArray[np.float32],
        id: npt.NDArray[np.int64],
        task: npt.NDArray[np.int64],
        columns: list[npt.NDArray[Any]],
    ) -> None: ...

class Replay:
    def __init__(self, config: ReplayConfig) -> None: ...
    def append(
        self,
        lanes: npt.NDArray[np.int64],
        frame: npt.NDArray[Any],
        action: npt.NDArray[np.int64],
        reward: npt.NDArray[np.float32],
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
        boundary: npt.NDArray[np.bool_] | None,
        priority: npt.NDArray[np.float32] | None,
        columns: list[npt.NDArray[Any]],
    ) -> None: ...
    def sample(
        self,
        sampler: int,
        batch: ReplayBatch,
        importance_exponent: float,
        stratified: bool,
        normalization: WeightNormalization,
        task_weights: list[float],
    ) -> None: ...
    def update(
        self, sampler: int, id: int, priority: int, accepted: int, num_rows: int
    ) -> None: ...
    def read(self, id: npt.NDArray[np.int64], batch: ReplayBatch) -> None: ...
    def clear(self) -> None: ...
    def live_rows(self) -> int: ...
    def priorities(self, sampler: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
    def statistics(self, sampler: int) -> dict[str, float]: ...
    def check_valid(self) -> str: ...
    def save(self, file: int, schema: str) -> None: ...
    def load(self, file: int, schema: str) -> None: ...
    def memory_layout(self) -> tuple[int, int, int]: ...
