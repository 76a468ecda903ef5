# SPDX-License-Identifier: MIT
"""What is refused of the losses' arguments in Python: what native code does not get to see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_tensor(function: str, argument: str, value: object) -> None:
    """Refuses what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {argument} must be a torch.Tensor, got {type(value).__name__}"
        )


def refuse_grad(function: str, argument: str, tensor: object) -> None:
    """A gradient that the native call would silently drop is refused instead."""
    if tensor is not None and getattr(tensor, "requires_grad", False):
        raise ValueError(
            f"{function}: {argument} must not require grad, got requires_grad=True; detach it"
        )


def refuse_tangents(function: str, **tensors: object) -> None:
    """As `refuse_grad`, for the tangents of forward-mode AD."""
    for argument, tensor in tensors.items():
        if _has_tangent(tensor):
            raise ValueError(
                f"{function}: {argument} must not carry a tangent, got one of forward-mode AD; "
                "detach it"
            )


def carries_tangent(function: str, student: object, **constants: object) -> bool:
    """Whether the loss must have a tangent because the student has; refuses those of `constants`.

    And their gradients: plain torch, where a student with a tangent goes, would not refuse them.
    """
    refuse_tangents(function, **constants)
    if torch.is_grad_enabled():
        for argument, tensor in constants.items():
            refuse_grad(function, argument, tensor)
    return _has_tangent(student)


def _has_tangent(tensor: object) -> bool:
    if not isinstance(tensor, Tensor):
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def check_out_grad(function: str, out_grad: Tensor, student: Tensor) -> None:
    """As native code does, which does not see it where an operator computes the gradient.

    Without its look for overlaps: the gradient is copied when all is read, and a tensor that is
    traced has no memory.
    """
    check_tensor(function, "out_grad", out_grad)
    if out_grad.shape != student.shape:
        raise ValueError(
            f"{function}: out_grad must have the shape of student_logits {list(student.shape)}, "
            f"got {list(out_grad.shape)}"
        )
    if out_grad.dtype != student.dtype:
        raise TypeError(
            f"{function}: out_grad must have the dtype of student_logits, got {out_grad.dtype}"
        )
    if out_grad.device != student.device:
        raise ValueError(
            f"{function}: out_grad must be on the device of student_logits ({student.device}), "
            f"got {out_grad.device}"
        )
    rows, columns = out_grad.shape
    row_stride, column_stride = out_grad.stride()
    if (columns > 1 and column_stride != 1) or (rows > 1 and row_stride < columns):
        raise ValueError(
            f"{function}: out_grad must have adjacent columns and separate rows, got strides "
            f"{out_grad.stride()}"
        )
