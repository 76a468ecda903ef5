# SPDX-License-Identifier: MIT
"""What can be chosen in every teacher recipe; the descriptions are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fastdistill.networks import SIZES, size_name
from fastdistill.recipes.options import at_least, names, one_of, positive, share, within_limits
from fastdistill.training.configuration import check_types
from fastdistill.training.process import default_bfloat16


@dataclass(frozen=True)
class TeachingConfig:
    """What can be chosen in every teacher recipe."""

    COMMAND: ClassVar[str] = "teacher"

    run_dir: Path = Path("runs/teacher")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%."""
    total_steps: int = 1_000_000
    """Agent steps, all lanes together; the schedules end there."""
    stop_at_return: float | None = None
    """End early once the mean of the last 50 training episodes reaches this."""
    num_lanes: int = 8
    """Lanes of each game, played at once."""
    batch_size: int = 64
    """Rows per update."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    max_gradient_norm: float = 10.0
    """Gradients are clipped to this norm."""
    discount: float = 0.99
    """Per agent step."""
    clip_rewards: bool = True
    """Learn from the sign of the rewards (reports stay raw)."""
    epsilon_end: float = 0.01
    """Final share of random actions; it starts at 1."""
    bfloat16: bool = field(default_factory=default_bfloat16)
    """Convolutions in bfloat16; the head is float32 always; by default where
    the machine multiplies bfloat16 itself."""
    score_episodes: int = 10
    """Full episodes per checkpoint, and twice as many for one that wins, by which the best is
    chosen; 0 keeps the last."""
    evaluation_episodes: int = 30
    """Full episodes played with the chosen teacher, none of which chose it; 0 for none."""
    evaluation_epsilon: float = 0.01
    """Share of random actions in either."""
    checkpoint_every_steps: int = 250_000
    """Agent steps between checkpoints."""
    log_every_steps: int = 5_000
    """Agent steps between metric records."""
    seed: int = 1
    """Of everything."""
    device: str = "auto"
    """auto, cpu, cuda..."""
    deterministic: bool = False
    """Refuse kernels that are not deterministic (on a CPU there are none here)."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""

    def __post_init__(self) -> None:
        check_types(self)
        one_of(self, "size", (self.size_name,), SIZES)
        at_least(
            self, 1, "total_steps", "num_lanes", "batch_size", "checkpoint_every_steps",
            "log_every_steps",
        )  # fmt: skip
        at_least(self, 0, "score_episodes", "evaluation_episodes", "seed")
        within_limits(self, len(self.games))
        share(self, "discount", "epsilon_end", "evaluation_epsilon")
        positive(self, "learning_rate", "max_gradient_norm")

    @property
    def size_name(self) -> str:
        """``size`` as ``SIZES`` has it."""
        return size_name(self.size)

    @property
    def games(self) -> tuple[str, ...]:
        """``game``, taken apart."""
        return names(self.game)
