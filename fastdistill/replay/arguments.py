# SPDX-License-Identifier: MIT
"""Checks of what users hand to the replay: the one place where shapes and dtypes are settled.

Values (priorities, ids, lanes, ranges of options) are checked by the native code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdistill._native import core as _core
from fastdistill.replay.batch import RowSpec
from fastdistill.replay.control_groups import control_group_bytes

ArrayLike = npt.ArrayLike | Tensor
ColumnSpec = tuple[Sequence[int], str]

_FIELDS = ("lanes", "frame", "action", "reward", "terminated", "truncated", "boundary", "priority")


def integer(
    name: str, value: int, *, least: int = 1, bits: int = 63, function: str = "PrioritizedReplay"
) -> int:
    """One integer option or argument, at least ``least`` and of so many bits."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{function}: {name} must be >= {least}, got {value}")
    if value >= 1 << bits:
        raise ValueError(f"{function}: {name} must be below 2**{bits}, got {value}")
    return int(value)


def lanes_of_tasks(lanes_per_task: Sequence[int] | None, num_lanes: int) -> list[int]:
    """Sizes of the groups of lanes; one of all lanes where none are given."""
    if lanes_per_task is None or len(lanes_per_task) == 0:
        return [num_lanes]
    return [integer("lanes_per_task", lanes, bits=32) for lanes in lanes_per_task]


def row_spec(
    frame_shape: Sequence[int], frame_dtype: str, stack: int, columns: Mapping[str, ColumnSpec]
) -> RowSpec:
    """Shapes and dtypes of a row, from the constructor's options."""
    frame = _shape_and_dtype("frame_shape", frame_shape, frame_dtype)
    named = {}
    for name, column in columns.items():
        if name in _FIELDS or not name.isidentifier():
            raise ValueError(
                f"PrioritizedReplay: columns must have names other than {_FIELDS}, got {name!r}"
            )
        named[name] = _shape_and_dtype(f"columns[{name!r}]", *column)
    obs_shape = frame[0] if stack == 1 else (stack, *frame[0])
    return RowSpec(*frame, obs_shape, named)


def _shape_and_dtype(
    name: str, shape: Sequence[int], dtype: str
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    sizes = tuple(integer(name, size) for size in shape)
    if math.prod(sizes) > _MAX_ROW_BYTES:
        raise ValueError(f"PrioritizedReplay: {name} must hold at most 2**47 elements, got {sizes}")
    try:
        parsed = np.dtype(dtype)
        torch.from_numpy(np.empty(0, parsed))
    except TypeError as error:
        raise TypeError(
            f"PrioritizedReplay: the dtype of {name} must be one of numpy and torch, got {dtype!r}"
        ) from error
    return sizes, parsed


def initial_priority_policy(value: str | float) -> tuple[_core.InitialPriority, float]:
    """The native policy, and the priority that the fixed one gives."""
    if value == "max":
        return _core.InitialPriority.max, 1.0
    if value == "max_live":
        return _core.InitialPriority.max_live, 1.0
    if isinstance(value, str):
        raise ValueError(
            f"PrioritizedReplay: initial_priority must be 'max', 'max_live' or a number, "
            f"got {value!r}"
        )
    return _core.InitialPriority.fixed, float(value)


def append_rows(
    name: str, value: ArrayLike, shape: tuple[int, ...] | None, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """One argument of append as a contiguous array, or the reason why it cannot be one."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.shape != shape and (shape is not None or array.ndim != 1):
        raise ValueError(f"append: {name} must have shape {shape or '[L]'}, got {array.shape}")
    if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"append: {name} must have dtype {np.dtype(dtype)}, got {array.dtype}")
    return np.ascontiguousarray(array, dtype)


MAX_BATCH = 1 << 20

NORMALIZATIONS = {
    "batch": _core.WeightNormalization.batch,
    "global": _core.WeightNormalization.global_,
    "none": _core.WeightNormalization.none,
}


def check_sample(batch_size: int, importance_exponent: float, weight_normalization: str) -> None:
    """Refuses what ``sample`` cannot do."""
    if not 1 <= integer("batch_size", batch_size, function="sample") <= MAX_BATCH:
        raise ValueError(f"sample: batch_size must be in [1, {MAX_BATCH}], got {batch_size}")
    if not 0.0 <= importance_exponent <= 1.0:
        raise ValueError(
            f"sample: importance_exponent must be in [0, 1], got {importance_exponent}"
        )
    if weight_normalization not in NORMALIZATIONS:
        raise ValueError(
            f"sample: weight_normalization must be one of {sorted(NORMALIZATIONS)}, "
            f"got {weight_normalization!r}"
        )


def task_shares(weights: str | Sequence[float] | None, num_tasks: int) -> list[float]:
    """Shares of the tasks in a batch, as native code takes them; none where none are wanted."""
    if weights is None:
        return []
    if isinstance(weights, str):
        if weights != "balanced":
            raise ValueError(
                f"sample: task_weights must be 'balanced' or one number per task, got {weights!r}"
            )
        return [1.0] * num_tasks
    # An empty list would mean "no weights" behind the binding.
    return list(weights) or [math.nan]


def vector(function: str, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous CPU vector; floating point is converted, integers must be exact."""
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if value.dtype is dtype and value.ndim == 1 and value.is_cpu and value.is_contiguous():
        return value  # the usual case, which the rest would make three times as slow
    if value.dtype != dtype and not (value.is_floating_point() and dtype.is_floating_point):
        raise TypeError(f"{function}: {name} must be {dtype}, got {value.dtype}")
    if value.ndim != 1:
        raise ValueError(f"{function}: {name} must have shape [B], got {tuple(value.shape)}")
    return value.detach().to("cpu", dtype).contiguous()


_MAX_ROW_BYTES = 1 << 47  # x86-64's address space


def require_memory(needed: int) -> None:
    """Refuses a replay that would be killed, or worse swapped, when it fills up."""
    available = _available_memory_bytes()
    if needed > available:
        raise MemoryError(
            f"PrioritizedReplay: capacity must fit in memory, got {needed / 1e9:.2f} GB needed "
            f"and {available / 1e9:.2f} GB available"
        )


def _available_memory_bytes() -> float:
    """What the machine and this process's control group (a container's limit) leave."""
    available = math.inf
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    return min(available, control_group_bytes(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")))
