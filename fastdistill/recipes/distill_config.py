# SPDX-License-Identifier: MIT
"""What can be chosen in a distillation; the fields' descriptions are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fastdistill.envs import BROUGHT, PRESETS
from fastdistill.networks import SIZES, size_name
from fastdistill.recipes.options import (
    MOST_STUDENTS,
    at_least,
    at_most,
    must_be_default,
    names,
    one_of,
    positive,
    share,
    shares,
    temperature_option,
    within_limits,
)
from fastdistill.recipes.tasks import DEFAULT_TEACHER
from fastdistill.training.configuration import check_types
from fastdistill.training.drivers import DRIVERS
from fastdistill.training.learners.student import LOSSES, OWN
from fastdistill.training.optimizing import OPTIMIZERS
from fastdistill.training.process import (
    default_bfloat16,
)
from fastdistill.training.targets import WEIGHTINGS


@dataclass(frozen=True)
class DistillConfig:
    """Distillation; defaults are for the shipped Pong teacher on two CPU cores."""

    COMMAND: ClassVar[str] = "distill"

    run_dir: Path = Path("runs/distill")
    """Where everything is written."""
    teacher: str = DEFAULT_TEACHER
    """A checkpoint's path, zoo:NAME, sb3:FILE or cleanrl:FILE; several games' with commas between.
    Of teachers of one game A+B is the mean policy, A|B one of them drawn for each state."""
    game: str | None = None
    """Atari game or gymnasium id; the teacher's own by default. One for each teacher."""
    follow: bool = False
    """The teachers are still being trained, by other programs: take up each new one that is written
    to the same place."""
    data: str | None = None
    """Directory that fastdistill collect has written, of several games with commas between: learn
    from it instead of playing. Its teacher is the default, its lanes and its play are as they are.
    """
    labels: str = "teacher"
    """Whose labels of the data: the teacher's that played, or a name that fastdistill relabel gave.
    """
    damaged: str = "refuse"
    """Data that cannot be read: refuse, or skip and name it."""
    teacher_view: str | None = None
    """Where observations have several parts (a Dict), the key of what the teacher sees."""
    student_view: str | None = None
    """The key of what students see, and of what the replay keeps."""
    task_weights: str = "balanced"
    """Shares of the games in a batch, with commas between: 1,1,2."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    loss: str = "kl"
    """One or several of kl, nll, mse, reverse_kl, jsd, with commas between."""
    student: str = "7%"
    """One or several of 100%, 25%, 7%, 4% of the paper's network, multi (its network for three
    games) and multi-wide (for ten), with commas between."""
    layer_norm: bool = False
    """Layer normalisation in students of these sizes; the paper's have none."""
    seeds: int = 1
    """Students of each loss and size; they differ in their first weights, not in their data."""
    temperature: float | str | None = None
    """Sharpens the teacher; "auto" fits it to the teacher's action gaps; by default 0.01 for
    Q-values and 1 for a policy's logits."""
    driver: str = "student"
    """Who plays: student, teacher, or mixture (the students' share rises from 0 to 1)."""
    weighting: str = "none"
    """Weight of each state: none, gap (between the best two actions) or entropy."""
    engine: str = "local"
    """Where the play is: local, in this process, or ray, in actors that Ray runs here or on other
    machines."""
    actors: int = 2
    """Ray actors for each game; they share num_lanes."""
    optimizer: str = "adam"
    """adam, or the paper's rmsprop."""
    learning_rate: float = 2e-3
    """At first; it falls linearly to 0."""
    batch_size: int = 64
    """States per update, of all games together."""
    total_updates: int = 10_000
    """Updates of every student; the schedules end there."""
    max_seconds: float | None = None
    """End training early after this long (scoring apart); the schedules end there, too."""
    steps_per_update: float = 8.0
    """Agent steps of play, all lanes of all games together, for one update."""
    num_lanes: int = 16
    """Lanes of each game, played at once."""
    learning_starts_steps: int = 4_000
    """Steps of the teacher's play before the first update; the input statistics come from them."""
    replay_capacity: int = 100_000
    """States kept, of all games together; an Atari state takes 7.2 KB."""
    epsilon: float = 0.05
    """Share of random actions in the play."""
    bfloat16: bool = field(default_factory=default_bfloat16)
    """The students' convolutions in bfloat16; labels and heads are float32 always; by default where
    the machine multiplies bfloat16 itself."""
    score_every_updates: int = 2_500
    """Updates between scorings of the students; the best is kept."""
    score_episodes: int = 10
    """Full episodes per scoring; 0 keeps the last weights instead of the best."""
    evaluation_episodes: int = 30
    """Full episodes of teacher and students at the end, none of which chose a student; 0 for none.
    """
    evaluate_teacher: bool = False
    """Play the teacher's episodes even where its card has as many on record, played likewise."""
    checkpoint_every_updates: int = 2_500
    """Updates between checkpoints."""
    log_every_updates: int = 100
    """Updates between metric records."""
    seed: int = 1
    """Of everything."""
    device: str = "auto"
    """auto, cpu, cuda..."""
    deterministic: bool = False
    """Refuse kernels that are not deterministic (on a CPU there are none here)."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""

    @property
    def losses(self) -> tuple[str, ...]:
        """``loss``, taken apart."""
        return names(self.loss)

    @property
    def sizes(self) -> tuple[str, ...]:
        """``student``, taken apart; ``7`` means ``7%``."""
        return tuple(map(size_name, self.student.split(",")))

    @property
    def teachers(self) -> tuple[str, ...]:
        """``teacher``, taken apart."""
        return names(self.teacher)

    @property
    def games(self) -> tuple[str, ...]:
        """``game``, taken apart; empty where the teachers know it."""
        return names(self.game)

    @property
    def directories(self) -> tuple[str, ...]:
        """``data``, taken apart; empty where there is play instead."""
        return names(self.data)

    @property
    def weights(self) -> tuple[float, ...]:
        """``task_weights``, taken apart; empty where they are balanced."""
        return shares(self, "task_weights")

    def __post_init__(self) -> None:
        check_types(self)
        one_of(self, "loss", self.losses, LOSSES)
        one_of(self, "driver", (self.driver,), DRIVERS)
        one_of(self, "weighting", (self.weighting,), WEIGHTINGS)
        one_of(self, "optimizer", (self.optimizer,), OPTIMIZERS)
        one_of(self, "preset", (self.preset,), PRESETS)
        one_of(self, "engine", (self.engine,), ("local", "ray"))
        self._check_actors()
        self._check_following()
        self._check_data()
        one_of(self, "damaged", (self.damaged,), ("refuse", "skip"))
        one_of(self, "student", self.sizes, SIZES if self.student != OWN else (OWN,))
        if self.student == OWN and self.layer_norm:
            raise ValueError(
                "DistillConfig: layer_norm must be False for a module of yours, got True"
            )
        at_least(
            self, 1, "seeds", "actors", "batch_size", "total_updates", "num_lanes",
            "replay_capacity", "score_every_updates", "checkpoint_every_updates",
            "log_every_updates",
        )  # fmt: skip
        at_least(self, 0, "score_episodes", "evaluation_episodes", "seed")
        within_limits(self, len(self.teachers))
        each = len(self.losses) * len(self.sizes)
        at_most(self, MOST_STUDENTS, "students of all losses and sizes", each, "seeds")
        positive(self, "steps_per_update", "learning_rate", "max_seconds")
        share(self, "epsilon")
        shares(self, "task_weights")
        temperature_option(self)

    def _check_actors(self) -> None:
        """Actors make their environments by name, and all see all of what these show."""
        if self.engine != "ray":
            must_be_default(self, "with engine local", "actors")
            return
        self._must_be_none("engine ray", "data", "teacher_view", "student_view")
        if BROUGHT in self.games:
            raise ValueError(
                f"DistillConfig: env must be a name with engine ray, got {self.game!r}"
            )
        if self.num_lanes % max(self.actors, 1):
            raise ValueError(
                f"DistillConfig: num_lanes must be a multiple of {self.actors} actors, got "
                f"{self.num_lanes}"
            )

    def _check_data(self) -> None:
        """What was played before holds what was seen then, and nothing else could be."""
        if self.data is None:
            must_be_default(self, "without data", "labels", "damaged")
        else:
            self._must_be_none("data", "teacher_view", "student_view")

    def _must_be_none(self, beside: str, *options: str) -> None:
        for name in options:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"DistillConfig: {name} must be none with {beside}, got {getattr(self, name)!r}"
                )

    def _check_following(self) -> None:
        """Labels that others made, or of what the replay does not hold, cannot be made anew."""
        if not self.follow:
            return
        self._must_be_none("follow", "data", "teacher_view", "student_view")
        if self.engine == "ray":
            raise ValueError("DistillConfig: engine must be local with follow, got 'ray'")
