# SPDX-License-Identifier: MIT
"""Policy distillation: one teacher, one or many students on the same stream of play.

The teacher (or a student, or both) plays; every frame goes into the replay with the teacher's
float32 action values; the students learn from uniform batches of it while play goes on. Students
of several losses, sizes and seeds share environment, labels, sampling and copies, so that a table
costs little more than a row. Synchronous and deterministic: one seed, one set of weights, bitwise
on a CPU, interrupted or not.

Source: Rusu et al. 2015, Policy Distillation; what differs is in docs/deviations.md.
"""

from __future__ import annotations

import functools
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fastdistill.envs import make_env
from fastdistill.envs.lanes import LaneEnv
from fastdistill.networks import QNetwork
from fastdistill.networks.checkpoint import load_network
from fastdistill.recipes.common import (
    TRAINING_STREAM,
    StopRequest,
    keep_freed_memory,
    open_run,
    pick_device,
    seed_torch,
)
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.distillation import Distillation
from fastdistill.teachers import Teacher, load_teacher, recorded_game


@dataclass(frozen=True)
class DistillResult:
    """What a distillation ends with.

    Attributes:
        run_dir: Where everything was written.
        stopped: Ended by a signal, with a checkpoint, before its time.
        updates: Updates of every student.
        training_seconds: Of play and learning, over all resumes.
        students: Each student's file, by name.
        evaluation: What ``evaluation.json`` holds; empty if there was none.
    """

    run_dir: Path
    stopped: bool
    updates: int
    training_seconds: float
    students: dict[str, Path]
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def student(self) -> QNetwork:
        """The student, or the first of many, as it was when it scored best."""
        return load_network(next(iter(self.students.values())))[0]


def distill(
    teacher: Teacher | nn.Module | str | Path,
    env: str | None = None,
    *,
    student: str = "7%",
    loss: str = "kl",
    run_dir: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> DistillResult:
    """Distill a teacher into a student, as ``fastdistill distill`` does.

    Args:
        teacher: A ``Teacher``, a checkpoint's path, ``"zoo:NAME"``, or any module that maps
            ``[batch, *obs_shape]`` observations (uint8 for images) to ``[batch, actions]`` float
            Q-values or logits.
        env: Atari game or gymnasium id; by default the game that a checkpoint names.
        student: One or several of 100%, 25%, 7%, 4%, with commas between.
        loss: One or several of kl, nll, mse, reverse_kl, jsd, with commas between.
        run_dir: Where everything is written; by default a new directory under ``runs``.
        resume: Continue the run in ``run_dir``.
        **options: Any other field of ``DistillConfig``.

    Returns:
        The result; ``.student`` is the network, ``.evaluation`` the scores.

    Raises:
        ValueError: An option out of range, or a teacher that does not fit the environment.
        TypeError: An option that does not exist.

    Example:
        >>> import fastdistill as fd
        >>> result = fd.distill("zoo:pong", student="7%")  # doctest: +SKIP
        >>> score = fd.evaluate(result.student, "pong").mean  # doctest: +SKIP
    """
    if run_dir is None:
        run_dir = _unused(Path("runs") / f"distill-{env or 'teacher'}")
    name = str(teacher) if isinstance(teacher, (str, Path)) else "a module"
    config = DistillConfig(
        run_dir=Path(run_dir), teacher=name, game=env, student=student, loss=loss, **options
    )
    if not isinstance(teacher, Teacher):
        teacher = load_teacher(teacher, env, device=pick_device(config.device))
    return train(config, teacher=teacher, resume=resume)


def _unused(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return free


def train(
    config: DistillConfig, *, teacher: Teacher | None = None, resume: bool = False
) -> DistillResult:
    """Distill; see the module's description.

    Args:
        config: Everything that can be chosen.
        teacher: Instead of ``config.teacher``, which then is only its name in the records.
        resume: Continue the run in ``config.run_dir`` with its own configuration.

    Raises:
        ValueError: The teacher does not fit the environment, or there is no run to resume.
        TrainingDiverged: A loss is not finite; its batch is saved.
    """
    if resume:
        config = open_run(config.run_dir, "distill", config, resume=True)
    device = pick_device(config.device)
    teacher = teacher or load_teacher(config.teacher, config.game, device=device)
    game = config.game or recorded_game(teacher.card)
    if not game:
        raise ValueError("distill: game must be given, the teacher does not name one")
    keep_freed_memory()
    seed_torch(config.seed, deterministic=config.deterministic)
    env = _make_env(config, game, config.num_lanes)
    with closing(env), ExitStack() as opened:

        @functools.cache
        def scoring_env() -> LaneEnv:  # half a second to make: only if it is wanted
            episodes = max(config.score_episodes, min(config.evaluation_episodes, 10), 1)
            return opened.enter_context(closing(_make_env(config, game, episodes)))

        teacher.check(env)
        if not resume:  # only now, so that a teacher that does not fit leaves nothing behind
            open_run(config.run_dir, "distill", config, resume=False)
        run = Distillation(config, teacher, env, device)
        if resume:
            run.restore()
        else:
            env.reset((config.seed, TRAINING_STREAM))
        with StopRequest() as stop:
            finished = run.train(scoring_env, stop)
        evaluation = run.evaluate(scoring_env) if finished else {}
    files = {s.name: config.run_dir / "students" / f"{s.name}.json" for s in run.students}
    return DistillResult(
        config.run_dir, not finished, run.at.updates, run.training_seconds, files, evaluation
    )


def _make_env(config: DistillConfig, game: str, num_lanes: int) -> LaneEnv:
    # A thread per core: here the emulators take longer than the students, unlike in teaching.
    threads = os.cpu_count() or 1
    return make_env(game, num_lanes, preset=config.preset, training=False, num_threads=threads)
