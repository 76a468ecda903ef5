# SPDX-License-Identifier: MIT
"""Policy distillation: a teacher for each game, one or many students on the same stream of play.

The teacher (or a student, or both) plays; every frame goes into the replay with the teacher's
float32 action values; the students learn from uniform batches of it while play goes on. Students
of several losses, sizes and seeds share environment, labels, sampling and copies. Synchronous and
deterministic: one seed, one set of weights, bitwise on a CPU, interrupted or not.

Source: Rusu et al. 2015, Policy Distillation; what differs is in docs/deviations.md.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fastdistill.envs import EnvFault, EnvSpec
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.distill_parts import DistillParts
from fastdistill.recipes.sources import open_source
from fastdistill.recipes.tasks import Given
from fastdistill.report import try_report
from fastdistill.training.configuration import read_configuration
from fastdistill.training.learners.student import OWN, OwnStudent
from fastdistill.training.process import deterministic_kernels, keep_freed_memory, pick_device
from fastdistill.training.publishing import load_student
from fastdistill.training.ranks import open_ranks
from fastdistill.training.run import Run, Stop


@dataclass(frozen=True)
class DistillResult:
    """What a distillation ends with.

    Attributes:
        run_dir: Where everything was written.
        stopped: Told to stop before its time; it has left a checkpoint.
        updates: Updates of every student.
        training_seconds: Of play and learning, over all resumes.
        students: Each student's file, by name; not of one that diverged before it was saved.
        evaluation: What ``evaluation.json`` holds; empty if there was none.
        report: The page; None if there was no evaluation, or no matplotlib.
    """

    run_dir: Path
    stopped: bool
    updates: int
    training_seconds: float
    students: dict[str, Path]
    evaluation: dict[str, Any]
    report: Path | None
    _spec: EnvSpec = field(repr=False)  # of the first game
    _own: OwnStudent | None = field(repr=False)

    @property
    def student(self) -> nn.Module:
        """The student, or the first of many, as it was when it scored best.

        Of several games it is a ``QNetwork`` whose ``for_task("pong")`` plays one of them.
        """
        if not self.students:
            raise ValueError(f"student: {self.run_dir} must have one that learned, got none")
        size = OWN if self._own is not None else ""
        return load_student(next(iter(self.students.values())), size, self._spec, self._own)


def train(
    config: DistillConfig,
    *,
    given: Given | None = None,
    student: OwnStudent | None = None,
    resume: bool = False,
    stop: Stop | None = None,
) -> DistillResult:
    """Distill; see the module's description.

    Args:
        config: Everything that can be chosen.
        given: What ``config`` cannot hold: modules, environments and functions, which then are
            only named in it.
        student: The module, or what makes it, where ``config.student`` is ``"own"``.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
        stop: Asked between steps whether to stop with a checkpoint.

    Raises:
        ValueError: A teacher does not fit its environment, games do not fit together, or there is
            no run to resume.
        TrainingDiverged: No student's loss is finite any more; the batches are saved.
    """
    keep_freed_memory()
    if resume:  # its device, too, is the run's own
        config = read_configuration(config.run_dir / "config.json", "distill", config)
    with ExitStack() as opened:
        ranks = opened.enter_context(open_ranks(pick_device(config.device)))
        run = Run("distill", config, resume=resume, unit="updates", stop=stop, ranks=ranks)
        config = run.config
        tasks, source = open_source(config, given or Given(), ranks, opened)
        parts = DistillParts(config, run, tasks, source, student)
        opened.enter_context(deterministic_kernels(config.deterministic))
        opened.enter_context(run)
        parts.begin()
        opened.callback(parts.judges.close)
        while parts.fraction < 1.0 and not run.stopping:
            try:
                parts.step()
            except EnvFault:
                parts.checkpoint()  # of before that step
                raise
            if parts.fraction < 1.0:
                if run.due("log"):
                    parts.log()
                if run.due("score"):
                    parts.score()
                if run.due("checkpoint"):
                    parts.checkpoint()
        evaluation = parts.finish()
    return DistillResult(
        run_dir=config.run_dir,
        stopped=not run.finished,
        updates=run.at.updates,
        training_seconds=run.at.training_seconds,
        students=parts.students.files(),
        evaluation=evaluation,
        report=try_report(config.run_dir) if evaluation else None,
        _spec=tasks[0].spec,
        _own=student,
    )
