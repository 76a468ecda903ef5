# SPDX-License-Identifier: MIT
"""Students side by side: they learn from the same batches, and the best of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from fastdistill.envs import LaneEnv
from fastdistill.evaluation.compare import Player
from fastdistill.networks import QNetwork
from fastdistill.training.counters import Means
from fastdistill.training.learners.student import OwnStudent, Student
from fastdistill.training.publishing import load_student, save_student, student_path
from fastdistill.training.run import Run, TrainingDiverged, say
from fastdistill.training.selection import Best, Probe, mean_return
from fastdistill.training.state import check_state, select, under
from fastdistill.training.targets import state_weight
from fastdistill.training.task import Task


class Students:
    """Students of one task, all learning from the same batches.

    One whose loss is no finite number any more ends alone, and is named; the others go on.

    Attributes:
        all: Every student, in the order of the records.
    """

    def __init__(
        self,
        students: Sequence[Student],
        task: Task,
        run: Run[Any],
        *,
        weighting: str,
        score_episodes: int,
        seed: int,
    ) -> None:
        self.all = list(students)
        self._task = task
        self._run = run
        self._weighting = weighting
        self._score_episodes = score_episodes
        self._seed = seed
        self._means = {student.name: Means() for student in self.all}
        self._best = {student.name: Best() for student in self.all}

    @property
    def learning(self) -> list[Student]:
        """Those that have not diverged."""
        return [student for student in self.all if student.diverged_updates is None]

    def set_obs_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Standardise the inputs of all students that are ``QNetwork``; others see raw ones."""
        for student in self.all:
            if isinstance(student.network, QNetwork):
                student.network.set_obs_statistics(mean, std)

    def learn(self, obs: Tensor, teacher_logits: Tensor, learning_rate: float) -> None:
        """One update of every student.

        Args:
            obs: ``[batch, *obs_shape]``.
            teacher_logits: ``[batch, actions]`` float32.
            learning_rate: Of this update.

        Raises:
            TrainingDiverged: None of them learns any more.
        """
        temperature = self._task.temperature
        weight = state_weight(self._weighting, teacher_logits, temperature)
        for student in self.learning:
            learned = student.update(obs, teacher_logits, weight, temperature, learning_rate)
            self._means[student.name].add(learned)
            # On a GPU looking would be waiting; the records look there.
            if learned["loss"].device.type == "cpu":
                batch = {"obs": obs, "teacher_logits": teacher_logits}
                self._end_if_diverged(student, float(learned["loss"]), batch)
        self._run.at.updates += 1

    def _end_if_diverged(self, student: Student, loss: float, batch: dict[str, Tensor]) -> None:
        if abs(loss) < float("inf"):
            return
        student.diverged_updates = self._run.at.updates
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
        """Every student's mean loss since the last record."""
        values = {}
        for student in self.learning:
            means = self._means[student.name].take()
            if "loss" in means:
                values[f"students/{student.name}/loss"] = means["loss"]
                self._end_if_diverged(student, means["loss"], {})
        return values

    def score(self, games: Callable[[], LaneEnv]) -> dict[str, float]:
        """Play with every student, save those that are better than ever before.

        Args:
            games: Makes the environment, made with ``training=False``, that they play in.
        """
        values: dict[str, float] = {}
        for student in self.learning:
            best = self._best[student.name]
            if self._score_episodes == 0:
                self.save(student)
                continue
            rounds: list[tuple[float, Probe]] = []

            def play(
                episodes: int,
                seed: int,
                student: Student = student,
                rounds: list[tuple[float, Probe]] = rounds,
            ) -> float:
                probe = Probe(student.network, self._task.teacher, self._task.temperature)
                device = self._task.teacher.device
                mean = mean_return(probe, games(), device, episodes=episodes, seed=seed)
                rounds.append((mean, probe))
                return mean

            training = student.network.training
            student.network.eval()
            won = best.wins(play, episodes=self._score_episodes, seed=self._seed)
            student.network.train(training)
            mean, probe = rounds[0]
            start = f"students/{student.name}"
            values |= {
                f"{start}/score": mean,
                f"{start}/agreement": probe.agreement,
                f"{start}/kl": probe.kl,
            }
            if won:
                self.save(student)
        self._run.at.lap("score")
        return values

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
            self._task.spec,
            {
                "teacher": self._task.teacher.describe(),
                "temperature": self._task.temperature,
                "trained_updates": at.updates,
                "trained_steps": at.step,
                "scoring": {"mean": best.score, "episodes": best.episodes},
            },
        )

    def players(self, own: OwnStudent | None) -> Iterator[Player]:
        """Each student as it was saved, for an evaluation; those that have a file."""
        for student in self.all:
            path = student_path(self._run.directory, student.name)
            if not path.is_file():
                continue
            network = load_student(path, student.size, self._task.spec, own)
            network = network.to(self._task.teacher.device)
            facts: dict[str, Any] = {
                "kind": student.loss,
                "size": student.size,
                "seed": student.seed,
            }
            if student.diverged_updates is not None:
                facts["diverged_updates"] = student.diverged_updates
            yield Player(student.name, network, network, facts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from: tensors, and plain JSON types."""
        tensors: dict[str, Tensor] = {}
        card = {}
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
        check_state(card, {student.name: example for student in self.all}, "students")
        for student in self.all:
            student.load(select(tensors, student.name))
            own = card[student.name]
            self._best[student.name].restore(own["best"])
            self._means[student.name].restore(own["means"])
            student.diverged_updates = own["diverged_updates"]
