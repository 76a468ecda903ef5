# SPDX-License-Identifier: MIT
"""Double DQN with n-step returns and prioritized replay: the paper's teacher, brought up to date.

Several lanes play epsilon-greedily into the replay; for every row played a fixed number of rows
is learned from. Synchronous and deterministic: one seed, one set of weights, bitwise on a CPU,
interrupted or not. Of several games it is the paper's Multi-DQN: one trunk, a head for each game,
batches that hold as much of each.

Sources: Mnih et al. 2015 (DQN), van Hasselt et al. 2016 (double), Schaul et al. 2016
(prioritized replay), Hessel et al. 2018 (n-step among the rest).
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdistill.envs import EnvFault, LaneEnv, make_env
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.recipes.options import at_least, positive, share
from fastdistill.recipes.teaching import TeacherResult, TeachingConfig, finish, save_best, teach
from fastdistill.training.counters import Means
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.optimizing import linear
from fastdistill.training.process import deterministic_kernels, keep_freed_memory, pick_device
from fastdistill.training.remembered_play import RememberedPlay, batch_tensors
from fastdistill.training.run import Run, Stop
from fastdistill.training.selection import Best
from fastdistill.training.state import select, under
from fastdistill.training.task import check_games


@dataclass(frozen=True)
class DqnConfig(TeachingConfig):
    """Double DQN with prioritized replay; defaults are for Pong on two CPU cores."""

    COMMAND: ClassVar[str] = "teacher dqn"

    run_dir: Path = Path("runs/teacher_dqn")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1; several with commas between are learned by
    one network with a head for each."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%; or its networks for
    several games, multi and multi-wide."""
    dueling: bool = False
    """Separate value and advantage in the head."""
    learning_starts_steps: int = 10_000
    """Random steps before the first update."""
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
                f"DqnConfig: learning_starts_steps must be at least num_lanes * (n_step + 1)"
                f"{several} = {least}, got {self.learning_starts_steps}"
            )
        if several and self.stop_at_return is not None:
            raise ValueError(
                "DqnConfig: stop_at_return must be left out where there are several games, whose "
                f"returns have no common scale, got {self.stop_at_return}"
            )


def train(config: DqnConfig, *, resume: bool = False, stop: Stop | None = None) -> TeacherResult:
    """Train a teacher; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
        stop: Asked between steps whether to stop with a checkpoint.
    """
    run = Run("teacher_dqn", config, resume=resume, unit="steps", stop=stop)
    config = run.config
    keep_freed_memory()
    device = pick_device(config.device)
    with ExitStack() as opened:
        envs = [
            opened.enter_context(closing(make_env(game, config.num_lanes, preset=config.preset)))
            for game in config.games
        ]
        check_games("teacher_dqn", [env.spec for env in envs])
        parts = DqnTeaching(config, run, envs, device)  # before the run has a directory
        opened.enter_context(deterministic_kernels(config.deterministic))
        opened.enter_context(run)
        teach(config, run, parts)
        return finish(config, run, device)


class DqnTeaching:
    """The parts of a run: what is played and remembered, who learns."""

    def __init__(
        self,
        config: DqnConfig,
        run: Run[Any],
        envs: list[LaneEnv],
        device: torch.device,
        *,
        uniform_sampler: bool = False,
    ) -> None:
        self.config = config
        self.run = run
        specs = [env.spec for env in envs]
        architecture = paper_architecture(
            config.size,
            [spec.num_actions for spec in specs],
            obs_shape=specs[0].obs_shape,
            dueling=config.dueling,
        )
        network = QNetwork.seeded(architecture, config.seed).to(device)
        network.games = tuple(spec.name for spec in specs) if len(specs) > 1 else ()
        self.learner = DqnLearner(
            network,
            learning_rate=config.learning_rate,
            adam_epsilon=config.adam_epsilon,
            max_gradient_norm=config.max_gradient_norm,
            bfloat16=config.bfloat16,
        )
        self.play = RememberedPlay(
            envs,
            network,
            run.at,
            replay_capacity=config.replay_capacity,
            n_step=config.n_step,
            discount=config.discount,
            priority_exponent=config.priority_exponent,
            clip_rewards=config.clip_rewards,
            seed=config.seed,
            bfloat16=config.bfloat16,
            uniform_sampler=uniform_sampler,
        )
        self.best = Best()
        self.means = Means()

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        return linear(1.0, self.config.epsilon_end, self.run.at.step / self.config.epsilon_steps)

    @property
    def importance_exponent(self) -> float:
        """Of the importance weights now."""
        fraction = self.run.at.step / self.config.total_steps
        return linear(self.config.importance_exponent, 1.0, fraction)

    def begin(self) -> None:
        """Continue from a checkpoint, or from nothing."""
        if not self.run.restore(self.take, self.play.replay.load):
            self.start()

    def start(self) -> list[tuple[Tensor, Tensor]]:
        """From nothing; returns each game's input statistics."""
        statistics = self.play.reset()
        self.learner.copy_target()  # with the input statistics
        return statistics

    def take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        self.play.restore(select(tensors, "play"), card["play"])
        self.learner.load(select(tensors, "learner"))
        self.best.restore(card["best"])
        self.means.restore(card["means"])

    def step(self) -> None:
        """One step of every lane, and the updates that are then due."""
        config, at = self.config, self.run.at
        epsilon = self.epsilon
        try:
            self.play.step(None if at.step < config.learning_starts_steps else epsilon)
        except EnvFault:
            self.checkpoint()  # of before that step
            raise
        rows_due = (at.step - config.learning_starts_steps) * config.samples_per_step
        while (at.updates + 1) * config.batch_size <= rows_due:
            self.learn()
        self.run.show(lambda: f"epsilon {epsilon:.3f}")

    def learn(self) -> None:
        """One update from one batch, whose priorities follow."""
        at = self.run.at
        batch = self.play.sample(self.config.batch_size, self.importance_exponent)
        learned = self.learner.update(batch)
        td_abs = learned.pop("td_abs")
        self.means.add(learned)
        at.lap("learn")
        if learned["td_loss"].device.type == "cpu":
            self.run.refuse_divergence(float(learned["td_loss"]), lambda: batch_tensors(batch))
        self.play.set_errors(batch, td_abs)
        at.updates += 1
        if at.updates % self.config.target_update_updates == 0:
            self.learner.copy_target()

    def log(self) -> None:
        """Record what happened since the last record."""
        self.run.write(self.metrics())

    def metrics(self) -> dict[str, float]:
        """What happened since the last record."""
        means = self.means.take()
        self.run.refuse_divergence(means.get("td_loss", 0.0), dict)
        return {
            **self.run.at.metrics(),
            **{f"losses/{name}": value for name, value in means.items()},
            "charts/epsilon": self.epsilon,
            "charts/learning_rate": self.config.learning_rate,
            "replay/size": len(self.play.replay),
            "replay/importance_exponent": self.importance_exponent,
        }

    def judge(self, *, stopped: bool) -> bool:
        """Keep the network if it is the best so far; whether it is."""
        network, envs = self.learner.network, self.play.envs
        return save_best(self.config, self.run, self.best, network, envs, stopped=stopped)

    def checkpoint(self) -> None:
        """Write everything to continue from."""
        self.run.checkpoint(*self.state(), self.play.replay.save)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay."""
        play, play_card = self.play.state()
        return (
            {**under("play", play), **under("learner", self.learner.state())},
            {"play": play_card, "best": self.best.state(), "means": self.means.state()},
        )
