# SPDX-License-Identifier: MIT
"""Students side by side: they learn from the same batches, and the best of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv
from fastdistill.evaluation import evaluate_env
from fastdistill.evaluation.compare import Player, random_score
from fastdistill.evaluation.play import evaluation_mode
from fastdistill.networks import QNetwork, num_parameters
from fastdistill.training.counters import Means
from fastdistill.training.labelled_rows import Lesson
from fastdistill.training.learners.student import OWN, OwnStudent, Student
from fastdistill.training.publishing import load_student, save_student, student_path
from fastdistill.training.run import Run, TrainingDiverged, say
from fastdistill.training.selection import Best, Probe, Round, mean_return
from fastdistill.training.state import check_state, select, under
from fastdistill.training.targets import state_weight
from fastdistill.training.task import Task


class Students:
    """Students of the same tasks, all learning from the same batches.

    One whose loss is no finite number any more ends alone, and is named; the others go on.

    Attributes:
        all: Every student, in the order of the records.
        updates: That each has made.
        scored_updates: Those that had been made when they were scored last.
    """

    def __init__(
        self,
        students: Sequence[Student],
        tasks: Sequence[Task],
        run: Run[Any],
        *,
        weighting: str,
        score_episodes: int,
        seed: int,
        epsilon: float | None = None,
    ) -> None:
        """Args:
        students: Who learn.
        tasks: What they learn, and from whom.
        run: That they are part of.
        weighting: Of ``WEIGHTINGS``.
        score_episodes: Full episodes of each game per scoring; 0 for none.
        seed: Of the run.
        epsilon: Share of random actions in scored games; by default that of an evaluation.
        """  # noqa: D205
        self.all = list(students)
        self.updates = self.scored_updates = 0
        self._tasks = list(tasks)
        self._run = run
        self._weighting = weighting
        self._score_episodes = score_episodes
        self._seed = seed
        self._epsilon = epsilon
        self._means = {student.name: Means() for student in self.all}
        self._best = {student.name: Best() for student in self.all}

    @property
    def learning(self) -> list[Student]:
        """Those that have not diverged."""
        return [student for student in self.all if student.diverged_updates is None]

    def set_obs_statistics(self, statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Standardise the inputs of all students that are ``QNetwork``; others see raw ones.

        Args:
            statistics: Each task's mean and deviation.
        """
        for student in self.all:
            if isinstance(student.network, QNetwork):
                for head, (mean, std) in enumerate(statistics):
                    student.network.set_obs_statistics(mean, std, head)

    def learn(self, lesson: Lesson, learning_rate: float) -> None:
        """One update of every student.

        Args:
            lesson: Observations and labels.
            learning_rate: Of this update.

        Raises:
            TrainingDiverged: None of them learns any more.
        """
        obs, labels = lesson
        temperatures = [task.temperature for task in self._tasks]
        weights = [
            state_weight(self._weighting, taught, temperature, self._run.ranks)
            for taught, temperature in zip(labels, temperatures, strict=True)
        ]
        for student in self.learning:
            with self._random_numbers_of(student):
                learned = student.update(obs, labels, weights, temperatures, learning_rate)
            learned = self._run.ranks.mean(learned)
            self._means[student.name].add(learned)
            # On a GPU looking would be waiting; the records look there.
            if learned["loss"].device.type == "cpu":
                names = [f"teacher_logits{place or ''}" for place in range(len(labels))]
                batch = {"obs": obs, **dict(zip(names, labels, strict=True))}
                self._end_if_diverged(student, float(learned["loss"]), batch)
        self.updates += 1

    @contextmanager
    def _random_numbers_of(self, student: Student) -> Iterator[None]:
        """Of an update: dropout in a caller's module draws the same in a run that was resumed."""
        if student.size != OWN:
            yield
            return
        ranks = self._run.ranks
        devices = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            part = (student.seed, self.updates, ranks.rank)
            torch.manual_seed(streams.native_seed(self._seed, streams.UPDATES, part))
            yield

    def _end_if_diverged(self, student: Student, loss: float, batch: dict[str, Tensor]) -> None:
        if abs(loss) < float("inf"):
            return
        student.diverged_updates = self.updates
        self._means[student.name] = Means()
        text = self._run.keep_diverged(f"diverged_{student.name}", loss, batch)
        if not self.learning:
            raise TrainingDiverged(f"{student.name}: {text}")
        say(f"{student.name} ends here, the others go on: {text}")

    @property
    def have_news(self) -> bool:
        """Whether any has learned since the last record."""
        return any(self._means[student.name].count for student in self.learning)

    def note(self) -> str:
        """For the terminal: the mean loss since the last record, where there is one student."""
        if len(self.all) > 1:
            return ""
        return f"loss {self._means[self.all[0].name].peek('loss'):.3f}"

    def metrics(self) -> dict[str, float]:
        """Every student's mean loss since the last record; of several games also each one's."""
        values = {}
        for student in self.learning:
            means = self._means[student.name].take()
            if "loss" in means:
                start = f"students/{student.name}/loss"
                values[start] = means["loss"]
                for place, task in enumerate(self._tasks if len(self._tasks) > 1 else ()):
                    values[f"{start}/{task.name}"] = means[f"loss/{place}"]
                self._end_if_diverged(student, means["loss"], {})
        return values

    def begin_scoring(self) -> None:
        """What every rank does of a scoring, in which only the first one plays.

        Students whose weights are not finite end: an update can break what its own loss does not
        show.
        """
        self.scored_updates = self.updates
        for student in self.learning:
            if not all(bool(one.isfinite().all()) for one in student.network.parameters()):
                self._end_if_diverged(student, float("nan"), {})

    def score(self, games: Callable[[], Sequence[LaneEnv]]) -> dict[str, float]:
        """Play with every student, save those that are better than ever before.

        Args:
            games: Makes each task's environment, made with ``training=False``, to play in.
        """
        self.begin_scoring()
        if self._score_episodes == 0:
            for student in self.learning:
                self.save(student)
            return {}
        self._find_levels(games)
        values: dict[str, float] = {}
        for student in self.learning:
            rounds: list[dict[str, float]] = []

            def play(
                episodes: int,
                seed: int,
                student: Student = student,
                rounds: list[dict[str, float]] = rounds,
            ) -> Round:
                found = self._play(student, games(), episodes, seed)
                rounds.append(found)
                measure = "score" if len(self._tasks) == 1 else "share"
                # What agreed with a teacher may differ from what that does now.
                frozen = all(task.teacher.version == 0 for task in self._tasks)
                return Round(
                    found[measure],
                    found[f"{measure}_error"],
                    found["agreement"] if frozen else None,
                )

            best = self._best[student.name]
            with evaluation_mode(student.network):
                won = best.wins(play, episodes=self._score_episodes, seed=self._seed)
            start = f"students/{student.name}"
            values |= {f"{start}/{measure}": value for measure, value in rounds[0].items()}
            if won:
                self.save(student)
        self._run.at.lap("score")
        return values

    def _play(
        self, student: Student, games: Sequence[LaneEnv], episodes: int, seed: int
    ) -> dict[str, float]:
        """What a student is worth in full games; of several also of each game."""
        measured: list[dict[str, float]] = []
        for place, (task, env) in enumerate(zip(self._tasks, games, strict=True)):
            probe = Probe(student.player(place), task.teacher, task.temperature, env)
            played = evaluate_env(
                probe, env, episodes=episodes, epsilon=self._epsilon, seed=seed,
                device=task.teacher.device,
            )  # fmt: skip
            measured.append(
                {
                    "score": played.mean,
                    "score_error": played.mean_error,
                    "agreement": probe.agreement,
                    "kl": probe.kl,
                }
            )
            if len(self._tasks) > 1:
                share = task.share_of_teacher(played.mean)
                above = task.share_of_teacher(played.mean + played.mean_error)
                measured[-1] |= {"share": share, "share_error": above - share}
        if len(measured) == 1:
            return measured[0]
        values = {
            name: float(np.mean([one[name] for one in measured]))
            for name in ("share", "agreement", "kl")
        }
        errors = [one["share_error"] for one in measured]
        values["share_error"] = float(np.hypot.reduce(errors)) / len(errors)
        for task, one in zip(self._tasks, measured, strict=True):
            values |= {f"{name}/{task.name}": value for name, value in one.items()}
        return values

    def _find_levels(self, games: Callable[[], Sequence[LaneEnv]]) -> None:
        """Of several games: what random play and the teacher reach, in the second round's games.

        A teacher whose card has such an evaluation does not play. Where a teacher is another than
        before, so is the measure, and nobody has been the best by it yet.
        """
        unknown = [place for place, task in enumerate(self._tasks) if task.levels is None]
        if len(self._tasks) == 1 or not unknown:
            return
        episodes, seed = 2 * self._score_episodes, 2 * streams.SCORING + self._seed
        for best in self._best.values():
            best.score = None
        for place in unknown:
            task, env = self._tasks[place], games()[place]
            device = task.teacher.device
            random = random_score(task.teacher, env, episodes=episodes, seed=seed, device=device)
            recorded = task.recorded_level(episodes, self._epsilon)
            level = (
                recorded.mean
                if recorded
                else mean_return(
                    task.teacher, env, device, episodes=episodes, seed=seed,
                    epsilon=self._epsilon, as_teacher=True,
                )
            )  # fmt: skip
            task.levels = (random, level)
            say(f"{task.name}: the teacher scores {level:.6g}, random play {random:.6g}")

    def save_unscored(self) -> None:
        """A student that was never scored is saved as it is: better than nothing."""
        for student in self.all:
            if self._best[student.name].score is None and student.diverged_updates is None:
                self.save(student)

    def save(self, student: Student) -> None:
        """Write a student's file as it is now."""
        at, best = self._run.at, self._best[student.name]
        save_student(
            self._run.directory,
            student,
            self._tasks,
            {
                "trained_updates": self.updates,
                "trained_steps": at.step,
                "scoring": {"mean": best.score, "episodes": best.episodes},
            },
        )

    def files(self) -> dict[str, Path]:
        """The file of each student that has one; those that learned to the end come first."""
        names = sorted(self.all, key=lambda student: student.diverged_updates is not None)
        paths = {s.name: student_path(self._run.directory, s.name) for s in names}
        return {name: path for name, path in paths.items() if path.is_file()}

    def players(self, own: OwnStudent | None = None, place: int = 0) -> Iterator[Player]:
        """Each student as it was saved, for an evaluation; those that have a file.

        Args:
            own: Makes them, if they are modules of the caller's.
            place: Of the task that they will play.
        """
        task = self._tasks[place]
        for student in self.all:
            path = student_path(self._run.directory, student.name)
            if not path.is_file():
                continue
            network = load_student(path, student.size, task.spec, own)
            network = network.to(task.teacher.device)
            facts: dict[str, Any] = {
                "kind": student.loss,
                "size": student.size,
                "seed": student.seed,
            }
            if student.diverged_updates is not None:
                facts["diverged_updates"] = student.diverged_updates
            if isinstance(network, QNetwork) and len(self._tasks) > 1:
                facts["parameters_of_all_games"] = num_parameters(network)
                network = network.for_task(place)
            yield Player(student.name, network, network, facts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from: tensors, and plain JSON types."""
        tensors: dict[str, Tensor] = {}
        card: dict[str, Any] = {"updates": self.updates, "scored_updates": self.scored_updates}
        for student in self.all:
            tensors |= under(student.name, student.state())
            card[student.name] = {
                "best": self._best[student.name].state(),
                "means": self._means[student.name].state(),
                "diverged_updates": student.diverged_updates,
            }
        return tensors, card

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        example = {"best": [], "means": {}, "diverged_updates": (None, 0)}
        states = {student.name: example for student in self.all}
        check_state(card, {"updates": 0, "scored_updates": 0, **states}, "students")
        self.updates, self.scored_updates = card["updates"], card["scored_updates"]
        for student in self.all:
            student.load(select(tensors, student.name))
            own = card[student.name]
            self._best[student.name].restore(own["best"])
            self._means[student.name].restore(own["means"])
            student.diverged_updates = own["diverged_updates"]
