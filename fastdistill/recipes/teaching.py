# SPDX-License-Identifier: MIT
"""What both teacher recipes end with: the best network by full games, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdistill.envs import LaneEnv, make_env
from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.evaluation.statistics import HUMAN_SCORES
from fastdistill.networks import QNetwork, load_network, save_network
from fastdistill.recipes.options import names
from fastdistill.training.publishing import games_card
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
    envs: Sequence[LaneEnv],
    *,
    stopped: bool,
) -> None:
    """Write the run's ``teacher.json`` if the network plays better than every one saved before.

    Args:
        config: ``score_episodes`` full games judge (see ``Best``); with 0 the last is kept.
        run: Being trained.
        best: So far.
        network: To be judged and saved.
        envs: Of the training; the games are played in others. Of several, the mean over games of
            the human-normalised scores judges (of raw ones where no human's is on record).
        stopped: The run was told to stop: no time to play. The network is then saved only where
            none was ever judged, which is better than no teacher.
    """
    if stopped and best.score is not None:
        return
    if config.score_episodes and not stopped:
        with _games(config, config.score_episodes) as games:

            def play(episodes: int, seed: int) -> float:
                scores = [
                    mean_return(
                        network.for_task(place),
                        env,
                        network.obs_mean.device,
                        episodes=episodes,
                        seed=seed,
                        epsilon=config.evaluation_epsilon,
                    )
                    for place, env in enumerate(games)
                ]
                return scores[0] if len(scores) == 1 else _level(games, scores)

            if not best.wins(play, episodes=config.score_episodes, seed=config.seed):
                return
    save_network(
        run.directory / "teacher",
        network,
        {
            **games_card("q_values", [(env.spec, {}) for env in envs]),
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
        with _games(config, config.evaluation_episodes) as games:
            records = [
                compare(
                    Player("teacher", player, player, {}),
                    (),
                    env,
                    episodes=config.evaluation_episodes,
                    seed=config.seed,
                    device=device,
                    epsilon=config.evaluation_epsilon,
                )
                for env, player in zip(games, map(network.for_task, range(len(games))), strict=True)
            ]
        record = together(records)
        record |= {"training_seconds": run.at.training_seconds, "updates": run.at.updates}
        kept = {key: value for key, value in card.items() if key not in ("format", "weights")}
        for own, played in zip(kept.get("games", [kept]), records, strict=True):
            own["scores"] = [_score(played)]
        save_network(run.directory / "teacher", network, kept)
        if len(records) == 1:  # returns of several games have no common scale
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


def _score(record: dict[str, Any]) -> dict[str, Any]:
    """What a teacher's card says of an evaluation."""
    score = {key: record[key] for key in ("preset", "epsilon", "seed", "settings", "versions")}
    return score | {key: record["teacher"][key] for key in ("returns", "lengths_steps", "summary")}


def _level(games: Sequence[LaneEnv], scores: Sequence[float]) -> float:
    """One number for the scores of several games."""
    total = 0.0
    for env, score in zip(games, scores, strict=True):
        random, human = HUMAN_SCORES.get(env.spec.name, (0.0, 1.0))
        total += (score - random) / (human - random)
    return total / len(scores)


@contextmanager
def _games(config: TeachingConfig, num_lanes: int) -> Iterator[list[LaneEnv]]:
    with ExitStack() as opened:
        yield [
            opened.enter_context(
                closing(make_env(game, min(10, num_lanes), preset=config.preset, training=False))
            )
            for game in names(config.game)
        ]
