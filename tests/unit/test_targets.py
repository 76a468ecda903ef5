# SPDX-License-Identifier: MIT
"""What students are taught and judged by, against plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdistill.evaluation.compare import share_of_teacher
from fastdistill.training.targets import state_weight, teacher_entropy


def naive_entropy(row, temperature):
    top = max(row)
    e = [math.exp((value - top) / temperature) for value in row]
    p = [value / sum(e) for value in e]
    return -sum(value * math.log(value) for value in p if value > 0)


@pytest.mark.parametrize("actions", [2, 3, 6, 17, 18, 19])
@pytest.mark.parametrize("temperature", [1e-6, 0.01, 1.0])
def test_entropy_is_that_of_the_sharpened_teacher(actions, temperature):
    logits = torch.randn(7, actions) * 0.1
    got = teacher_entropy(logits, temperature)
    expected = [naive_entropy(row, temperature) for row in logits.double().tolist()]
    assert got.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert bool(torch.isfinite(got).all())


def test_weights_have_mean_1_and_follow_gap_and_entropy():
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.45, 0.0], [0.0, 0.0, 0.0]])
    gap = state_weight("gap", logits, 0.1)
    assert gap.tolist() == pytest.approx([3 * 1.0 / 1.05, 3 * 0.05 / 1.05, 0.0], abs=1e-6)
    entropy = state_weight("entropy", logits, 0.1)
    raw = [math.log(3) - naive_entropy(row, 0.1) for row in logits.tolist()]
    assert entropy.tolist() == pytest.approx([3 * value / sum(raw) for value in raw], abs=1e-5)
    assert state_weight("none", logits, 0.1) is None
    assert state_weight("gap", logits[:, :1], 0.1) is None
    # All states alike undecided: no NaN.
    assert state_weight("gap", torch.zeros(4, 3), 0.1).tolist() == [0.0] * 4


def test_the_share_of_the_teacher_is_above_random_play():
    share = share_of_teacher((10.0, 12.0), (20.0, 22.0), 1.0)
    assert share.value == pytest.approx(100 * (11 - 1) / (21 - 1))
    assert share.low < share.value < share.high
    assert share_of_teacher((0.0,), (-20.0, -21.0), -20.7) is None


@pytest.mark.statistical
def test_the_interval_of_the_share_covers_the_truth():
    """Covers in at least 84 of 100 normal samples: false alarm below 1e-4 at 93% coverage.

    A bootstrap of 30 covers a little less than its nominal 95%. An interval of half the width
    would cover about 65 times and fail.
    """
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        student = tuple(rng.normal(15, 3, size=30))
        teacher = tuple(rng.normal(16, 3, size=30))
        share = share_of_teacher(student, teacher, -20.7)
        covered += share.low <= 100 * 35.7 / 36.7 <= share.high
    assert covered >= 84
