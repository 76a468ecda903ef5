# SPDX-License-Identifier: MIT
"""The commands as Python functions: the same runs, the same files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastdistill.envs import BROUGHT, EnvSource, EnvSpec, ViewSource, view_name
from fastdistill.recipes import online
from fastdistill.recipes.distill import DistillResult, train
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.tasks import DEFAULT_TEACHER, Given, TeacherSource, source_name
from fastdistill.teachers import Teacher, load_teacher
from fastdistill.training.learners.student import OWN, OwnStudent
from fastdistill.training.process import pick_device
from fastdistill.training.run import unused


def distill(
    teacher: TeacherSource | Mapping[str, TeacherSource] | None = None,
    env: EnvSource | None = None,
    *,
    data: str | Path | None = None,
    student: str | OwnStudent = "7%",
    loss: str = "kl",
    teacher_view: ViewSource | None = None,
    student_view: ViewSource | None = None,
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
            games: ``{"pong": "zoo:pong", "freeway": module}``, each game's teacher. May be left out
            where ``data`` names it.
        env: Atari game or gymnasium id, by default the game that a checkpoint names; or an
            environment of yours: a function that makes a ``gymnasium.Env`` (or a ``VectorEnv``), or
            a ``VectorEnv``, which stays open.
        data: Directory that ``fastdistill collect`` has written: learn from it instead of playing.
        student: One or several of 100%, 25%, 7%, 4%, multi, multi-wide, with commas between; or a
            module of your own, or a function that makes one of an ``EnvSpec``. A module is copied,
            never changed.
        loss: One or several of kl, nll, mse, reverse_kl, jsd, with commas between.
        teacher_view: What the teacher sees of an environment with several observations, or of any:
            a key, or a function of what all lanes show, ``[lanes, ...]`` each.
        student_view: What students see; it is also what the replay keeps.
        run_dir: Where everything is written; by default a new directory under ``runs``.
        resume: Continue the run in ``run_dir``, with its own options: others are refused, those at
            their defaults count as left out. Modules, environments and functions are to be given
            again.
        **options: Any other field of ``DistillConfig``. A ``Teacher`` on another device than
            ``device`` is copied there.

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
    if "game" in options:
        raise TypeError(f"distill: game must be given as env, got game={options['game']!r}")
    _check_options("distill", DistillConfig, options)
    own = None if isinstance(student, str) else _own_student(student)
    if teacher is None and data is None:
        raise ValueError("distill: teacher must be given where there is no data, got none")
    if resume and run_dir is None:
        raise ValueError("distill: run_dir must be given to resume, got none")
    if teacher is None:
        run_dir = run_dir or unused(Path("runs") / f"distill-{Path(str(data)).name}")
    teachers = tuple(teacher.values()) if isinstance(teacher, Mapping) else _some(teacher)
    envs = tuple(teacher) if isinstance(teacher, Mapping) else (env,) if env is not None else ()
    if isinstance(teacher, Mapping) and env is not None:
        raise ValueError(
            f"distill: env must be left out where each teacher has its game, got {env!r}"
        )
    if not teachers and teacher is not None:
        raise ValueError("distill: teacher must name at least one game, got none")
    names = ",".join(found if isinstance(found, str) else BROUGHT for found in envs)
    if run_dir is None:
        about = names
        if not envs:  # whatever game the teacher knows
            known_teacher = _loaded(teachers[0], options.get("device", "auto"))
            teachers, about = (known_teacher,), known_teacher.card.get("game", "teacher")
        run_dir = unused(Path("runs") / f"distill-{about.replace(',', '-').replace(' ', '-')}")
    if (num_lanes := getattr(env, "num_envs", None)) is not None:
        options.setdefault("num_lanes", num_lanes)
    config = DistillConfig(
        run_dir=Path(run_dir),
        teacher=",".join(map(source_name, teachers)) or DEFAULT_TEACHER,
        game=names or None,
        data=None if data is None else str(data),
        student=student if isinstance(student, str) else OWN,
        loss=loss,
        teacher_view=view_name(teacher_view),
        student_view=view_name(student_view),
        **options,
    )
    given = Given(teachers, envs, teacher_view, student_view)
    return train(config, given=given, student=own, resume=resume)


def distill_online(
    game: str,
    *,
    student: str = "100%,7%",
    loss: str = "kl",
    run_dir: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> DistillResult:
    """Train a DQN and students that follow it, as ``fastdistill online`` does.

    Nothing of the process is changed, as with ``distill``. Source: Rusu et al. 2015, online policy
    distillation.

    Args:
        game: Atari game or gymnasium id.
        student: One or several of 100%, 25%, 7%, 4%, with commas between.
        loss: One or several of kl, nll, mse, reverse_kl, jsd, with commas between.
        run_dir: Where everything is written, the DQN as ``teacher.json``; by default a new
            directory under ``runs``.
        resume: Continue the run in ``run_dir``; options that are given must be its own.
        **options: Any other field of ``OnlineConfig``.

    Returns:
        The result; ``.student`` is the first student, ``.students`` are the files of all,
        ``.evaluation`` has the DQN's scores beside theirs, ``.report`` is the page.

    Raises:
        ValueError: An option out of range, or a game that is not for these networks.
        TypeError: An option that does not exist.

    Example:
        >>> import fastdistill as fd
        >>> result = fd.distill_online("pong", total_steps=400_000)  # doctest: +SKIP
    """
    _check_options("distill_online", online.OnlineConfig, options)
    if resume and run_dir is None:
        raise ValueError("distill_online: run_dir must be given to resume, got none")
    config = online.OnlineConfig(
        run_dir=unused(Path("runs") / f"online-{game}") if run_dir is None else Path(run_dir),
        game=game,
        student=student,
        loss=loss,
        **options,
    )
    return online.train(config, resume=resume)


def _check_options(function: str, config: type[Any], options: dict[str, Any]) -> None:
    if unknown := sorted(options.keys() - {field.name for field in fields(config)}):
        raise TypeError(
            f"{function}: options must be fields of {config.__name__}, got {', '.join(unknown)}"
        )


def _some(teacher: TeacherSource | None) -> tuple[TeacherSource, ...]:
    return () if teacher is None else (teacher,)


def _loaded(source: TeacherSource, device: str) -> Teacher:
    if isinstance(source, Teacher):
        return source
    return load_teacher(source, device=pick_device(device))


def _own_student(student: Any) -> OwnStudent:
    if not callable(student):
        raise TypeError(
            "distill: student must be sizes such as '7%' or '100%,25%', a module, or a function "
            f"that makes one of an {EnvSpec.__name__}, got {student!r}"
        )
    own: OwnStudent = student
    return own
