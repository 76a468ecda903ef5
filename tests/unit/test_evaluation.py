# SPDX-License-Identifier: MIT
"""Evaluation: the quota, the raw score, reproducibility, and a GIF that shows the game."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from PIL import Image

from fastdistill.envs import make_atari_screen, make_env
from fastdistill.envs.lanes import LaneEnv
from fastdistill.evaluation import evaluate, evaluate_env, gif, record_comparison_gif
from fastdistill.networks import QNetwork, paper_architecture


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
    with closing(make_env("CartPole-v1", 1, training=False)) as env:
        for options, text in (
            ({"episodes": -5}, "episodes must be at least 1, got -5"),  # would never end
            ({"episodes": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ):
            with pytest.raises(ValueError, match=f"^evaluate: {text}$"):
                evaluate_env(constant(0, 2), env, max_steps=10, **options)


def gif_frames(path) -> tuple[np.ndarray, list[int]]:
    """All pictures ``[pictures, height, width, 3]`` and their durations in milliseconds."""
    with Image.open(path) as picture:
        frames, durations = [], []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            durations.append(picture.info["duration"])
            frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames), durations


def test_the_gif_shows_the_colour_screen_of_the_game_played(tmp_path):
    path = tmp_path / "media" / "pong.gif"
    scores = record_comparison_gif({"idle": constant(0, 6)}, "pong", path, epsilon=0, max_seconds=8)
    assert set(scores) == {"idle"}
    assert scores["idle"] < 0  # eight seconds of not moving
    frames, durations = gif_frames(path)
    assert frames.shape[1:] == (40 + 420, 320, 3)
    assert len(frames) <= 120  # equal neighbours are merged, with their durations
    assert sum(durations) == 8000
    red, green, blue = np.median(frames.reshape(-1, 3), axis=0)
    assert red > green > blue  # Pong's brown
    # The emulator's own colours: every pixel of the twin's last screen, doubled.
    env = make_env("pong", 1, training=False)
    screen = make_atari_screen(env)
    screen.reset((1, 1))
    for _ in range(119):
        screen.step(np.zeros(1, np.int64))
    expected = screen.obs[0].transpose(1, 2, 0).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(frames[-1, 40:], expected)
    env.close()
    screen.close()


def test_the_gif_sets_players_of_one_start_side_by_side(tmp_path):
    path = tmp_path / "two.gif"
    # Twice the same policy: the same game. A third that moves: another.
    players = {"idle": constant(0, 6), "still idle": constant(0, 6), "up": constant(2, 6)}
    scores = record_comparison_gif(players, "pong", path, max_seconds=6)
    assert list(scores) == list(players)
    frames, durations = gif_frames(path)
    assert frames.shape[1:] == (460, 3 * 320 + 2 * 8, 3)
    assert sum(durations) == 6000
    left, middle, right = (frames[:, 40:, 328 * k : 328 * k + 320] for k in range(3))
    np.testing.assert_array_equal(left, middle)
    np.testing.assert_array_equal(left[0], right[0])
    assert (left != right).any()
    # The strips count: the first says 0, the last the score that was returned.
    strips = frames[:, :40, 220:320]
    assert scores["idle"] < 0
    assert (strips[0] != strips[-1]).any()
    assert (frames[0, :40, :200] != frames[0, :40, 328:528]).any()  # another label


def test_the_gif_of_a_network_of_several_games_plays_that_game(tmp_path):
    network = QNetwork(paper_architecture("4%", [6, 6]))
    network.games = ("qbert", "pong")
    played = []
    for place, head in enumerate(network.heads):
        head.register_forward_hook(lambda *_, place=place: played.append(place))
    record_comparison_gif({"both": network}, "pong", tmp_path / "a.gif", max_seconds=0.2)
    assert set(played) == {1}


def test_the_gif_drops_pictures_rather_than_grow_too_large(tmp_path):
    sizes = {}
    for limit in (10**7, 9_000):
        path = tmp_path / f"{limit}.gif"
        record_comparison_gif({"up": constant(2, 6)}, "pong", path, max_seconds=5, max_bytes=limit)
        sizes[limit] = path.stat().st_size
        frames, durations = gif_frames(path)
        assert sum(durations) == 5000
        assert frames.shape[1:] == (460, 320, 3)
    assert sizes[9_000] <= 9_000 < sizes[10**7]


def test_a_game_that_has_ended_stands_still(tmp_path, monkeypatch):
    # Screens made up: one game lasts 2 pictures, the other 5, each picture of its own grey.
    lengths = {"short": 2, "long": 5}
    recordings = iter(
        (
            [np.full((210, 160, 3), 40 * (k + 1), np.uint8) for k in range(n)],
            [float(k) for k in range(n)],
        )
        for n in lengths.values()
    )
    monkeypatch.setattr(gif, "_record_screens", lambda *_: next(recordings))
    players = {label: constant(0, 6) for label in lengths}
    path = tmp_path / "ended.gif"
    assert record_comparison_gif(players, "pong", path) == {"short": 1.0, "long": 4.0}
    frames, _ = gif_frames(path)
    assert frames[:, 200, 100, 0].tolist() == [40, 80, 80, 80, 80]
    assert frames[:, 200, 500, 0].tolist() == [40, 80, 120, 160, 200]


def test_a_game_of_many_colours_is_brought_down_to_a_palette(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 210 * 160).reshape(210, 160, 1).astype(int)
    screens = [(smooth + rng.integers(0, 8, 3)).clip(0, 255).astype(np.uint8) for _ in range(3)]
    recording = ([np.broadcast_to(screen, (210, 160, 3)).copy() for screen in screens], [0.0] * 3)
    recording[0][0][:, :, 1] = recording[0][0][::-1, :, 1]
    monkeypatch.setattr(gif, "_record_screens", lambda *_: recording)
    path = tmp_path / "colours.gif"
    record_comparison_gif({"many": constant(0, 6)}, "pong", path)
    frames, _ = gif_frames(path)
    for frame, screen in zip(frames, recording[0], strict=True):
        wrong = np.abs(frame[40::2, ::2].astype(int) - screen)
        assert np.median(wrong) <= 8


def test_a_gif_of_nobody_is_refused(tmp_path):
    with pytest.raises(ValueError, match="policies must hold at least 1 policy, got 0"):
        record_comparison_gif({}, "pong", tmp_path / "none.gif")
    with pytest.raises(ValueError, match="max_seconds must be above 0, got 0"):
        record_comparison_gif({"a": constant(0, 6)}, "pong", tmp_path / "none.gif", max_seconds=0)
    assert list(tmp_path.iterdir()) == []


def test_a_module_plays_in_evaluation_mode_and_is_put_back(tmp_path):
    modes = []

    class Player(torch.nn.Module):
        def forward(self, obs):
            modes.append(self.training)
            return torch.zeros(len(obs), 6)

    player = Player()
    record_comparison_gif({"one": player}, "pong", tmp_path / "a.gif", max_seconds=0.2)
    assert set(modes) == {False}
    assert player.training
