# SPDX-License-Identifier: MIT
"""The networks of the paper: the Nature DQN, its small students, heads for many games.

One frozen ``Architecture`` describes a network completely and is what a checkpoint stores. Two
things differ from the usual code, both measured to matter: observation statistics are buffers of
the network and its input is standardised with them, and the heads compute in float32 under any
autocast, because the best two actions are often 0.01 apart. On a CPU with the instructions for it,
the convolutions are those of ``fastdistill.networks.convolutions``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastdistill.networks import convolutions as frames
from fastdistill.networks.architecture import Architecture, convolutions

# Added to each pixel's deviation (of 255): a pixel that never moved must not blow up when it does.
_STD_FLOOR = 0.02 * 255
_CLIP = 5.0


class QNetwork(nn.Module):
    """Observations to Q-values or policy logits, by ``Architecture``.

    Weights are initialised orthogonally (gain sqrt 2 before a ReLU, ``head_gain`` at the outputs),
    biases with zeros. Torch's default left small students on a constant for thousands of updates.

    Attributes:
        architecture: The description it was built from.
        uses_frames: Whether ``convolutions`` computes its convolutions of uint8 images in
            float32 and, where the CPU multiplies bfloat16, under autocast. False leaves them to
            torch, for hooks on the layers or second derivatives, which it does not have.
        games: Names of the heads' games, where there are several; else empty.
        obs_mean: Subtracted from what is seen, ``[height, width]`` or ``[features]``; with several
            heads ``[heads, ...]``: a background is a game's own.
        obs_scale: Multiplies the difference; likewise.
    """

    obs_mean: Tensor
    obs_scale: Tensor
    games: tuple[str, ...]

    def __init__(self, architecture: Architecture, *, head_gain: float = 0.1) -> None:
        super().__init__()
        self.architecture = architecture
        is_image = architecture.is_image
        frame_shape = architecture.obs_shape[1:] if is_image else architecture.obs_shape
        # Buffers, not parameters: they are data, saved and moved with the weights. Until
        # set_obs_statistics is called they scale uint8 to 0..1 and leave floats alone.
        heads = len(architecture.num_actions)
        shape = frame_shape if heads == 1 else (heads, *frame_shape)
        self.register_buffer("obs_mean", torch.zeros(shape))
        self.register_buffer("obs_scale", torch.full(shape, 1 / 255 if is_image else 1.0))
        self.games = ()
        self._clips = is_image
        stack = convolutions(architecture.obs_shape) if is_image else ()
        self.uses_frames = is_image and frames.fits(
            architecture.obs_shape, architecture.channels, stack
        )
        layers: list[nn.Module] = []
        size = architecture.obs_shape[0]
        if is_image:
            height, width = frame_shape
            for filters, (kernel, stride) in zip(architecture.channels, stack, strict=True):
                layers.append(nn.Conv2d(size, filters, kernel, stride))
                if architecture.layer_norm:
                    layers.append(nn.GroupNorm(1, filters))
                layers.append(nn.ReLU(inplace=True))
                height, width = ((extent - kernel) // stride + 1 for extent in (height, width))
                size = filters
            layers.append(nn.Flatten())
            size *= height * width
        for units in architecture.hidden:
            layers.extend(_hidden_layer(size, units, architecture.layer_norm))
            size = units
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(
            _Head(size, actions, architecture) for actions in architecture.num_actions
        )
        if not self.obs_mean.is_meta:  # of a network that will be loaded: shapes, no values to set
            self._draw_weights(head_gain, None)

    @classmethod
    def seeded(cls, architecture: Architecture, seed: int, *, head_gain: float = 0.1) -> QNetwork:
        """A network on the CPU whose first weights come from a generator of its own.

        Torch's global generator is neither seeded nor drawn from, so that what else happens in the
        process does not change them.
        """
        with torch.device("meta"):  # else torch's default weights would be drawn first
            network = cls(architecture)
        # As `to_empty` does, which imports sympy and torch's symbolic shapes for it.
        shapes = network.state_dict().items()
        empty = {name: torch.empty(like.shape, dtype=like.dtype) for name, like in shapes}
        network.load_state_dict(empty, assign=True)
        network.obs_mean.zero_()
        network.obs_scale.fill_(1 / 255 if network._clips else 1.0)
        for module in network.modules():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.reset_parameters()
        network._draw_weights(head_gain, torch.Generator().manual_seed(seed))
        return network

    def _draw_weights(self, head_gain: float, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _initialise(module, math.sqrt(2), generator)
        for head in self._heads():
            for outputs in (head.output, head.value):
                if outputs is not None:
                    _initialise(outputs, head_gain, generator)

    def _heads(self) -> list[_Head]:
        return [head for head in self.heads if isinstance(head, _Head)]

    def _statistics(self, head: int) -> tuple[Tensor, Tensor]:
        if len(self.heads) == 1:
            return self.obs_mean, self.obs_scale
        return self.obs_mean[head], self.obs_scale[head]

    def set_obs_statistics(self, mean: Tensor, std: Tensor, head: int = 0) -> None:
        """Standardise the input: ``clip((obs - mean) / (std + floor), -5, 5)``.

        Args:
            mean: Per-pixel mean, ``[height, width]`` in 0..255, or ``[features]``.
            std: Per-pixel deviation, likewise.
            head: Whose game's input it is.
        """
        own_mean, own_scale = self._statistics(head)
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != own_mean.shape or not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"QNetwork.set_obs_statistics: {name} must be finite with shape "
                    f"{list(own_mean.shape)}, got shape {list(value.shape)}"
                )
        floor = _STD_FLOOR if self.architecture.is_image else 1e-3
        own_mean.copy_(mean)
        own_scale.copy_(1.0 / (std + floor))

    def features(self, obs: Tensor, head: int = 0) -> Tensor:
        """What a head reads: ``[batch, obs...]`` uint8 or float to ``[batch, hidden]``."""
        return self._features([(head, obs)])

    def _features(self, parts: Sequence[tuple[int, Tensor]]) -> Tensor:
        """``features`` of some heads' rows, one after another, in one pass through the trunk."""
        dtype = self._frames_dtype(parts[0][1])
        if dtype is not None:
            return self._features_of_frames(parts, dtype)
        standard = []
        for head, obs in parts:
            mean, scale = self._statistics(head)
            x = (obs - mean).mul_(scale)
            standard.append(x.clamp_(-_CLIP, _CLIP) if self._clips else x)
        features: Tensor = self.trunk(_joined(standard))
        return features

    def _frames_dtype(self, obs: Tensor) -> torch.dtype | None:
        """What ``frames`` would compute the convolutions in; None where torch has to."""
        is_for_frames = (
            self.uses_frames
            and obs.dtype == torch.uint8
            and obs.device.type == "cpu"
            and self.obs_mean.dtype == torch.float32
            and not frames.is_traced()
        )
        if not is_for_frames:
            return None
        is_autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_autocast else torch.float32
        return dtype if frames.is_available(dtype) else None

    def _features_of_frames(
        self, parts: Sequence[tuple[int, Tensor]], dtype: torch.dtype
    ) -> Tensor:
        def convolve(x: Tensor, layer: nn.Conv2d, head: int | None = None) -> Tensor:
            assert layer.bias is not None
            return frames.convolve(
                x,
                layer.weight,
                layer.bias,
                stride=layer.stride[0],
                relu=not self.architecture.layer_norm,
                statistics=None if head is None else (*self._statistics(head), _CLIP),
                dtype=dtype,
            )

        x = parts[0][1]
        for index, layer in enumerate(self.trunk):
            if isinstance(layer, nn.Conv2d):
                # The first one standardises its frames, and each game has statistics of its own;
                # from there on all games go together.
                first = [(h, obs.contiguous()) for h, obs in parts] if index == 0 else []
                joined = [convolve(obs, layer, head) for head, obs in first]
                x = _joined(joined or [convolve(x, layer)])
            elif isinstance(layer, nn.GroupNorm):
                x = layer(x.permute(0, 3, 1, 2)).relu_().permute(0, 2, 3, 1).contiguous()
            elif isinstance(layer, nn.Flatten):
                features: Tensor = self.trunk[index + 1 :](x.permute(0, 3, 1, 2).flatten(1))
                return features
        raise AssertionError("unreachable: a trunk of images has a Flatten")

    def forward(self, obs: Tensor, head: int = 0) -> Tensor:
        """Q-values or logits of one head.

        Args:
            obs: ``[batch, *obs_shape]``, uint8 images or float vectors.
            head: Index of the head.

        Returns:
            ``[batch, num_actions[head]]`` float32, also under autocast.
        """
        features = self.features(obs, head)
        with torch.autocast(features.device.type, enabled=False):
            outputs: Tensor = self.heads[head](_precise(features))
        return outputs

    def forward_games(self, obs: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Values of a batch of several games: the trunk runs once, each head on its rows.

        Args:
            obs: ``[batch, *obs_shape]``, the rows of the first head's game first, then those of
                the second...
            counts: Rows of each head, 0 or more; they add up to the batch.

        Returns:
            ``[counts[head], num_actions[head]]`` float32 of each head, also under autocast.
        """
        if len(counts) != len(self.heads) or min(counts) < 0 or not 0 < sum(counts) == len(obs):
            raise ValueError(
                f"QNetwork.forward_games: counts must be {len(self.heads)} numbers of rows that "
                f"add up to {len(obs)}, got {list(counts)}"
            )
        rows = zip(range(len(counts)), torch.split(obs, list(counts)), strict=True)
        features = self._features([(head, part) for head, part in rows if len(part)])
        with torch.autocast(features.device.type, enabled=False):
            parts = torch.split(_precise(features), list(counts))
            return [head(part) for head, part in zip(self.heads, parts, strict=True)]

    def multiply_adds(self) -> int:
        """Of one observation's values by the first head (convolutions and matrix products)."""
        shape = list(self.architecture.obs_shape[1:])
        total = 0
        for layer in (*self.trunk, *self.heads[0].modules()):
            if isinstance(layer, nn.Conv2d):
                kernel, stride = layer.kernel_size[0], layer.stride[0]
                shape = [(extent - kernel) // stride + 1 for extent in shape]
                total += layer.weight.numel() * math.prod(shape)
            elif isinstance(layer, nn.Linear):
                total += layer.weight.numel()
        return total

    def for_task(self, game: str | int) -> QNetwork:
        """The network of one game, a plain module: observations to values.

        Args:
            game: One of ``games``, or the place of its head.

        Returns:
            A network with that head alone. It shares weights and statistics with this one and
            follows them, until one of the two is moved to another device or dtype.

        Raises:
            ValueError: No head is of that game.
        """
        if isinstance(game, str) and game not in self.games:
            raise ValueError(
                f"QNetwork.for_task: game must be one of {', '.join(self.games) or 'none'}, "
                f"got {game!r}"
            )
        head = self.games.index(game) if isinstance(game, str) else game
        if not 0 <= head < len(self.heads):
            raise ValueError(
                f"QNetwork.for_task: game must be in [0, {len(self.heads)}), got {head}"
            )
        if len(self.heads) == 1:
            return self
        architecture = replace(
            self.architecture, num_actions=(self.architecture.num_actions[head],)
        )
        with torch.device("meta"):
            network = QNetwork(architecture)
        network.obs_mean, network.obs_scale = self._statistics(head)
        network.trunk = self.trunk
        network.heads = nn.ModuleList([self.heads[head]])
        return network.train(self.training)


def num_parameters(module: nn.Module) -> int:
    """Number of trainable or frozen scalars of any module (buffers do not count)."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Head(nn.Module):
    """Features to one value per action, float32 in and out."""

    def __init__(self, size: int, num_actions: int, architecture: Architecture) -> None:
        super().__init__()
        units = architecture.head_hidden
        layers = _hidden_layer(size, units, architecture.layer_norm) if units else []
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(units or size, num_actions)
        self.value = nn.Linear(units or size, 1) if architecture.dueling else None

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.hidden(features)
        outputs: Tensor = self.output(hidden)
        if self.value is None:
            return outputs
        value: Tensor = self.value(hidden)
        return value + outputs - outputs.mean(dim=1, keepdim=True)


def _precise(features: Tensor) -> Tensor:
    """For the heads: float32, or float64 where the whole network is."""
    return features if features.dtype == torch.float64 else features.float()


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _initialise(
    layer: nn.Conv2d | nn.Linear, gain: float, generator: torch.Generator | None
) -> None:
    nn.init.orthogonal_(layer.weight, gain, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _hidden_layer(inputs: int, units: int, layer_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(inputs, units)]
    if layer_norm:
        layers.append(nn.LayerNorm(units))
    return [*layers, nn.ReLU(inplace=True)]
