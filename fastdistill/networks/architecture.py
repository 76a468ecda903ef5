# SPDX-License-Identifier: MIT
"""What a network is made of, in one frozen record, and the paper's sizes: the one table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from fastdistill._files import is_int, shown

# Kernel size and stride of each convolution; Mnih et al. 2015.
CONVOLUTIONS = ((8, 4), (4, 2), (3, 1))

# Images whose smaller side is below 36 pixels, which those would leave nothing of, by that side:
# what is left is 1 x 1 to 7 x 7, the paper's for 84 x 84.
_SMALL = (
    (7, ((3, 1), (3, 1), (3, 1))),
    (14, ((3, 2), (3, 1), (3, 1))),
    (24, ((3, 2), (3, 2), (3, 1))),
    (36, CONVOLUTIONS),
)

# Far beyond any network of this kind. A file that asks for more wants time and memory, not a
# network: sizes within these can be multiplied and built without weights in milliseconds.
MAX_SIZE, MAX_LAYERS, MAX_HEADS = 65_536, 32, 256


@dataclass(frozen=True)
class Architecture:
    """A network, described completely.

    Attributes:
        obs_shape: ``(planes, height, width)`` of uint8 images or ``(features,)`` of floats.
        num_actions: Outputs of each head; a single-task network has one entry.
        channels: Filters of the three convolutions (images only); see ``convolutions``.
        hidden: Units of the fully connected layers after them.
        head_hidden: Units of a layer of its own in each head, 0 for none. The paper's multi-task
            networks have 128.
        dueling: Heads return value + advantage - mean advantage (Wang et al. 2016).
        layer_norm: Layer normalisation after every hidden layer (PQN, Gallici et al. 2024).

    Every size is at most ``MAX_SIZE``; there are at most ``MAX_LAYERS`` hidden layers and
    ``MAX_HEADS`` heads.
    """

    obs_shape: tuple[int, ...]
    num_actions: tuple[int, ...]
    channels: tuple[int, int, int] = (32, 64, 64)
    hidden: tuple[int, ...] = (512,)
    head_hidden: int = 0
    dueling: bool = False
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if len(self.obs_shape) not in (1, 3) or min(self.obs_shape) < 1:
            raise ValueError(
                "Architecture: obs_shape must be (planes, height, width) or (features,), "
                f"got {shown(self.obs_shape)}"
            )
        if not self.num_actions or min(self.num_actions) < 1:
            raise ValueError(
                "Architecture: num_actions must name at least one action per head, "
                f"got {shown(self.num_actions)}"
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"Architecture: hidden must be positive sizes, got {shown(self.hidden)}"
            )
        if len(self.channels) != len(CONVOLUTIONS) or min(self.channels) < 1:
            raise ValueError(
                f"Architecture: channels must be three positive sizes, got {shown(self.channels)}"
            )
        if self.head_hidden < 0:
            raise ValueError(f"Architecture: head_hidden must be 0 or more, got {self.head_hidden}")
        for name, most in (("hidden", MAX_LAYERS), ("num_actions", MAX_HEADS)):
            if len(getattr(self, name)) > most:
                raise ValueError(
                    f"Architecture: {name} must have at most {most} entries, "
                    f"got {len(getattr(self, name))}"
                )
        for name in (*_TUPLES, "head_hidden"):
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value,)) > MAX_SIZE:
                raise ValueError(
                    f"Architecture: {name} must be at most {MAX_SIZE}, got {shown(value)}"
                )

    @property
    def is_image(self) -> bool:
        """Whether it sees images, which are uint8; else vectors."""
        return len(self.obs_shape) == 3

    def to_json(self) -> dict[str, Any]:
        """The description as plain JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> Architecture:
        """The reverse of ``to_json``.

        Raises:
            ValueError: Naming a field that is unknown, missing or of a wrong kind.
        """
        if not isinstance(description, dict):
            raise ValueError(
                f"Architecture.from_json: description must be an object, got {shown(description)}"
            )
        fields: dict[str, Any] = {}
        for name, value in description.items():
            if name in _TUPLES:
                wanted = "a list of integers"
                fits = isinstance(value, list) and all(is_int(size) for size in value)
            elif name == "head_hidden":
                wanted, fits = "an integer", is_int(value)
            else:
                wanted, fits = "true or false", isinstance(value, bool)
            if name in cls.__dataclass_fields__ and not fits:
                raise ValueError(
                    f"Architecture.from_json: {name} must be {wanted}, got {shown(value)}"
                )
            fields[name] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"Architecture.from_json: {shown(str(error))}") from error


def convolutions(obs_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Kernel size and stride of each convolution of a network for these images.

    Args:
        obs_shape: ``(planes, height, width)``.

    Raises:
        ValueError: They are smaller than 7 x 7 pixels.
    """
    side = min(obs_shape[1:])
    if side < _SMALL[0][0]:
        raise ValueError(
            f"convolutions: obs_shape must be at least 7 x 7 pixels, got {shown(obs_shape)}"
        )
    return next(layers for least, layers in reversed(_SMALL) if side >= least)


# The fields that are tuples of sizes.
_TUPLES = ("obs_shape", "num_actions", "channels", "hidden")


class _Size(NamedTuple):
    """Filters and units for images (the paper's), units for vectors, units of each head's own."""

    channels: tuple[int, int, int]
    units: int
    vector_units: tuple[int, int]
    head_units: int = 0


# The one table of sizes: shares of the teacher's parameters (for vectors, of two layers of 128),
# and the paper's networks for three games and for ten.
_SIZES: dict[str, _Size] = {
    "100%": _Size((32, 64, 64), 512, (128, 128)),
    "25%": _Size((16, 32, 32), 256, (64, 64)),
    "7%": _Size((16, 16, 16), 128, (32, 32)),
    "4%": _Size((16, 16, 16), 64, (24, 24)),
    "multi": _Size((32, 64, 64), 512, (128, 128), 128),
    "multi-wide": _Size((64, 64, 64), 1500, (384, 384), 128),
}
SIZES = tuple(_SIZES)


def size_name(text: str) -> str:
    """A size as ``SIZES`` has it; ``7`` means ``7%``. What is none is left for others to refuse."""
    text = text.strip()
    return f"{text}%" if f"{text}%" in _SIZES else text


def paper_architecture(
    size: str,
    num_actions: int | Sequence[int],
    *,
    obs_shape: tuple[int, ...] = (4, 84, 84),
    dueling: bool = False,
    layer_norm: bool = False,
) -> Architecture:
    """One of the paper's networks, by its share of the teacher's parameters.

    Args:
        size: ``"100%"`` (the Nature DQN), ``"25%"``, ``"7%"`` or ``"4%"``; ``"multi"``, the Nature
            trunk with 128 units of its own before each head, or ``"multi-wide"``, the network for
            ten games. For vectors these are shares of a network with two layers of 128 units.
        num_actions: Outputs, or outputs per head: one head for each game.
        obs_shape: Of one observation.
        dueling: See ``Architecture``.
        layer_norm: See ``Architecture``.

    Raises:
        ValueError: There is no such size.

    Source: Rusu et al. 2015, table of network sizes; with 18 outputs 1,693,362, 427,874, 113,346
    and 61,954 parameters; with 12 in three heads 1,882,668, with 85 in ten 6,756,721.
    """
    if size not in _SIZES:
        raise ValueError(f"paper_architecture: size must be one of {list(_SIZES)}, got {size!r}")
    found = _SIZES[size]
    heads = (num_actions,) if isinstance(num_actions, int) else tuple(num_actions)
    trunk: dict[str, Any] = {"channels": found.channels, "hidden": (found.units,)}
    return Architecture(
        obs_shape,
        heads,
        **({"hidden": found.vector_units} if len(obs_shape) == 1 else trunk),
        head_hidden=found.head_units,
        dueling=dueling,
        layer_norm=layer_norm,
    )


def multitask_architecture(num_actions: Sequence[int], *, wide: bool = False) -> Architecture:
    """The paper's multi-task network: one trunk, for each game a head with 128 units of its own.

    Args:
        num_actions: Actions of each game.
        wide: The ten-game network (64 filters, 1,500 units) instead of the three-game one.
    """
    return paper_architecture("multi-wide" if wide else "multi", num_actions)
