# SPDX-License-Identifier: MIT
"""A teacher in the making is judged by full games; the best network becomes the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from fastdistill.envs import LaneEnv, make_env
from fastdistill.evaluation import Evaluation, evaluate_env
from fastdistill.evaluation.statistics import HUMAN_SCORES
from fastdistill.networks import QNetwork, save_network
from fastdistill.recipes.teaching_config import TeachingConfig
from fastdistill.training.publishing import games_card
from fastdistill.training.run import Run
from fastdistill.training.selection import Best, Round

MAX_LANES = 10  # at once, in games that judge


def save_best(
    config: TeachingConfig,
    run: Run[Any],
    best: Best,
    network: QNetwork,
    envs: Sequence[LaneEnv],
    *,
    stopped: bool,
) -> bool:
    """Write the run's ``teacher.json`` if the network plays better than every one saved before.

    What it scores is recorded, best or not.

    Args:
        config: ``score_episodes`` full games judge (see ``Best``); with 0 the last is kept.
        run: Being trained.
        best: So far.
        network: To be judged and saved.
        envs: Of the training; the games are played in others. Of several, the mean over games of
            the human-normalised scores judges (of raw ones where no human's is on record).
        stopped: The run was told to stop: no time to play. The network is then saved only where
            none was ever judged, which is better than no teacher.

    Returns:
        Whether it was saved.
    """
    if stopped and best.score is not None:
        return False
    if config.score_episodes and not stopped:
        rounds: list[list[Evaluation]] = []
        with judging_games(config, config.score_episodes) as games:

            def play(episodes: int, seed: int) -> Round:
                rounds.append(_play(config, network, games, episodes, seed))
                means = [played.mean for played in rounds[-1]]
                return Round(means[0] if len(means) == 1 else _level(games, means))

            won = best.wins(play, episodes=config.score_episodes, seed=config.seed)
            seconds = {"time/training_seconds": run.at.training_seconds}
            run.write({**seconds, **_scores(games, rounds[0])})
        if not won:
            run.at.lap("score")
            return False
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
    return True


def _play(
    config: TeachingConfig, network: QNetwork, games: Sequence[LaneEnv], episodes: int, seed: int
) -> list[Evaluation]:
    device, epsilon = network.obs_mean.device, config.evaluation_epsilon
    return [
        evaluate_env(
            network.for_task(place), env, episodes=episodes, epsilon=epsilon, seed=seed,
            device=device,
        )
        for place, env in enumerate(games)
    ]  # fmt: skip


def _scores(games: Sequence[LaneEnv], played: Sequence[Evaluation]) -> dict[str, float]:
    """For the records: mean return and its standard error, of several games each one's."""
    values: dict[str, float] = {}
    for env, one in zip(games, played, strict=True):
        of = f"/{env.spec.name}" if len(games) > 1 else ""
        values |= {f"teacher/score{of}": one.mean, f"teacher/score_error{of}": one.mean_error}
    return values


def _level(games: Sequence[LaneEnv], scores: Sequence[float]) -> float:
    """One number for the scores of several games."""
    total = 0.0
    for env, score in zip(games, scores, strict=True):
        random, human = HUMAN_SCORES.get(env.spec.name, (0.0, 1.0))
        total += (score - random) / (human - random)
    return total / len(scores)


@contextmanager
def judging_games(config: TeachingConfig, num_lanes: int) -> Iterator[list[LaneEnv]]:
    """An environment for full games of each game, at most ten lanes, closed at the end."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(
                closing(
                    make_env(game, min(MAX_LANES, num_lanes), preset=config.preset, training=False)
                )
            )
            for game in config.games
        ]
