# SPDX-License-Identifier: MIT
"""The arithmetic of parallel Q-learning against a plain recursion."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork
from fastdistill.recipes.pqn import PqnConfig
from fastdistill.training.counters import Counters
from fastdistill.training.rollouts import RolloutPlay, lambda_returns


def plain_return(rows, last_value, lane, start, discount, trace_decay):
    """Q(lambda) of one row, as the mixture of n-step returns that it is defined to be."""
    reward, value, terminated, boundary = rows
    steps = len(reward)
    # n-step returns, each bootstrapped from the largest Q-value where it stops.
    n_step_returns = []
    total, scale = 0.0, 1.0
    for time in range(start, steps):
        total += scale * reward[time, lane]
        scale *= discount
        if terminated[time, lane]:
            n_step_returns.append((total, True))
            break
        is_last = time + 1 == steps
        ahead = last_value[lane] if is_last else value[time + 1, lane]
        cut = is_last or boundary[time + 1, lane]
        n_step_returns.append((total + scale * ahead, bool(cut)))
        if cut:
            break
    mixed, weight = 0.0, 1.0
    for value_n, final in n_step_returns:
        share = weight if final else weight * (1 - trace_decay)
        mixed += share * value_n
        weight *= trace_decay
    return mixed


@pytest.mark.parametrize("trace_decay", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_lambda_returns_are_the_mixture_of_n_step_returns(seed, trace_decay):
    rng = np.random.default_rng(seed)
    steps, lanes = 12, 3
    reward = rng.normal(size=(steps, lanes)).astype(np.float32)
    value = rng.normal(size=(steps, lanes)).astype(np.float32)
    last_value = rng.normal(size=lanes).astype(np.float32)
    terminated = rng.random((steps, lanes)) < 0.15
    # An episode's end is followed by a boundary row; a lost life (terminated, no boundary) too
    # occurs here, and so does a truncation (boundary without terminated).
    boundary = np.zeros_like(terminated)
    boundary[1:] = rng.random((steps - 1, lanes)) < 0.2
    terminated &= ~boundary
    returns = lambda_returns(
        reward, value, last_value, terminated, boundary, discount=0.9, trace_decay=trace_decay
    )
    rows = (reward, value, terminated, boundary)
    for time in range(steps):
        for lane in range(lanes):
            if boundary[time, lane]:
                continue
            expected = plain_return(rows, last_value, lane, time, 0.9, trace_decay)
            assert returns[time, lane] == pytest.approx(expected, abs=1e-5)


def test_a_rollout_of_last_rows_alone_has_nothing_to_learn():
    """With one lane and one step it can be the end of a game, where nobody acts."""
    with closing(make_env("CartPole-v1", 1)) as env:
        network = QNetwork(Architecture((4,), (2,), hidden=(8,)))
        play = RolloutPlay(
            env, network, Counters(), rollout_steps=1, discount=0.9, trace_decay=0.5,
            clip_rewards=False, seed=1, bfloat16=False,
        )  # fmt: skip
        play.reset(spread_steps=0)
        ends = 0
        for _ in range(200):
            play.play(epsilon=1.0)
            rows = [len(batch.action) for batch in play.minibatches(8, epochs=2)]
            assert rows == ([] if play.rollout.boundary[0, 0] else [1, 1])
            ends += rows == []
    assert 0 < ends < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_lanes": 0}, "num_lanes must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        ({"size": "50%"}, "size must be one of 100%, 25%, 7%, 4%, multi, multi-wide, got '50%'"),
        ({"trace_decay": -0.1}, r"trace_decay must be in \[0, 1\], got -0.1"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PqnConfig(**change)
