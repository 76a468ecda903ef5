# SPDX-License-Identifier: MIT
"""The games of a distillation that learns from what was played before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastdistill.recipes.tasks import (
    DEFAULT_TEACHER,
    MODULE,
    Given,
    TasksConfig,
    TeacherSource,
    check_number,
    teacher_of,
    temperature_of,
)
from fastdistill.teachers import recorded_game
from fastdistill.training.shards import Collection
from fastdistill.training.task import Task, check_games


def open_data(
    config: TasksConfig, given: Given, device: torch.device
) -> tuple[list[Task], list[Collection]]:
    """Open collections of played games, and load the teachers that labelled them.

    Args:
        config: Of the distillation.
        given: What it cannot hold.
        device: Where they, and the students, run.

    Raises:
        ValueError: In words, where something does not fit.
    """
    collections = [Collection(directory, config.labels) for directory in config.directories]
    number = len(collections)
    check_number("task_weights", config.weights, number)
    least = 2 * sum(len(collection.shards) * collection.num_lanes for collection in collections)
    if config.learning_starts_steps < least:
        raise ValueError(
            "DistillConfig: learning_starts_steps must be at least twice the lanes of all shards = "
            f"{least}, got {config.learning_starts_steps}"
        )
    # The default stands for those on record.
    is_named = config.teachers != (DEFAULT_TEACHER,) and MODULE not in config.teachers
    asked: Sequence[TeacherSource] = config.teachers if is_named else ()
    asked = given.teachers or asked
    check_number("teacher", asked, number)
    tasks = []
    for place, collection in enumerate(collections):
        if config.games:
            check_number("game", config.games, number)
            if config.games[place] != collection.spec.name:
                raise ValueError(
                    f"distill: game must be that of {collection.directory}, "
                    f"{collection.spec.name!r}, got {config.games[place]!r}"
                )
        else:
            recorded_game({"game": collection.spec.name})
        recorded = collection.labelled_by()
        source = asked[place] if asked else recorded.get("source")
        if source is None:
            raise ValueError(
                f"distill: teacher of {collection.directory} must be one that can be loaded, "
                "got a module; give it again: fastdistill.distill(module, data=...)"
            )
        teacher = teacher_of(source, collection.spec, None, device)
        teacher.check(collection.spec)
        if _digest(recorded) not in (None, _digest(teacher.describe())):
            raise ValueError(
                f"distill: teacher must be that of the labels in {collection.directory}, "
                f"{recorded.get('source')}, got another: {teacher.source}; fastdistill relabel "
                "writes its labels, and --labels chooses them"
            )
        weight = config.weights[place] if config.weights else 1.0
        tasks.append(Task(collection.spec, teacher, temperature_of(config, teacher), weight))
    check_games("distill", [task.spec for task in tasks])
    return tasks, collections


def _digest(described: dict[str, Any]) -> Any:
    """SHA-256 of a described teacher's weights; None of a module, or of several."""
    weights = described.get("weights")
    return weights.get("sha256") if isinstance(weights, dict) else None
