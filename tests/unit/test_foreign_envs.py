# SPDX-License-Identifier: MIT
"""Environments as people bring and name them: served, or refused in words before they train."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdistill.envs import (
    EnvFault,
    atari,
    brought,
    engine_options,
    make_atari,
    make_env,
    make_gymnasium,
)
from fastdistill.envs.lanes import LaneEnv


class Plain(gymnasium.Env):
    """Shows what its space gives; two actions."""

    def __init__(self, seen, actions=None, reward=0.0):
        self.observation_space = seen
        self.action_space = actions or spaces.Discrete(2)
        self._reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), self._reward, False, False, {}


def lanes(*arguments, **options):
    make = lambda: Plain(*arguments, **options)  # noqa: E731
    vector = SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.NEXT_STEP)
    return LaneEnv(vector, name="plain")


VECTOR = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_images_of_other_types_are_refused(dtype):
    with pytest.raises(
        TypeError,
        match=rf"^LaneEnv: env must have uint8 \(or bool\) images, got {np.dtype(dtype)} "
        r"\(3, 40, 40\); a cast would make zeros of 0..1: scale them to 0..255",
    ):
        lanes(spaces.Box(0, 1, (3, 40, 40), dtype))


def test_bool_images_become_0_and_255_with_planes_first():
    env = lanes(spaces.Box(0.0, 1.0, (10, 10, 7), np.bool_))
    assert env.spec.obs_shape == (7, 10, 10)
    env.reset(0)
    assert env.obs.dtype == np.uint8
    assert set(np.unique(env.obs)) == {0, 255}
    step = env.step(np.zeros(2, np.int64))
    assert step.frame.dtype == np.uint8
    # The planes went to the front, and nothing else moved.
    shown = np.zeros((2, 10, 10, 7), np.bool_)
    shown[1, 2, 3, 4] = True
    env._record, env.obs = env._seen(shown)
    assert np.argwhere(env.obs).tolist() == [[1, 4, 2, 3]]


def test_bool_vectors_become_floats():
    env = lanes(spaces.MultiBinary(5))
    assert env.reset(0).dtype == np.float32
    assert set(np.unique(env.obs)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "seen", [spaces.Dict({"a": VECTOR, "b": VECTOR}), spaces.Tuple((VECTOR, VECTOR))]
)
def test_observations_of_several_parts_are_refused(seen):
    with pytest.raises(
        TypeError,
        match=r"^LaneEnv: env must have vector or image observations, got (Dict|Tuple)\(.*choose "
        r"a key, or what a function makes of it, as view \(student_view, teacher_view\)",
    ):
        lanes(seen)


@pytest.mark.parametrize(
    "actions",
    [
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([2, 2]),
        spaces.Box(-1, 1, (2,), np.float32),
    ],
    ids=lambda space: type(space).__name__,
)
def test_other_actions_are_refused(actions):
    with pytest.raises(
        TypeError,
        match=rf"^LaneEnv: env must have Discrete actions, got {type(actions).__name__}.*; a "
        r"policy is distilled as one value for each action \(gymnasium.wrappers.DiscretizeAction ",
    ):
        lanes(VECTOR, actions)


@pytest.mark.parametrize("reward", [np.nan, np.inf])
def test_rewards_that_are_no_numbers_are_refused(reward):
    env = lanes(VECTOR, reward=reward)
    env.reset(0)
    with pytest.raises(
        ValueError, match=rf"^LaneEnv.step: reward must be finite, got {reward} in lane 0 of plain$"
    ):
        env.step(np.zeros(2, np.int64))


@pytest.fixture
def unsaid(monkeypatch):
    monkeypatch.setattr(atari, "_said", set())


@pytest.mark.usefixtures("unsaid")
@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("ALE/Pong-v5", "pong"),
        ("Pong", "pong"),
        ("PONG", "pong"),
        ("PongNoFrameskip-v4", "pong"),
        ("PongDeterministic-v4", "pong"),
        ("Pong-v0", "pong"),
        ("ALE/SpaceInvaders-v5", "space_invaders"),
        ("SpaceInvadersNoFrameskip-v4", "space_invaders"),
        ("MsPacman", "ms_pacman"),
        ("UpNDownNoFrameskip-v4", "up_n_down"),
        ("QbertNoFrameskip-v4", "qbert"),
    ],
)
def test_names_as_others_write_them(name, game, capsys):
    for _ in range(2):
        env = make_env(name, 1)
        assert env.spec.name == game
        assert env.spec.obs_shape == (4, 84, 84)
        env.close()
    said = capsys.readouterr().err
    assert said.count(f"fastdistill: {name!r} is played as {game!r} under preset 'classic'") == 1
    sticky = name.endswith(("-v5", "-v0"))
    assert ("that id has sticky actions, as preset 'machado' has" in said) == sticky


@pytest.mark.usefixtures("unsaid")
def test_our_own_names_are_not_remarked_on(capsys):
    make_env("pong", 1).close()
    make_env("CartPole-v1", 1).close()
    make_env("ALE/Pong-v5", 1, preset="machado").close()
    assert capsys.readouterr().err == (
        "fastdistill: 'ALE/Pong-v5' is played as 'pong' under preset 'machado'\n"
    )


def test_a_name_means_the_same_whatever_was_imported_before():
    program = """
import sys
import gymnasium
if sys.argv[1] == "registered":
    import ale_py
    gymnasium.register_envs(ale_py)
from fastdistill.envs import make_env
print(make_env("ALE/Pong-v5", 1).spec.obs_shape, make_env("Pong-v4", 1).spec.obs_shape)
"""
    for order in ("registered", "fresh"):
        done = subprocess.run(
            [sys.executable, "-c", program, order], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "(4, 84, 84) (4, 84, 84)"


def test_a_game_of_cards_is_not_the_cartridge():
    # Tuple observations: gymnasium's, where the cartridge shows a screen.
    with pytest.raises(TypeError, match=r"got Tuple\(Discrete"):
        make_env("Blackjack-v1", 1)


def test_names_that_mean_nothing():
    with pytest.raises(ValueError, match=r"make_env: name must be of a game's screen, got 'ALE/Po"):
        make_env("ALE/Pong-ram-v5", 1)
    with pytest.raises(ValueError, match=r"make_gymnasium: env_id must be one that gymnasium can"):
        make_env("NoSuchThing-v0", 1)
    with pytest.raises(ValueError, match=r"make_gymnasium: env_id must be one .*'ALE/NoSuch-v5'"):
        make_env("ALE/NoSuch-v5", 1)
    with pytest.raises(ValueError, match=r"make_atari: game must be a ROM name .* got 'Pnog'"):
        make_env("Pnog", 1)


def test_cartpole_does_without_ale_py():
    program = """
import sys
sys.modules["ale_py"] = None  # an import of it fails
import torch
from fastdistill.evaluation import evaluate
record = evaluate(lambda obs: torch.zeros(len(obs), 2), "CartPole-v1", episodes=2)
print(sorted(record.versions))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['gymnasium', 'torch']"


def test_the_engines_options_make_the_same_observations():
    env = make_atari("breakout", 2, training=False)
    twin = brought.required("ale_py").AtariVectorEnv(
        "breakout", num_envs=2, **engine_options(env.spec)
    )
    obs = env.reset(3)
    seeds = np.array(
        [np.random.SeedSequence((3, lane, 0)).generate_state(1)[0] & 0x7FFFFFFF for lane in (0, 1)]
    )
    theirs, _ = twin.reset(seed=seeds)
    np.testing.assert_array_equal(obs, theirs)
    for action in (1, 2, 3, 2, 0):
        env.step(np.full(2, action))
        np.testing.assert_array_equal(env.obs, twin.step(np.full(2, action))[0])
    assert engine_options(make_gymnasium("CartPole-v1", 1).spec) == {}


class Clocked(Plain):
    """Tells the time of its game, as ALE does; ends after as many steps as it is told."""

    def __init__(self, length):
        super().__init__(VECTOR)
        self.length, self.time = length, 0

    def reset(self, *, seed=None, options=None):
        self.time = 4
        return super().reset(seed=seed)[0], {"episode_frame_number": self.time}

    def step(self, action):
        self.time += 4
        seen, reward, *_ = super().step(action)
        over = self.time >= 4 * self.length
        return seen, reward, over, False, {"episode_frame_number": self.time}


def test_seeding_one_lane_anew_leaves_the_clocks_of_the_others(monkeypatch):
    """The first is seeded anew at its 2nd, 4th... end, sometimes in the step in which the other
    ends."""
    monkeypatch.setattr("fastdistill.envs.lanes.RESEED_STEPS", 3)
    vector = SyncVectorEnv(
        [lambda: Clocked(3), lambda: Clocked(10)], autoreset_mode=AutoresetMode.NEXT_STEP
    )
    env = LaneEnv(vector, name="clocked")
    env.reset(0)
    lengths = {0: set(), 1: set()}
    for _ in range(200):
        for episode in env.step(np.zeros(2, np.int64)).episodes:
            lengths[episode.lane].add(episode.length_steps)
    assert lengths == {0: {2}, 1: {9}}
    env.close()


def test_a_reset_that_fails_where_a_lane_is_seeded_anew_is_the_environments_fault(monkeypatch):
    monkeypatch.setattr("fastdistill.envs.lanes.RESEED_STEPS", 3)
    vector = SyncVectorEnv([lambda: Clocked(5)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    env = LaneEnv(vector, name="clocked")
    env.reset(0)
    reset = vector.reset

    def fails(*, seed=None, options=None):
        if seed is not None:
            raise OSError("no more")
        return reset(seed=seed, options=options)

    monkeypatch.setattr(vector, "reset", fails)
    before = env.state()

    def step_until_it_fails():
        nonlocal before
        for _ in range(20):
            before = env.state()
            env.step(np.zeros(2, np.int64))

    with pytest.raises(EnvFault, match=r"LaneEnv.reset: env must not raise, got OSError: no more"):
        step_until_it_fails()
    after = env.state()
    assert (before.reseeds == after.reseeds).all()
    assert (before.lengths_steps == after.lengths_steps).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_lost_lives_are_no_games_in_either_mode(mode):
    vector = AtariVectorEnv("breakout", 2, autoreset_mode=mode, life_loss_info=True)
    env = LaneEnv(vector, name="breakout", seeding="array")
    env.reset(3)
    rng, lost, over = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        step = env.step(rng.integers(4, size=2))
        lost += int(step.terminated.sum())
        over += len(step.episodes)
    assert over >= 4
    assert 5 * over <= lost <= 5 * over + 8  # five lives; up to four of games that go on
    env.close()
