# SPDX-License-Identifier: MIT
"""What both teacher recipes end with: the best network by full games, and its evaluation."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdistill.envs import LaneEnv, make_env
from fastdistill.evaluation.compare import Player, compare, write_evaluation
from fastdistill.networks import QNetwork, load_network, save_network
from fastdistill.training.publishing import network_card
from fastdistill.training.run import Run
from fastdistill.training.selection import Best, mean_return


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher recipe ends with.

    Attributes:
        stopped: Told to stop before its time; it has left a checkpoint.
        step: Agent steps taken.
        recent_return: Mean of the last training episodes, None with fewer than 20.
        evaluation: What ``evaluation.json`` holds; empty if there was none.
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
        """At the end; 0 for none."""

    @property
    def evaluation_epsilon(self) -> float:
        """Share of random actions in either, in [0, 1]."""

    @property
    def seed(self) -> int:
        """Of everything."""


def save_best(
    config: TeachingConfig,
    run: Run[Any],
    best: Best,
    network: QNetwork,
    env: LaneEnv,
    *,
    stopped: bool,
) -> None:
    """Write the run's ``teacher.json`` if the network plays better than every one saved before.

    Args:
        config: ``score_episodes`` full games judge (see ``Best``); with 0 the last is kept.
        run: Being trained.
        best: So far.
        network: To be judged and saved.
        env: Of the training; the games are played in another.
        stopped: The run was told to stop: no time to play. The network is then saved only where
            none was ever judged, which is better than no teacher.
    """
    if stopped and best.score is not None:
        return
    if config.score_episodes and not stopped:
        with closing(_games(config, config.score_episodes)) as games:

            def play(episodes: int, seed: int) -> float:
                return mean_return(
                    network,
                    games,
                    network.obs_mean.device,
                    episodes=episodes,
                    seed=seed,
                    epsilon=config.evaluation_epsilon,
                )

            if not best.wins(play, episodes=config.score_episodes, seed=config.seed):
                return
    save_network(
        run.directory / "teacher",
        network,
        {
            **network_card(env.spec, "q_values"),
            "trained_steps": run.at.step,
            "training_return": run.at.recent_return,
            "scoring": {"mean": best.score, "episodes": best.episodes},
        },
    )
    run.at.lap("score")


def finish(config: TeachingConfig, run: Run[Any], device: torch.device) -> TeacherResult:
    """Evaluate the teacher of a finished run; its score goes into its card, too."""
    record: dict[str, Any] = {}
    if run.finished and config.evaluation_episodes:
        network, card = load_network(run.directory / "teacher")
        network = network.to(device)
        with closing(_games(config, config.evaluation_episodes)) as games:
            record = compare(
                Player("teacher", network, network, {}),
                (),
                games,
                episodes=config.evaluation_episodes,
                seed=config.seed,
                device=device,
                epsilon=config.evaluation_epsilon,
            )
        record |= {"training_seconds": run.at.training_seconds, "updates": run.at.updates}
        score = {key: record[key] for key in ("preset", "epsilon", "seed", "settings", "versions")}
        score |= {key: record["teacher"][key] for key in ("returns", "lengths_steps", "summary")}
        kept = {key: value for key, value in card.items() if key not in ("format", "weights")}
        save_network(run.directory / "teacher", network, {**kept, "scores": [score]})
        summary = record["teacher"]["summary"]
        run.write(
            {
                "eval/return_mean": summary["mean"]["value"],
                "eval/return_std": summary["std"],
                "eval/episodes": summary["episodes"],
            }
        )
        write_evaluation(run.directory, record)
    return TeacherResult(not run.finished, run.at.step, run.at.recent_return, record)


def _games(config: TeachingConfig, num_lanes: int) -> LaneEnv:
    return make_env(config.game, min(10, num_lanes), preset=config.preset, training=False)
