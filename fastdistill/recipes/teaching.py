# SPDX-License-Identifier: MIT
"""What both teacher recipes share: the best network by game score, and its evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdistill.envs.lanes import LaneEnv
from fastdistill.evaluation import Evaluation, evaluate
from fastdistill.evaluation.statistics import summarize
from fastdistill.networks import QNetwork
from fastdistill.networks.checkpoint import load_network, save_network
from fastdistill.recipes.common import SCORING_SEED, TrainingState


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher recipe ends with.

    Attributes:
        stopped: Ended by a signal, with a checkpoint, before its time.
        step: Agent steps taken.
        recent_return: Mean of the last training episodes, None with fewer than 20.
        evaluation: Summary of the evaluation, empty if there was none.
    """

    stopped: bool
    step: int
    recent_return: float | None
    evaluation: dict[str, Any]


class TeachingConfig(Protocol):
    """What is read here of a teacher recipe's configuration."""

    @property
    def run_dir(self) -> Path:
        """Where everything is written."""

    @property
    def game(self) -> str:
        """Atari game or gymnasium id."""

    @property
    def preset(self) -> str:
        """Of the evaluation, too."""

    @property
    def score_episodes(self) -> int:
        """Per checkpoint; 0 for none."""

    @property
    def evaluation_episodes(self) -> int:
        """At the end, at least 1 here."""

    @property
    def evaluation_epsilon(self) -> float:
        """Share of random actions in either, in [0, 1]."""

    @property
    def seed(self) -> int:
        """Of everything."""


def save_best(
    config: TeachingConfig, network: QNetwork, env: LaneEnv, at: TrainingState, *, stopped: bool
) -> None:
    """Write the run's ``teacher.json`` if the network plays better than every one saved before.

    Training returns come from a policy that moved meanwhile: they say little of the network at
    hand. Ties go to the later one.

    A network that seems the best was often only lucky in a few games, and would then keep better
    ones out. So it must win again, in twice as many other games, and these are its score.

    Args:
        config: ``score_episodes`` full games judge, and twice as many the winner of those; none of
            them is one of the evaluation's. With 0 the last network is kept.
        network: To be judged and saved.
        env: Of the training; the games are played in another.
        at: Keeps the best score.
        stopped: The run was told to stop: no time to play. The network is then saved only where
            none was ever judged, which is better than no teacher.
    """
    score = None
    episodes = 0
    if stopped and at.best_score is not None:
        return
    if config.score_episodes and not stopped:
        for game_round in (1, 2):
            episodes = game_round * config.score_episodes
            seed = game_round * SCORING_SEED + config.seed
            score = _play(config, network, episodes, seed).mean
            if at.best_score is not None and score < at.best_score:
                return
        at.best_score = score
    save_network(
        config.run_dir / "teacher",
        network,
        {
            "kind": "q_values",
            "game": env.name,
            "action_meanings": list(env.action_meanings),
            "environment": env.settings,
            "trained_steps": at.step,
            "training_return": at.recent_return,
            "scoring": {"mean": score, "episodes": episodes},
        },
    )


def _play(config: TeachingConfig, network: QNetwork, episodes: int, seed: int) -> Evaluation:
    return evaluate(
        network,
        config.game,
        episodes=episodes,
        epsilon=config.evaluation_epsilon,
        preset=config.preset,
        seed=seed,
        device=network.obs_mean.device,
    )


def evaluate_teacher(config: TeachingConfig, device: torch.device) -> dict[str, Any]:
    """Play the run's teacher, write the score into its card and ``evaluation.json``.

    Returns:
        The score's summary as plain JSON types.
    """
    network, card = load_network(config.run_dir / "teacher")
    record = _play(config, network.to(device), config.evaluation_episodes, config.seed)
    summary = asdict(summarize(record.returns, config.game))
    score = {**record.to_json(), "summary": summary}
    kept = {key: value for key, value in card.items() if key not in ("format", "weights")}
    save_network(config.run_dir / "teacher", network, {**kept, "scores": [score]})
    (config.run_dir / "evaluation.json").write_text(json.dumps(score, indent=2) + "\n")
    return summary


def evaluation_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """The summary of an evaluation as metrics."""
    return {
        "eval/return_mean": summary["mean"]["value"],
        "eval/return_std": summary["std"],
        "eval/episodes": summary["episodes"],
    }
