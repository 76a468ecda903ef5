# SPDX-License-Identifier: MIT
"""The distillation losses and td_loss, written naively in numpy from the formulas of the papers.

The oracle of the loss tests: it shares no code with the package. Precision is float64 for logits of
32 bits and less, and numpy's long double (64 bits of mantissa on x86) where a side is float64. With
each result comes its natural scale, the sum of the magnitudes that its formula adds up, because an
error can only be judged against that: where terms cancel, no algorithm keeps relative precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """Losses and gradients, and what their errors are measured against.

    A scale sums the magnitudes of a formula's terms, those weighted with a probability p_max e^-z
    times 1 + z / 4, because the exponent's own rounding is as large as z. A floor is the magnitude
    that intermediate values have even where the terms are small: a sum of exponentials is at least
    1, so its logarithm is known to one ulp of 1 and no better. The reach is what a probability too
    small for the arithmetic's normal numbers would be multiplied with.
    """

    row_loss: Array  # [batch], weighted, before the reduction
    loss_scale: Array  # [batch]
    loss_floor: Array  # [batch]
    grad: Array  # [batch, actions], of the reduced loss
    grad_scale: Array  # [batch, 1 or actions]
    grad_floor: Array  # [batch, 1]
    grad_reach: Array  # [batch, 1]
    divisor: float  # of the reduction

    @property
    def loss(self) -> Any:
        """The reduced loss."""
        return self.row_loss.sum() / self.divisor


def real_type(*tensors: Tensor) -> Any:
    """What the oracle computes in for these tensors."""
    return np.longdouble if any(t.dtype == torch.float64 for t in tensors) else np.float64


def to_numpy(tensor: Tensor, real: Any) -> Array:
    """The tensor's values, exactly."""
    return tensor.detach().double().numpy().astype(real)


def softmax(logits: Array, is_open: Array, temperature: float) -> tuple[Array, Array]:
    """(probabilities, their logarithms) of softmax(logits / temperature) over the open actions."""
    closed = logits.dtype.type(-np.inf)
    top = np.max(logits, axis=1, keepdims=True, where=is_open, initial=-np.inf)
    z = np.where(is_open, (logits - np.where(np.isinf(top), 0, top)) / temperature, closed)
    e = np.exp(z)
    total = e.sum(axis=1, keepdims=True)
    return e / total, z - np.log(total)


def distill_truth(
    kind: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 0.01,
    student_temperature: float = 1.0,
    beta: float = 0.5,
    action_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Truth:
    """The true loss and gradient of a distillation loss; arguments as the public functions'."""
    real = real_type(student_logits, teacher_logits)
    student = to_numpy(student_logits, real)
    teacher = to_numpy(teacher_logits, real)
    allowed = np.ones(student.shape, bool)
    if action_mask is not None:
        allowed &= action_mask.numpy()
    weights = np.ones(len(student), real) if weight is None else to_numpy(weight, real)
    silent = weights == 0
    student = np.where(silent[:, None], 0, student)
    teacher = np.where(silent[:, None], 0, teacher)
    divisor = reduction_divisor(reduction, kind, *student.shape)
    with np.errstate(all="ignore"):
        if kind == "mse":
            parts = _squares(student, teacher, allowed)
        else:
            open_s = allowed & (student != -np.inf)
            open_t = allowed & (teacher != -np.inf)
            q, log_q = softmax(student, open_s, student_temperature)
            p, log_p = softmax(teacher, open_t, temperature)
            if kind == "nll":
                best = np.argmax(np.where(open_t, teacher, -np.inf), axis=1)
                p = np.zeros_like(p)
                p[np.arange(len(p)), best] = 1
                log_p = np.where(p > 0, 0, -np.inf)
            parts = _divergence(kind, p, log_p, q, log_q, real(beta))
            live = open_s.any(1) & open_t.any(1)
            parts = tuple(np.where(live if x.ndim == 1 else live[:, None], x, 0) for x in parts)
            weights = np.where(live, weights, 0)
    inner = 1.0 if kind == "mse" else student_temperature
    factor = (weights / (divisor * inner))[:, None]
    nothing = weights == 0
    by_row = (weights, abs(weights), abs(weights))
    by_element = (factor, abs(factor), abs(factor), abs(factor))
    loss = [np.where(nothing, 0, x * w) for x, w in zip(parts[:3], by_row, strict=True)]
    grad = [
        np.where(nothing[:, None], 0, x * f) for x, f in zip(parts[3:], by_element, strict=True)
    ]
    return Truth(*loss, *grad, divisor)


def topk_truth(
    student_logits: Tensor,
    teacher_values: Tensor,
    teacher_indices: Tensor,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    tail: bool = True,
    action_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Truth:
    """As `distill_truth`, for distill_kl_topk: kl of the buckets, by a loop over the rows."""
    real = real_type(student_logits, teacher_values)
    student = to_numpy(student_logits, real)
    values = to_numpy(teacher_values, real)
    indices = teacher_indices.numpy()
    batch, actions = student.shape
    allowed = np.ones(student.shape, bool)
    if action_mask is not None:
        allowed &= action_mask.numpy()
    weights = np.ones(batch, real) if weight is None else to_numpy(weight, real)
    divisor = reduction_divisor(reduction, "kl", batch, actions)
    loss, loss_scale, loss_floor = np.zeros((3, batch), real)
    grad = np.zeros(student.shape, real)
    grad_scale, grad_reach = np.zeros((2, batch, 1), real)
    with np.errstate(all="ignore"):
        for row in np.flatnonzero(weights):
            parts = _topk_row(
                student[row], values[row], indices[row], allowed[row], temperature,
                student_temperature, tail,
            )  # fmt: skip
            if parts is None:
                continue
            size = abs(weights[row])
            factor = size / (divisor * student_temperature)
            loss[row] = parts[0] * weights[row]
            loss_scale[row] = parts[1] * size
            loss_floor[row] = size
            grad[row] = parts[2] * weights[row] / (divisor * student_temperature)
            grad_scale[row] = parts[3] * factor
            grad_reach[row] = factor
    return Truth(
        loss, loss_scale, loss_floor, grad, grad_scale, 0 * grad_scale, grad_reach, divisor
    )


def _topk_row(
    student: Array,
    values: Array,
    indices: Array,
    allowed: Array,
    temperature: float,
    student_temperature: float,
    tail: bool,
) -> tuple[Any, Any, Array, Any] | None:
    """(loss, its scale, gradient, its scale), or None for a row without anything to compare."""
    known = np.zeros(student.shape, bool)
    known[indices] = True
    bucket_allowed = allowed[indices]
    z = student / student_temperature
    s_buckets, t_buckets = z[indices], values / temperature
    share = np.zeros_like(student)
    if tail:
        others = np.where(allowed & ~known, z, -np.inf)
        top = max(others.max(), np.finfo(others.dtype).min)
        e = np.where(others == -np.inf, 0, np.exp(others - top))
        share = e / (e.sum() or 1)
        rest = 1 - np.exp(values.astype(np.longdouble)).sum()
        s_buckets = np.append(s_buckets, top + np.log(e.sum()))
        t_buckets = np.append(t_buckets, np.log(np.maximum(rest, 0)).astype(z.dtype))
        bucket_allowed = np.append(bucket_allowed, (allowed & ~known).any())
    open_s = bucket_allowed & (s_buckets != -np.inf)
    open_t = bucket_allowed & (t_buckets != -np.inf)
    if not (open_s.any() and open_t.any()):
        return None
    q, log_q = softmax(s_buckets[None], open_s[None], 1.0)
    p, log_p = softmax(t_buckets[None], open_t[None], 1.0)
    loss, scale, _, slopes, size, _, _ = _divergence("kl", p, log_p, q, log_q, 0.5)
    grad = share * slopes[0, -1] if tail else share
    grad[indices] = slopes[0, : len(indices)]
    scale, size = scale[0], size[0, 0]
    if tail and z.dtype == np.longdouble and bucket_allowed[-1]:
        # The bucket's mass is what terms as large as 1 leave, summed in float64 as all else.
        size += 1
        scale += 1 + min(-log_p[0, -1], 40) + np.nan_to_num(-log_q[0, -1], posinf=0)
    return loss[0], scale, grad, size


def reduction_divisor(reduction: str, kind: str, batch: int, actions: int) -> float:
    """What the sum over rows is divided by, by hand from the definition of each reduction."""
    terms_per_row = 1 if kind == "nll" else actions
    divisor = {"none": 1, "sum": 1, "batchmean": batch, "mean": batch * terms_per_row}[reduction]
    return float(divisor or 1)


def _squares(student: Array, teacher: Array, allowed: Array) -> tuple[Array, ...]:
    both = allowed & (student != -np.inf) & (teacher != -np.inf)
    difference = np.where(both, student, 0) - np.where(both, teacher, 0)
    loss = (difference**2).sum(1)
    none = np.zeros_like(loss)
    return loss, loss, none, 2 * difference, abs(2 * difference), none[:, None], none[:, None]


def _divergence(
    kind: str, p: Array, log_p: Array, q: Array, log_q: Array, beta: Any
) -> tuple[Array, ...]:
    def mean(weight: Array, value: Array) -> Array:
        # 0 * log 0 is 0.
        return np.where(weight > 0, weight * value, 0).sum(1, keepdims=True)

    kind = {("jsd", 0.0): "kl", ("jsd", 1.0): "reverse_kl"}.get((kind, float(beta)), kind)
    p_rounding = p * (1 + _depth(log_p) / 4)
    q_rounding = q * (1 + _depth(log_q) / 4)
    if kind in ("kl", "nll"):
        loss = mean(p, log_p - log_q)
        scale = mean(p_rounding, abs(log_p) + abs(log_q))
        one = np.ones_like(loss)
        # A logit of -inf cannot move.
        grad = np.where(np.isneginf(log_q), 0, q - p)
        size = (q + p).max(1, keepdims=True)
        return loss[:, 0], scale[:, 0], one[:, 0], grad, size, 0 * one, one
    if kind == "reverse_kl":
        loss = mean(q, log_q - log_p)
        scale = mean(q_rounding, abs(log_q) + abs(log_p))
        slope = log_q - log_p - loss
        size = abs(log_q) + abs(log_p) + scale
        share = q
    else:
        log_m = np.logaddexp(np.log(beta) + log_p, np.log(1 - beta) + log_q)
        student = mean(q, log_q - log_m)
        loss = beta * mean(p, log_p - log_m) + (1 - beta) * student
        size_q = mean(q_rounding, abs(log_q) + abs(log_m))
        scale = beta * mean(p_rounding, abs(log_p) + abs(log_m)) + (1 - beta) * size_q
        slope = log_q - log_m - student
        size = abs(log_q) + abs(log_m) + size_q
        share = (1 - beta) * q
    grad = np.where(q > 0, share * slope, 0)
    # A row of infinite loss has no gradient.
    grad = np.where(np.isposinf(loss), 0, grad)
    rounding = share * (1 + _depth(log_q) / 4)
    grad_scale = np.where(q > 0, rounding * size, 0).max(1, keepdims=True)
    floor = share.max(1, keepdims=True) * (kind == "jsd")
    reach = np.where(np.isfinite(size), size, 0).max(1, keepdims=True) + 1
    return loss[:, 0], scale[:, 0], np.ones(len(loss)), grad, grad_scale, floor, reach


def _depth(log_probability: Array) -> Array:
    """z of p = p_max e^-z; 0 where p is 0."""
    depth = log_probability.max(1, keepdims=True) - log_probability
    return np.where(np.isfinite(depth), depth, 0)


def td_truth(
    q: Tensor,
    action: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    kind: str = "huber",
    reduction: str = "mean",
) -> tuple[Array, Array, Array]:
    """(row losses before the reduction, |td|, gradient of the reduced loss) of td_loss."""
    real = real_type(q)
    values = to_numpy(q, real)
    rows = np.arange(len(values))
    td = values[rows, action.numpy()] - to_numpy(target, real)
    weights = np.ones(len(values), real) if weight is None else to_numpy(weight, real)
    inside = abs(td) <= 1
    huber = np.where(inside, td**2 / 2, abs(td) - 0.5)
    loss, slope = (huber, np.where(inside, td, np.sign(td))) if kind == "huber" else (td**2, 2 * td)
    grad = np.zeros_like(values)
    divisor = max(len(values), 1) if reduction == "mean" else 1
    silent = weights == 0
    grad[rows, action.numpy()] = np.where(silent, 0, slope * weights / divisor)
    return np.where(silent, 0, loss * weights), abs(td), grad
