# SPDX-License-Identifier: MIT
"""The games of a distillation, and the environments that they are played in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from fastdistill.envs import (
    BROUGHT,
    FUNCTION,
    EnvSource,
    EnvSpec,
    LaneEnv,
    Policy,
    ViewSource,
    make_env,
)
from fastdistill.recipes.options import names
from fastdistill.teachers import DEFAULT_TEMPERATURES, Teacher, load_teacher, recorded_game
from fastdistill.training.ranks import local_world
from fastdistill.training.run import say
from fastdistill.training.task import Task, check_games

DEFAULT_TEACHER = "zoo:pong"
# Recorded in the place of a teacher that only lives in memory.
MODULE = "a module"

# What a teacher may be given as.
TeacherSource = Teacher | nn.Module | Policy | str | Path


@dataclass(frozen=True)
class Given:
    """What Python gives of a distillation that a configuration cannot hold.

    Attributes:
        teachers: Of the games, instead of those that the configuration names; empty otherwise.
        envs: Likewise, of what the games are made.
        teacher_view: A function, what teachers see.
        student_view: A function, what students see.
    """

    teachers: tuple[TeacherSource, ...] = ()
    envs: tuple[EnvSource, ...] = ()
    teacher_view: ViewSource | None = None
    student_view: ViewSource | None = None


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
    def teacher_view(self) -> str | None:
        """A key of observations, or ``FUNCTION``."""

    @property
    def student_view(self) -> str | None:
        """Likewise."""

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
    config: TasksConfig, given: Given, device: torch.device, num_lanes: int, opened: ExitStack
) -> tuple[list[Task], list[LaneEnv]]:
    """Load the teachers, make their environments, and check that all of it fits together.

    Args:
        config: Of the distillation.
        given: What it cannot hold.
        device: Where teachers run.
        num_lanes: Of each game, in this process.
        opened: Closes the environments.

    Raises:
        ValueError: In words, where something does not fit.
    """
    sources = given.teachers or config.teachers
    number = len(sources)
    check_number("game", config.games, number)
    check_number("task_weights", config.weights, number)
    least = 4 * config.num_lanes * number
    if config.learning_starts_steps < least:
        raise ValueError(
            f"DistillConfig: learning_starts_steps must be at least 4 * num_lanes{_each(number)} = "
            f"{least}, got {config.learning_starts_steps}"
        )
    _check_given(config, given)
    teacher_view = _view("teacher_view", config.teacher_view, given.teacher_view)
    student_view = _view("student_view", config.student_view, given.student_view)
    asked: Sequence[EnvSource | None] = given.envs or config.games or [None] * number
    tasks, envs = [], []
    for place, (source, name) in enumerate(zip(sources, asked, strict=True)):
        teacher = teacher_of(source, name, teacher_view, device)
        game = name if name is not None else recorded_game(teacher.card)
        if not game:
            raise ValueError("distill: game must be given, the teacher does not name one")
        env = make_env(
            game,
            num_lanes,
            preset=config.preset,
            training=False,
            num_threads=share_of_cores(),
            view=student_view,
            teacher_view=teacher.view,
        )
        opened.enter_context(closing(env))
        if env.num_lanes != num_lanes:
            raise ValueError(
                f"distill: num_lanes must be the {env.num_lanes} of the vector environment, "
                f"got {num_lanes}"
            )
        teacher.check(env)
        weight = config.weights[place] if config.weights else 1.0
        task = Task(env.spec, teacher, temperature_of(config, teacher), weight)
        task.source, task.student_view = game, student_view
        tasks.append(task)
        envs.append(env)
    check_games("distill", [task.spec for task in tasks])
    return tasks, envs


def _check_given(config: TasksConfig, given: Given) -> None:
    """Refuse a run to be continued without what it was begun with, or with something else."""
    if BROUGHT in config.games and not given.envs:
        raise ValueError(
            "distill: env must be given again as the environment that it was, got 'an "
            "environment'; call fastdistill.distill(..., env) from Python"
        )
    if MODULE in config.teachers and not given.teachers:
        raise ValueError(
            "distill: teacher must be one that a file holds, got a module of the process that "
            "began this run; continue it in Python, with the same module: "
            "fastdistill.distill(module, ..., run_dir=..., resume=True)"
        )
    said = names(",".join(map(source_name, given.teachers)))
    if said and said != config.teachers:  # of a run that is continued
        raise ValueError(
            f"distill: teacher must be the run's own, {', '.join(config.teachers)}, got "
            f"{', '.join(said)}"
        )


def source_name(source: TeacherSource) -> str:
    """What a run's records call a teacher."""
    if isinstance(source, Teacher):
        return source.source or MODULE
    return str(source) if isinstance(source, (str, Path)) else MODULE


def share_of_cores() -> int:
    """Emulator threads of this process: the ranks of one machine share its cores."""
    return max(1, (os.cpu_count() or 1) // local_world())


def teacher_of(
    source: TeacherSource,
    game: EnvSource | EnvSpec | None,
    view: ViewSource | None,
    device: torch.device,
) -> Teacher:
    """What a game's teacher was given as, loaded; seen through ``view`` if there is one."""
    if not isinstance(source, Teacher):
        return load_teacher(source, game, device=device, view=view)
    source = source.to(device)
    return source if view is None else replace(source, view=view)


def _view(name: str, said: str | None, given: ViewSource | None) -> ViewSource | None:
    """A key that the configuration says, or the function that it was given beside it."""
    if said == FUNCTION and not callable(given):
        raise ValueError(
            f"distill: {name} must be given again as the function that it was, got {FUNCTION!r}; "
            f"call fastdistill.distill(..., {name}=function) from Python"
        )
    return given if said == FUNCTION else said


def temperature_of(config: TasksConfig, teacher: Teacher) -> float:
    """Of a game's labels; 0 where it is to be fitted."""
    if config.temperature is None:
        found = DEFAULT_TEMPERATURES[teacher.kind]
        say(f"temperature {found}, the default for {teacher.kind}")
        return found
    return 0.0 if config.temperature == "auto" else float(config.temperature)


def check_number(name: str, values: Sequence[object], number: int) -> None:
    """An option of several games must be given once for each, or not at all."""
    if values and len(values) != number:
        raise ValueError(
            f"distill: {name} must name one for each of {number} teachers, got {len(values)}"
        )


def _each(number: int) -> str:
    return f" * {number} games" if number > 1 else ""
