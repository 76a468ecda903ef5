# SPDX-License-Identifier: MIT
"""Input statistics against NumPy's mean and deviation of all the frames at once."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from fastdistill.envs import EnvSpec, make_atari, make_env
from fastdistill.training.inputs import InputStatistics, random_play_statistics


def spec_of(obs_shape, stack):
    return EnvSpec("made up", "", obs_shape, stack, 2, ("0", "1"))


@pytest.mark.parametrize(
    ("obs_shape", "stack", "newest"),
    [
        ((4, 5, 6), 4, lambda obs: obs[:, -1]),
        ((3, 5, 6), 1, lambda obs: obs.reshape(-1, 5, 6)),  # three planes of one frame
        ((1, 5, 6), 1, lambda obs: obs.reshape(-1, 5, 6)),
        ((7,), 1, lambda obs: obs),
    ],
)
@pytest.mark.parametrize("batches", [1, 3, 17])
def test_batches_add_up_to_the_whole(obs_shape, stack, newest, batches):
    rng = np.random.default_rng(batches)
    dtype = np.uint8 if len(obs_shape) == 3 else np.float32
    parts = [
        (rng.normal(100, 30, size=(256, *obs_shape))).clip(0, 255).astype(dtype)
        for _ in range(batches)
    ]
    statistics = InputStatistics(spec_of(obs_shape, stack))
    for part in parts:
        statistics.add(torch.from_numpy(part))
    mean, std = statistics.mean_and_std()
    rows = newest(np.concatenate(parts)).astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, rows.std(axis=0), rtol=1e-5)


def test_random_play_is_measured_frame_by_frame():
    with closing(make_atari("pong", 2)) as env:
        mean, std = random_play_statistics(env, num_steps=60, seed=3)
        rng = np.random.default_rng(3)
        env.reset(3)
        frames = np.concatenate([env.step(rng.integers(6, size=2)).frame for _ in range(60)])
    np.testing.assert_allclose(mean, frames.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(std, frames.astype(np.float64).std(axis=0), atol=1e-3)
    assert std.max() > 5


def test_vectors_are_measured_too():
    with closing(make_env("CartPole-v1", 3)) as env:
        mean, std = random_play_statistics(env, num_steps=50, seed=1)
        rng = np.random.default_rng(1)
        env.reset(1)
        frames = np.concatenate([env.step(rng.integers(2, size=3)).frame for _ in range(50)])
    np.testing.assert_allclose(mean, frames.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, frames.astype(np.float64).std(axis=0), atol=1e-6)
