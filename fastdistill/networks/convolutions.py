# SPDX-License-Identifier: MIT
"""Convolutions of small images on a CPU, quicker than torch's.

The first layer takes the uint8 frames themselves and standardises them on the way. Images are
``[batch, height, width, channels]``. In float32 they need AVX2 and FMA, or AVX-512. In bfloat16
they need AVX512-BF16; activations and the weights' operands are rounded to it (to nearest, ties to
even), as under torch's autocast, while sums, biases and the gradients of weights are float32.
Results do not depend on the number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdistill._native import core

# What standardises uint8 frames: mean and scale, [height, width], and the clipping limit.
Statistics = tuple[Tensor, Tensor, float]

_GROUP, _MAX_FILTERS = 16, 64


@functools.cache
def is_available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this CPU has the instructions for ``dtype`` and FASTDISTILL_CPU lets them be used."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    available: bool = core.has_convolutions(dtype == torch.bfloat16)
    return available


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether networks on ``device`` are quicker under bfloat16 autocast than in float32.

    True on a GPU with bfloat16 units and on a CPU that multiplies bfloat16 itself (AVX512-BF16,
    if FASTDISTILL_CPU lets it be used). On any other CPU torch emulates bfloat16, several times
    slower than float32.

    Args:
        device: Where the network will run.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    return device.type == "cpu" and is_available(torch.bfloat16)


def is_traced() -> bool:
    """Whether torch records what is computed: such a graph must hold torch's own operations."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def fits(frame_shape: tuple[int, ...], channels: tuple[int, ...], layers: Any) -> bool:
    """Whether a stack of convolutions over uint8 frames can be computed here, on this CPU.

    Args:
        frame_shape: ``(planes, height, width)``.
        channels: Filters of each layer.
        layers: (kernel, stride) of each layer; the first must have stride 4.
    """
    _, *extents = frame_shape
    (kernel, stride), *_ = layers
    tiles = stride == 4 and kernel % 4 == 0 and all(extent % 4 == 0 for extent in extents)
    for kernel, stride in layers:
        tiles = tiles and kernel % stride == 0
        tiles = tiles and all(extent >= 16 or stride < 4 for extent in extents)
        tiles = tiles and all(extent % stride == 0 for extent in extents)
        extents = [(extent - kernel) // stride + 1 for extent in extents]
    return (
        is_available()
        and tiles
        and all(0 < size <= _MAX_FILTERS and size % _GROUP == 0 for size in channels)
    )


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    relu: bool = False,
    statistics: Statistics | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """A convolution without padding, with its bias and rectification; differentiable once.

    Args:
        images: ``[batch, height, width, channels]`` of ``dtype``, or with ``statistics`` frames,
            ``[batch, planes, height, width]`` uint8, of which there is no gradient.
        weight: ``[filters, channels, kernel, kernel]`` float32, as ``torch.nn.Conv2d`` has it.
        bias: ``[filters]`` float32.
        stride: Divides the kernel and the images' height and width; 4 for frames.
        relu: Whether to return ``max(0, result)``.
        statistics: Frames become ``clip((frame - mean) * scale, -limit, limit)`` first.
        dtype: bfloat16 or float32.

    Returns:
        ``[batch, out_height, out_width, filters]`` of ``dtype``.

    Raises:
        ValueError: Sizes that it does not serve (filters are 16, 32, 48 or 64), or a dtype that
            this CPU has no convolutions for.
        TypeError: Wrong dtypes.
    """
    if not torch.is_grad_enabled():
        return _forward(images, weight, bias, stride, relu, statistics, dtype)
    return _Convolve.apply(images, weight, bias, stride, relu, statistics, dtype)  # type: ignore[no-any-return, no-untyped-call]


def _forward(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    relu: bool,
    statistics: Statistics | None,
    dtype: torch.dtype,
) -> Tensor:
    filters, _, kernel, _ = weight.shape
    height, width = images.shape[1:3] if statistics is None else images.shape[2:]
    out_shape = [(extent - kernel) // stride + 1 for extent in (height, width)]
    output = torch.empty((len(images), *out_shape, filters), dtype=dtype)
    core.convolve(images, statistics, weight, bias, stride, relu, output)
    return output


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: int,
        relu: bool,
        statistics: Statistics | None,
        dtype: torch.dtype,
    ) -> Tensor:
        output = _forward(images, weight, bias, stride, relu, statistics, dtype)
        ctx.save_for_backward(images, weight, output if relu else None)
        ctx.stride, ctx.statistics = stride, statistics
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, output = ctx.saved_tensors
        grad_images = torch.empty_like(images) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight)
        grad_bias = weight.new_empty(len(weight))
        core.convolve_backward(
            images,
            ctx.statistics,
            weight,
            ctx.stride,
            output,
            grad_output.contiguous(),
            grad_images,
            grad_weight,
            grad_bias,
        )
        return grad_images, grad_weight, grad_bias, None, None, None, None
