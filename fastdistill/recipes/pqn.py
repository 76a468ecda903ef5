# SPDX-License-Identifier: MIT
"""Parallel Q-learning (Gallici et al. 2024): a teacher without a replay.

Many lanes play a short rollout; lambda-returns are computed backwards through it; a few epochs of
minibatches regress the Q-values on them; the rollout is thrown away. Layer normalisation stands in
for the target network. Deterministic: one seed, one set of weights, bitwise on a CPU, interrupted
or not.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv, make_env
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.recipes.options import at_least, positive, share
from fastdistill.recipes.teaching import TeacherResult, finish, save_best
from fastdistill.training.collector import Collector, network_driver
from fastdistill.training.configuration import check_types
from fastdistill.training.counters import Means
from fastdistill.training.inputs import random_play_statistics
from fastdistill.training.learners.pqn import PqnLearner, Rollout
from fastdistill.training.optimizing import linear
from fastdistill.training.process import (
    default_bfloat16,
    deterministic_kernels,
    keep_freed_memory,
    pick_device,
)
from fastdistill.training.run import Run, Stop
from fastdistill.training.selection import Best
from fastdistill.training.state import select, under


@dataclass(frozen=True)
class PqnConfig:
    """Parallel Q-learning; defaults are for Pong on two CPU cores."""

    run_dir: Path = Path("runs/teacher_pqn")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%."""
    total_steps: int = 1_500_000
    """Agent steps, all lanes together; the schedules end there."""
    stop_at_return: float | None = None
    """End early once the mean of the last 50 training episodes reaches this."""
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
    max_gradient_norm: float = 10.0
    """Gradients are clipped to this norm."""
    discount: float = 0.99
    """Per agent step."""
    trace_decay: float = 0.65
    """Lambda of the returns: 0 is one-step Q-learning, 1 Monte Carlo."""
    clip_rewards: bool = True
    """Learn from the sign of the rewards (reports stay raw)."""
    epsilon_end: float = 0.01
    """Final share of random actions; it starts at 1."""
    epsilon_fraction: float = 0.1
    """Share of total_steps over which epsilon falls."""
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
    checkpoint_every_steps: int = 150_000
    """Agent steps between checkpoints."""
    log_every_steps: int = 10_000
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
        at_least(
            self, 1, "num_lanes", "rollout_steps", "epochs", "batch_size", "total_steps",
            "warm_up_updates", "checkpoint_every_steps", "log_every_steps",
        )  # fmt: skip
        at_least(self, 0, "spread_steps", "score_episodes", "evaluation_episodes", "seed")
        share(self, "discount", "trace_decay", "epsilon_end", "evaluation_epsilon")
        positive(self, "learning_rate", "max_gradient_norm")
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
            parts.begin()
            while not (run.finished or run.stopping):
                parts.play()
                parts.learn()
                if run.due("log"):
                    parts.log()
                run.finished = run.at.step >= config.total_steps or run.at.reached(
                    config.stop_at_return
                )
                due = run.due("checkpoint")
                if run.finished or run.stopping or due:
                    # Where it would have been judged anyway it is judged, stopped or not.
                    stopped = not (run.finished or due)
                    save_best(
                        config, run, parts.best, parts.learner.network, [env], stopped=stopped
                    )
                    parts.checkpoint()
            return finish(config, run, device)


class _Parts:
    """The parts of a run: who plays, the rollout, who learns."""

    def __init__(
        self, config: PqnConfig, run: Run[PqnConfig], env: LaneEnv, device: torch.device
    ) -> None:
        self.config = config
        self.run = run
        self.env = env
        architecture = paper_architecture(
            config.size, env.spec.num_actions, obs_shape=env.spec.obs_shape, layer_norm=True
        )
        network = QNetwork.seeded(architecture, config.seed).to(device)
        self.learner = PqnLearner(
            network,
            learning_rate=config.learning_rate,
            max_gradient_norm=config.max_gradient_norm,
            bfloat16=config.bfloat16,
        )
        self.rollout = Rollout.allocate(
            env.spec,
            config.rollout_steps,
            config.num_lanes,
            device,
            clip_rewards=config.clip_rewards,
        )
        self.driver = network_driver(network, device, bfloat16=config.bfloat16)
        self.collector = Collector(env, self.driver, self.rollout.store, run.at, seed=config.seed)
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
        """Continue from a checkpoint, or take the input statistics and start the lanes."""
        if self.run.restore(self._take):
            return
        statistics = streams.words(self.config.seed, streams.STATISTICS)
        mean, std = random_play_statistics(self.env, seed=statistics)
        self.learner.network.set_obs_statistics(mean, std)
        self.env.reset(streams.words(self.config.seed, streams.TRAINING))
        self.env.spread(self.config.spread_steps)

    def _take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        self.learner.load(select(tensors, "learner"))
        self.collector.restore(select(tensors, "env"), card["collector"])
        self.best.restore(card["best"])
        self.means.restore(card["means"])

    def play(self) -> None:
        """Fill the rollout with epsilon-greedy play and its lambda-returns."""
        config, epsilon = self.config, self.epsilon
        for _ in range(config.rollout_steps):
            self.collector.step(epsilon)
        last = self.driver(self.env)
        self.rollout.finish(
            last.columns["value"], discount=config.discount, trace_decay=config.trace_decay
        )
        self.run.at.lap("act")
        self.run.show(lambda: f"epsilon {epsilon:.3f}")

    def learn(self) -> None:
        """A few epochs over the rollout."""
        config, at, rollout = self.config, self.run.at, self.rollout
        learning_rate = self.learning_rate
        obs, action = rollout.obs.flatten(0, 1), rollout.action.flatten()
        returns = rollout.returns.flatten()
        rows = np.flatnonzero(~rollout.boundary.ravel())
        batch_size = min(config.batch_size, len(rows))
        phase = Means()
        for _ in range(config.epochs):
            order = torch.from_numpy(self.collector.rng.permutation(rows)).to(obs.device)
            for chosen in torch.split(order, batch_size):
                if len(chosen) < batch_size:
                    continue  # the rest of an epoch: other rows at each, none is left out for good
                learned = self.learner.update(
                    obs[chosen], action[chosen], returns[chosen], learning_rate
                )
                self.means.add(learned)
                phase.add({"td_loss": learned["td_loss"]})
                at.updates += 1
        at.lap("learn")
        at.step += config.num_lanes * config.rollout_steps
        # Waits for the device, once per phase.
        self.run.refuse_divergence(phase.take()["td_loss"], rollout.tensors)

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

    def checkpoint(self) -> None:
        """Write everything to continue from."""
        lanes, collector = self.collector.state()
        self.run.checkpoint(
            {**under("learner", self.learner.state()), **under("env", lanes)},
            {"collector": collector, "best": self.best.state(), "means": self.means.state()},
        )
