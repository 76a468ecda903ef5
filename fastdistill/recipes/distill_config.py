# SPDX-License-Identifier: MIT
"""What can be chosen in a distillation; the fields' descriptions are the command line's help."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from fastdistill.envs import PRESETS
from fastdistill.recipes.students import LOSSES, OPTIMIZERS, SIZES, WEIGHTINGS

DRIVERS = ("teacher", "student", "mixture")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation; defaults are for the shipped Pong teacher on two CPU cores."""

    run_dir: Path = Path("runs/distill")
    """Where everything is written."""
    teacher: str = "zoo:pong"
    """A checkpoint's path, or zoo:NAME."""
    game: str | None = None
    """Atari game or gymnasium id; the teacher's own by default."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    loss: str = "kl"
    """One or several of kl, nll, mse, reverse_kl, jsd, with commas between."""
    student: str = "7%"
    """One or several of 100%, 25%, 7%, 4% of the teacher's parameters, with commas between."""
    seeds: int = 1
    """Students of each loss and size; they differ in their first weights, not in their data."""
    temperature: float | str = 0.01
    """Sharpens the teacher; "auto" fits it to the teacher's action gaps."""
    driver: str = "student"
    """Who plays: student, teacher, or mixture (the students' share rises from 0 to 1)."""
    weighting: str = "none"
    """Weight of each state: none, gap (between the best two actions) or entropy."""
    optimizer: str = "adam"
    """adam, or the paper's rmsprop."""
    learning_rate: float = 1e-3
    """At first; it falls linearly to 0."""
    batch_size: int = 64
    """States per update."""
    total_updates: int = 10_000
    """Updates of every student; the schedules end there."""
    max_seconds: float | None = None
    """End training early after this long (scoring apart); the schedules end there, too."""
    steps_per_update: float = 8.0
    """Agent steps of play, all lanes together, for one update."""
    num_lanes: int = 16
    """Games played at once."""
    learning_starts_steps: int = 4_000
    """Steps of play before the first update; the input statistics come from them."""
    replay_capacity: int = 100_000
    """States kept; an Atari state takes 7.2 KB."""
    epsilon: float = 0.05
    """Share of random actions in the play."""
    bfloat16: bool = True
    """The students' convolutions in bfloat16; labels and heads are float32 always."""
    score_every_updates: int = 2_500
    """Updates between scorings of the students; the best is kept."""
    score_episodes: int = 10
    """Full episodes per scoring; 0 keeps the last weights instead of the best."""
    evaluation_episodes: int = 30
    """Full episodes of teacher and students at the end, none of which chose a student; 0 for none.
    """
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
        return tuple(name.strip() for name in self.loss.split(","))

    @property
    def sizes(self) -> tuple[str, ...]:
        """``student``, taken apart; ``7`` means ``7%``."""
        return tuple(name.strip().rstrip("%") + "%" for name in self.student.split(","))

    def command(self) -> str:
        """The command line that says the same."""
        words = ["fastdistill distill"]
        for option in fields(self):
            value = getattr(self, option.name)
            flag = option.name.replace("_", "-")
            if value == option.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag} {shlex.quote(str(value))}")
        return " ".join(words)

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("loss", self.losses, LOSSES),
            ("driver", (self.driver,), DRIVERS),
            ("weighting", (self.weighting,), WEIGHTINGS),
            ("optimizer", (self.optimizer,), OPTIMIZERS),
            ("preset", (self.preset,), tuple(PRESETS)),
            ("student", self.sizes, SIZES),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(
                        f"DistillConfig: {name} must be one of {', '.join(allowed)}, got {value!r}"
                    )
            if len(set(values)) < len(values):
                raise ValueError(f"DistillConfig: {name} must not repeat, got {', '.join(values)}")
        for name in (
            "seeds",
            "batch_size",
            "total_updates",
            "num_lanes",
            "replay_capacity",
            "score_every_updates",
            "checkpoint_every_updates",
            "log_every_updates",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"DistillConfig: {name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("score_episodes", "evaluation_episodes", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"DistillConfig: {name} must be at least 0, got {getattr(self, name)}"
                )
        for name in ("steps_per_update", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"DistillConfig: {name} must be positive, got {getattr(self, name)}"
                )
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"DistillConfig: epsilon must be in [0, 1], got {self.epsilon}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"DistillConfig: max_seconds must be positive, got {self.max_seconds}")
        if self.learning_starts_steps < 4 * self.num_lanes:
            raise ValueError(
                "DistillConfig: learning_starts_steps must be at least 4 * num_lanes = "
                f"{4 * self.num_lanes}, got {self.learning_starts_steps}"
            )
        is_number = isinstance(self.temperature, (int, float))
        if self.temperature != "auto" and not (is_number and 1e-8 <= self.temperature <= 1e8):  # type: ignore[operator]
            raise ValueError(
                "DistillConfig: temperature must be in [1e-8, 1e8] or 'auto', "
                f"got {self.temperature!r}"
            )
