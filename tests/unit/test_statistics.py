# SPDX-License-Identifier: MIT
"""Statistics against hand-worked values and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdistill.evaluation import statistics
from fastdistill.evaluation.statistics import (
    HUMAN_SCORES,
    bootstrap_interval,
    human_normalized_score,
    interquartile_mean,
    over_games,
    seeds_percent,
    seeds_score,
    summarize,
)


@pytest.mark.parametrize("count", range(1, 14))
def test_iqm_drops_a_quarter_at_each_end(count):
    values = np.random.default_rng(count).permutation(np.arange(count, dtype=float) ** 2)
    middle = sorted(values)[count // 4 : count - count // 4]
    assert interquartile_mean(values) == pytest.approx(sum(middle) / len(middle))


def test_iqm_reduces_the_axis_asked_for():
    values = np.arange(24.0).reshape(4, 6)
    assert interquartile_mean(values, axis=0).shape == (6,)
    np.testing.assert_allclose(interquartile_mean(values, axis=0), values[1:3].mean(axis=0))


def test_one_outlier_moves_the_mean_and_not_the_iqm():
    summary = summarize([10.0] * 19 + [1000.0])
    assert summary.iqm.value == 10
    assert summary.mean.value == pytest.approx(59.5)


def test_bootstrap_width_matches_the_normal_theory():
    # 400 normal scores: the 95% interval of the mean is 2 * 1.96 * s / sqrt(400) wide. The
    # bootstrap's own noise at 20,000 resamples is about 1%.
    scores = np.random.default_rng(0).normal(5, 2, size=400)
    interval = bootstrap_interval([scores], resamples=20_000)
    expected = 2 * 1.96 * scores.std() / math.sqrt(400)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.05)
    assert interval.value == pytest.approx(scores.mean())
    assert interval.low < interval.value < interval.high


@pytest.mark.statistical
def test_intervals_cover_the_truth_as_often_as_they_say():
    # 300 experiments with 30 scores each; a 90% interval misses about 10.7% of them (percentile
    # bootstrap, n = 30). Bounds at 5 standard errors: false alarm below 1e-6. An interval of the
    # wrong width by a third (75% or 97%) falls outside: that is the power.
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        low_high = bootstrap_interval(
            [rng.normal(3, 1, size=30)], confidence=0.9, resamples=1000, seed=trial
        )
        hits += low_high.low <= 3 <= low_high.high
    assert 0.80 < hits / 300 < 0.965


def test_strata_are_resampled_within_themselves():
    # Two games of constant but different scores: no resampling within a game changes anything.
    interval = bootstrap_interval([[0.0] * 5, [100.0] * 5])
    assert (interval.low, interval.value, interval.high) == (50, 50, 50)
    pooled = bootstrap_interval([[0.0] * 5 + [100.0] * 5])
    assert pooled.high - pooled.low > 40


def test_same_seed_same_interval():
    scores = [1.0, 5.0, 2.0, 9.0]
    assert bootstrap_interval([scores], seed=3) == bootstrap_interval([scores], seed=3)


def test_drawing_in_blocks_changes_no_interval(monkeypatch):
    seeds = [[1.0, 5.0, 2.0], [9.0, 4.0, 4.0], [3.0, 8.0, 0.0]]
    whole = bootstrap_interval(seeds[:1]), seeds_score(seeds), seeds_percent(seeds, [5.0, 9.0], 1.0)
    monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", 1000)
    blocks = (
        bootstrap_interval(seeds[:1]),
        seeds_score(seeds),
        seeds_percent(seeds, [5.0, 9.0], 1.0),
    )
    assert whole == blocks
    assert statistics._blocks(10_000, 3) == [333] * 30 + [10]


def test_human_normalised_scores():
    assert len(HUMAN_SCORES) == 57
    assert human_normalized_score("pong", -20.7) == 0
    assert human_normalized_score("pong", 14.6) == 1
    assert human_normalized_score("breakout", 30.5) == 1
    assert human_normalized_score("qbert", 163.9 + (13455.0 - 163.9) / 2) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="game must be an Atari-57 game, got 'chess'"):
        human_normalized_score("chess", 1.0)


def test_summary_of_known_scores():
    summary = summarize([1.0, 2.0, 3.0, 4.0], "pong")
    assert (summary.episodes, summary.median, summary.minimum, summary.maximum) == (4, 2.5, 1, 4)
    assert summary.std == pytest.approx(1.2909944)
    assert summary.human_normalized == pytest.approx((2.5 + 20.7) / 35.3)
    assert summarize([1.0], "CartPole-v1").human_normalized is None


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="returns must hold at least 1 return"):
        summarize([])
    with pytest.raises(ValueError, match="scores must hold at least 1 value"):
        interquartile_mean(np.array([]))
    with pytest.raises(ValueError, match="groups must be non-empty"):
        bootstrap_interval([[1.0], []])
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        bootstrap_interval([[1.0]], confidence=95)


def test_no_share_of_a_teacher_that_may_be_no_better_than_random_play():
    worse, near, better = [19.0, 21.0, 20.0], [21.0, 30.0, 20.0], [30.0, 31.0, 29.0]
    students = [[10.0, 11.0], [9.0, 12.0]]
    assert seeds_percent(students, worse, 22.0) is None
    assert seeds_percent(students, near, 22.0) is None
    assert seeds_percent(students, better, 22.0) is not None


def test_one_network_has_as_many_seeds_in_all_games():
    games = [[[1.0, 2.0], [2.0, 3.0]], [[4.0, 5.0]]]
    with pytest.raises(ValueError, match=r"over_games: returns must have as many .* got \[2, 1\]"):
        over_games(games, [[5.0, 6.0], [7.0, 8.0]], [0.0, 0.0])
    assert over_games(games, [[5.0, 6.0], [7.0, 8.0]], [0.0, 0.0], one_network=False).percent
