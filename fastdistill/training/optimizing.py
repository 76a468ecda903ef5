# SPDX-License-Identifier: MIT
"""Optimizers, learning rates and clipped gradients, with nothing that waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop

# What each remembers of a parameter, besides how often it was changed.
_MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg", "grad_avg")}

OPTIMIZERS = tuple(_MOMENTS)


class Optimizer:
    """torch's functions without its classes, the first of which imports torch's compiler.

    That is seconds of every start. Parameters without a gradient stay as they are and have no
    state.

    Attributes:
        entries: Names of what is remembered of each parameter: ``step``, a float32 scalar, and two
            moments of the parameter's shape.
        state: The entries of each parameter that was changed, by its place in the network.
    """

    def __init__(
        self, name: str, network: nn.Module, learning_rate: float, *, epsilon: float = 1e-8
    ) -> None:
        """``"adam"``, or the paper's ``"rmsprop"``, whose own epsilon it keeps."""
        self._name = name
        self._parameters = list(network.parameters())
        self._on_gpu = any(parameter.is_cuda for parameter in self._parameters)
        self._learning_rate: float | Tensor = learning_rate
        if self._on_gpu:  # a tensor, so that a captured step reads the rate of the moment
            device = self._parameters[0].device
            self._learning_rate = torch.tensor(learning_rate, device=device)
        self._epsilon = epsilon
        self.entries = ("step", *_MOMENTS[name])
        self.state: dict[int, dict[str, Tensor]] = {}

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of all parameters."""
        if isinstance(self._learning_rate, Tensor):
            self._learning_rate.fill_(learning_rate)
        else:
            self._learning_rate = learning_rate

    @torch.no_grad()
    def step(self) -> None:
        """Change every parameter that has a gradient."""
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        entries: list[dict[str, Tensor]] = []
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                parameters.append(parameter)
                gradients.append(parameter.grad)
                entries.append(self.state.get(place) or self._begin(place))
        steps, first, second = ([of[name] for of in entries] for name in self.entries)
        if self._name == "adam":
            adam(
                parameters, gradients, first, second, [], steps, fused=True, amsgrad=False,
                beta1=0.9, beta2=0.999, lr=self._learning_rate, weight_decay=0.0,
                eps=self._epsilon, maximize=False,
            )  # fmt: skip
        else:  # its decay and epsilon are not on record, these are DQN's
            rmsprop(
                parameters, gradients, first, second, [], steps, capturable=self._on_gpu,
                lr=self._learning_rate,  # type: ignore[arg-type]  # a tensor is one, too
                alpha=0.95, eps=0.01, weight_decay=0.0, momentum=0.0, centered=True,
            )  # fmt: skip

    def _begin(self, place: int) -> dict[str, Tensor]:
        parameter = self._parameters[place]
        step, *moments = self.entries
        self.state[place] = {
            step: torch.zeros((), dtype=torch.float32, device=parameter.device),
            **{name: torch.zeros_like(parameter) for name in moments},
        }
        return self.state[place]


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
