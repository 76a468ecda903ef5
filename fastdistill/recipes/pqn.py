# SPDX-License-Identifier: MIT
"""Parallel Q-learning (Gallici et al. 2024): a teacher without a replay.

Many lanes play a short rollout; lambda-returns are computed backwards through it; a few epochs of
minibatches regress the Q-values on them; the rollout is thrown away. Layer normalisation stands in
for the target network. Deterministic: one seed, one set of weights, bitwise on a CPU, interrupted
or not.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdistill.envs import LaneEnv, make_env
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.recipes.best_teacher import save_best
from fastdistill.recipes.options import MOST_ROLLOUT_ROWS, at_least, at_most, share
from fastdistill.recipes.teaching import TeacherResult, finish, teach
from fastdistill.recipes.teaching_config import TeachingConfig
from fastdistill.training.counters import Means
from fastdistill.training.learners.pqn import PqnLearner
from fastdistill.training.optimizing import linear
from fastdistill.training.process import deterministic_kernels, keep_freed_memory, pick_device
from fastdistill.training.rollouts import RolloutPlay
from fastdistill.training.run import Run, Stop
from fastdistill.training.selection import Best
from fastdistill.training.state import select, under


@dataclass(frozen=True)
class PqnConfig(TeachingConfig):
    """Parallel Q-learning; defaults are for Pong on two CPU cores."""

    COMMAND: ClassVar[str] = "teacher pqn"

    run_dir: Path = Path("runs/teacher_pqn")
    """Where everything is written."""
    total_steps: int = 1_500_000
    """Agent steps, all lanes together; the schedules end there."""
    num_lanes: int = 32
    """Games played at once."""
    spread_steps: int = 2_000
    """Random steps of each lane before the first rollout, over which the lanes start one by one: no
    batch is of one moment of the game. Not counted in total_steps."""
    rollout_steps: int = 32
    """Steps of each lane between two learning phases."""
    epochs: int = 2
    """Passes over each rollout."""
    batch_size: int = 256
    """Transitions per update."""
    learning_rate: float = 5e-4
    """After the warm-up; it falls linearly to 0."""
    warm_up_updates: int = 500
    """Updates over which the learning rate rises."""
    trace_decay: float = 0.65
    """Lambda of the returns: 0 is one-step Q-learning, 1 Monte Carlo."""
    epsilon_fraction: float = 0.1
    """Share of total_steps over which epsilon falls."""
    checkpoint_every_steps: int = 150_000
    """Agent steps between checkpoints."""
    log_every_steps: int = 10_000
    """Agent steps between metric records."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rollout_steps", "epochs", "warm_up_updates")
        at_least(self, 0, "spread_steps")
        at_most(self, MOST_ROLLOUT_ROWS, "rows of a rollout", self.rollout_steps, "num_lanes")
        share(self, "trace_decay")
        if not 0 < self.epsilon_fraction <= 1:
            raise ValueError(
                f"PqnConfig: epsilon_fraction must be in (0, 1], got {self.epsilon_fraction}"
            )


def train(config: PqnConfig, *, resume: bool = False, stop: Stop | None = None) -> TeacherResult:
    """Train a teacher; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
        stop: Asked between steps whether to stop with a checkpoint.
    """
    run = Run("teacher_pqn", config, resume=resume, unit="steps", stop=stop)
    config = run.config
    keep_freed_memory()
    device = pick_device(config.device)
    with closing(make_env(config.game, config.num_lanes, preset=config.preset)) as env:
        parts = _Parts(config, run, env, device)  # before the run has a directory
        with deterministic_kernels(config.deterministic), run:
            teach(config, run, parts)
            return finish(config, run, device)


class _Parts:
    """The parts of a run: what is played, who learns."""

    def __init__(
        self, config: PqnConfig, run: Run[PqnConfig], env: LaneEnv, device: torch.device
    ) -> None:
        self.config = config
        self.run = run
        architecture = paper_architecture(
            config.size_name,
            env.spec.num_actions,
            obs_shape=env.spec.obs_shape,
            layer_norm=True,
        )
        network = QNetwork.seeded(architecture, config.seed).to(device)
        self.learner = PqnLearner(
            network,
            learning_rate=config.learning_rate,
            max_gradient_norm=config.max_gradient_norm,
            bfloat16=config.bfloat16,
        )
        self.play = RolloutPlay(
            env,
            network,
            run.at,
            rollout_steps=config.rollout_steps,
            discount=config.discount,
            trace_decay=config.trace_decay,
            clip_rewards=config.clip_rewards,
            seed=config.seed,
            bfloat16=config.bfloat16,
        )
        self.best = Best()
        self.means = Means()

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        fraction = self.run.at.step / self.config.total_steps / self.config.epsilon_fraction
        return linear(1.0, self.config.epsilon_end, fraction)

    @property
    def learning_rate(self) -> float:
        """Of the next phase of learning."""
        warm_up = min(1.0, (self.run.at.updates + 1) / self.config.warm_up_updates)
        fraction = self.run.at.step / self.config.total_steps
        return warm_up * linear(self.config.learning_rate, 0.0, fraction)

    def begin(self) -> None:
        """Continue from a checkpoint, or from nothing."""
        if not self.run.restore(self._take):
            self.play.reset(spread_steps=self.config.spread_steps)

    def _take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        self.play.restore(select(tensors, "play"), card["play"])
        self.learner.load(select(tensors, "learner"))
        self.best.restore(card["best"])
        self.means.restore(card["means"])

    def step(self) -> None:
        """One rollout, and a few epochs over it."""
        config, at = self.config, self.run.at
        epsilon, learning_rate = self.epsilon, self.learning_rate
        self.play.play(epsilon)
        phase = Means()
        for batch in self.play.minibatches(config.batch_size, config.epochs):
            learned = self.learner.update(*batch, learning_rate)
            self.means.add(learned)
            phase.add({"td_loss": learned["td_loss"]})
            at.updates += 1
        at.lap("learn")
        # Waits for the device, once per phase.
        if phase.count:
            self.run.refuse_divergence(phase.take()["td_loss"], self.play.rollout.tensors)
        self.run.show(lambda: f"epsilon {epsilon:.3f}")

    def log(self) -> None:
        """Record what happened since the last record."""
        self.run.write(
            {
                **self.run.at.metrics(),
                **{f"losses/{name}": value for name, value in self.means.take().items()},
                "charts/epsilon": self.epsilon,
                "charts/learning_rate": self.learning_rate,
            }
        )

    def judge(self, *, stopped: bool) -> bool:
        """Keep the network if it is the best so far; whether it is."""
        network, env = self.learner.network, self.play.env
        return save_best(self.config, self.run, self.best, network, [env], stopped=stopped)

    def checkpoint(self) -> None:
        """Write everything to continue from."""
        play, play_card = self.play.state()
        self.run.checkpoint(
            {**under("play", play), **under("learner", self.learner.state())},
            {"play": play_card, "best": self.best.state(), "means": self.means.state()},
        )
