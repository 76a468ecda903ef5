# SPDX-License-Identifier: MIT
"""Teachers: a checkpoint, one of the zoo, or any torch module, checked before use."""

from fastdistill.teachers.teacher import (
    DEFAULT_TEMPERATURES,
    ZOO,
    Teacher,
    checkpoint_path,
    load_teacher,
    recorded_game,
    zoo_names,
)

__all__ = [
    "DEFAULT_TEMPERATURES",
    "ZOO",
    "Teacher",
    "checkpoint_path",
    "load_teacher",
    "recorded_game",
    "zoo_names",
]
