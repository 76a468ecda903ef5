# SPDX-License-Identifier: MIT
# Sampling frequencies against their probabilities by the G-test (likelihood ratio), with a false
# alarm once in 10^6 runs of another seed; the same test must fail when the exponent is wrong.
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay

pytestmark = pytest.mark.statistical

ROWS, DRAWS, BATCH = 1000, 1_000_000, 500
FALSE_ALARM = 1e-6


def g_statistic(counts, probability):
    expected = counts.sum() * probability
    seen = counts > 0
    return 2 * float((counts[seen] * np.log(counts[seen] / expected[seen])).sum())


def g_limit(degrees):
    """Upper FALSE_ALARM quantile of chi-square (Wilson and Hilferty 1931, to 0.1% here)."""
    z = 4.753424  # of the normal distribution at 1 - 1e-6
    return degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3


def replay_with_priorities(exponent, num_lanes=4, **options):
    replay = PrioritizedReplay(
        ROWS + num_lanes,
        num_lanes,
        frame_shape=(1,),
        stack=1,
        priority_exponent=exponent,
        seed=20,
        **options,
    )
    flags = np.zeros(num_lanes, bool)
    for step in range(ROWS // num_lanes + 1):
        frame = np.full((num_lanes, 1), step % 256, np.uint8)
        replay.append(frame, flags.astype(int), flags.astype(float), flags, flags)
    ids = replay.priorities().id
    assert len(ids) == ROWS
    priority = torch.from_numpy(np.random.default_rng(1).gamma(0.5, 2.0, ROWS)) + 0.01
    replay.update_priorities(ids, priority)
    return replay, ids, priority.numpy()


def draw_counts(replay, ids, **options):
    counts = np.zeros(ROWS, np.int64)
    for _ in range(DRAWS // BATCH):
        rows = torch.searchsorted(ids, replay.sample(BATCH, **options).id)
        counts += np.bincount(rows.numpy(), minlength=ROWS)
    return counts


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_independent_draws_have_the_right_frequencies(exponent):
    replay, ids, priority = replay_with_priorities(exponent)
    counts = draw_counts(replay, ids, stratified=False)
    probability = priority**exponent / (priority**exponent).sum()
    assert g_statistic(counts, probability) < g_limit(ROWS - 1)
    # Power: the same counts do not pass for an exponent that is 2% off.
    wrong = priority ** (exponent + 0.02)
    assert g_statistic(counts, wrong / wrong.sum()) > g_limit(ROWS - 1)


def test_stratified_draws_have_the_right_frequencies():
    # Strata make counts vary less than independent draws do, so the limit is a cautious one.
    replay, ids, priority = replay_with_priorities(0.6)
    counts = draw_counts(replay, ids)
    probability = priority**0.6 / (priority**0.6).sum()
    assert g_statistic(counts, probability) < g_limit(ROWS - 1)
    wrong = priority**0.62
    assert g_statistic(counts, wrong / wrong.sum()) > g_limit(ROWS - 1)


def test_stratified_counts_are_within_two_of_their_expectation_per_batch():
    # Not by chance: a row of probability p covers parts of at most floor(B p) + 2 strata.
    replay, ids, priority = replay_with_priorities(1.0)
    expected = BATCH * priority / priority.sum()
    for _ in range(50):
        rows = torch.searchsorted(ids, replay.sample(BATCH).id)
        counts = np.bincount(rows.numpy(), minlength=ROWS)
        assert (np.abs(counts - expected) < 2).all()


def test_balanced_tasks_have_the_right_frequencies():
    replay, ids, priority = replay_with_priorities(1.0, lanes_per_task=[1, 3])
    counts = draw_counts(replay, ids, task_weights="balanced", stratified=False)
    task = (ids >> 48 > 0).long().numpy()
    probability = priority / np.bincount(task, priority)[task] / 2
    assert g_statistic(counts, probability) < g_limit(ROWS - 1)
    assert g_statistic(counts, priority / priority.sum()) > g_limit(ROWS - 1)


def test_zero_priorities_are_never_drawn():
    replay, ids, priority = replay_with_priorities(1.0)
    zero = np.zeros(ROWS, bool)
    zero[[0, 7, 8, 63, 64, 249, 250, 999]] = True  # ends of lines, of groups, of lanes
    replay.update_priorities(ids, torch.from_numpy(np.where(zero, 0.0, priority)))
    counts = draw_counts(replay, ids)
    assert counts[zero].sum() == 0
    assert counts[~zero].all()


def test_importance_weights_make_means_unbiased():
    # E[w f] / E[w] at importance exponent 1 is the mean of f over the rows. False alarm: 6 sigma.
    replay, ids, priority = replay_with_priorities(0.6)
    value = np.log(priority)  # as far from uniform as the priorities are
    estimates = []
    for _ in range(2000):
        batch = replay.sample(BATCH, 1.0, weight_normalization="none", stratified=False)
        rows = torch.searchsorted(ids, batch.id).numpy()
        estimates.append(float((batch.weight.numpy() * value[rows]).mean()))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - value.mean()) < 6 * error
    unweighted = value @ priority**0.6 / (priority**0.6).sum()
    assert abs(unweighted - value.mean()) > 60 * error  # power
