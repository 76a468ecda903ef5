# SPDX-License-Identifier: MIT
"""Scores into numbers one can compare: IQM, bootstrap intervals, human-normalised scores.

Small enough to own: NumPy only. The human and random scores are those of DQN Zoo
(dqn_zoo/atari_data.py, no-op starts, 30 minutes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# Scores that are resampled at once, so that memory does not grow with their number.
_DRAWN_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class Interval:
    """A statistic and its bootstrap interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Mean of the middle half: a quarter of the values is cut off at each end.

    As ``scipy.stats.trim_mean(scores, 0.25)`` and rliable: ``floor(n / 4)`` values per end.

    Args:
        scores: Any shape, at least one value along ``axis``.
        axis: The axis to reduce.
    """
    scores = np.sort(np.asarray(scores, np.float64), axis=axis)
    count = scores.shape[axis]
    if count < 1:
        raise ValueError("interquartile_mean: scores must hold at least 1 value, got 0")
    cut = count // 4
    kept: NDArray[np.float64] = np.take(scores, np.arange(cut, count - cut), axis=axis)
    return np.asarray(kept.mean(axis=axis))


def bootstrap_interval(
    groups: Sequence[Sequence[float]],
    statistic: Statistic | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Stratified percentile bootstrap (Agarwal et al. 2021).

    Args:
        groups: One list of scores per stratum (a game, say): each is resampled within itself.
            One list gives the plain bootstrap.
        statistic: Maps ``[resamples, scores]`` to ``[resamples]``; the mean by default.
        confidence: Share of resamples inside the interval, in (0, 1).
        resamples: Number of resamples.
        seed: Of the resampling.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("bootstrap_interval: groups must be non-empty lists of scores, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval: confidence must be in (0, 1), got {confidence}")
    reduce: Statistic = statistic or (lambda scores: np.asarray(scores.mean(axis=-1)))
    arrays = [np.asarray(group, np.float64) for group in groups]
    rng = np.random.default_rng(seed)
    found = []
    for block in _blocks(resamples, sum(map(len, arrays))):
        drawn = [group[rng.integers(len(group), size=(block, len(group)))] for group in arrays]
        found.append(reduce(np.concatenate(drawn, axis=1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    value = reduce(np.concatenate(arrays)[None])[0]
    return Interval(float(value), float(low), float(high))


def _blocks(resamples: int, scores: int) -> list[int]:
    """Numbers of resamples that are drawn at once."""
    block = max(1, _DRAWN_AT_ONCE // max(scores, 1))
    return [min(block, resamples - start) for start in range(0, resamples, block)]


def _drawn_means(
    scores: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    means = [
        scores[rng.integers(len(scores), size=(block, len(scores)))].mean(axis=1)
        for block in _blocks(resamples, len(scores))
    ]
    return np.concatenate([np.empty(0), *means])


def resampled_means(
    returns: Sequence[Sequence[float]],
    *,
    resamples: int = 10_000,
    rng: np.random.Generator | None = None,
    chosen: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Bootstrap means over seeds, ``[resamples]``: seeds are resampled, then their episodes.

    The one way to put seeds together: what seeds differ by is part of the interval. Of three
    seeds it is known badly, and the interval is too narrow rather than too wide.

    Args:
        returns: Scores of each seed's episodes; seeds weigh the same however many they have.
        resamples: Number of resamples.
        rng: Of the resampling; by default the same at each call.
        chosen: ``[resamples, seeds]``, the seeds of each resample; drawn by default.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    if chosen is None:
        chosen = rng.integers(len(returns), size=(resamples, len(returns)))
    means = np.empty(chosen.shape)
    for seed, scores in enumerate(returns):
        places = chosen == seed
        means[places] = _drawn_means(np.asarray(scores, np.float64), int(places.sum()), rng)
    return np.asarray(means.mean(axis=1))


def seeds_score(returns: Sequence[Sequence[float]]) -> Interval:
    """Mean over seeds with its 95% interval, see ``resampled_means``."""
    low, high = np.quantile(resampled_means(returns), [0.025, 0.975])
    return Interval(_mean_over_seeds(returns), float(low), float(high))


def seeds_percent(
    returns: Sequence[Sequence[float]], teacher: Sequence[float], random_score: float
) -> Interval | None:
    """Share of the teacher's score above random play in percent, over seeds, both sides resampled.

    None where the teacher is not clearly better than random play: its 95% interval reaches it.
    """
    if bootstrap_interval([teacher]).low <= random_score:
        return None
    scores = np.asarray(teacher, np.float64)
    level = scores.mean() - random_score
    # The teacher's score is an estimate too.
    means = resampled_means(returns)
    levels = _drawn_means(scores, len(means), np.random.default_rng(1)) - random_score
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may be at random play
        shares = 100 * (means - random_score) / levels
    low, high = np.quantile(shares, [0.025, 0.975])
    value = 100 * (_mean_over_seeds(returns) - random_score) / level
    return Interval(float(value), float(low), float(high))


@dataclass(frozen=True)
class OverGames:
    """How well several games are played together.

    Attributes:
        percent: Mean over games of the share of the teacher's score above random play; None where
            a teacher is not clearly better than random play.
        least_percent: The smallest of those shares, likewise.
        geometric_mean_percent: The paper's measure, the geometric mean over games of student over
            teacher, raw scores; None where a mean score is not above 0.
    """

    percent: Interval | None
    least_percent: float | None
    geometric_mean_percent: Interval | None


def over_games(
    returns: Sequence[Sequence[Sequence[float]]],
    teachers: Sequence[Sequence[float]],
    random_scores: Sequence[float],
    *,
    one_network: bool = True,
) -> OverGames:
    """Scores of several games as one, with 95% intervals: seeds and episodes are resampled.

    Args:
        returns: Of each game, of each seed, of each episode.
        teachers: Of each game the scores of its teacher's episodes, resampled, too.
        random_scores: Of each game, taken as known.
        one_network: A seed is one network that plays all the games, so that a resample has the same
            seeds in all of them; otherwise each game's seeds are networks of their own.
    """
    seeds = [len(game) for game in returns]
    if one_network and len(set(seeds)) > 1:
        raise ValueError(
            "over_games: returns must have as many seeds of each game where one network plays all, "
            f"got {seeds}"
        )
    rng, means, chosen = np.random.default_rng(0), [], None
    for game in returns:
        if chosen is None or not one_network:
            chosen = rng.integers(len(game), size=(10_000, len(game)))
        means.append(resampled_means(game, rng=rng, chosen=chosen))
    levels = [resampled_means([scores], rng=rng) for scores in teachers]
    random = np.array(random_scores, np.float64)
    # The last row is the scores themselves, not resampled.
    student = np.column_stack([*means]), [[_mean_over_seeds(game) for game in returns]]
    teacher = np.column_stack([*levels]), [[float(np.mean(scores)) for scores in teachers]]
    ours, theirs = np.concatenate(student), np.concatenate(teacher)
    percent = least = geometric = None
    if all(
        bootstrap_interval([scores]).low > level
        for scores, level in zip(teachers, random, strict=True)
    ):
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may be at random play
            shares = 100 * (ours - random) / (theirs - random)
        percent, least = _percentiles(shares.mean(axis=1)), float(shares[-1].min())
    if min(ours[-1].min(), theirs[-1].min()) > 0:
        # A resample whose mean is 0 or below counts as next to nothing.
        ratios = np.maximum(ours, 1e-12) / np.maximum(theirs, 1e-12)
        geometric = _percentiles(100 * np.exp(np.log(ratios).mean(axis=1)))
    return OverGames(percent, least, geometric)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    """Of resamples, the last of which is the statistic itself."""
    low, high = np.quantile(values[:-1], [0.025, 0.975])
    return Interval(float(values[-1]), float(low), float(high))


def _mean_over_seeds(returns: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(one) for one in returns]))


@dataclass(frozen=True)
class ScoreSummary:
    """What a list of episode returns says.

    Attributes:
        episodes: Number of returns.
        mean: With its 95% bootstrap interval.
        median: Middle return.
        iqm: Interquartile mean, with its interval.
        std: Standard deviation over episodes (n - 1), 0 for one episode.
        minimum: Lowest return.
        maximum: Highest return.
        human_normalized: Of the mean; None where no human score is known.
    """

    episodes: int
    mean: Interval
    median: float
    iqm: Interval
    std: float
    minimum: float
    maximum: float
    human_normalized: float | None


def summarize(returns: Sequence[float], game: str | None = None) -> ScoreSummary:
    """Summary of episode returns, human-normalised where ``game`` has known scores."""
    if not len(returns):
        raise ValueError("summarize: returns must hold at least 1 return, got 0")
    scores = np.asarray(returns, np.float64)
    known = game is not None and game in HUMAN_SCORES
    return ScoreSummary(
        episodes=len(scores),
        mean=bootstrap_interval([returns]),
        median=float(np.median(scores)),
        iqm=bootstrap_interval([returns], interquartile_mean),
        std=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        minimum=float(scores.min()),
        maximum=float(scores.max()),
        human_normalized=human_normalized_score(str(game), float(scores.mean())) if known else None,
    )


def human_normalized_score(game: str, score: float) -> float:
    """``(score - random) / (human - random)``: 0 is random play, 1 a human tester.

    Raises:
        ValueError: For a game without known scores.
    """
    if game not in HUMAN_SCORES:
        raise ValueError(f"human_normalized_score: game must be an Atari-57 game, got {game!r}")
    random, human = HUMAN_SCORES[game]
    return (score - random) / (human - random)


# Game -> (random, human).
HUMAN_SCORES: Mapping[str, tuple[float, float]] = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "asteroids": (719.1, 47388.7),
    "atlantis": (12850.0, 29028.1),
    "bank_heist": (14.2, 753.1),
    "battle_zone": (2360.0, 37187.5),
    "beam_rider": (363.9, 16926.5),
    "berzerk": (123.7, 2630.4),
    "bowling": (23.1, 160.7),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "centipede": (2090.9, 12017.0),
    "chopper_command": (811.0, 7387.8),
    "crazy_climber": (10780.5, 35829.4),
    "defender": (2874.5, 18688.9),
    "demon_attack": (152.1, 1971.0),
    "double_dunk": (-18.6, -16.4),
    "enduro": (0.0, 860.5),
    "fishing_derby": (-91.7, -38.7),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "gravitar": (173.0, 3351.4),
    "hero": (1027.0, 30826.4),
    "ice_hockey": (-11.2, 0.9),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kung_fu_master": (258.5, 22736.3),
    "montezuma_revenge": (0.0, 4753.3),
    "ms_pacman": (307.3, 6951.6),
    "name_this_game": (2292.3, 8049.0),
    "phoenix": (761.4, 7242.6),
    "pitfall": (-229.4, 6463.7),
    "pong": (-20.7, 14.6),
    "private_eye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "riverraid": (1338.5, 17118.0),
    "road_runner": (11.5, 7845.0),
    "robotank": (2.2, 11.9),
    "seaquest": (68.4, 42054.7),
    "skiing": (-17098.1, -4336.9),
    "solaris": (1236.3, 12326.7),
    "space_invaders": (148.0, 1668.7),
    "star_gunner": (664.0, 10250.0),
    "surround": (-10.0, 6.5),
    "tennis": (-23.8, -8.3),
    "time_pilot": (3568.0, 5229.2),
    "tutankham": (11.4, 167.6),
    "up_n_down": (533.4, 11693.2),
    "venture": (0.0, 1187.5),
    "video_pinball": (16256.9, 17667.9),
    "wizard_of_wor": (563.5, 4756.5),
    "yars_revenge": (3092.9, 54576.9),
    "zaxxon": (32.5, 9173.3),
}
