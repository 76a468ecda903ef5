# SPDX-License-Identifier: MIT
"""The parts of a DQN's training with a guide (QDagger)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv
from fastdistill.evaluation.compare import random_score
from fastdistill.networks import load_network
from fastdistill.recipes.best_teacher import judging_games
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.dqn_teaching import DqnTeaching
from fastdistill.teachers import load_teacher
from fastdistill.training.guide import Guide, GuideTerm
from fastdistill.training.run import say
from fastdistill.training.selection import mean_return
from fastdistill.training.state import check_state

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

    def measure_guide(self) -> None:
        """Find out what the guide and random play score.

        Raises:
            ValueError: The guide is no better.
        """
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

    def start(self) -> list[tuple[Tensor, Tensor]]:
        """From nothing."""
        if not self.guide.is_measured:  # resumed from before the first checkpoint
            self.measure_guide()
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
