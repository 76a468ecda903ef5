# SPDX-License-Identifier: MIT
"""Networks of other libraries, rebuilt from their weights as plain torch modules.

Sizes come from the tensors' shapes, which are checked against each other before anything is
built; what shapes cannot tell (activations, scaling) the caller reads from the file or knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill.networks.architecture import CONVOLUTIONS
from fastdistill.teachers.archives import Source

MAX_LAYERS = 64
MAX_ACTIONS = 10_000


class Observations(nn.Module):
    """The first layer: observations as the environment gives them to what the network reads.

    Attributes:
        obs_shape: ``(planes, height, width)`` of uint8 images or ``(features,)``.
        divisor: Observations are divided by it.
        clip: Limit of the standardised observations, where there are statistics.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        obs_shape: Sequence[int],
        *,
        divisor: float = 1.0,
        statistics: tuple[Tensor, Tensor, float] | None = None,
    ) -> None:
        super().__init__()
        self.obs_shape = tuple(obs_shape)
        self.divisor = divisor
        mean, std, self.clip = statistics if statistics is not None else (None, None, 0.0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, obs: Tensor) -> Tensor:
        """``[batch, *obs_shape]``, uint8 if images, to float32 of that shape."""
        if tuple(obs.shape[1:]) != self.obs_shape:
            raise ValueError(
                f"teacher: obs must have shape {['batch', *self.obs_shape]}, got {list(obs.shape)}"
            )
        if len(self.obs_shape) == 3 and obs.dtype != torch.uint8:
            raise ValueError(f"teacher: obs must be uint8 images, got {obs.dtype}")
        x = obs.float()
        if self.mean is not None and self.std is not None:
            x = ((x - self.mean) / self.std).clamp(-self.clip, self.clip)
        return x / self.divisor if self.divisor != 1.0 else x


class MeanOfQuantiles(nn.Module):
    """``[batch, quantiles * actions]``, quantile after quantile, to ``[batch, actions]``."""

    def __init__(self, num_quantiles: int) -> None:
        super().__init__()
        self.num_quantiles = num_quantiles

    def forward(self, quantiles: Tensor) -> Tensor:
        """The mean over quantiles."""
        return quantiles.reshape(len(quantiles), self.num_quantiles, -1).mean(dim=1)


class MeanOfAtoms(nn.Module):
    """``[batch, actions * atoms]`` logits, action after action, to ``[batch, actions]``."""

    atoms: Tensor

    def __init__(self, atoms: Tensor) -> None:
        super().__init__()
        self.register_buffer("atoms", atoms)

    def forward(self, logits: Tensor) -> Tensor:
        """The mean of the categorical distribution over ``atoms``."""
        shares = logits.reshape(len(logits), -1, len(self.atoms)).softmax(dim=2)
        return (shares * self.atoms).sum(dim=2)


def linear_layers(
    source: Source,
    tensors: Mapping[str, Any],
    prefix: str,
    inputs: int,
    activation: type[nn.Module],
    *,
    ends_active: bool,
    first: int = 0,
) -> tuple[list[nn.Module], int]:
    """Fully connected layers ``prefix.0``, ``prefix.2``, ..., with activations between them.

    Args:
        source: For messages.
        tensors: Checked ones, by name.
        prefix: Of the names.
        inputs: Size of what the first layer reads.
        activation: Between layers.
        ends_active: Whether an activation follows the last layer too.
        first: Index of the first layer.

    Returns:
        The layers and the size of what comes out.
    """
    layers: list[nn.Module] = []
    indices = layer_indices(tensors, prefix)
    if indices != list(range(first, first + 2 * len(indices), 2)) or len(indices) > MAX_LAYERS:
        raise source.refuse(
            f"number the layers of {prefix!r} {first}, {first + 2}, ... (at most {MAX_LAYERS}; "
            "custom layers are not served)",
            indices,
        )
    for index in indices:
        layer = linear(source, tensors, f"{prefix}.{index}", inputs)
        inputs = layer.out_features
        layers += [layer, activation()]
    return (layers if ends_active else layers[:-1]), inputs


def layer_indices(tensors: Mapping[str, Any], prefix: str) -> list[int]:
    """The numbers of the layers below a prefix, in order."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.weight")
    return sorted(int(found[1]) for name in tensors if (found := pattern.fullmatch(name)))


def linear(source: Source, tensors: Mapping[str, Any], name: str, inputs: int) -> nn.Linear:
    """A fully connected layer with the weights of that name."""
    weight, bias = _pair(source, tensors, name)
    if weight.dim() != 2 or weight.shape[1] != inputs or weight.shape[0] < 1:
        raise source.refuse(f"hold {name}.weight of shape [units, {inputs}]", list(weight.shape))
    layer = nn.Linear(inputs, len(weight), device="meta")
    _fill(layer, weight, bias)
    return layer


def nature_convolutions(
    source: Source, tensors: Mapping[str, Any], prefix: str, obs_shape: Sequence[int]
) -> tuple[list[nn.Module], int]:
    """The three convolutions of Mnih et al. 2015 at ``prefix.0``, ``.2`` and ``.4``, flattened.

    Returns:
        The layers and the size of what comes out.
    """
    planes, height, width = obs_shape
    layers: list[nn.Module] = []
    for index, (kernel, stride) in enumerate(CONVOLUTIONS):
        name = f"{prefix}.{2 * index}"
        weight, bias = _pair(source, tensors, name)
        wanted = (planes, kernel, kernel)
        if weight.dim() != 4 or tuple(weight.shape[1:]) != wanted or weight.shape[0] < 1:
            raise source.refuse(
                f"hold {name}.weight of shape [filters, {', '.join(map(str, wanted))}] (the "
                "Nature network; other convolutions are not served)",
                list(weight.shape),
            )
        layer = nn.Conv2d(planes, len(weight), kernel, stride, device="meta")
        _fill(layer, weight, bias)
        layers += [layer, nn.ReLU()]
        planes = len(weight)
        height, width = ((extent - kernel) // stride + 1 for extent in (height, width))
        if min(height, width) < 1:
            raise source.refuse("see images of at least 36 x 36 pixels", list(obs_shape))
    return [*layers, nn.Flatten()], planes * height * width


def check_actions(source: Source, num_actions: int) -> None:
    """Refuse a number of actions that no game has."""
    if not 1 <= num_actions <= MAX_ACTIONS:
        raise source.refuse(f"have 1 to {MAX_ACTIONS:,} actions", num_actions)


def finished(layers: Sequence[nn.Module]) -> nn.Sequential:
    """The network, in evaluation mode and without gradients, as teachers are."""
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _pair(source: Source, tensors: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor]:
    found = []
    for part in ("weight", "bias"):
        tensor = tensors.get(f"{name}.{part}")
        if not isinstance(tensor, Tensor):
            raise source.refuse(f"hold the tensor {name}.{part}", "none")
        found.append(tensor)
    weight, bias = found
    if weight.dim() < 1 or bias.shape != weight.shape[:1]:
        raise source.refuse(f"hold {name}.bias of shape {list(weight.shape[:1])}", list(bias.shape))
    return weight, bias


def _fill(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    # The layer was made without memory, so nothing is allocated twice; copies, because the
    # tensors may share memory with others of the file.
    layer.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)
