# SPDX-License-Identifier: MIT
"""Batches of the replay and the memory they are copied into.

A batch of Atari frames is megabytes; fresh memory for each would cost more in page faults than
the copy itself. So memory is used again, but only when no tensor of it is left. Pinned memory is
torch's to use again: its cache also waits for copies to the device that are still under way.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdistill._native import core as _core


class ReplayBatch(NamedTuple):
    """Rows drawn by :meth:`PrioritizedReplay.sample`; B rows, all CPU tensors.

    The tensors are yours for as long as you hold them, or anything made from them without a copy.
    When nothing does any more, a later ``sample`` of the same thread writes over the memory; where
    CUDA is present, not before copies to the device that have been started from it are done.

    Attributes:
        obs: ``[B, stack, *frame_shape]``, or ``[B, *frame_shape]`` where ``stack`` is 1.
        action: ``[B]`` int64.
        reward: ``[B]`` float32, the discounted sum over the n-step window.
        discount: ``[B]`` float32, what multiplies the value of ``next_obs``: ``discount**k`` after
            k steps, 0 after a termination.
        next_obs: like ``obs``, k steps later; without rows where it was not asked for.
        weight: ``[B]`` float32 importance weights.
        id: ``[B]`` int64, (lane, step) of the row; never used again for another one.
        task: ``[B]`` int64, index of the row's task.
        columns: extra columns by name, ``[B, *shape]``, of the row's first step.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor
    weight: Tensor
    id: Tensor
    task: Tensor
    columns: dict[str, Tensor]


class RowSpec(NamedTuple):
    """Shapes and dtypes of one row."""

    frame_shape: tuple[int, ...]
    frame_dtype: np.dtype[Any]
    obs_shape: tuple[int, ...]
    columns: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Slab:
    """Memory of one batch, lent to its tensors and known to be free when they are gone."""

    def __init__(self, num_rows: int, spec: RowSpec, with_next_obs: bool) -> None:
        self.size = (num_rows, with_next_obs)
        self._names = tuple(spec.columns)
        self._arrays = [np.empty(*field) for field in _fields(num_rows, spec, with_next_obs)]
        self.native = _native_batch(self._arrays)
        self._idle_references = self._references()

    def _references(self) -> list[int]:
        return [sys.getrefcount(array) for array in self._arrays]

    def is_free(self) -> bool:
        """Whether no tensor of this memory is left."""
        # A tensor made by from_numpy() keeps its array alive through its storage, and the storage
        # lives as long as any view of it does, in Python, in numpy or in an autograd graph.
        return self._references() == self._idle_references

    def lend(self) -> ReplayBatch:
        """The batch in this memory, as tensors without a copy."""
        return _batch_of(map(torch.from_numpy, self._arrays), self._names)


class PinnedSlab:
    """Memory of one batch from torch's cache of pinned memory, to be lent once.

    The tensors are torch's own: only of those does a copy with ``non_blocking=True`` tell the
    cache, which then keeps the memory until the device has read it, whoever drops the tensors.
    """

    def __init__(self, num_rows: int, spec: RowSpec, with_next_obs: bool) -> None:
        self._names = tuple(spec.columns)
        fields = list(_fields(num_rows, spec, with_next_obs))
        sizes = [row_bytes(*field) for field in fields]
        starts = [0, *itertools.accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
        # One block, for each would cost a search of the cache.
        block = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
        self._tensors = [
            block[start : start + size].view(_torch_dtype(dtype)).view(shape)
            for start, size, (shape, dtype) in zip(starts, sizes, fields, strict=False)
        ]
        self.native = _native_batch([tensor.numpy() for tensor in self._tensors])

    def lend(self) -> ReplayBatch:
        """The batch in this memory."""
        return _batch_of(self._tensors, self._names)


class SlabPool:
    """The slabs of one replay; each thread has its own, so that none waits for another."""

    def __init__(self, spec: RowSpec) -> None:
        self._spec = spec
        self._thread = threading.local()
        self._is_pinned = torch.cuda.is_available()

    def take(self, num_rows: int, with_next_obs: bool) -> Slab | PinnedSlab:
        """A slab that nobody holds a tensor of, else a new one."""
        if self._is_pinned:
            return PinnedSlab(num_rows, self._spec, with_next_obs)
        slabs: list[Slab] | None = getattr(self._thread, "slabs", None)
        if slabs is None:
            slabs = self._thread.slabs = []
        for slab in slabs:
            if slab.size == (num_rows, with_next_obs) and slab.is_free():
                return slab
        slabs.append(Slab(num_rows, self._spec, with_next_obs))
        if len(slabs) > _SLABS_KEPT:
            del slabs[0]
        return slabs[-1]


_ALIGNMENT = 64  # bytes; any dtype can be viewed there

_NEXT_OBS = 4  # its place among the fields

# Two serve a loop that drops a batch when it gets the next; four, two such loops or batch sizes.
_SLABS_KEPT = 4


def row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of one element of a field."""
    return math.prod(shape) * dtype.itemsize


def _native_batch(arrays: Sequence[npt.NDArray[Any]]) -> _core.ReplayBatch:
    obs, action, reward, discount, next_obs, weight, row_id, task, *columns = arrays
    return _core.ReplayBatch(obs, action, reward, discount, next_obs, weight, row_id, task, columns)


def _fields(
    num_rows: int, spec: RowSpec, with_next_obs: bool
) -> Iterator[tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each field of a batch, extra columns last."""
    integers, floats = ((), np.dtype(np.int64)), ((), np.dtype(np.float32))
    obs = (spec.obs_shape, spec.frame_dtype)
    fields = [obs, integers, floats, floats, obs, floats, integers, integers]
    for place, (shape, dtype) in enumerate([*fields, *spec.columns.values()]):
        is_left_out = place == _NEXT_OBS and not with_next_obs
        yield (0 if is_left_out else num_rows, *shape), dtype


def _batch_of(tensors: Iterable[Tensor], names: Sequence[str]) -> ReplayBatch:
    obs, action, reward, discount, next_obs, weight, row_id, task, *columns = tensors
    by_name = dict(zip(names, columns, strict=True))
    return ReplayBatch(obs, action, reward, discount, next_obs, weight, row_id, task, by_name)


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
