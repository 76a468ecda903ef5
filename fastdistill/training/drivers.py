# SPDX-License-Identifier: MIT
"""Who drives the lanes of a distillation: the teacher, its students, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdistill._files import is_int, shown
from fastdistill.envs import LaneEnv, policy_values
from fastdistill.evaluation.play import evaluation_mode
from fastdistill.teachers import Teacher
from fastdistill.training.collector import Choice
from fastdistill.training.state import check_state

DRIVERS = ("teacher", "student", "mixture")
TEACHER = -1

# Steps that a lane is driven by the same policy before the driver is drawn again.
DRIVER_STEPS = 64


class Drivers:
    """The driver of each lane; the teacher labels what any of them sees.

    Attributes:
        teacher: Of the task.
        lanes: ``[lanes]``, the place of the student at the wheel; ``TEACHER`` is the teacher.
        students_ready: Whether students may drive: before its first update a student has no input
            statistics, and nothing to say.
    """

    def __init__(
        self,
        teacher: Teacher,
        students: Sequence[nn.Module],
        num_lanes: int,
        *,
        bfloat16: bool,
        width: int | None = None,
    ) -> None:
        """Args:
        teacher: Of the task.
        students: Networks of its game.
        num_lanes: Of its environment.
        bfloat16: Whether students compute under bfloat16 autocast.
        width: Of the labels: those of fewer actions end in zeros. The teacher's own by default.
        """  # noqa: D205
        self.lanes = np.full(num_lanes, TEACHER, np.int64)
        self.students_ready = False
        self._owed = 0.0
        self.teacher = teacher
        self._students = students
        self._bfloat16 = bfloat16
        self._width = width

    def draw(self, share: float, rng: np.random.Generator) -> None:
        """Draw new drivers: students for ``share`` of the lanes, all of them alike.

        The share is exact: what a whole number of lanes lacks is made up in later draws. Which
        lanes they are, and whose turn is first, is drawn.
        """
        wanted = share * len(self.lanes) + self._owed
        count = int(wanted)
        self._owed = wanted - count
        turns = rng.integers(len(self._students)) + np.arange(count)
        self.lanes = np.full(len(self.lanes), TEACHER, np.int64)
        self.lanes[rng.permutation(len(self.lanes))[:count]] = turns % len(self._students)

    def state(self) -> dict[str, Any]:
        """To continue from, as plain JSON types."""
        return {"lanes": self.lanes.tolist(), "owed": self._owed}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(state, {"lanes": [], "owed": 0.0}, "drivers")
        lanes, known = state["lanes"], range(TEACHER, len(self._students))
        fit = len(lanes) == len(self.lanes) and all(is_int(at) and at in known for at in lanes)
        if not fit:
            raise ValueError(
                f"drivers.lanes must be {len(self.lanes)} integers in [{TEACHER}, "
                f"{len(self._students)}), got {shown(lanes)}"
            )
        self.lanes = np.array(lanes, np.int64)
        self._owed = state["owed"]

    def __call__(self, env: LaneEnv) -> Choice:
        """Greedy actions of whoever drives; ``teacher_logits``, the teacher's word on all lanes."""
        device, obs, taught = self.teacher.device, env.obs, env.teacher_obs
        seen = torch.from_numpy(obs).to(device)
        labels = self.teacher.values(seen if taught is obs else torch.from_numpy(taught))
        greedy = labels.argmax(dim=1).cpu().numpy()
        driving = np.unique(self.lanes[self.lanes >= 0]) if self.students_ready else ()
        for index in driving:
            lanes = np.flatnonzero(self.lanes == index)
            part = seen if len(lanes) == len(obs) else seen[torch.from_numpy(lanes)]
            network = self._students[index]
            with evaluation_mode(network):
                logits = policy_values(network, part, device, bfloat16=self._bfloat16)
            greedy[lanes] = logits.argmax(dim=1).cpu().numpy()
        if self._width is not None and labels.shape[1] < self._width:
            labels = nn.functional.pad(labels, (0, self._width - labels.shape[1]))
        return Choice(greedy, {"teacher_logits": labels.cpu().numpy()})
