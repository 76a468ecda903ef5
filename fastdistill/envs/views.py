# SPDX-License-Identifier: MIT
"""Views: what one player sees of what an environment shows, as one array for all lanes.

The lanes hold the record as the environment returned it, once. A view takes it, a key of it or
what a function makes of it, and gives networks what they read: uint8 images with planes first, or
float32 vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdistill.envs.records import EnvFault

# A key of Dict observations, or a function of what all lanes show: arrays [lanes, ...], or a
# dictionary of them, to [lanes, ...] of images (uint8 or bool) or vectors.
ViewSource = str | Callable[[Any], Any]

# What records call a view that is no key.
FUNCTION = "a function"


class View:
    """How one player sees a record.

    Attributes:
        obs_shape: Of one observation: ``(planes, height, width)`` or ``(features,)``.
        obs_dtype: uint8 of images (bool ones, as MinAtar's, become 0 and 255), float32 of vectors.
    """

    def __init__(self, source: ViewSource | None, space: Any, record: Any, num_lanes: int) -> None:
        """Args:
        source: See ``ViewSource``; None for all of it.
        space: Of one observation.
        record: Of all lanes, to see what a function makes of it; for others it may be None.
        num_lanes: How many those are.

        Raises:
            TypeError: Observations of several parts, or images that are neither uint8 nor bool.
            ValueError: No such key, or neither vectors nor images.
        """  # noqa: D205
        self._function = source if callable(source) else None
        self._key = source if isinstance(source, str) else None
        self._num_lanes = num_lanes
        self._num_values = 0
        if self._function is not None:
            made = self._call(record)
            self._seen: tuple[int, ...] = made.shape[1:]
            self._dtype = made.dtype
        else:
            part = space if self._key is None else _part(space, self._key)
            if _kind(part) == "Discrete":
                self._num_values, self._first = int(part.n), int(part.start)
            elif getattr(part, "shape", None) is None or _kind(part) in ("Dict", "Tuple"):
                raise TypeError(
                    f"LaneEnv: env must have vector or image observations, got {part}; choose a "
                    "key, or what a function makes of it, as view (student_view, teacher_view)"
                )
            self._seen, self._dtype = tuple(map(int, part.shape)), np.dtype(part.dtype)
        self._set_form()

    def _set_form(self) -> None:
        shape = (self._num_values,) if self._num_values else self._seen
        # ALE's colour screens are stacks of one.
        self._stack_of_one = len(shape) == 4 and shape[0] == 1
        shape = shape[1:] if self._stack_of_one else shape
        if len(shape) not in (1, 3):
            raise ValueError(
                f"LaneEnv: env must have vector or image observations, got shape {shape}; flatten "
                "them with a gymnasium wrapper (FlattenObservation)"
            )
        is_image = len(shape) == 3
        self._is_bool = is_image and self._dtype == np.bool_
        if is_image and not self._is_bool and self._dtype != np.uint8:
            raise TypeError(
                f"LaneEnv: env must have uint8 (or bool) images, got {self._dtype} {shape}; "
                "a cast would make zeros of 0..1: scale them to 0..255 with a gymnasium wrapper "
                "(TransformObservation)"
            )
        # Fewer planes than rows and columns; the colours of a narrow picture, too.
        self._channels_last = is_image and (
            shape[-1] < min(shape[:2]) or (shape[-1] in (1, 3, 4) and shape[0] > 4)
        )
        self.obs_shape = (shape[2], *shape[:2]) if self._channels_last else shape
        self.obs_dtype = np.dtype(np.uint8 if is_image else np.float32)

    def __call__(self, record: Any) -> NDArray[Any]:
        """What a player sees, ``[lanes, *obs_shape]``.

        Raises:
            EnvFault: The environment, or the function, gave something else than it said.
        """
        part = self._part_of(record)
        shape = (self._num_lanes, *self._seen)
        if getattr(part, "shape", None) != shape or part.dtype != self._dtype:
            found = f"{getattr(part, 'dtype', type(part).__name__)}"
            raise EnvFault(
                f"observations must be {self._dtype} {list(shape)}, "
                f"got {found} {list(getattr(part, 'shape', ()))}"
            )
        if part.dtype.kind == "f":
            finite = np.isfinite(part).reshape(self._num_lanes, -1).all(axis=1)
            if not finite.all():
                lane = int(np.flatnonzero(~finite)[0])
                raise EnvFault(
                    f"observations must be finite, got {part[lane].tolist()} in lane {lane}"
                )
        return self._one_hot(part) if self._num_values else self._formed(part)

    def _part_of(self, record: Any) -> Any:
        if self._function is not None:
            return self._call(record)
        if self._key is None:
            return record
        if not isinstance(record, dict) or self._key not in record:
            raise EnvFault(f"observations must hold {self._key!r}, got {type(record).__name__}")
        return record[self._key]

    def _call(self, record: Any) -> NDArray[Any]:
        assert self._function is not None
        try:
            made = np.asarray(self._function(record))
        except Exception as error:  # whatever a function of the caller's raises
            raise EnvFault(f"view must not raise, got {type(error).__name__}: {error}") from error
        if made.dtype.kind not in "fiub" or made.ndim < 2:
            raise EnvFault(
                f"view must return numbers [lanes, ...], got {made.dtype} {list(made.shape)}"
            )
        if len(made) != self._num_lanes:
            raise EnvFault(
                f"view must return {self._num_lanes} lanes, got {made.dtype} {list(made.shape)}"
            )
        return made

    def _one_hot(self, part: NDArray[Any]) -> NDArray[np.float32]:
        value = part - self._first
        if ((value < 0) | (value >= self._num_values)).any():
            raise EnvFault(
                f"observations must be in [{self._first}, {self._first + self._num_values}), "
                f"got {part.tolist()}"
            )
        found = np.zeros((len(part), self._num_values), np.float32)
        found[np.arange(len(part)), value] = 1
        return found

    def _formed(self, part: NDArray[Any]) -> NDArray[Any]:
        part = part[:, 0] if self._stack_of_one else part
        if self._channels_last:
            part = np.ascontiguousarray(part.transpose(0, 3, 1, 2))
        part = part.astype(self.obs_dtype, copy=False)
        return part * np.uint8(255) if self._is_bool else part


def view_name(source: ViewSource | None) -> str | None:
    """What records say of a view."""
    return source if source is None or isinstance(source, str) else FUNCTION


def is_discrete(space: Any) -> bool:
    """Whether it has one of several values."""
    return _kind(space) == "Discrete"


def _kind(space: Any) -> str:
    # By name: this module does not import gymnasium. MultiBinary has an `n` as well.
    names = {kind.__name__ for kind in type(space).__mro__}
    return next((name for name in ("Discrete", "Dict", "Tuple") if name in names), "")


def _part(space: Any, key: str) -> Any:
    if _kind(space) != "Dict":
        raise ValueError(
            f"LaneEnv: view must be a key of Dict observations, got {key!r} of {space}"
        )
    if key not in space.spaces:
        raise ValueError(
            f"LaneEnv: view must be one of {', '.join(map(repr, space.spaces))}, got {key!r}"
        )
    return space.spaces[key]
