# SPDX-License-Identifier: MIT
"""Optimizers, learning rates and clipped gradients, with nothing that waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adam", "rmsprop")


def make_optimizer(
    name: str, network: nn.Module, learning_rate: float, *, epsilon: float = 1e-8
) -> torch.optim.Optimizer:
    """``"adam"``, or the paper's ``"rmsprop"``, whose own epsilon it keeps."""
    parameters = list(network.parameters())
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    # A tensor, so that a captured step reads the rate of the moment.
    rate = torch.tensor(learning_rate, device=parameters[0].device) if on_gpu else learning_rate
    if name == "rmsprop":  # its decay and epsilon are not on record, these are DQN's
        return torch.optim.RMSprop(
            parameters, lr=rate, alpha=0.95, eps=0.01, centered=True, capturable=on_gpu
        )
    return torch.optim.Adam(parameters, lr=rate, eps=epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def clip_gradients(network: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, which on a CPU spends a pass over all gradients on
    multiplying them by 1 where there is nothing to clip.

    Returns:
        The norm before.
    """
    parameters = list(network.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or not norm <= max_norm:  # elsewhere asking would be waiting
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def linear(start: float, end: float, fraction: float) -> float:
    """``start`` at fraction 0 to ``end`` at 1 and beyond."""
    return start + (end - start) * min(max(fraction, 0.0), 1.0)
