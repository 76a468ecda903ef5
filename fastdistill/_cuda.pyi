# SPDX-License-Identifier: MIT
"""The CUDA kernels by address, compiled from csrc/losses/cuda_distill.cu.

Addresses are those of device memory, as `Tensor.data_ptr()` gives them; 0 stands for "not given".
The callers are responsible for what is behind them. Kinds and dtypes are numbered as in
csrc/losses/loss_args.h: kl, reverse_kl, jsd, nll, mse = 0..4; huber, mse = 0, 1 for `td`;
float64, float32, bfloat16, float16 = 0..3. Strides are in elements.

Both functions enqueue one kernel (for an empty batch: a memset) on `stream`, allocate nothing and
do not synchronise, so they may be captured in a CUDA graph. They raise RuntimeError with CUDA's
reason when there is no usable device or the launch fails, and ValueError for an unknown kind or
dtype number.

`workspace` is the address of `workspace_bytes` bytes on the device, 16-byte aligned, of which the
first 16 are 0 before the first call; each call leaves them 0. Calls on one stream may share it.
Calls that could overlap must not: keep one per (device, stream), and while a stream is being
captured take a new `torch.zeros`, so that the graph owns it and zeroes it at each replay.
"""

workspace_bytes: int

def distill(
    kind: int,
    batch: int,
    actions: int,
    student: int,
    student_dtype: int,
    student_row_stride: int,
    teacher: int,
    teacher_dtype: int,
    teacher_row_stride: int,
    action_mask: int,
    mask_row_stride: int,
    weight: int,
    temperature: float,
    student_temperature: float,
    beta: float,
    scale: float,
    row_loss: int,
    loss: int,
    grad: int,
    grad_row_stride: int,
    device: int,
    stream: int,
    workspace: int,
) -> None: ...
def td(
    kind: int,
    batch: int,
    actions: int,
    q: int,
    dtype: int,
    q_row_stride: int,
    action: int,
    target: int,
    weight: int,
    scale: float,
    row_loss: int,
    loss: int,
    td_abs: int,
    grad: int,
    device: int,
    stream: int,
    workspace: int,
) -> None: ...
