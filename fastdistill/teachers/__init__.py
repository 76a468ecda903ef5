# SPDX-License-Identifier: MIT
"""Teachers: a checkpoint, one of the zoo, or any torch module, checked before use."""

from fastdistill.teachers.teacher import (
    ZOO,
    Teacher,
    checkpoint_path,
    load_teacher,
    recorded_game,
    zoo_names,
)

__all__ = ["ZOO", "Teacher", "checkpoint_path", "load_teacher", "recorded_game", "zoo_names"]
