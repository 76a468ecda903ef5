# SPDX-License-Identifier: MIT
"""Online distillation: students that learn from a DQN while it learns.

The DQN learns as ``teacher dqn`` does, bit for bit. A second, uniform sampler draws observations
from its replay; its best network so far, or its newest, labels them; any number of students learn
from the labels. At every checkpoint the newest network and all students play full games: the
records show who is steadier.

Source: Rusu et al. 2015, online policy distillation.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdistill.envs import LaneEnv, make_env
from fastdistill.networks import SIZES, size_name
from fastdistill.recipes.distill import DistillResult
from fastdistill.recipes.dqn_config import DqnOptions
from fastdistill.recipes.dqn_teaching import DqnTeaching
from fastdistill.recipes.judging import Judges
from fastdistill.recipes.options import (
    MOST_STUDENTS,
    at_least,
    at_most,
    names,
    one_of,
    positive,
    temperature_option,
)
from fastdistill.recipes.teaching import finish, teach
from fastdistill.report import try_report
from fastdistill.teachers import DEFAULT_TEMPERATURES
from fastdistill.training.following import FOLLOW, Followed
from fastdistill.training.learners.student import LOSSES, make_students
from fastdistill.training.process import deterministic_kernels, keep_freed_memory, pick_device
from fastdistill.training.publishing import publish_student
from fastdistill.training.run import Run, Stop
from fastdistill.training.state import select, under
from fastdistill.training.students import Students


@dataclass(frozen=True)
class OnlineConfig(DqnOptions):
    """A DQN and the students that follow it; defaults are for Pong on two CPU cores."""

    COMMAND: ClassVar[str] = "online"

    run_dir: Path = Path("runs/online")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1."""
    student: str = "100%,7%"
    """One or several of 100%, 25%, 7%, 4% of the paper's network, with commas between."""
    loss: str = "kl"
    """One or several of kl, nll, mse, reverse_kl, jsd, with commas between."""
    seeds: int = 1
    """Students of each loss and size; they differ in their first weights, not in their data."""
    temperature: float | str | None = None
    """Sharpens the teacher; "auto" fits it to the teacher's action gaps, anew at each checkpoint;
    by default 0.01."""
    follow: str = "best"
    """What the students learn from: the DQN's best network so far, or its latest."""
    student_every_updates: int = 5
    """Updates of the DQN for one of every student."""
    student_batch_size: int = 64
    """States per update of the students."""
    student_learning_rate: float = 5e-4
    """Of Adam; it stays."""
    checkpoint_every_steps: int = 50_000
    """Agent steps between checkpoints, at which teacher and students are scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.games) > 1:
            raise ValueError(f"OnlineConfig: game must be one, got {self.game}")
        one_of(self, "loss", self.losses, LOSSES)
        one_of(self, "student", self.sizes, SIZES)
        one_of(self, "follow", (self.follow,), FOLLOW)
        at_least(self, 1, "seeds", "student_every_updates", "student_batch_size")
        each = len(self.losses) * len(self.sizes)
        at_most(self, MOST_STUDENTS, "students of all losses and sizes", each, "seeds")
        positive(self, "student_learning_rate")
        temperature_option(self)

    @property
    def losses(self) -> tuple[str, ...]:
        """``loss``, taken apart."""
        return names(self.loss)

    @property
    def sizes(self) -> tuple[str, ...]:
        """``student``, taken apart; ``7`` means ``7%``."""
        return tuple(map(size_name, self.student.split(",")))


def train(config: OnlineConfig, *, resume: bool = False, stop: Stop | None = None) -> DistillResult:
    """Train a teacher and its students; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
        stop: Asked between steps whether to stop with a checkpoint.

    Raises:
        ValueError: There is no run to resume, or the game is not for these networks.
        TrainingDiverged: The DQN's loss, or every student's, is not finite any more.
    """
    run = Run("online", config, resume=resume, unit="steps", stop=stop)
    config = run.config
    keep_freed_memory()
    device = pick_device(config.device)
    with ExitStack() as opened:
        env = opened.enter_context(
            closing(make_env(config.game, config.num_lanes, preset=config.preset))
        )
        parts = _Parts(config, run, env, device)
        opened.enter_context(deterministic_kernels(config.deterministic))
        opened.enter_context(run)
        opened.callback(parts.judges.close)
        teach(config, run, parts)
        result = finish(config, run, device, lambda _: parts.students.players(None))
        if result.evaluation and parts.students.files():
            publish_student(run.directory, next(iter(parts.students.files())))
    return DistillResult(
        run_dir=config.run_dir,
        stopped=result.stopped,
        updates=parts.students.updates,
        training_seconds=run.at.training_seconds,
        students=parts.students.files(),
        evaluation=result.evaluation,
        report=try_report(config.run_dir) if result.evaluation else None,
        _spec=env.spec,
        _own=None,
    )


class _Parts(DqnTeaching):
    """The DQN's parts, the teacher that it makes, and the students."""

    def __init__(
        self, config: OnlineConfig, run: Run[Any], env: LaneEnv, device: torch.device
    ) -> None:
        super().__init__(config, run, [env], device, uniform_sampler=True)
        self.options = config
        asked = (
            DEFAULT_TEMPERATURES["q_values"] if config.temperature is None else config.temperature
        )
        self.followed = Followed(
            self.learner.network,
            env.spec,
            self.play.replay,
            temperature=0.0 if asked == "auto" else float(asked),
        )
        tasks = [self.followed.task]
        learners = make_students(
            [env.spec],
            losses=config.losses,
            sizes=config.sizes,
            seeds=range(config.seed, config.seed + config.seeds),
            optimizer="adam",
            learning_rate=config.student_learning_rate,
            bfloat16=config.bfloat16,
            device=device,
        )
        self.students = Students(
            learners, tasks, run, weighting="none", score_episodes=config.score_episodes,
            seed=config.seed, epsilon=config.evaluation_epsilon,
        )  # fmt: skip
        self.judges = Judges(tasks, preset=config.preset, num_lanes=min(10, config.score_episodes))

    def start(self) -> list[tuple[Tensor, Tensor]]:
        """From nothing: the students see as the DQN does."""
        statistics = super().start()
        self.students.set_obs_statistics(statistics)
        return statistics

    def take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        super().take(tensors, card)
        self.followed.restore(select(tensors, "followed"), card["followed"])
        self.students.restore(select(tensors, "students"), card["students"])

    def learn(self) -> None:
        """One update of the DQN, and one of the students where it is due."""
        super().learn()
        at, options, followed = self.run.at, self.options, self.followed
        if at.updates % options.student_every_updates:
            return
        if options.follow == "latest":
            followed.publish(self.learner.network)
        if followed.task.teacher.version == 0:
            return  # no network was the best yet
        if followed.task.temperature == 0.0:
            followed.fit()
        lesson = followed.lesson(options.student_batch_size)
        self.students.learn(lesson, options.student_learning_rate)
        at.lap("students")

    def judge(self, *, stopped: bool) -> bool:
        """Score the students; keep the network if it is the best so far, which they then follow."""
        if stopped:  # nothing that a run which goes on would not have done
            if self.students.updates:
                self.students.save_unscored()
            return super().judge(stopped=True)
        if self.students.updates:
            seconds = {"time/training_seconds": self.run.at.training_seconds}
            self.run.write({**seconds, **self.students.score(self.judges.games)})
        won = super().judge(stopped=False)
        if won and self.options.follow == "best":
            self.followed.publish(self.learner.network)
        if self.followed.task.teacher.version and (won or self.options.follow == "latest"):
            self.followed.fit()
        return won

    def metrics(self) -> dict[str, float]:
        """What happened since the last record."""
        return {
            **super().metrics(),
            **self.students.metrics(),
            "time/students_updates": self.students.updates,
            "time/training_seconds": self.run.at.training_seconds,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay."""
        tensors, card = super().state()
        for name, part in (("followed", self.followed), ("students", self.students)):
            own, card[name] = part.state()
            tensors |= under(name, own)
        return tensors, card
