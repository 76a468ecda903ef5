# SPDX-License-Identifier: MIT
"""What the loss tests share: grids of inputs, error bounds, and comparison with the oracle.

The bounds, which docs/losses.md states, with eps = 2^-52 where a side is float64, 2^-23 otherwise,
and the scales, floors and reach of tests/loss_oracle.py:
  row loss   eps * (BOUND_ULPS * scale + LOSS_FLOOR_ULPS * floor)
  gradient   eps * (BOUND_ULPS * scale + GRAD_FLOOR_ULPS * floor) + tiny * reach, and half an ulp
             of the student's dtype where that is narrower than the arithmetic
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from loss_oracle import Array, Truth, distill_truth, real_type, to_numpy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdistill as fd

KINDS = ("kl", "reverse_kl", "jsd", "nll", "mse")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("batchmean", "mean", "sum", "none")

BOUND_ULPS = 4.0
LOSS_FLOOR_ULPS = 4.0
GRAD_FLOOR_ULPS = 1.0

# Each side of every place where a kernel changes its way of working: vectors of 4, 8 and 16 lanes,
# quads of the transposition, 64 | 65 (a row per lane or across lanes), strips of 64 vectors, and
# two vocabularies.
ACTIONS = (
    *range(1, 10), *range(15, 20), *range(31, 34), *range(63, 66), *range(127, 130),
    *range(255, 258), 1000, *range(1023, 1026), 2049, 32000, 50257,
)  # fmt: skip
SMALL_ACTIONS = (1, 3, 4, 6, 18, 33, 64, 65, 129, 1025)
TEMPERATURES = (1e-6, 1e-3, 0.01, 0.1, 1.0, 10.0)
Q_SCALES = (0.01, 1.0, 100.0, 1e4)


class PassOn(TorchDispatchMode):
    """Sees every operation and changes none; the losses are operators in it."""

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return function(*args, **(kwargs or {}))


def temperature_options(kind: str, temperature: float) -> dict[str, Any]:
    """The option if the kind takes it."""
    return {"temperature": temperature} if kind in ("kl", "reverse_kl", "jsd") else {}


def random_logits(
    batch: int,
    actions: int,
    *,
    dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    q_scale: float = 1.0,
    noise: float | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """(student, teacher); with `noise` the student is the teacher plus that relative noise."""
    generator = torch.Generator().manual_seed(1000 * actions + batch + seed)

    def draw() -> Tensor:
        values = torch.randn(batch, actions, dtype=torch.float64, generator=generator)
        return (values * q_scale).clamp(-6e4, 6e4)

    teacher = draw()
    student = draw()
    if noise is not None:
        student = teacher * (1 + noise * student / q_scale)
    return student.to(dtype), teacher.to(dtype if teacher_dtype is None else teacher_dtype)


def epsilon(*tensors: Tensor) -> float:
    """One ulp of 1 in the arithmetic of a loss of these tensors."""
    return 2.0**-52 if any(t.dtype == torch.float64 for t in tensors) else 2.0**-23


def half_ulp(values: Array, dtype: torch.dtype) -> Array:
    """The largest error of rounding `values` to a dtype, denormals included."""
    digits = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[dtype]
    smallest = int(np.log2(torch.finfo(dtype).tiny))
    exponent = np.frexp(abs(values).astype(np.float64))[1] - 1
    return np.ldexp(0.5, np.maximum(exponent, smallest) - digits + 1)


def loss_error_ulps(loss: Tensor, truth: Truth, eps: float) -> float:
    """Largest error of the row losses beyond the floor, in eps * scale."""
    got = to_numpy(loss, truth.row_loss.dtype.type)
    slack = eps * LOSS_FLOOR_ULPS * truth.loss_floor
    return _ulps(got, truth.row_loss, slack, truth.loss_scale, eps)


def grad_error_ulps(grad: Tensor, truth: Truth, eps: float) -> float:
    """Largest error of the gradient beyond the floor and its rounding, in eps * its row's scale."""
    got = to_numpy(grad, truth.grad.dtype.type)
    slack = eps * GRAD_FLOOR_ULPS * truth.grad_floor + tiny_of(eps) * truth.grad_reach
    if eps < torch.finfo(grad.dtype).eps:
        # The value that is rounded has an error of its own, which may carry it over a power of 2.
        reach = abs(truth.grad) + slack + 4 * eps * truth.grad_scale
        slack = slack + half_ulp(reach, grad.dtype)
    largest = torch.finfo(grad.dtype).max
    limit = largest + float(half_ulp(np.array(largest), grad.dtype))
    overflows = abs(truth.grad) + slack >= limit
    infinite = overflows & np.isinf(got) & (np.sign(got) == np.sign(truth.grad))
    expected = np.where(infinite, got, truth.grad)
    return _ulps(got, expected, slack, truth.grad_scale, eps)


def tiny_of(eps: float) -> float:
    """The smallest normal number of the arithmetic with this eps; probabilities below may be 0."""
    return 2.0**-1022 if eps == 2.0**-52 else 2.0**-126


def _ulps(got: Array, expected: Array, slack: Array, scale: Array, eps: float) -> float:
    with np.errstate(all="ignore"):
        error = np.where(got == expected, 0, abs(got - expected))
        ratio = np.where(error <= slack, 0, (error - slack) / (eps * scale))
    return float(ratio.max(initial=0))


def assert_matches_truth(
    loss: Tensor, grad: Tensor | None, student: Tensor, truth: Truth, *, kind: str, reduction: str
) -> None:
    """The loss and the gradient lie within the stated bounds."""
    eps = epsilon(student, loss)
    if reduction == "none":
        assert loss.shape == truth.row_loss.shape
        ulps = loss_error_ulps(loss, truth, eps)
        assert ulps <= BOUND_ULPS, f"{kind}: row losses are {ulps} eps times their scale off"
    else:
        rows = BOUND_ULPS * truth.loss_scale + LOSS_FLOOR_ULPS * truth.loss_floor
        # The sum over rows, and the rounding of the result.
        bound = eps * (rows.sum() / truth.divisor + abs(truth.loss))
        got = to_numpy(loss, truth.row_loss.dtype.type)
        assert loss.shape == ()
        close = got == truth.loss or abs(got - truth.loss) <= bound
        assert close, f"{kind}: loss {got} is not {truth.loss} within {bound}"
    if grad is not None:
        assert grad.dtype == student.dtype
        assert grad.shape == student.shape
        ulps = grad_error_ulps(grad, truth, eps)
        assert ulps <= BOUND_ULPS, f"{kind}: the gradient is {ulps} eps times its scale off"


def check_distill(kind: str, student: Tensor, teacher: Tensor, **options: Any) -> None:
    """Native loss and gradient, with autograd and without, against the oracle."""
    reduction = options.get("reduction", "batchmean")
    truth = distill_truth(kind, student, teacher, **options)
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options)
    wide = real_type(student, teacher) != np.float64
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert_matches_truth(loss, grad, student, truth, kind=kind, reduction=reduction)
    leaf = student.detach().clone().requires_grad_()
    function = getattr(fd, f"distill_{kind}")
    result = function(leaf, teacher, **options)
    result.sum().backward()
    assert torch.equal(result, loss)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, grad)
    with torch.no_grad():
        assert torch.equal(function(student, teacher, **options), loss)


def check_row_length(kind: str, actions: int, dtype: torch.dtype, **options: Any) -> None:
    """One row length, with enough rows for full vectors, a remainder and a last odd row."""
    batch = 37 if actions <= 64 else 3
    student, teacher = random_logits(batch, actions, dtype=dtype)
    options = {**temperature_options(kind, 0.5), **options}
    check_distill(kind, student, teacher, reduction="none", **options)


def check_options(kind: str, reduction: str, mask: str, weighted: bool, **options: Any) -> None:
    """One combination of reduction, mask and weights, for few and for many actions."""
    for actions in (6, 100):
        student, teacher = random_logits(19, actions)
        shape = {"none": None, "shared": (actions,), "rows": (19, actions)}[mask]
        generator = torch.Generator().manual_seed(5)
        if shape is not None:
            options["action_mask"] = torch.rand(shape, generator=generator) < 0.6
        if weighted:
            weight = torch.randn(19, generator=generator)  # importance weights, and negative ones
            weight[3] = 0
            options["weight"] = weight
        check_distill(kind, student, teacher, reduction=reduction, **options)
