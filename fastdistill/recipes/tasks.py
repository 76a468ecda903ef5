# SPDX-License-Identifier: MIT
"""The games of a distillation, and the environments that they are played in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Protocol

import torch

from fastdistill.envs import LaneEnv, make_env
from fastdistill.teachers import DEFAULT_TEMPERATURES, Teacher, load_teacher, recorded_game
from fastdistill.training.run import say
from fastdistill.training.task import Task, check_games

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
    opened: ExitStack,
) -> tuple[list[Task], list[LaneEnv]]:
    """Load the teachers, make their environments, and check that all of it fits together.

    Args:
        config: Of the distillation.
        teachers: Instead of those that ``config`` names.
        device: Where they run.
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
        env = opened.enter_context(
            closing(make_env(game, config.num_lanes, preset=config.preset, training=False))
        )
        teacher.check(env)
        weight = config.weights[place] if config.weights else 1.0
        tasks.append(Task(env.spec, teacher, _temperature(config, teacher), weight))
        envs.append(env)
    check_games("distill", [task.spec for task in tasks])
    return tasks, envs


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
