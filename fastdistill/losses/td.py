# SPDX-License-Identifier: MIT
"""DQN's temporal-difference loss, one native pass over its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastdistill._native import core
from fastdistill.losses.arguments import carries_tangent, check_tensor, refuse_grad
from fastdistill.losses.autograd import td_apply
from fastdistill.losses.reference import TD_KINDS, td_reference

_TD_KIND_NUMBERS = {kind: number for number, kind in enumerate(TD_KINDS)}
_PLAIN = (Tensor, nn.Parameter)

_native_td = core.td
# A third of is_compiling's time. What else traces has a dispatch mode or tensors of its own type.
_is_compiling = torch.compiler.is_dynamo_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_grad_enabled = torch.is_grad_enabled


def td_loss(
    q: Tensor,
    action: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    kind: str = "huber",
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """DQN's loss on the taken actions, and the priorities that prioritized replay wants.

    Per row: td = q[action] - target; "huber" is td^2 / 2 up to |td| = 1 and |td| - 1/2 beyond,
    "mse" is td^2.

    Args:
        q: [batch, actions], float32 or float64.
        action: [batch], int64, each in [0, actions).
        target: [batch], converted to q's dtype; must not require grad.
        weight: [batch], importance weights; a weight of 0 silences its row. Must not require grad.
        kind: "huber" or "mse".
        reduction: "mean" (sum / batch), "sum" or "none".

    Returns:
        (loss, td_abs): [] or [batch], differentiable with respect to q; and |td|, [batch], not
        differentiable and without the weight.

    Raises:
        IndexError: An action is outside [0, actions) (CPU; on CUDA, where looking would wait for
            the device, such a row's loss and |td| are NaN and its gradient 0).
        TypeError, ValueError: As `distill_kl`.

    Example:
        >>> import fastdistill as fd
        >>> fd.td_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([1]), torch.tensor([1.0]))
        (tensor(1.5000), tensor([2.]))

    Source: Mnih et al. 2015, Human-level control through deep reinforcement learning, Methods.
    """
    code = _TD_KIND_NUMBERS.get(kind)
    if code is None:
        raise ValueError(f"td_loss: kind must be one of {list(TD_KINDS)}, got {kind!r}")
    if _transforms_active() or (
        forward_ad._current_level >= 0  # as in `functions`
        and carries_tangent("td_loss", q, target=target, weight=weight)
    ):
        return td_reference(q, action, target, weight=weight, kind=kind, reduction=reduction)
    if _is_compiling() or _dispatch_modes() or type(q) not in _PLAIN:
        check_tensor("td_loss", "q", q)
        loss, td_abs, _ = torch.ops.fastdistill.td(q, action, target, weight, code, reduction, True)
        return loss, td_abs
    if _is_grad_enabled():
        refuse_grad("td_loss", "target", target)
        refuse_grad("td_loss", "weight", weight)
        if q.requires_grad:
            return td_apply(q, action, target, weight, (code, reduction))
    loss, td_abs, _ = _native_td(code, q, action, target, weight, reduction, False)
    return loss, td_abs
