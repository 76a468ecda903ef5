# SPDX-License-Identifier: MIT
"""Evaluation: the quota, the raw score, reproducibility, and a GIF that shows the game."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from PIL import Image

from fastdistill.envs import LaneEnv
from fastdistill.evaluation import evaluate, evaluate_env, record_gif


class Corridor(gymnasium.Env):
    """Lane k's episodes last k + 1 steps and return 10 * (k + 1)."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, lane: int) -> None:
        self.lane = lane

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.lane + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), 10.0, self.left == 0, False, {}


def corridors(lanes: int) -> LaneEnv:
    return LaneEnv(
        gymnasium.vector.SyncVectorEnv(
            [lambda k=k: Corridor(k) for k in range(lanes)],
            autoreset_mode=AutoresetMode.NEXT_STEP,
        ),
        name="corridor",
    )


def constant(action: int, actions: int):
    def policy(obs: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(len(obs), actions)
        values[:, action] = 1
        return values

    return policy


def test_each_lane_plays_its_quota_however_short_its_episodes():
    # The first 7 episodes to finish would be lane 0's mostly, with a mean far below the truth.
    record = evaluate_env(constant(0, 2), corridors(4), episodes=7)
    assert sorted(record.returns) == [10, 10, 20, 20, 30, 30, 40]
    assert record.lengths_steps == (1, 1, 2, 2, 3, 3, 4)
    assert record.mean == pytest.approx(160 / 7)


def test_pong_without_moving_loses_every_point():
    record = evaluate(constant(0, 6), "pong", episodes=3, epsilon=0.0, num_lanes=2)
    assert record.returns == (-21, -21, -21)
    assert record.truncated == 0
    assert record.settings["life_loss_info"] is False
    assert (record.preset, record.epsilon, record.seed, record.num_lanes) == ("classic", 0, 1, 2)
    assert record.versions["ale_py"]


def test_epsilon_is_the_share_of_random_actions():
    class Counting(Corridor):
        def step(self, action):
            taken.append(int(action))
            self.left = 2
            return np.zeros(1, np.float32), 0.0, len(taken) >= 20_000, False, {}

    taken: list[int] = []
    vector = gymnasium.vector.SyncVectorEnv(
        [lambda: Counting(0)], autoreset_mode=AutoresetMode.NEXT_STEP
    )
    evaluate_env(constant(0, 2), LaneEnv(vector, name="count"), episodes=1, epsilon=0.3)
    # Random actions pick 1 half of the time: 15% of 20,000, standard deviation 0.25%; six of
    # those are a false alarm of 2e-9, and an epsilon off by a tenth is caught.
    assert np.mean(taken) == pytest.approx(0.15, abs=0.015)


def test_the_presets_epsilon_is_the_default():
    assert evaluate(constant(0, 6), "pong", episodes=1).epsilon == 0.05
    record = evaluate(constant(0, 6), "pong", episodes=1, preset="machado")
    assert record.epsilon == 0.001
    assert record.settings["repeat_action_probability"] == 0.25
    assert evaluate(constant(0, 2), "CartPole-v1", episodes=1).epsilon == 0.0


def test_same_seed_same_games_and_another_seed_others():
    def run(seed: int):
        return evaluate(constant(2, 4), "breakout", episodes=4, epsilon=0.5, seed=seed, num_lanes=2)

    assert run(3) == run(3)
    assert run(3).lengths_steps != run(4).lengths_steps


def test_games_that_never_end_are_an_error_where_a_limit_is_given():
    class Endless(Corridor):
        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    vector = gymnasium.vector.SyncVectorEnv(
        [lambda: Endless(0)], autoreset_mode=AutoresetMode.NEXT_STEP
    )
    with pytest.raises(RuntimeError, match="must end within 50 vector steps, got 0 of 1"):
        evaluate_env(constant(0, 2), LaneEnv(vector, name="endless"), episodes=1, max_steps=50)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(constant(0, 6), "pong", episodes=0)
    with pytest.raises(ValueError, match="num_lanes must be at least 1, got 0"):
        evaluate(constant(0, 6), "pong", num_lanes=0)
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\], got 5"):
        evaluate(constant(0, 6), "pong", episodes=1, epsilon=5)
    with pytest.raises(ValueError, match=r"policy must return \[1, 6\] values, got \[1, 4\]"):
        evaluate(constant(0, 4), "pong", episodes=1)


def test_the_gif_shows_the_colour_screen_of_the_game_played(tmp_path):
    path = tmp_path / "media" / "pong.gif"
    score = record_gif(constant(0, 6), "pong", path, epsilon=0.0, max_seconds=8)
    assert score < 0  # eight seconds of not moving
    with Image.open(path) as picture:
        assert picture.size == (160, 210)
        assert picture.n_frames <= 120  # equal neighbours are merged, with their durations
        durations = 0
        for frame in range(picture.n_frames):
            picture.seek(frame)
            durations += picture.info["duration"]
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert durations == pytest.approx(8000, abs=20)
    red, green, blue = np.median(colours, axis=0)
    assert red > green > blue  # Pong's brown
