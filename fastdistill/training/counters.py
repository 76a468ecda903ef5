# SPDX-License-Identifier: MIT
"""How far a run is: steps, updates, returns, where the time goes, and means between records."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdistill.envs import Episode
from fastdistill.training.state import check_state

# What their states are like, see ``check_state``.
_COUNTERS = {
    "step": 0, "updates": 0, "recent_returns": [0.0], "episodes": 0,
    "fresh_episodes": [[0.0]], "wall_seconds": 0.0, "total_seconds": {"*": 0.0},
    "recorded_seconds": {"*": 0.0}, "recorded_step": 0, "since_record_seconds": 0.0,
}  # fmt: skip
_MEANS = {"sums": {"*": 0.0}, "count": 0}


class Counters:
    """What every recipe counts.

    Attributes:
        step: Agent steps taken, all lanes together.
        updates: Gradient updates made.
        recent: Returns of the last 50 episodes.
        episodes: Episodes finished.
        total_seconds: Time spent in each part so far, over all resumes.
    """

    def __init__(self) -> None:
        self.step = 0
        self.updates = 0
        self.recent: deque[float] = deque(maxlen=50)
        self.episodes = 0
        self.total_seconds: dict[str, float] = {}
        self._fresh: list[tuple[float, int]] = []  # return and length since the last record
        self._recorded_seconds: dict[str, float] = {}
        self.start_clock()
        self._recorded_step = 0

    def start_clock(self) -> None:
        """Count time from now on: making environments and networks is no training."""
        self._begun = self._mark = self._recorded = time.perf_counter()

    def add_episodes(self, episodes: tuple[Episode, ...]) -> None:
        """Take the episodes that a step finished."""
        self.recent.extend(episode.episode_return for episode in episodes)
        self.episodes += len(episodes)
        self._fresh.extend((episode.episode_return, episode.length_steps) for episode in episodes)

    @property
    def recent_return(self) -> float | None:
        """Mean of the recent returns once there are 20."""
        return float(np.mean(self.recent)) if len(self.recent) >= 20 else None

    def reached(self, goal: float | None) -> bool:
        """Whether the last 50 episodes average at least ``goal``."""
        full = len(self.recent) == self.recent.maxlen
        return goal is not None and full and float(np.mean(self.recent)) >= goal

    @property
    def training_seconds(self) -> float:
        """Seconds of play and learning so far; scoring apart."""
        return sum(seconds for part, seconds in self.total_seconds.items() if part != "score")

    def lap(self, part: str) -> None:
        """Count the time since the last lap as spent in ``part``."""
        now = time.perf_counter()
        self.total_seconds[part] = self.total_seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def metrics(self) -> dict[str, float]:
        """What every recipe records, over the time since the last call."""
        now = time.perf_counter()
        values: dict[str, float] = {
            "charts/episodes": self.episodes,
            "charts/SPS": (self.step - self._recorded_step) / (now - self._recorded),
            "time/updates": self.updates,
            "time/wall_seconds": now - self._begun,
            **{
                f"time/{part}_seconds": seconds - self._recorded_seconds.get(part, 0.0)
                for part, seconds in self.total_seconds.items()
            },
        }
        if self._fresh:
            returns, lengths = np.mean(self._fresh, axis=0)
            values["charts/episodic_return"] = float(returns)
            values["charts/episodic_length"] = float(lengths)
        self._fresh, self._recorded_seconds = [], dict(self.total_seconds)
        self._recorded, self._recorded_step = now, self.step
        return values

    def state(self) -> dict[str, Any]:
        """Everything to continue from, as plain JSON types."""
        now = time.perf_counter()
        return {
            "step": self.step,
            "updates": self.updates,
            "recent_returns": list(self.recent),
            "episodes": self.episodes,
            "fresh_episodes": [list(episode) for episode in self._fresh],
            "wall_seconds": now - self._begun,
            "total_seconds": dict(self.total_seconds),
            "recorded_seconds": dict(self._recorded_seconds),
            "recorded_step": self._recorded_step,
            "since_record_seconds": now - self._recorded,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(state, _COUNTERS, "counters")
        now = time.perf_counter()
        self.step = state["step"]
        self.updates = state["updates"]
        self.recent.clear()
        self.recent.extend(state["recent_returns"])
        self.episodes = state["episodes"]
        self._fresh = [(value, length) for value, length in state["fresh_episodes"]]
        self._begun = now - state["wall_seconds"]
        self.total_seconds = dict(state["total_seconds"])
        self._recorded_seconds = dict(state["recorded_seconds"])
        self._recorded_step = state["recorded_step"]
        self._recorded = now - state["since_record_seconds"]
        self._mark = now


class Means:
    """Means of what a learner returns, from record to record, in float64 on its own device.

    Reading them waits for the device; adding to them does not.

    Attributes:
        count: Updates added since the last record.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take one update's scalars, always of the same names."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.count += 1

    def peek(self, name: str) -> float:
        """One of the means so far, left as it is."""
        return float(self._sums[name]) / self.count

    def take(self) -> dict[str, float]:
        """The means since the last call; empty where nothing was added."""
        means = {name: float(total) / self.count for name, total in self._sums.items()}
        self._sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What was added so far, as plain JSON types."""
        return {"sums": {k: float(v) for k, v in self._sums.items()}, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(state, _MEANS, "means")
        self._sums = {k: torch.tensor(v, dtype=torch.float64) for k, v in state["sums"].items()}
        self.count = state["count"]
