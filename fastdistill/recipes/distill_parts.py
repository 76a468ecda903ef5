# SPDX-License-Identifier: MIT
"""The parts of a distillation: what is played and remembered, who learns, the games that judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdistill.networks import num_parameters
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.judging import Judges, evaluate
from fastdistill.recipes.sources import Source
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.learners.student import OwnStudent, Student, make_students
from fastdistill.training.optimizing import linear
from fastdistill.training.published import Publications
from fastdistill.training.run import Run, say
from fastdistill.training.state import select, under
from fastdistill.training.students import Students
from fastdistill.training.task import Task


class DistillParts:
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
            layer_norm=config.layer_norm,
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
        self.publications: Publications | None = None
        if config.follow:
            assert isinstance(self.source, LabelledPlay)  # the configuration allows no other
            self.publications = Publications(self.source, fits=config.temperature == "auto")
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
            before = run.at.state()
            self.source.reset(before["step"])
            share = self._students_share()
            while run.at.step - before["step"] < self.config.learning_starts_steps:
                self.source.step(self.config.epsilon, share)
            run.at.restore(before)  # that play is none of the run's

    def _take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        # Lanes and replay of several ranks are in no checkpoint: they begin anew.
        self._begins_anew = self.run.ranks.world > 1 or card.get("ranks", 1) > 1
        if self._begins_anew:
            self.source.restore_tasks(card["source"], {})
        else:
            self.source.restore(select(tensors, "source"), card["source"])
        self.students.restore(select(tensors, "students"), card["students"])
        if self.publications is not None:
            self.publications.resume()

    def _students_share(self) -> float | None:
        return {"teacher": None, "student": 1.0, "mixture": self.fraction}[self.config.driver]

    def step(self) -> None:
        """One step of every lane, and the updates that are then due."""
        config, at = self.config, self.run.at
        if self.publications is not None:
            self.publications.look()
        self.source.step(config.epsilon, self._students_share())
        due = (at.step - config.learning_starts_steps) / config.steps_per_update
        while at.updates + 1 <= due and self.fraction < 1.0:
            if at.updates == 0:
                self.students.set_obs_statistics(self.source.measure())
                at.lap("learn")
            lesson = self.source.sample(self._batch_size)
            if self.publications is not None:
                lesson = self.publications.label(lesson)
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
                **(self.publications.metrics() if self.publications is not None else {}),
            }
        )

    def score(self) -> None:
        """Judge every student, and record it; the other ranks wait for the first."""
        if not self.run.ranks.is_first:
            self.students.begin_scoring()
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
        if self.students.have_news:
            self.log()
        if self.students.scored_updates < self.students.updates:  # not of a finished run, resumed
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
