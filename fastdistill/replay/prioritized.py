# SPDX-License-Identifier: MIT
"""Prioritized experience replay for many actors and learners, without locks.

The rows live in native memory (csrc/replay), one ring per environment stream. This module checks
what comes in, keeps the output arrays that batches are copied into, and speaks torch.
Source: Schaul et al. 2015, "Prioritized Experience Replay" (proportional variant).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdistill._files import replacing, unwritable
from fastdistill._native import core as _core
from fastdistill.replay.arguments import (
    NORMALIZATIONS,
    ArrayLike,
    ColumnSpec,
    append_rows,
    check_sample,
    initial_priority_policy,
    integer,
    lanes_of_tasks,
    require_memory,
    row_spec,
    task_shares,
    vector,
)
from fastdistill.replay.batch import ReplayBatch, SlabPool, row_bytes
from fastdistill.replay.files import regular_file
from fastdistill.replay.processes import OfOneProcess

__all__ = ["PrioritizedReplay", "ReplayBatch", "RowPriorities"]

_STEP_BITS = 48


class RowPriorities(NamedTuple):
    """Priorities of all live rows, by lane and step.

    Attributes:
        id: ``[N]`` int64.
        priority: ``[N]`` float64, as given (``priority_exponent`` undone), to about 6 digits.
    """

    id: Tensor
    priority: Tensor


class PrioritizedReplay(OfOneProcess):
    """A ring of the latest transitions of many environment streams, sampled by priority.

    One lane per environment stream. At any time one thread may append to a lane, and any number of
    threads may sample, update priorities and read; none of them waits for another.
    docs/replay.md has the guarantees of each method.

    Args:
        capacity: environment steps kept, over all lanes; rounded up to a multiple of
            ``num_lanes``. The last ``capacity / num_lanes`` steps of a lane can be sampled.
        num_lanes: environment streams, at most 32768.
        frame_shape: shape of what one step adds to the observation.
        frame_dtype: its dtype, any that numpy and torch share.
        stack: frames per observation. With 1 there is no stack dimension.
        n_step: steps per return, 1 to 255.
        discount: per step, in [0, 1].
        priority_exponent: how much priorities matter, in [0, 1]; 0 is a uniform replay. A sequence
            makes one sampler per entry, each with priorities of its own over the same rows.
        columns: extra columns per step, ``{"teacher_logits": ((18,), "float32")}``.
        seed: of the draws. One thread, one seed and the same calls give the same batches.
        lanes_per_task: sizes of groups of consecutive lanes, adding up to ``num_lanes``; each is a
            task to ``sample``. One task by default.
        initial_priority: of steps appended without one. ``"max"``: the largest priority ever
            given, 1 at first. ``"max_live"``: about the largest among live rows. Or a number > 0.
        pad: what stands before an episode's first frame: ``"zero"`` or ``"first"`` (that frame).

    Raises:
        ValueError: an option out of range.
        TypeError: a dtype that numpy or torch lacks.
        MemoryError: the replay would not fit; the text says what it needs and what there is.

    Example:
        >>> replay = PrioritizedReplay(1000, 1, frame_shape=(4,), frame_dtype="float32", stack=1)
        >>> for t in range(10):
        ...     replay.append(np.full((1, 4), t, np.float32), [0], [1.0], [False], [False])
        >>> batch = replay.sample(32)
        >>> accepted = replay.update_priorities(batch.id, batch.reward.abs() + 0.1)
        >>> tuple(batch.obs.shape), bool(accepted.all())
        ((32, 4), True)
    """

    def __init__(
        self,
        capacity: int,
        num_lanes: int,
        *,
        frame_shape: Sequence[int] = (84, 84),
        frame_dtype: str = "uint8",
        stack: int = 4,
        n_step: int = 1,
        discount: float = 0.99,
        priority_exponent: float | Sequence[float] = 0.6,
        columns: Mapping[str, ColumnSpec] | None = None,
        seed: int = 0,
        lanes_per_task: Sequence[int] | None = None,
        initial_priority: Literal["max", "max_live"] | float = "max",
        pad: Literal["zero", "first"] = "zero",
    ) -> None:
        num_lanes = integer("num_lanes", num_lanes, bits=32)
        lane_capacity = -(-integer("capacity", capacity) // num_lanes)
        stack = integer("stack", stack, bits=32)
        self._spec = row_spec(frame_shape, frame_dtype, stack, columns or {})
        exponents = np.atleast_1d(np.asarray(priority_exponent, np.float64)).tolist()
        if pad not in ("zero", "first"):
            raise ValueError(f"PrioritizedReplay: pad must be 'zero' or 'first', got {pad!r}")
        policy, fixed_priority = initial_priority_policy(initial_priority)
        options: dict[str, Any] = {
            "lane_capacity_steps": lane_capacity,
            "num_lanes": num_lanes,
            "lanes_per_task": lanes_of_tasks(lanes_per_task, num_lanes),
            "stack": stack,
            "n_step": integer("n_step", n_step, bits=32),
            "discount": float(discount),
            "repeat_first_frame": pad == "first",
            "priority_exponents": exponents,
            "fixed_initial_priority": fixed_priority,
        }
        config = _core.ReplayConfig(
            **options,
            frame_bytes=row_bytes(self._spec.frame_shape, self._spec.frame_dtype),
            column_bytes=[row_bytes(*column) for column in self._spec.columns.values()],
            initial_priority=policy,
            seed=integer("seed", seed, least=0, bits=64),
        )
        self._memory_bytes = config.required_bytes()
        require_memory(self._memory_bytes)
        self._core: _core.Replay = _core.Replay(config)
        self._schema = json.dumps(
            options
            | {
                "frame": [self._spec.frame_shape, self._spec.frame_dtype.name],
                "columns": {n: [s, d.name] for n, (s, d) in self._spec.columns.items()},
                "initial_priority": policy.name,
            }
        )
        self._lane_capacity = lane_capacity
        self._num_samplers = len(exponents)
        self._num_tasks = len(options["lanes_per_task"])
        self._lanes = np.arange(num_lanes)
        self._slabs = SlabPool(self._spec)
        super().__init__()

    @property
    def capacity(self) -> int:
        """Steps that can be sampled at most, over all lanes."""
        return self._lane_capacity * len(self._lanes)

    @property
    def memory_bytes(self) -> int:
        """Native memory of the full replay; it is taken as steps come in."""
        return self._memory_bytes

    def __len__(self) -> int:
        """Live rows: those whose window is complete, rows of priority 0 among them."""
        return self._core.live_rows()

    def append(
        self,
        frame: ArrayLike,
        action: ArrayLike,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        *,
        boundary: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        lanes: Sequence[int] | npt.NDArray[np.int64] | None = None,
        **columns: ArrayLike,
    ) -> None:
        """Appends one environment step to each lane.

        A row can be sampled once its n-step window is complete: after ``n_step`` more steps, or
        one step after the step that ended or cut the return.

        Args:
            frame: ``[L, *frame_shape]``, newest part of the observation the action was chosen on.
            action: ``[L]`` integers.
            reward: ``[L]``, what the action brought; stored as float32.
            terminated: ``[L]`` bool: no return goes past this step. Without a boundary after it (a
                lost life) that is all; stacks go on.
            truncated: ``[L]`` bool: returns stop here and bootstrap from the next observation.
            boundary: ``[L]`` bool, all False by default: ``frame`` is an episode's final
                observation. It serves as ``next_obs`` only, its other values are ignored, and the
                lane's next step begins an episode.
            priority: ``[L]`` >= 0, of these rows when they become live.
            lanes: ``[L]`` the lanes written, all by default. Threads that append at the same time
                must name different ones.
            **columns: ``[L, *shape]`` per extra column.

        Raises:
            ValueError: a wrong shape, a priority that is not finite and >= 0, a missing column or
                a lane that is being written.
            TypeError: a dtype that does not fit.
            IndexError: a lane that does not exist.
            In each case nothing was appended.
        """
        lane_array = self._lanes if lanes is None else append_rows("lanes", lanes, None, np.int64)
        shape = (len(lane_array),)
        if columns.keys() != self._spec.columns.keys():
            raise ValueError(
                f"append: columns must be {sorted(self._spec.columns)}, got {sorted(columns)}"
            )
        self._core.append(
            lane_array,
            append_rows("frame", frame, shape + self._spec.frame_shape, self._spec.frame_dtype),
            append_rows("action", action, shape, np.int64),
            append_rows("reward", reward, shape, np.float32),
            append_rows("terminated", terminated, shape, np.bool_),
            append_rows("truncated", truncated, shape, np.bool_),
            None if boundary is None else append_rows("boundary", boundary, shape, np.bool_),
            None if priority is None else append_rows("priority", priority, shape, np.float32),
            [
                append_rows(name, columns[name], shape + inner, dtype)
                for name, (inner, dtype) in self._spec.columns.items()
            ],
        )

    def sample(
        self,
        batch_size: int,
        importance_exponent: float = 0.4,
        *,
        task_weights: Literal["balanced"] | Sequence[float] | None = None,
        stratified: bool = True,
        weight_normalization: Literal["batch", "global", "none"] = "batch",
        sampler: int = 0,
        next_obs: bool = True,
    ) -> ReplayBatch:
        """Draws rows with probability ``priority**priority_exponent`` over the sum of all.

        Args:
            batch_size: rows to draw, with replacement, at most 2**20.
            importance_exponent: of the weights ``(N P(i))**-importance_exponent``, in [0, 1].
            task_weights: shares of the tasks in the batch. By default they follow from the
                priorities; ``"balanced"`` gives all tasks the same. Given shares are taken as
                wanted: weights then correct for the priorities within each task.
            stratified: one row from each of ``batch_size`` equal parts of the sum, rather than
                independent draws. Less variance, the same probabilities.
            weight_normalization: ``"batch"`` divides the weights by their largest, ``"global"`` by
                (nearly) the largest of any live row, ``"none"`` leaves them.
            sampler: which entry of ``priority_exponent``.
            next_obs: whether to gather it, which is half of the copying; a distillation has no use
                for it.

        Returns:
            The batch; pinned memory where CUDA is present.

        Raises:
            ValueError: an argument out of range.
            IndexError: no such sampler.
            RuntimeError: no row to draw.
        """
        check_sample(batch_size, importance_exponent, weight_normalization)
        slab = self._slabs.take(batch_size, next_obs)
        self._core.sample(
            self._sampler("sample", sampler),
            slab.native,
            importance_exponent,
            stratified,
            NORMALIZATIONS[weight_normalization],
            task_shares(task_weights, self._num_tasks),
        )
        return slab.lend()

    def update_priorities(self, id: Tensor, priority: Tensor, *, sampler: int = 0) -> Tensor:
        """Gives rows new priorities; rows that are gone stay gone.

        Args:
            id: ``[B]`` int64, from this buffer's batches, of any age. The last of equal ids wins.
            priority: ``[B]`` finite and >= 0. A row of priority 0 is not drawn until it gets
                another (unless ``priority_exponent`` is 0).
            sampler: which entry of ``priority_exponent``.

        Returns:
            ``[B]`` bool: False where the row had been overwritten, and nothing was changed.

        Raises:
            ValueError: a wrong shape, or a priority that is not finite and >= 0.
            TypeError: ids that are not int64, or priorities that are not floating point.
            IndexError: an id that this buffer has not issued.
            In each case no priority was changed.
        """
        id = vector("update_priorities", "id", id, torch.int64)
        priority = vector("update_priorities", "priority", priority, torch.float32)
        if id.shape != priority.shape:
            raise ValueError(
                f"update_priorities: priority must have the shape of id, {tuple(id.shape)}, "
                f"got {tuple(priority.shape)}"
            )
        num_rows = id.shape[0]
        accepted = torch.empty(num_rows, dtype=torch.bool)
        self._core.update(
            self._sampler("update_priorities", sampler),
            id.data_ptr(),
            priority.data_ptr(),
            accepted.data_ptr(),
            num_rows,
        )
        return accepted

    def read(self, id: Tensor) -> ReplayBatch:
        """Returns the rows of these ids, with weight 1.

        Raises:
            IndexError: a row that is not live, or an id that this buffer has not issued.
        """
        id = vector("read", "id", id, torch.int64)
        slab = self._slabs.take(id.shape[0], True)
        self._core.read(id.numpy(), slab.native)
        return slab.lend()

    def clear(self) -> None:
        """Drops all rows; ids go on. To other threads it is an append to every lane."""
        self._core.clear()

    def priorities(self, *, sampler: int = 0) -> RowPriorities:
        """Returns the ids and priorities of all live rows, about 10 ns each."""
        row_id, priority = self._core.priorities(self._sampler("priorities", sampler))
        return RowPriorities(torch.from_numpy(row_id), torch.from_numpy(priority))

    def statistics(self, *, sampler: int = 0) -> dict[str, float]:
        """Returns counts since construction.

        ``live_rows``; ``appended_steps``; ``stale_updates``: priority updates refused, their rows
        being gone; ``redraws``: rows drawn again, being overwritten or changed at that moment;
        ``scans``: rows drawn by a pass over all leaves, after 64 redraws; ``clamped_weights``:
        priorities whose power left the range 9.5e-7 to 4096; ``max_priority``: largest so far.
        """
        return self._core.statistics(self._sampler("statistics", sampler))

    def check_valid(self) -> None:
        """Compares every sum, census and counter with the leaves, while no other thread runs.

        Raises:
            RuntimeError: they disagree, which is a defect of this library.
        """
        if wrong := self._core.check_valid():
            raise RuntimeError(f"check_valid: the replay must agree with itself, got {wrong}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes rows, priorities and the random state; other threads may go on meanwhile.

        The file appears under its name when complete and on disk, in one step. Of several saves to
        one path at once the last to be complete stays.

        Raises:
            ValueError: the path is there and no regular file.
            OSError: the file cannot be written; with its name and the reason.
        """
        target = regular_file("save", path)
        try:
            with replacing(target) as temporary, temporary.open("xb") as file:
                self._core.save(file.fileno(), self._schema)
        except OSError as error:
            raise unwritable("save", target, error) from error

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replaces the content by a snapshot's. No other thread may use the replay meanwhile.

        Raises:
            ValueError: the file is damaged, of a replay with other options or no regular file, or
                a lane is being written; nothing changed.
            OSError: the file cannot be read.
        """
        with regular_file("load", path).open("rb") as file:
            self._core.load(file.fileno(), self._schema)

    @staticmethod
    def decode_id(id: Tensor) -> tuple[Tensor, Tensor]:
        """Splits ids into lanes and steps, int64 like ``id``."""
        return id >> _STEP_BITS, id & ((1 << _STEP_BITS) - 1)

    def _sampler(self, function: str, sampler: int) -> int:
        if not 0 <= sampler < self._num_samplers:
            raise IndexError(
                f"{function}: sampler must be in [0, {self._num_samplers}), got {sampler}"
            )
        return sampler
