# SPDX-License-Identifier: MIT
"""The parts of a DQN's training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill.envs import EnvFault, LaneEnv
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.recipes.best_teacher import save_best
from fastdistill.recipes.dqn_config import DqnOptions
from fastdistill.training.counters import Means
from fastdistill.training.guide import Guide, GuideTerm
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.optimizing import linear
from fastdistill.training.remembered_play import RememberedPlay, batch_tensors
from fastdistill.training.run import Run
from fastdistill.training.selection import Best
from fastdistill.training.state import select, under


class DqnTeaching:
    """The parts of a run: what is played and remembered, who learns."""

    def __init__(
        self,
        config: DqnOptions,
        run: Run[Any],
        envs: list[LaneEnv],
        device: torch.device,
        *,
        uniform_sampler: bool = False,
    ) -> None:
        self.config = config
        self.run = run
        self.guide = self._guide(envs[0], device)
        specs = [env.spec for env in envs]
        architecture = paper_architecture(
            config.size_name,
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
            guide=self.guide.teacher if self.guide else None,
        )
        self.best = Best()
        self.means = Means()

    def _guide(self, env: LaneEnv, device: torch.device) -> Guide | None:
        """Nobody."""
        return None

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
        self.play_step(None if at.step < config.learning_starts_steps else epsilon)
        rows_due = (at.step - config.learning_starts_steps) * config.samples_per_step
        while (at.updates + 1) * config.batch_size <= rows_due:
            self.learn()
        self.run.show(lambda: f"epsilon {epsilon:.3f}")

    def play_step(self, epsilon: float | None, *, by_guide: bool = False) -> None:
        """One step of every lane; a fault of the game leaves a checkpoint."""
        try:
            self.play.step(epsilon, by_guide=by_guide)
        except EnvFault:
            self.checkpoint()  # of before that step
            raise

    def term(self) -> GuideTerm | None:
        """What is added to the loss of the next update."""
        return None

    def learn(self) -> None:
        """One update from one batch, whose priorities follow."""
        at = self.run.at
        batch = self.play.sample(self.config.batch_size, self.importance_exponent)
        learned = self.learner.update(batch, self.term())
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
        """Write everything to continue from; of a finished run no gigabytes of play."""
        save = None if self.run.finished else self.play.replay.save
        self.run.checkpoint(*self.state(), save)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay."""
        play, play_card = self.play.state()
        return (
            {**under("play", play), **under("learner", self.learner.state())},
            {"play": play_card, "best": self.best.state(), "means": self.means.state()},
        )
