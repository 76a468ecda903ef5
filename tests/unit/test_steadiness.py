# SPDX-License-Identifier: MIT
"""The spread of a network's checkpoints: what it must find, and what it must not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fastdistill.report.steadiness import read_steadiness, render_steadiness, steadiness


def simulated(spread: float, luck: float, trend: float, seed: int, checkpoints: int = 400):
    rng = np.random.default_rng(seed)
    worth = trend * np.arange(checkpoints) + spread * rng.normal(size=checkpoints)
    return worth + luck * rng.normal(size=checkpoints), np.full(checkpoints, luck)


@pytest.mark.statistical
@pytest.mark.parametrize(("spread", "luck"), [(3.0, 1.0), (1.0, 2.0), (2.0, 0.0)])
def test_the_spread_of_the_networks_is_found_beside_luck_and_trend(spread, luck):
    """Seeds are fixed; the relative error of 400 checkpoints' spread is about 15% at the worst."""
    scores, errors = simulated(spread, luck, trend=0.05, seed=3)
    found = steadiness("x", scores.tolist(), errors.tolist())
    assert found.spread == pytest.approx(spread, rel=0.3)
    assert found.low < spread < found.high
    assert found.luck == luck
    assert np.std(scores) > 1.5 * found.spread  # what a plain deviation would have said


@pytest.mark.statistical
def test_luck_alone_is_no_spread():
    """A hundred runs of nothing but luck: the interval begins at 0 in at least 90."""
    lows = [
        steadiness("x", *map(list, simulated(0.0, 2.0, 0.0, seed, 30))).low for seed in range(100)
    ]
    assert sum(low == 0.0 for low in lows) >= 90


@pytest.mark.statistical
@pytest.mark.parametrize(("spread", "luck"), [(2.0, 0.0), (2.0, 1.0)])
def test_the_interval_holds_the_spread_as_often_as_it_says(spread, luck):
    """Of 400 short runs at least 92%: 3.4 standard deviations below 95.7%. Differences resampled as
    if they were independent reach 75%."""
    held = 0
    for seed in range(400):
        found = steadiness("x", *map(list, simulated(spread, luck, 0.0, seed, 14)))
        held += found.low <= spread <= found.high
    assert held >= 0.92 * 400


def test_by_hand():
    found = steadiness("x", [1.0, 3.0, 2.0], [0.0, 0.0, 0.0])
    assert found.spread == pytest.approx(((4 + 1) / 2 / 2) ** 0.5)
    assert found.checkpoints == 3
    assert found.mean == 2.0


def test_names_are_escaped_and_nothing_is_said_of_nothing():
    assert render_steadiness([]) == ""
    text = render_steadiness([steadiness("<b>", [1.0, 2.0, 1.0], [0.1, 0.1, 0.1])])
    assert "&lt;b&gt;" in text
    assert "<b>" not in text


@pytest.mark.parametrize(("error", "rows"), [(0.5, ["the DQN", "kl_7"]), (None, [])])
def test_scores_of_one_episode_each_say_nothing(tmp_path, error, rows):
    keys = ("teacher/score", "students/kl_7/score")
    lines = [
        {"step": step, **dict.fromkeys(keys, 5.0 + step % 3), **{f"{k}_error": error for k in keys}}
        for step in range(1, 30)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = SimpleNamespace(students=[SimpleNamespace(names=("kl_7",))], config={})
    assert [row.label for row in read_steadiness(tmp_path, results)] == rows
    if rows:
        results.config = {"rollout_steps": 32}
        assert read_steadiness(tmp_path, results)[0].label == "the PQN"
