# SPDX-License-Identifier: MIT
"""The parts of a DQN's training, alone or with a guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import EnvFault, LaneEnv
from fastdistill.evaluation.compare import random_score
from fastdistill.networks import QNetwork, load_network, paper_architecture
from fastdistill.recipes.dqn_config import DqnConfig, DqnOptions
from fastdistill.recipes.teaching import judging_games, save_best
from fastdistill.teachers import load_teacher
from fastdistill.training.counters import Means
from fastdistill.training.guide import Guide, GuideTerm
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.optimizing import linear
from fastdistill.training.remembered_play import RememberedPlay, batch_tensors
from fastdistill.training.run import Run, say
from fastdistill.training.selection import Best, mean_return
from fastdistill.training.state import check_state, select, under


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
        """Write everything to continue from."""
        self.run.checkpoint(*self.state(), self.play.replay.save)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay."""
        play, play_card = self.play.state()
        return (
            {**under("play", play), **under("learner", self.learner.state())},
            {"play": play_card, "best": self.best.state(), "means": self.means.state()},
        )


# Share of random actions while the guide plays, the paper's.
GUIDE_EPSILON = 0.05


class GuidedTeaching(DqnTeaching):
    """The same with a guide: its play first, then its policy beside the reward (QDagger)."""

    guide: Guide
    weaned = 0  # whether the guide's weight was 0 once
    undone = 0  # collapses
    config: DqnConfig

    def _guide(self, env: LaneEnv, device: torch.device) -> Guide:
        config = self.config
        assert config.guide is not None
        teacher = load_teacher(config.guide, env, device=device)
        return Guide(
            teacher,
            weight=config.guide_weight,
            temperature=config.guide_temperature,
            schedule=config.guide_schedule,
            steps=config.guide_steps,
        )

    @property
    def epsilon(self) -> float:
        """Share of random actions of the network, which has learned from the guide's play."""
        return self.config.epsilon_end

    def start(self) -> list[tuple[Tensor, Tensor]]:
        """From nothing: first, what the guide and random play score."""
        config, guide = self.config, self.guide
        episodes, seed = 2 * max(config.score_episodes, 5), 2 * streams.SCORING + config.seed
        with judging_games(config, episodes) as (env,):
            levels = (
                random_score(guide.teacher, env, episodes=episodes, seed=seed,
                             device=guide.teacher.device),
                mean_return(guide.teacher, env, guide.teacher.device, episodes=episodes, seed=seed,
                            epsilon=config.evaluation_epsilon),
            )  # fmt: skip
        guide.set_levels(*levels)
        say(f"the guide scores {levels[1]:.6g}, random play {levels[0]:.6g}")
        self.run.at.lap("score")
        return super().start()

    def step(self) -> None:
        """One step of every lane, by the guide at first, and the updates that are then due.

        Between the two, updates alone, one at a call.
        """
        config, at = self.config, self.run.at
        played = at.step - config.learning_starts_steps
        if played >= 0 and at.updates < config.guide_updates:
            self.learn()
            done = f"{at.updates}/{config.guide_updates} updates on the guide's play"
            self.run.show(lambda: done)
            return
        if played < 0:
            self.play_step(GUIDE_EPSILON, by_guide=True)
            self._forget_returns()
            return
        self.play_step(self.epsilon)
        rows_due = (at.step - config.learning_starts_steps) * config.samples_per_step
        while (at.updates + 1 - config.guide_updates) * config.batch_size <= rows_due:
            self.learn()
        self.weaned = int(self.weaned or self.term().weight == 0.0)
        self.run.show(lambda: f"guide {self.term().weight:.3f}")

    def _forget_returns(self) -> None:
        """The guide's own say nothing of the network."""
        self.run.at.recent.clear()

    def term(self) -> GuideTerm:
        """Of the next update."""
        at = self.run.at
        steps = max(at.step - self.config.learning_starts_steps, 0)
        return self.guide.term(at.recent_return, steps)

    def judge(self, *, stopped: bool) -> bool:
        """Keep the network if it is the best so far; go back to the best from a collapse."""
        won = super().judge(stopped=stopped)
        best, latest = self.best.score, self.best.latest
        if won or stopped or not self.weaned or best is None or latest is None:
            return won
        if self.guide.collapsed(latest, best):
            network, _ = load_network(self.run.directory / "teacher")
            self.learner.go_back(network.state_dict())
            self.undone += 1
            say(
                f"step {self.run.at.step:,}: without its guide the network fell to {latest:.6g} "
                f"points, the best had {best:.6g}; it goes on from the best"
            )
        return won

    def metrics(self) -> dict[str, float]:
        """What happened since the last record."""
        return {
            **super().metrics(),
            "guide/weight": self.term().weight,
            "guide/undone": self.undone,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay."""
        tensors, card = super().state()
        own = {"levels": list(self.guide.levels), "weaned": self.weaned, "undone": self.undone}
        return tensors, {**card, "guide": own}

    def take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        super().take(tensors, card)
        check_state(card["guide"], {"levels": [0.0], "weaned": 0, "undone": 0}, "guide")
        self.guide.set_levels(*card["guide"]["levels"])
        self.weaned, self.undone = card["guide"]["weaned"], card["guide"]["undone"]
