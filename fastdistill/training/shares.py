# SPDX-License-Identifier: MIT
"""How many rows of a batch each task has: exact shares, nothing drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastdistill.replay import PrioritizedReplay, ReplayBatch


class Shares:
    """Whole numbers of rows for shares that are none; what a batch lacks, later ones make up.

    After any number of batches each task has had its share of all rows, to within less than the
    number of tasks.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Args:
        weights: One number for each task, 0 or more and not all 0; the shares are proportional.
        """  # noqa: D205
        total = sum(weights)
        self._shares = np.array([weight / total for weight in weights])
        self._owed = np.zeros(len(weights))

    def take(self, rows: int) -> list[int]:
        """Of each task, for a batch of ``rows``."""
        if len(self._shares) == 1:  # what follows takes a fifth of the time that the rows do
            return [rows]
        wanted = self._shares * rows + self._owed
        counts = np.maximum(np.floor(wanted), 0).astype(np.int64)
        while (missing := rows - int(counts.sum())) != 0:
            lacks = wanted - counts
            if missing > 0:
                # Of a task without a share never, whatever the rounding.
                counts[int(np.argmax(np.where(self._shares > 0, lacks, -np.inf)))] += 1
            else:
                counts[int(np.argmin(np.where(counts > 0, lacks, np.inf)))] -= 1
        self._owed = wanted - counts
        found: list[int] = counts.tolist()
        return found

    def state(self) -> list[float]:
        """To continue from, as plain JSON types."""
        found: list[float] = self._owed.tolist()
        return found

    def restore(self, state: list[float]) -> None:
        """The reverse of ``state``."""
        self._owed = np.array(state)


def sample_tasks(
    replay: PrioritizedReplay,
    counts: Sequence[int],
    importance_exponent: float = 0.4,
    *,
    next_obs: bool = True,
) -> ReplayBatch:
    """So many rows of each task of a replay, ordered by task."""
    if len(counts) == 1:
        return replay.sample(counts[0], importance_exponent, next_obs=next_obs)
    # A stratified draw goes through the tasks in their order, and these shares of it are whole
    # numbers of strata.
    weights = [float(count) for count in counts]
    return replay.sample(sum(counts), importance_exponent, task_weights=weights, next_obs=next_obs)


def rows_of(batch: ReplayBatch, num_tasks: int) -> list[int]:
    """How many rows each task has in a batch that is ordered by task."""
    if num_tasks == 1:
        return [len(batch.task)]
    found: list[int] = batch.task.bincount(minlength=num_tasks).tolist()
    return found


def lane_groups(num_lanes: int, num_tasks: int) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The lanes of a replay that each task writes, group by group."""
    lanes = np.arange(num_lanes * num_tasks).reshape(num_tasks, num_lanes)
    return list(lanes)
