# SPDX-License-Identifier: MIT
"""Distillation losses, each one native pass over its inputs.

The pass computes loss and gradient together, so that backward is a multiplication at most. Usable
alone in any torch code; knows nothing of replay or environments. Formulas and numeric policy:
docs/losses.md.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastdistill._native import core
from fastdistill.losses import ops  # noqa: F401  (registers torch.ops.fastdistill)
from fastdistill.losses.arguments import (
    carries_tangent,
    check_out_grad,
    check_tensor,
    refuse_grad,
    refuse_tangents,
)
from fastdistill.losses.autograd import Options, distill_apply, reference_of
from fastdistill.losses.reference import KINDS

_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_PLAIN = (Tensor, nn.Parameter)

_native_distill = core.distill
# A third of is_compiling's time. What else traces has a dispatch mode or tensors of its own type.
_is_compiling = torch.compiler.is_dynamo_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_grad_enabled = torch.is_grad_enabled
_increment_version = torch._C._increment_version


def distill_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 0.01,
    student_temperature: float = 1.0,
    action_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """KL(teacher || student), the loss of policy distillation.

    Per row: sum_a p_a (log p_a - log q_a), p = softmax(teacher_logits / temperature),
    q = softmax(student_logits / student_temperature). Q-values are logits.

    Args:
        student_logits: [batch, actions], float64, float32, bfloat16 or float16, CPU or CUDA.
        teacher_logits: [batch, actions], any of these dtypes, same device; must not require grad.
        temperature: Sharpens (below 1) or softens the teacher; in [1e-8, 1e8]. 0.01 suits the
            Q-values of a DQN trained with clipped rewards.
        student_temperature: Divides the student's logits; in [1e-8, 1e8]. 1 is the paper's form;
            set it to `temperature` and multiply by its square for the form of Hinton et al. (2015).
        action_mask: bool [actions] or [batch, actions], True where an action is allowed. Others
            have probability 0 on both sides and gradient 0. A logit of -inf masks its own side.
        weight: [batch], multiplies each row's loss; a weight of 0 silences its row even if it holds
            NaN; or bool, True for the rows that count. It does not enter the divisor of the mean;
            must not require grad.
        reduction: "batchmean" (sum / batch), "mean" (sum / (batch * actions), as torch's kl_div),
            "sum" or "none" ([batch]).

    Returns:
        The loss, [] or [batch]; float64 if either side is, else float32. An empty batch gives 0, a
        row without an allowed action gives 0, and a student that rules out (-inf) an action of the
        teacher's gives +inf.

    Raises:
        TypeError: An argument is no dense float tensor on CPU or CUDA.
        ValueError: A shape, device, temperature or reduction is wrong, or the teacher or the weight
            requires grad or carries a tangent of forward-mode AD.

    Example:
        >>> import fastdistill as fd
        >>> student = torch.tensor([[0.0, 1.0]], requires_grad=True)
        >>> loss = fd.distill_kl(student, torch.tensor([[0.5, 0.5]]))
        >>> loss.backward()
        >>> student.grad
        tensor([[-0.2311,  0.2311]])

    Source: Rusu et al. 2015, Policy Distillation, section 3, the KL loss.
    """
    options = (0, temperature, student_temperature, 0.5, reduction, "distill_kl")
    return _distill(student_logits, teacher_logits, action_mask, weight, options)


def distill_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 0.01,
    student_temperature: float = 1.0,
    action_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """KL(student || teacher): seeks one mode of the teacher instead of covering all.

    Per row: sum_a q_a (log q_a - log p_a). Arguments, results and errors as `distill_kl`. Where the
    student has probability on an action that the teacher rules out (-inf), the loss is +inf and the
    row's gradient 0: mask such actions with `action_mask`.

    Source: Gu et al. 2024, MiniLLM, equation 1; Czarnecki et al. 2019, Distilling Policy
    Distillation.
    """
    options = (1, temperature, student_temperature, 0.5, reduction, "distill_reverse_kl")
    return _distill(student_logits, teacher_logits, action_mask, weight, options)


def distill_jsd(
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
    """Generalised Jensen-Shannon divergence, between the two KLs.

    Per row: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, p the teacher.
    `beta` in [0, 1] weighs the teacher; 0 gives `distill_kl` and 1 `distill_reverse_kl`, as is the
    custom, although the formula itself tends to 0 there. Otherwise as `distill_kl`.

    Source: Agarwal et al. 2024, On-Policy Distillation of Language Models, equation 1.
    """
    options = (2, temperature, student_temperature, beta, reduction, "distill_jsd")
    return _distill(student_logits, teacher_logits, action_mask, weight, options)


def distill_nll(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    student_temperature: float = 1.0,
    action_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Negative log-likelihood of the teacher's best action (the first of equals).

    Per row: -log q_b, b = argmax_a teacher_logits. With one term per row, "mean" and "batchmean"
    agree. Otherwise as `distill_kl`.

    Source: Rusu et al. 2015, Policy Distillation, section 3, the NLL loss.
    """
    options = (3, 1.0, student_temperature, 0.5, reduction, "distill_nll")
    return _distill(student_logits, teacher_logits, action_mask, weight, options)


def distill_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    action_mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Squared distance of the student's Q-values from the teacher's.

    Per row: sum_a (student_a - teacher_a)^2 over the actions allowed on both sides. "mean" divides
    by batch * actions as torch's mse_loss. Otherwise as `distill_kl`.

    Source: Rusu et al. 2015, Policy Distillation, section 3, the MSE loss.
    """
    options = (4, 1.0, 1.0, 0.5, reduction, "distill_mse")
    return _distill(student_logits, teacher_logits, action_mask, weight, options)


def distill_loss_and_grad(
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
    out_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient without an autograd node: the cheapest way to train.

    Continue with `student_logits.backward(grad)`.

    Args:
        kind: "kl", "reverse_kl", "jsd", "nll" or "mse".
        student_logits: As in `distill_kl`; whether it requires grad does not matter here.
        teacher_logits: As in `distill_kl`.
        temperature: As in `distill_kl`; kl, reverse_kl and jsd only.
        student_temperature: As in `distill_kl`; not for mse.
        beta: As in `distill_jsd`; jsd only.
        action_mask: As in `distill_kl`.
        weight: As in `distill_kl`.
        reduction: As in `distill_kl`; with "none" each row's gradient is that of its own loss.
        out_grad: [batch, actions] with the student's dtype and device, to be overwritten with the
            gradient and returned, so that a training loop allocates nothing.

    Returns:
        (loss, grad): as the function of that kind returns, and [batch, actions] in the student's
        dtype.

    Raises:
        TypeError, ValueError: As `distill_kl`; also for an option that `kind` does not use, and for
            a student that carries a tangent.
    """
    code = _check_kind("distill_loss_and_grad", kind, temperature, student_temperature, beta)
    if forward_ad._current_level >= 0:
        refuse_tangents(
            "distill_loss_and_grad", student_logits=student_logits, teacher_logits=teacher_logits,
            weight=weight, out_grad=out_grad,
        )  # fmt: skip
    if _is_compiling() or _dispatch_modes() or type(student_logits) not in _PLAIN:
        check_tensor("distill_loss_and_grad", "student_logits", student_logits)
        # Detached, so that no graph hangs on the results, nor on out_grad from step to step.
        loss, grad = torch.ops.fastdistill.distill(
            student_logits.detach(), teacher_logits, action_mask, weight, code, temperature,
            student_temperature, beta, reduction, True, "distill_loss_and_grad",
        )  # fmt: skip
        if out_grad is None:
            return loss, grad
        check_out_grad("distill_loss_and_grad", out_grad, student_logits)
        return loss, out_grad.copy_(grad)
    if _is_grad_enabled():
        refuse_grad("distill_loss_and_grad", "teacher_logits", teacher_logits)
        refuse_grad("distill_loss_and_grad", "weight", weight)
    loss, grad = _native_distill(
        code, student_logits, teacher_logits, action_mask, weight, temperature,
        student_temperature, beta, reduction, True, out_grad, "distill_loss_and_grad",
    )  # fmt: skip
    if out_grad is not None:
        _increment_version((out_grad,))  # so that autograd notices if it had saved this tensor
    return loss, cast(Tensor, grad)


class DistillLoss(nn.Module):
    """A distillation loss as a module, with the options of `distill_loss_and_grad`.

    Args:
        kind: "kl", "reverse_kl", "jsd", "nll" or "mse".
        temperature: Of the teacher, in [1e-8, 1e8]; kl, reverse_kl and jsd only.
        student_temperature: Of the student, in [1e-8, 1e8]; not for mse.
        beta: Weight of the teacher in the mixture, in [0, 1]; jsd only.
        reduction: "batchmean", "mean", "sum" or "none".

    Raises:
        ValueError: An option is out of range, or `kind` does not use it.

    Example:
        >>> import fastdistill as fd
        >>> loss = fd.DistillLoss("mse")
        >>> loss(torch.zeros(1, 2), torch.ones(1, 2))
        tensor(2.)
    """

    def __init__(
        self,
        kind: str = "kl",
        *,
        temperature: float = 0.01,
        student_temperature: float = 1.0,
        beta: float = 0.5,
        reduction: str = "batchmean",
    ) -> None:
        super().__init__()
        code = _check_kind("DistillLoss", kind, temperature, student_temperature, beta)
        self.kind = kind
        self._options = (code, temperature, student_temperature, beta, reduction, "DistillLoss")
        # An option out of range is refused here rather than in the first training step.
        empty = torch.empty(0, 1)
        _native_distill(
            code, empty, empty, None, None, temperature, student_temperature, beta, reduction,
            False, None, "DistillLoss",
        )  # fmt: skip

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        action_mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss; arguments as in `distill_kl`."""
        return _distill(student_logits, teacher_logits, action_mask, weight, self._options)

    def extra_repr(self) -> str:
        """Returns the options, for printing the module."""
        _, temperature, student_temperature, beta, reduction, _ = self._options
        return (
            f"{self.kind!r}, temperature={temperature}, student_temperature={student_temperature}, "
            f"beta={beta}, reduction={reduction!r}"
        )


def _check_kind(
    function: str, kind: str, temperature: float, student_temperature: float, beta: float
) -> int:
    """The kind's number; refuses options that the kind would ignore."""
    code = _KIND_NUMBERS.get(kind)
    if code is None:
        raise ValueError(f"{function}: kind must be one of {list(KINDS)}, got {kind!r}")
    if code != 2 and beta != 0.5:
        raise ValueError(f"{function}: beta must be left at 0.5 for kind {kind!r}, got {beta!r}")
    if code > 2 and temperature != 0.01:
        raise ValueError(
            f"{function}: temperature must be left at 0.01 for kind {kind!r}, got {temperature!r}"
        )
    if code == 4 and student_temperature != 1.0:
        raise ValueError(
            f"{function}: student_temperature must be left at 1.0 for kind {kind!r}, "
            f"got {student_temperature!r}"
        )
    return code


def _distill(
    student: Tensor,
    teacher: Tensor,
    action_mask: Tensor | None,
    weight: Tensor | None,
    options: Options,
) -> Tensor:
    """Chooses the way in: native, native under autograd, torch.library op, or plain torch."""
    code, temperature, student_temperature, beta, reduction, function = options
    if _transforms_active() or (
        forward_ad._current_level >= 0  # forward-mode AD; asking each tensor would take a while
        and carries_tangent(function, student, teacher_logits=teacher, weight=weight)
    ):
        return reference_of(student, teacher, action_mask, weight, options)
    if _is_compiling() or _dispatch_modes() or type(student) not in _PLAIN:
        check_tensor(function, "student_logits", student)
        loss: Tensor = torch.ops.fastdistill.distill(
            student, teacher, action_mask, weight, code, temperature, student_temperature, beta,
            reduction, True, function,
        )[0]  # fmt: skip
        return loss
    if _is_grad_enabled():
        refuse_grad(function, "teacher_logits", teacher)
        refuse_grad(function, "weight", weight)
        if student.requires_grad:
            return distill_apply(student, teacher, action_mask, weight, options)
    result: Tensor = _native_distill(
        code, student, teacher, action_mask, weight, temperature, student_temperature, beta,
        reduction, False, None, function,
    )[0]  # fmt: skip
    return result
