# SPDX-License-Identifier: MIT
"""A game to be mastered: its environment, its teacher, and what is its own in a training."""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.envs import EnvSpec
from fastdistill.teachers import Teacher


@dataclass(eq=False)
class Task:
    """A game to be mastered.

    Attributes:
        spec: Its environment.
        teacher: Labels what is seen in it.
        temperature: Sharpens the teacher; 0 until an automatic one is fitted.
    """

    spec: EnvSpec
    teacher: Teacher
    temperature: float

    @property
    def name(self) -> str:
        """Unique among the tasks of a run."""
        return self.spec.name
