# SPDX-License-Identifier: MIT
"""The losses in plain torch operations: slow, differentiable any number of times, obviously right.

The oracle of the tests, and the fallback where a native kernel cannot serve: higher derivatives,
forward-mode AD and `torch.func` transforms. Imports nothing of this package. Run it in float64 to
judge a result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# In the order of their numbers in native code.
KINDS = ("kl", "reverse_kl", "jsd", "nll", "mse")
TD_KINDS = ("huber", "mse")


def distill_reference(
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
) -> Tensor:
    """Returns the loss of `fastdistill.losses`, in the wider of float32 and the logits' dtypes.

    Args are those of `fastdistill.losses.distill_kl` and its siblings, unchecked.
    """
    dtype = torch.promote_types(
        torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32
    )
    student = student_logits.to(dtype)
    teacher = teacher_logits.to(dtype)
    allowed = student == student if action_mask is None else action_mask.expand(student.shape)
    if weight is not None:
        weight = weight.to(dtype)
        # A NaN of a silent row must not reach the gradient, not even multiplied by 0.
        silent = (weight == 0).unsqueeze(-1)
        student = torch.where(silent, 0.0, student)
        teacher = torch.where(silent, 0.0, teacher)
    row = _row_losses(kind, student, teacher, allowed, temperature, student_temperature, beta)
    if weight is not None:
        row = torch.where(weight == 0, torch.zeros_like(row), row * weight)
    return _reduced(row, reduction, 1 if kind == "nll" else student.shape[1])


def topk_reference(
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
) -> Tensor:
    """As `distill_reference`, for `fastdistill.losses.distill_kl_topk`: the KL of the buckets."""
    dtype = torch.promote_types(
        torch.promote_types(student_logits.dtype, teacher_values.dtype), torch.float32
    )
    student = student_logits.to(dtype)
    if weight is not None:
        student = torch.where((weight == 0).unsqueeze(-1), 0.0, student)
    allowed = torch.ones_like(student, dtype=torch.bool)
    if action_mask is not None:
        allowed = allowed & action_mask
    buckets = student.gather(-1, teacher_indices)
    teacher = teacher_values.to(dtype)
    bucket_allowed = allowed.gather(-1, teacher_indices)
    if tail:
        in_tail = allowed.scatter(-1, teacher_indices, False)
        open_tail = in_tail & (student != -math.inf)
        is_open = open_tail.any(-1, keepdim=True)
        logits = torch.where(open_tail, student / student_temperature, -math.inf)
        total = torch.where(is_open, logits, 0.0).logsumexp(-1, keepdim=True)
        total = torch.where(is_open, student_temperature * total, -math.inf)
        rest = (1 - teacher.double().exp().sum(-1, keepdim=True)).clamp(min=0).log().to(dtype)
        buckets = torch.cat([buckets, total], -1)
        teacher = torch.cat([teacher, rest], -1)
        bucket_allowed = torch.cat([bucket_allowed, in_tail.any(-1, keepdim=True)], -1)
    row = distill_reference(
        "kl", buckets, teacher, temperature=temperature, student_temperature=student_temperature,
        action_mask=bucket_allowed, weight=weight, reduction="none",
    )  # fmt: skip
    return _reduced(row, reduction, student.shape[1])


def _reduced(row: Tensor, reduction: str, terms: int) -> Tensor:
    if reduction == "none":
        return row
    if reduction == "sum":
        return row.sum()
    return row.sum() / max(row.numel() * (1 if reduction == "batchmean" else terms), 1)


def _row_losses(
    kind: str,
    student: Tensor,
    teacher: Tensor,
    allowed: Tensor,
    temperature: float,
    student_temperature: float,
    beta: float,
) -> Tensor:
    zero = torch.zeros((), dtype=student.dtype, device=student.device)
    student_open = allowed & (student != -math.inf)
    teacher_open = allowed & (teacher != -math.inf)
    if kind == "mse":
        both = student_open & teacher_open
        # The inner selection keeps -inf - -inf out of the gradient.
        difference = torch.where(both, student, zero) - torch.where(both, teacher, zero)
        return difference.square().sum(-1)
    # A row in which one side rules out everything has nothing to compare.
    live = student_open.any(-1, keepdim=True) & teacher_open.any(-1, keepdim=True)
    student = torch.where(live, student, zero)
    teacher = torch.where(live, teacher, zero)
    log_q, q = _log_softmax(student, student_open | ~live, student_temperature)
    log_p, p = _log_softmax(teacher, teacher_open | ~live, temperature)
    if kind == "nll":
        ranked = torch.where(teacher_open | ~live, teacher, -math.inf)
        best = ranked.argmax(-1, keepdim=True)
        p = torch.zeros_like(p).scatter(-1, best, 1.0)
        # A NaN in the teacher's row leaves no best action.
        p = torch.where(teacher_open & teacher.isnan(), teacher, p)
        log_p = torch.zeros_like(log_p)
    kind = {("jsd", 0.0): "kl", ("jsd", 1.0): "reverse_kl"}.get((kind, float(beta)), kind)
    if kind == "jsd":
        floor = -1e30
        mixture = torch.logaddexp(
            torch.where(p > 0, log_p, floor) + math.log(beta),
            torch.where(q > 0, log_q, floor) + math.log1p(-beta),
        )
        terms = beta * _weighted(p, log_p, mixture) + (1 - beta) * _weighted(q, log_q, mixture)
        loss = terms.sum(-1)
    elif kind == "reverse_kl":
        loss = _weighted(q, log_q, log_p).sum(-1)
        infinite = ((q > 0) & ~teacher_open).any(-1)
        loss = torch.where(infinite, math.inf, loss)  # without gradient
    else:
        loss = _weighted(p, log_p, log_q).sum(-1)
        infinite = ((p > 0) & ~student_open).any(-1)
        loss = torch.where(infinite, loss + math.inf, loss)  # the gradient stays q - p
    return torch.where(live.squeeze(-1), loss, zero)


def _log_softmax(logits: Tensor, is_open: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-probabilities, probabilities); closed actions have about -1e30 and 0, and no gradient.

    -1e30 rather than -inf, which would make the gradients of selections NaN.
    """
    shift = torch.where(is_open, logits, -math.inf).amax(-1, keepdim=True).detach()
    shift = torch.where(shift == -math.inf, torch.zeros_like(shift), shift)
    z = torch.where(is_open, (torch.where(is_open, logits, shift) - shift) / temperature, -1e30)
    log_probability = torch.log_softmax(z, -1)
    probability = torch.where(is_open, log_probability.exp(), torch.zeros_like(z))
    return log_probability, probability


def _weighted(probability: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """Probability * (log_a - log_b), 0 where the probability is 0."""
    counts = (probability > 0) | probability.isnan()
    zero = torch.zeros_like(probability)
    return probability * (torch.where(counts, log_a, zero) - torch.where(counts, log_b, zero))


def td_reference(
    q: Tensor,
    action: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    kind: str = "huber",
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Returns (loss, |temporal-difference error|) of `fastdistill.losses.td_loss`."""
    taken = q.gather(1, action.unsqueeze(1)).squeeze(1)
    target = target.to(q.dtype)
    td_abs = (taken - target).abs().detach()
    if weight is not None:
        weight = weight.to(q.dtype)
        silent = weight == 0  # selected before the arithmetic, as in distill_reference
        taken = torch.where(silent, 0.0, taken)
        target = torch.where(silent, 0.0, target)
    td = taken - target
    if kind == "huber":
        # The inner selection keeps the square of an infinite td out of the gradient. A NaN is not
        # far: abs has no NaN in its gradient.
        far = td.abs() >= 1
        row = torch.where(far, td.abs() - 0.5, torch.where(far, 0.0, td).square() / 2)
    else:
        row = td.square()
    if weight is not None:
        row = row * weight
    if reduction == "none":
        return row, td_abs
    loss = row.sum()
    return (loss / max(row.numel(), 1) if reduction == "mean" else loss), td_abs
