# SPDX-License-Identifier: MIT
"""Policy distillation from a teacher of which only the k largest values are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastdistill._native import core
from fastdistill.losses.arguments import carries_tangent, check_tensor, refuse_grad
from fastdistill.losses.autograd import topk_apply, topk_reference_of

_FUNCTION = "distill_kl_topk"
_PLAIN = (Tensor, nn.Parameter)

_native_topk = core.distill_kl_topk
# A third of is_compiling's time. What else traces has a dispatch mode or tensors of its own type.
_is_compiling = torch.compiler.is_dynamo_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_grad_enabled = torch.is_grad_enabled


def distill_kl_topk(
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
    """KL(teacher || student) over the teacher's k best actions and one bucket for all others.

    Per row, with q = softmax(student_logits / student_temperature), a over the k actions of
    teacher_indices and p_a = exp(teacher_values_a):
    sum_a p_a (log p_a - log q_a) + r (log r - log(1 - sum_a q_a)), r = 1 - sum_a p_a.
    It is 0 where the student gives each of the k its probability and the rest together theirs, and
    never above the KL over all actions. Without `tail` p = softmax(teacher_values / temperature)
    and both sides are conditioned on the k: the student is told nothing of other actions.

    Args:
        student_logits: [batch, actions], float64, float32, bfloat16 or float16, CPU or CUDA.
        teacher_values: [batch, k], any of these dtypes, same device, k from 1 to `actions`. With
            `tail` log-probabilities over all (allowed) actions: `log_softmax`, then `topk`. What
            they leave to 1 is the tail's, so logits will not do. Without `tail` any logits. -inf is
            a probability of 0. Must not require grad.
        teacher_indices: [batch, k], int64, the actions of these values, each once in a row. Any
            order, and they need not be the largest.
        temperature: Sharpens (below 1) or softens the teacher; in [1e-8, 1e8]; 1 with `tail`, for
            the tail at another temperature is unknown. Take the log-probabilities at the
            temperature you wish: `log_softmax(teacher_logits / temperature, 1).topk(k)`.
        student_temperature: As in `distill_kl`.
        tail: Whether the actions outside the k count, as one.
        action_mask: As in `distill_kl`. A masked action leaves the k or the bucket; a bucket
            without an allowed action is left out on both sides.
        weight: As in `distill_kl`.
        reduction: As in `distill_kl`; "mean" divides by batch * actions.

    Returns:
        The loss, [] or [batch]; float64 if either side is, else float32. Edge cases are those of
        `distill_kl` with the bucket as an action.

    Raises:
        IndexError: An index is outside [0, actions) (CPU; on CUDA, where looking would wait for the
            device, a row with this or one of the next two faults has loss NaN and gradient 0).
        ValueError: An action occurs twice in a row; with `tail`, a row of weight other than 0 has
            probabilities that sum to more than 1 by more than rounding explains, or the temperature
            is not 1. Also as `distill_kl`.
        TypeError: As `distill_kl`.

    Example:
        >>> import fastdistill as fd
        >>> teacher = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
        >>> values, indices = teacher.topk(2)
        >>> fd.distill_kl_topk(torch.zeros(1, 4), values, indices)
        tensor(0.4458)

    Source: Rusu et al. 2015, Policy Distillation, section 3, the KL loss, of the coarser
    distributions.
    """
    options = (temperature, student_temperature, tail, reduction)
    arguments = (student_logits, teacher_values, teacher_indices, action_mask, weight)
    if _transforms_active() or (
        forward_ad._current_level >= 0  # as in `functions`
        and carries_tangent(_FUNCTION, student_logits, teacher_values=teacher_values, weight=weight)
    ):
        return topk_reference_of(*arguments, options)
    if _is_compiling() or _dispatch_modes() or type(student_logits) not in _PLAIN:
        check_tensor(_FUNCTION, "student_logits", student_logits)
        loss: Tensor = torch.ops.fastdistill.distill_kl_topk(*arguments, *options, True)[0]
        return loss
    if _is_grad_enabled():
        refuse_grad(_FUNCTION, "teacher_values", teacher_values)
        refuse_grad(_FUNCTION, "weight", weight)
        if student_logits.requires_grad:
            return topk_apply(*arguments, options)
    result: Tensor = _native_topk(*arguments, *options, False)[0]
    return result
