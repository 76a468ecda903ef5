# SPDX-License-Identifier: MIT
"""What can be chosen in a DQN; the fields' descriptions are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastdistill.recipes.options import at_least, must_be_default, one_of, positive, share
from fastdistill.recipes.teaching_config import TeachingConfig
from fastdistill.training.guide import SCHEDULES


@dataclass(frozen=True)
class DqnOptions(TeachingConfig):
    """What can be chosen wherever a DQN learns; defaults are for Pong on two CPU cores."""

    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1; several with commas between are learned by
    one network with a head for each."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%; or its networks for
    several games, multi and multi-wide."""
    dueling: bool = False
    """Separate value and advantage in the head."""
    learning_starts_steps: int = 10_000
    """Random steps before the first update; with a guide its own."""
    samples_per_step: float = 4.0
    """Rows learned from per row played; CleanRL's and the paper's 32 every 4 steps are 8."""
    adam_epsilon: float = 1.5e-4
    """Of Adam; large, as in Rainbow."""
    n_step: int = 3
    """Steps of reward before the bootstrap."""
    target_update_updates: int = 250
    """Updates between copies of the network into the target network."""
    replay_capacity: int = 250_000
    """Rows kept; an Atari row takes 7.2 KB."""
    priority_exponent: float = 0.5
    """0 is the paper's uniform replay."""
    importance_exponent: float = 0.4
    """At the start; it rises linearly to 1."""
    epsilon_steps: int = 100_000
    """Agent steps over which epsilon falls."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "n_step", "target_update_updates", "epsilon_steps", "replay_capacity")
        share(self, "priority_exponent", "importance_exponent")
        positive(self, "samples_per_step", "adam_epsilon")
        several = f" * {len(self.games)} games" if len(self.games) > 1 else ""
        least = self.num_lanes * (self.n_step + 1) * len(self.games)
        if self.learning_starts_steps < least:
            raise ValueError(
                f"{type(self).__name__}: learning_starts_steps must be at least num_lanes * "
                f"(n_step + 1){several} = {least}, got {self.learning_starts_steps}"
            )
        if self.total_steps <= self.learning_starts_steps:
            raise ValueError(
                f"{type(self).__name__}: total_steps must be above learning_starts_steps "
                f"{self.learning_starts_steps}, or nothing is learned, got {self.total_steps}"
            )
        if several and self.stop_at_return is not None:
            raise ValueError(
                f"{type(self).__name__}: stop_at_return must be left out where there are several "
                f"games, whose returns have no common scale, got {self.stop_at_return}"
            )


@dataclass(frozen=True)
class DqnConfig(DqnOptions):
    """Double DQN with prioritized replay; defaults are for Pong on two CPU cores."""

    COMMAND: ClassVar[str] = "teacher dqn"

    run_dir: Path = Path("runs/teacher_dqn")
    """Where everything is written."""
    guide: str | None = None
    """A teacher to begin from: a checkpoint's path, zoo:NAME, sb3:FILE or cleanrl:FILE. It plays
    the first learning_starts_steps, 0.05 of them at random; then its policy is a second term of
    the loss, whose weight falls as the network comes near. Then epsilon is epsilon_end."""
    guide_updates: int = 10_000
    """Updates on the guide's play before the network plays itself."""
    guide_weight: float = 1.0
    """Of the guide's term, at first."""
    guide_schedule: str = "return"
    """How the weight falls: return, with the share of the guide's score that is reached; linear,
    over guide_steps."""
    guide_steps: int = 200_000
    """Agent steps of the linear schedule."""
    guide_temperature: float = 0.1
    """Divides the values of the network in the guide's term, and those of a guide of Q-values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "guide_updates")
        at_least(self, 1, "guide_steps")
        positive(self, "guide_weight", "guide_temperature")
        one_of(self, "guide_schedule", (self.guide_schedule,), SCHEDULES)
        if self.guide is None:
            must_be_default(self, "without a guide", "guide_updates", "guide_weight",
                            "guide_schedule", "guide_steps", "guide_temperature")  # fmt: skip
        elif len(self.games) > 1:
            raise ValueError(
                f"DqnConfig: guide must be left out of several games, got {self.guide!r}"
            )
