# SPDX-License-Identifier: MIT
"""The commands as Python functions: the same runs, the same files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from fastdistill.envs import EnvSpec
from fastdistill.recipes.distill import DistillResult, train
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.tasks import MODULE
from fastdistill.teachers import Teacher, load_teacher
from fastdistill.training.learners.student import OWN, OwnStudent
from fastdistill.training.process import pick_device
from fastdistill.training.run import unused

# What a teacher may be given as.
TeacherSource = Teacher | nn.Module | str | Path


def distill(
    teacher: TeacherSource | Mapping[str, TeacherSource],
    env: str | None = None,
    *,
    student: str | OwnStudent = "7%",
    loss: str = "kl",
    run_dir: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> DistillResult:
    """Distill a teacher into a student, as ``fastdistill distill`` does.

    Nothing of the process is changed: no signal handlers, no global seeds. A KeyboardInterrupt
    leaves what the last checkpoint holds.

    Args:
        teacher: A ``Teacher``, a checkpoint's path, ``"zoo:NAME"``, or any module that maps
            ``[batch, *obs_shape]`` observations (uint8 for images) to ``[batch, actions]`` float
            Q-values (logits: ``load_teacher(module, kind="logits")``). For one student of several
            games: ``{"pong": "zoo:pong", "freeway": module}``, each game's teacher.
        env: Atari game or gymnasium id; by default the game that a checkpoint names.
        student: One or several of 100%, 25%, 7%, 4%, multi, multi-wide, with commas between; or a
            module of your own, or a function that makes one of an ``EnvSpec``. A module is copied,
            never changed.
        loss: One or several of kl, nll, mse, reverse_kl, jsd, with commas between.
        run_dir: Where everything is written; by default a new directory under ``runs``.
        resume: Continue the run in ``run_dir``; options that are given must be its own.
        **options: Any other field of ``DistillConfig``.

    Returns:
        The result; ``.student`` is the network, ``.evaluation`` the scores, ``.report`` the page.

    Raises:
        ValueError: An option out of range, or a teacher that does not fit the environment.
        TypeError: An option that does not exist.

    Example:
        >>> import fastdistill as fd
        >>> result = fd.distill("zoo:pong", student="7%")  # doctest: +SKIP
        >>> score = fd.evaluate(result.student, "pong").mean  # doctest: +SKIP
    """
    known = {field.name for field in fields(DistillConfig)}
    if unknown := sorted(options.keys() - known):
        raise TypeError(
            f"distill: options must be fields of DistillConfig, got {', '.join(unknown)}"
        )
    own = None if isinstance(student, str) else _own_student(student)
    if isinstance(teacher, Mapping):
        if env is not None:
            raise ValueError(
                f"distill: env must be left out where each teacher has its game, got {env!r}"
            )
        if not teacher:
            raise ValueError("distill: teacher must name at least one game, got none")
        sources, env = teacher, ",".join(teacher)
    else:
        sources = {env or "": teacher}
    device = pick_device(options.get("device", "auto"))
    teachers = [
        found if isinstance(found, Teacher) else load_teacher(found, game or None, device=device)
        for game, found in sources.items()
    ]
    if resume and run_dir is None:
        raise ValueError("distill: run_dir must be given to resume, got none")
    if run_dir is None:
        names = env or teachers[0].card.get("game", "teacher")
        run_dir = unused(Path("runs") / f"distill-{names.replace(',', '-')}")
    config = DistillConfig(
        run_dir=Path(run_dir),
        teacher=",".join(found.source or MODULE for found in teachers),
        game=env,
        student=student if isinstance(student, str) else OWN,
        loss=loss,
        **options,
    )
    return train(config, teachers=teachers, student=own, resume=resume)


def _own_student(student: Any) -> OwnStudent:
    if not callable(student):
        raise TypeError(
            "distill: student must be sizes such as '7%' or '100%,25%', a module, or a function "
            f"that makes one of an {EnvSpec.__name__}, got {student!r}"
        )
    own: OwnStudent = student
    return own
