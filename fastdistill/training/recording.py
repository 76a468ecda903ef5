# SPDX-License-Identifier: MIT
"""What lanes do, written down step by step: what shards hold and actors hand over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdistill.envs import Step


class Recording:
    """Rows of all lanes since they were last taken; ``store`` is a collector's.

    Attributes:
        begins: ``[lanes]`` bool, whether the next row is the first of an episode.
    """

    def __init__(self, num_lanes: int) -> None:
        self.begins = np.ones(num_lanes, np.bool_)
        self._rows: dict[str, list[NDArray[Any]]] = {}

    def store(self, obs: NDArray[Any], step: Step, said: dict[str, NDArray[Any]]) -> None:
        """Take a step, and what the teacher says of it."""
        row = {
            "frames": step.frame,
            "action": step.action.astype(np.int16),
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "boundary": step.boundary,
            "begins": self.begins,
            "teacher_logits": said["teacher_logits"],
        }
        for name, values in row.items():
            self._rows.setdefault(name, []).append(values.copy())
        self.begins = step.boundary.copy()

    def take(self) -> dict[str, NDArray[Any]]:
        """``[steps, lanes, ...]`` of each, from now on without them."""
        rows, self._rows = self._rows, {}
        return {name: np.stack(parts) for name, parts in rows.items()}
