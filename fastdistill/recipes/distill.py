# SPDX-License-Identifier: MIT
"""Policy distillation: a teacher for each game, one or many students on the same stream of play.

The teacher (or a student, or both) plays; every frame goes into the replay with the teacher's
float32 action values; the students learn from uniform batches of it while play goes on. Students
of several losses, sizes and seeds share environment, labels, sampling and copies. Synchronous and
deterministic: one seed, one set of weights, bitwise on a CPU, interrupted or not.

Source: Rusu et al. 2015, Policy Distillation; what differs is in docs/deviations.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastdistill.envs import EnvFault, EnvSpec
from fastdistill.networks import num_parameters
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.judging import Judges, evaluate
from fastdistill.recipes.sources import Source, open_source
from fastdistill.recipes.tasks import Given
from fastdistill.report import try_report
from fastdistill.training.learners.student import OWN, OwnStudent, Student, make_students
from fastdistill.training.optimizing import linear
from fastdistill.training.process import deterministic_kernels, keep_freed_memory, pick_device
from fastdistill.training.publishing import load_student
from fastdistill.training.ranks import open_ranks
from fastdistill.training.run import Run, Stop, say
from fastdistill.training.state import select, under
from fastdistill.training.students import Students
from fastdistill.training.task import Task


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
    with ExitStack() as opened:
        ranks = opened.enter_context(open_ranks(pick_device(config.device)))
        run = Run("distill", config, resume=resume, unit="updates", stop=stop, ranks=ranks)
        config = run.config
        tasks, source = open_source(config, given or Given(), ranks, opened)
        parts = _Parts(config, run, tasks, source, student)
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


class _Parts:
    """The parts of a run: what is played and remembered, who learns, the games that judge."""

    def __init__(
        self,
        config: DistillConfig,
        run: Run[DistillConfig],
        tasks: list[Task],
        source: Source,
        own: OwnStudent | None,
    ) -> None:
        self.config = config
        self.run = run
        self.tasks = tasks
        self.own = own
        learners = make_students(
            [task.spec for task in tasks],
            losses=config.losses,
            sizes=config.sizes,
            seeds=range(config.seed, config.seed + config.seeds),
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            bfloat16=config.bfloat16,
            device=tasks[0].teacher.device,
            own=own,
            ranks=run.ranks,
        )
        _say_sizes(learners, tasks)
        self.students = Students(
            learners,
            tasks,
            run,
            weighting=config.weighting,
            score_episodes=config.score_episodes,
            seed=config.seed,
        )
        self.source = source(learners, run.at)
        self._batch_size = run.ranks.part_of("batch_size", config.batch_size)
        self._begins_anew = False
        lanes = max(config.score_episodes, min(config.evaluation_episodes, 10), 1)
        self.judges = Judges(tasks, preset=config.preset, num_lanes=lanes)

    @property
    def fraction(self) -> float:
        """How much of the training is over, by updates or by time; time alone never ends it."""
        at, config = self.run.at, self.config
        fraction = at.updates / config.total_updates
        if config.max_seconds is not None and at.updates:
            fraction = max(fraction, self.run.training_seconds / config.max_seconds)
        return min(fraction, 1.0)

    def begin(self) -> None:
        """Continue from a checkpoint, or reset the lanes."""
        run = self.run
        load_replay = self.source.replay.load if run.ranks.world == 1 else None
        if not run.restore(self._take, load_replay):
            self.source.reset()
        elif self._begins_anew and self.fraction < 1.0:
            step, seconds = run.at.step, dict(run.at.total_seconds)
            self.source.reset(step)
            share = self._students_share()
            while run.at.step - step < self.config.learning_starts_steps:
                self.source.step(self.config.epsilon, share)
            run.at.step, run.at.total_seconds = step, seconds  # that play is none of the run's

    def _take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        # Lanes and replay of several ranks are in no checkpoint: they begin anew.
        self._begins_anew = self.run.ranks.world > 1 or card.get("ranks", 1) > 1
        if self._begins_anew:
            self.source.restore_tasks(card["source"], {})
        else:
            self.source.restore(select(tensors, "source"), card["source"])
        self.students.restore(select(tensors, "students"), card["students"])

    def _students_share(self) -> float | None:
        return {"teacher": None, "student": 1.0, "mixture": self.fraction}[self.config.driver]

    def step(self) -> None:
        """One step of every lane, and the updates that are then due."""
        config, at = self.config, self.run.at
        self.source.step(config.epsilon, self._students_share())
        due = (at.step - config.learning_starts_steps) / config.steps_per_update
        while at.updates + 1 <= due and self.fraction < 1.0:
            if at.updates == 0:
                self.students.set_obs_statistics(self.source.measure())
            lesson = self.source.sample(self._batch_size)
            self.students.learn(lesson, linear(config.learning_rate, 0.0, self.fraction))
            at.updates = self.students.updates
            at.lap("learn")
            self.run.show(self.students.note)

    def log(self) -> None:
        """Record what happened since the last record."""
        self.run.write(
            {
                **self.run.at.metrics(),
                **self.students.metrics(),
                "charts/learning_rate": linear(self.config.learning_rate, 0.0, self.fraction),
                "time/training_seconds": self.run.at.training_seconds,
                **self.source.metrics(),
            }
        )

    def score(self) -> None:
        """Judge every student, and record it; the other ranks wait for the first."""
        if not self.run.ranks.is_first:
            return
        seconds = self.run.at.training_seconds
        with self.source.set_aside():
            scores = self.students.score(self.judges.games)
        self.run.write({"time/training_seconds": seconds, **scores})

    def checkpoint(self) -> None:
        """Write everything to continue from; a finished run needs no replay any more."""
        students, card = self.students.state()
        world = self.run.ranks.world
        if world > 1:  # each has lanes and a replay of its own, which the next number has not
            self.run.checkpoint(
                under("students", students),
                {"ranks": world, "source": self.source.tasks_state(), "students": card},
            )
            return
        source, source_card = self.source.state()
        self.run.checkpoint(
            {**under("source", source), **under("students", students)},
            {"source": source_card, "students": card},
            None if self.run.finished else self.source.replay.save,
        )

    def finish(self) -> dict[str, Any]:
        """The last scoring and checkpoint; of a run at its end, the evaluation."""
        self.run.finished = self.fraction >= 1.0
        if not self.run.finished:
            if self.run.ranks.is_first:
                self.students.save_unscored()
            self.checkpoint()
            return {}
        if self.students.have_news:  # not when a finished run is resumed
            self.log()
            self.score()
        self.checkpoint()
        if not self.run.ranks.is_first:
            return {}
        return evaluate(self.config, self.run, self.tasks, self.students, self.judges, self.own)


def _say_sizes(students: Sequence[Student], tasks: Sequence[Task]) -> None:
    """A size is a share of the paper's network; here, what it is of this teacher."""
    whole = num_parameters(tasks[0].teacher.module)
    if len(tasks) > 1 or not whole:
        return
    for size, student in {student.size: student for student in students}.items():
        number = num_parameters(student.network)
        percent = 100 * number / whole
        digits = 0 if percent >= 10 else 1
        say(f"student {size}: {number:,} parameters, {percent:,.{digits}f}% of the teacher's")
