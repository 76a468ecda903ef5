# SPDX-License-Identifier: MIT
"""Teachers: a checkpoint, one of the zoo, or any torch module, checked before use."""

from fastdistill.teachers.teacher import (
    KINDS,
    ZOO,
    Teacher,
    checkpoint_path,
    load_teacher,
    zoo_names,
)

__all__ = ["KINDS", "ZOO", "Teacher", "checkpoint_path", "load_teacher", "zoo_names"]
