# SPDX-License-Identifier: MIT
"""What a replay means, in plain Python: the oracle that the native one is compared with.

It keeps every step ever appended in lists and derives everything from the definitions, by other
ways than the native code: no ring, no ages, no tags, no pending window, no sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STEP_BITS = 48


@dataclass(frozen=True)
class Step:
    """One appended step, as given."""

    frame: npt.NDArray[Any]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    boundary: bool
    priority: float | None
    columns: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Transition:
    """One row, as a batch shows it."""

    obs: npt.NDArray[Any]
    action: int
    reward: np.float32
    discount: np.float32
    next_obs: npt.NDArray[Any]
    columns: Mapping[str, npt.NDArray[Any]]


class ReplayReference:
    """The rows and priorities that a :class:`fastdistill.replay.PrioritizedReplay` must show.

    Args:
        lane_capacity_steps: steps of a lane that can be sampled at most.
        num_lanes: environment streams.
        stack: frames per observation.
        n_step: steps per return.
        discount: per step.
        repeat_first_frame: pad stacks with the episode's first frame rather than zeros.
    """

    def __init__(
        self,
        lane_capacity_steps: int,
        num_lanes: int,
        *,
        stack: int,
        n_step: int,
        discount: float,
        repeat_first_frame: bool = False,
    ) -> None:
        self._capacity = lane_capacity_steps
        self._stack = stack
        self._n_step = n_step
        self._discount = discount
        self._repeat_first_frame = repeat_first_frame
        self._lanes: list[list[Step]] = [[] for _ in range(num_lanes)]
        self._cleared = [0] * num_lanes
        self._max_priority = 1.0
        self.priority: dict[int, float] = {}
        """Priority of every live row by id."""

    def append(self, lane: int, step: Step) -> None:
        """Adds one step to a lane."""
        self._lanes[lane].append(step)
        for t in range(len(self._lanes[lane])):
            row_id = (lane << STEP_BITS) | t
            if not self.is_live(lane, t):
                self.priority.pop(row_id, None)
            elif row_id not in self.priority:
                given = self._lanes[lane][t].priority
                self.priority[row_id] = self._max_priority if given is None else given
                self._max_priority = max(self._max_priority, self.priority[row_id])

    def clear(self) -> None:
        """Drops all rows; the next step of each lane begins an episode."""
        self._cleared = [len(steps) for steps in self._lanes]
        self.priority.clear()

    def update_priorities(self, ids: Sequence[int], priorities: Sequence[float]) -> list[bool]:
        """Changes the priority of the rows that are live, in order."""
        accepted = []
        for row_id, priority in zip(ids, priorities, strict=True):
            accepted.append(row_id in self.priority)
            if accepted[-1]:
                self.priority[row_id] = priority
                self._max_priority = max(self._max_priority, priority)
        return accepted

    def is_live(self, lane: int, t: int) -> bool:
        """Whether the row that starts at step ``t`` can be sampled."""
        steps = self._lanes[lane]
        kept = max(self._cleared[lane], len(steps) - self._capacity) <= t
        return kept and not steps[t].boundary and self._window(lane, t) is not None

    def transition(self, row_id: int) -> Transition:
        """The row with this id, which must be live."""
        lane, t = row_id >> STEP_BITS, row_id & ((1 << STEP_BITS) - 1)
        window = self._window(lane, t)
        if window is None:
            raise IndexError(f"transition: row_id must name a live row, got {row_id}")
        taken = self._lanes[lane][t : t + window]
        reward = sum(
            self._discount**i * float(np.float32(step.reward)) for i, step in enumerate(taken)
        )
        return Transition(
            obs=self._observation(lane, t),
            action=taken[0].action,
            reward=np.float32(reward),
            discount=np.float32(0.0 if taken[-1].terminated else self._discount**window),
            next_obs=self._observation(lane, t + window),
            columns=taken[0].columns,
        )

    def _window(self, lane: int, t: int) -> int | None:
        """Steps from row ``t`` to the observation it bootstraps from; None if not there yet."""
        steps = self._lanes[lane]
        for k in range(1, self._n_step + 1):
            if t + k >= len(steps):
                return None
            last = steps[t + k - 1]
            if last.terminated or last.truncated or steps[t + k].boundary:
                return k
        return self._n_step

    def _observation(self, lane: int, t: int) -> npt.NDArray[Any]:
        steps = self._lanes[lane]
        start = t
        while start > self._cleared[lane] and not steps[start - 1].boundary:
            start -= 1
        frames = [steps[i].frame for i in range(max(start, t - self._stack + 1), t + 1)]
        first = steps[start].frame if self._repeat_first_frame else np.zeros_like(steps[t].frame)
        return np.stack([first] * (self._stack - len(frames)) + frames)
