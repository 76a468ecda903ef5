# SPDX-License-Identifier: MIT
"""The games of a distillation, and the environments that they are played in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

import torch

from fastdistill.envs import LaneEnv, make_env
from fastdistill.teachers import DEFAULT_TEMPERATURES, Teacher, load_teacher, recorded_game
from fastdistill.training.ranks import local_world
from fastdistill.training.run import say
from fastdistill.training.shards import Collection
from fastdistill.training.task import Task, check_games

DEFAULT_TEACHER = "zoo:pong"
# Recorded in the place of a teacher that only lives in memory.
MODULE = "a module"


class TasksConfig(Protocol):
    """What is read here of a distillation's configuration."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """Where each is loaded from."""

    @property
    def games(self) -> tuple[str, ...]:
        """Of the teachers, in their order; empty where they know it themselves."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the games in a batch; empty for equal ones."""

    @property
    def directories(self) -> tuple[str, ...]:
        """Of collections, one for each game; empty where there is play instead."""

    @property
    def labels(self) -> str:
        """Whose, of the collections."""

    @property
    def preset(self) -> str:
        """Of Atari games."""

    @property
    def temperature(self) -> float | str | None:
        """Of every teacher; None for that of its kind."""

    @property
    def num_lanes(self) -> int:
        """Of each game."""

    @property
    def learning_starts_steps(self) -> int:
        """Of all games together."""


def open_tasks(
    config: TasksConfig,
    teachers: Sequence[Teacher] | None,
    device: torch.device,
    num_lanes: int,
    opened: ExitStack,
) -> tuple[list[Task], list[LaneEnv]]:
    """Load the teachers, make their environments, and check that all of it fits together.

    Args:
        config: Of the distillation.
        teachers: Instead of those that ``config`` names.
        device: Where they run.
        num_lanes: Of each game, in this process.
        opened: Closes the environments.

    Raises:
        ValueError: In words, where something does not fit.
    """
    number = len(config.teachers if teachers is None else teachers)
    _check_number("game", config.games, number)
    _check_number("task_weights", config.weights, number)
    least = 4 * config.num_lanes * number
    if config.learning_starts_steps < least:
        raise ValueError(
            f"DistillConfig: learning_starts_steps must be at least 4 * num_lanes{_each(number)} = "
            f"{least}, got {config.learning_starts_steps}"
        )
    asked: Sequence[str | None] = config.games or [None] * number
    if teachers is None:
        if MODULE in config.teachers:
            raise ValueError(
                "distill: teacher must be one that a file holds, got a module of the process that "
                "began this run; continue it in Python, with the same module: "
                "fastdistill.distill(module, ..., run_dir=..., resume=True)"
            )
        teachers = [
            load_teacher(source, game, device=device)
            for source, game in zip(config.teachers, asked, strict=True)
        ]
    tasks, envs = [], []
    for place, (teacher, name) in enumerate(zip(teachers, asked, strict=True)):
        game = name or recorded_game(teacher.card)
        if not game:
            raise ValueError("distill: game must be given, the teacher does not name one")
        env = opened.enter_context(closing(play_env(game, num_lanes, config.preset)))
        teacher.check(env)
        weight = config.weights[place] if config.weights else 1.0
        tasks.append(Task(env.spec, teacher, _temperature(config, teacher), weight))
        envs.append(env)
    check_games("distill", [task.spec for task in tasks])
    return tasks, envs


def open_data(
    config: TasksConfig, teachers: Sequence[Teacher] | None, device: torch.device
) -> tuple[list[Task], list[Collection]]:
    """Open collections of played games, and load the teachers that labelled them.

    Args:
        config: Of the distillation.
        teachers: Instead of those that the collections name.
        device: Where they, and the students, run.

    Raises:
        ValueError: In words, where something does not fit.
    """
    collections = [Collection(directory, config.labels) for directory in config.directories]
    number = len(collections)
    _check_number("task_weights", config.weights, number)
    least = 2 * sum(len(collection.shards) * collection.num_lanes for collection in collections)
    if config.learning_starts_steps < least:
        raise ValueError(
            "DistillConfig: learning_starts_steps must be at least twice the lanes of all shards = "
            f"{least}, got {config.learning_starts_steps}"
        )
    # The default stands for those on record.
    is_named = config.teachers != (DEFAULT_TEACHER,) and MODULE not in config.teachers
    asked = config.teachers if is_named else ()
    _check_number("teacher", asked, number)
    if teachers is not None:
        _check_number("teacher", teachers, number)
    tasks = []
    for place, collection in enumerate(collections):
        if config.games:
            _check_number("game", config.games, number)
            if config.games[place] != collection.spec.name:
                raise ValueError(
                    f"distill: game must be that of {collection.directory}, "
                    f"{collection.spec.name!r}, got {config.games[place]!r}"
                )
        else:
            recorded_game({"game": collection.spec.name})
        recorded = collection.labelled_by()
        if teachers is None:
            source = asked[place] if asked else recorded.get("source")
            if not isinstance(source, str):
                raise ValueError(
                    f"distill: teacher of {collection.directory} must be one that can be loaded, "
                    "got a module; give it again: fastdistill.distill(module, data=...)"
                )
            teacher = load_teacher(source, collection.spec, device=device)
        else:
            teacher = teachers[place]
        teacher.check(collection.spec)
        if _digest(recorded) not in (None, _digest(teacher.describe())):
            raise ValueError(
                f"distill: teacher must be that of the labels in {collection.directory}, "
                f"{recorded.get('source')}, got another: {teacher.source}; fastdistill relabel "
                "writes its labels, and --labels chooses them"
            )
        weight = config.weights[place] if config.weights else 1.0
        tasks.append(Task(collection.spec, teacher, _temperature(config, teacher), weight))
    check_games("distill", [task.spec for task in tasks])
    return tasks, collections


def _digest(described: dict[str, Any]) -> Any:
    """SHA-256 of a described teacher's weights; None of a module, or of several."""
    weights = described.get("weights")
    return weights.get("sha256") if isinstance(weights, dict) else None


def play_env(game: str, num_lanes: int, preset: str) -> LaneEnv:
    """An environment to play in, as evaluations do."""
    # A thread per core: here the emulators take longer than the students, unlike in teaching. Of
    # several games one at a time is stepped, and the threads of the others wait. The ranks of one
    # machine share its cores.
    threads = max(1, (os.cpu_count() or 1) // local_world())
    return make_env(game, num_lanes, preset=preset, training=False, num_threads=threads)


def _temperature(config: TasksConfig, teacher: Teacher) -> float:
    """0 where it is to be fitted."""
    if config.temperature is None:
        found = DEFAULT_TEMPERATURES[teacher.kind]
        say(f"temperature {found}, the default for {teacher.kind}")
        return found
    return 0.0 if config.temperature == "auto" else float(config.temperature)


def _check_number(name: str, values: Sequence[object], number: int) -> None:
    if values and len(values) != number:
        raise ValueError(
            f"distill: {name} must name one for each of {number} teachers, got {len(values)}"
        )


def _each(number: int) -> str:
    return f" * {number} games" if number > 1 else ""
