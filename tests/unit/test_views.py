# SPDX-License-Identifier: MIT
"""Environments that a caller brings: what makes one, vectors of every autoreset mode, and views."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import fastdistill as fd
from fastdistill.envs import EnvFault, make_env
from fastdistill.envs.lanes import LaneEnv

MODES = {
    "next": AutoresetMode.NEXT_STEP,
    "same": AutoresetMode.SAME_STEP,
    "off": AutoresetMode.DISABLED,
}


class Walk(gymnasium.Env):
    """A walk on a line of random length, told in two ways; actions are 1 (left) to 3 (right)."""

    action_space = spaces.Discrete(3, start=1)
    observation_space = spaces.Dict(
        {
            "near": spaces.Box(0, 255, (7, 8, 2), np.uint8),
            "far": spaces.Box(-99, 99, (2,), np.float64),
            "cell": spaces.Discrete(9, start=-4),
            "text": spaces.Text(5),
        }
    )

    def _shown(self):
        picture = np.zeros((7, 8, 2), np.uint8)
        picture[3, self._at + 4 if -4 <= self._at < 4 else 0, 1] = 200
        return {
            "near": picture,
            "far": np.array([self._at, self._end], np.float64),
            "cell": max(-4, min(4, self._at)),
            "text": "left" if self._at < 0 else "right",
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._at, self._end, self._time = 0, int(self.np_random.integers(2, 5)), 0
        return self._shown(), {}

    def step(self, action):
        assert action in (1, 2, 3)
        self._at += action - 2
        self._time += 1
        reward = self._at + float(self.np_random.random())
        return self._shown(), reward, abs(self._at) >= self._end, self._time >= 6, {}


ONE = Walk()


class Reusing(VectorEnv):
    """Lanes by hand, in one mode, into the same arrays at every step."""

    def __init__(self, mode, num_envs=3):
        self.metadata = {"autoreset_mode": mode}
        self.num_envs = num_envs
        self.single_action_space = spaces.Discrete(2)
        self.single_observation_space = spaces.Box(-99, 99, (2,), np.float32)
        self._mode = mode
        self._obs = np.zeros((num_envs, 2), np.float32)
        self._reward = np.zeros(num_envs, np.float32)
        self._ends = np.zeros((2, num_envs), np.bool_)
        self._steps = 0
        self.closed_times = 0

    def _begin(self, lane):
        self._obs[lane] = self._rng.integers(-9, 9), 0
        self._ends[:, lane] = False

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            assert isinstance(seed, int), "as gymnasium's own vector environments"
            self._rng = np.random.default_rng(seed)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        for lane in np.flatnonzero(mask):
            self._begin(lane)
        return self._obs, {}

    def step(self, action):
        begins = self._ends.any(0) & (self._mode == AutoresetMode.NEXT_STEP)
        assert self._mode == AutoresetMode.NEXT_STEP or not self._ends.any(), "over, and not reset"
        for lane in range(self.num_envs):
            if begins[lane]:
                self._begin(lane)
                self._reward[lane] = 0
                continue
            self._obs[lane] += action[lane], 1
            self._reward[lane] = self._obs[lane, 0] + self._rng.random()
            over = self._rng.random() < 0.2
            self._ends[:, lane] = over, not over and self._obs[lane, 1] >= 7
        ends = self._ends.copy()
        if self._mode == AutoresetMode.SAME_STEP:
            for lane in np.flatnonzero(ends.any(0)):
                self._begin(lane)
        return self._obs, self._reward, ends[0], ends[1], {}

    def close(self, **_):
        self.closed_times += 1


def naive(mode, actions, seed):
    """Lane by lane with plain loops: (frame, action, reward, ends, boundary) rows and episodes."""
    env = Reusing(mode, actions.shape[1])
    obs = env.reset(seed=seed)[0].copy()
    rows, episodes = [], []
    total, length = np.zeros(len(obs)), np.zeros(len(obs), int)
    was_over = np.zeros(len(obs), bool)
    was_cut = np.zeros(len(obs), bool)
    for action in actions:
        after, reward, terminated, truncated, _ = env.step(action)
        after, over = after.copy(), terminated | truncated
        boundary = was_over if mode == AutoresetMode.NEXT_STEP else np.zeros(len(obs), bool)
        rows.append((obs, reward.copy(), terminated, truncated, boundary))
        for lane in range(len(obs)):
            if boundary[lane]:
                episodes.append((lane, total[lane], length[lane], was_cut[lane]))
                total[lane], length[lane] = 0, 0
                continue
            total[lane] += reward[lane]
            length[lane] += 1
            if over[lane] and mode != AutoresetMode.NEXT_STEP:
                episodes.append((lane, total[lane], length[lane], truncated[lane]))
                total[lane], length[lane] = 0, 0
        if mode == AutoresetMode.DISABLED and over.any():
            after = env.reset(options={"reset_mask": over})[0].copy()
        obs, was_over, was_cut = after, over, truncated
    return rows, episodes


def play_on(env):
    for _ in range(50):
        env.step(np.zeros(env.num_lanes, np.int64))


def first_seed(env):
    """The seed that lanes give a vector environment that takes one."""
    return int(np.random.SeedSequence((*env._seed, 0, 0)).generate_state(1)[0] & 0x7FFFFFFF)


@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_against_a_naive_loop(mode):
    actions = np.random.default_rng(5).integers(0, 2, (200, 3))
    env = make_env(Reusing(MODES[mode]), 3)
    assert env.is_lent
    env.reset((4, 5))
    rows, expected = naive(MODES[mode], actions, first_seed(env))
    episodes = []
    for action, (obs, reward, terminated, truncated, boundary) in zip(actions, rows, strict=True):
        np.testing.assert_array_equal(env.obs, obs)
        step = env.step(action)
        np.testing.assert_array_equal(step.frame, obs)  # the arrays that are used again
        np.testing.assert_array_equal(step.reward, reward)
        np.testing.assert_array_equal(step.terminated, terminated)
        np.testing.assert_array_equal(step.truncated, truncated)
        np.testing.assert_array_equal(step.boundary, boundary)
        episodes += [(e.lane, e.episode_return, e.length_steps, e.truncated) for e in step.episodes]
    assert episodes == [(lane, pytest.approx(r), n, cut) for lane, r, n, cut in expected]
    assert any(cut for *_, cut in episodes)
    assert not all(cut for *_, cut in episodes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [Reusing, None], ids=["own vector", "gymnasium's"])
def test_a_state_brings_back_the_lanes_under_every_mode(mode, make, monkeypatch):
    monkeypatch.setattr("fastdistill.envs.lanes.RESEED_STEPS", 20)  # lanes are seeded anew, too
    rng = np.random.default_rng(1)

    def vector():
        if make is not None:
            return make(MODES[mode])
        return SyncVectorEnv([Walk] * 3, autoreset_mode=MODES[mode])

    view = None if make is not None else "far"
    first, second = (make_env(vector(), 3, view=view) for _ in range(2))
    first.reset(3)
    num = first.spec.num_actions
    for _ in range(150):
        first.step(rng.integers(0, num, 3))
    second.restore(first.state())
    assert (first.state().reseeds.sum() > 0) == (make is None)
    for _ in range(60):
        action = rng.integers(0, num, 3)
        a, b = first.step(action), second.step(action)
        np.testing.assert_array_equal(first.obs, second.obs)
        np.testing.assert_array_equal(a.reward, b.reward)
        assert a.episodes == b.episodes


def test_a_mask_that_is_not_heeded_is_a_fault():
    class Forgetful(Reusing):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)

    env = make_env(Forgetful(AutoresetMode.DISABLED), 3)
    env.reset(1)
    text = r"^LaneEnv.step: reset must leave the lanes alone that options\['reset_mask'\] leaves "
    with pytest.raises(EnvFault, match=f"{text}out of Forgetful$"):
        play_on(env)


def test_what_is_lent_stays_open_and_what_is_made_is_closed():
    lent = Reusing(AutoresetMode.SAME_STEP)
    record = fd.evaluate(lambda obs: torch.zeros(len(obs), 2), lent, episodes=7)
    assert (record.num_lanes, len(record.returns), lent.closed_times) == (3, 7, 0)
    made = []

    def make():
        made.append(Reusing(AutoresetMode.SAME_STEP))
        return made[-1]

    again = fd.evaluate(lambda obs: torch.zeros(len(obs), 2), make, episodes=7)
    assert again.returns == record.returns
    assert [env.closed_times for env in made] == [1]


def test_a_function_makes_one_environment_for_each_lane():
    env = make_env(Walk, 4, view="far")
    assert (env.num_lanes, env.spec.name, env.is_lent) == (4, "Walk", False)
    named = make_env(lambda: gymnasium.make("CartPole-v1"), 2)
    assert named.spec.name == "CartPole-v1"
    twin = make_env("CartPole-v1", 2)
    np.testing.assert_array_equal(named.reset(3), twin.reset(3))


def test_actions_that_do_not_begin_with_0_are_mapped():
    env = make_env(Walk, 2, view="far")
    assert env.spec.num_actions == 3
    assert env.spec.action_meanings == ("1", "2", "3")
    env.reset(0)
    env.step(np.array([0, 2]))
    assert env.obs[:, 0].tolist() == [-1, 1]


def test_each_view_shows_its_part():
    both = lambda shown: np.concatenate([shown["far"], shown["cell"][:, None]], 1)  # noqa: E731
    for view, shape in (("near", (2, 7, 8)), ("far", (2,)), ("cell", (9,)), (both, (3,))):
        env = make_env(Walk, 2, view="far", teacher_view=view)
        assert env.teacher_spec.obs_shape == shape
        assert env.spec.obs_shape == (2,)
        env.reset(0)
        env.step(np.array([0, 2]))
        obs = env.teacher_obs
        assert obs.shape == (2, *shape)
        if view == "near":
            assert obs.dtype == np.uint8
            assert np.argwhere(obs).tolist() == [[0, 1, 3, 3], [1, 1, 3, 5]]
        elif view == "cell":
            assert obs.dtype == np.float32
            assert obs.argmax(1).tolist() == [3, 5]
            assert obs.sum(1).tolist() == [1, 1]
        elif view == "far":
            assert obs is env.obs
        else:
            assert obs.dtype == np.float32
            assert obs[:, 2].tolist() == obs[:, 0].tolist() == [-1, 1]


def test_discrete_observations_are_one_hot():
    env = make_env("FrozenLake-v1", 2)
    assert env.spec.obs_shape == (16,)
    assert env.reset(0).tolist() == [[1.0] + [0.0] * 15] * 2
    for _ in range(20):
        env.step(np.array([1, 2]))
        assert env.obs.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("view", "error", "text"),
    [
        (None, TypeError, r"env must have vector or image observations, got Dict\(.*choose a key"),
        ("text", TypeError, r"env must have vector or image observations, got Text\("),
        ("middle", ValueError, r"view must be one of 'cell', 'far', 'near', 'text', got 'middle'"),
        (lambda shown: shown["no"], ValueError, r"view must not raise, got KeyError: 'no'"),
        (lambda shown: shown["text"], ValueError, r"view must return numbers \[lanes, ...\], got"),
        (lambda shown: 1, ValueError, r"view must return numbers \[lanes, ...\], got int64 \[\]"),
        (lambda shown: shown["far"][:1], ValueError, r"must return 2 lanes, got float64 \[1, 2\]"),
        (lambda shown: shown["near"] / 255, TypeError, r"must have uint8 \(or bool\) images"),
    ],
)
def test_views_that_show_nothing_are_refused(view, error, text):
    with pytest.raises(error, match=rf"^LaneEnv: .*{text}"):
        make_env(Walk, 2, view=view)


def test_a_key_needs_parts():
    with pytest.raises(ValueError, match=r"^LaneEnv: view must be a key of Dict observations, got"):
        make_env("CartPole-v1", 1, view="image")


def test_a_view_that_breaks_is_a_fault_and_the_lanes_stay():
    def sees(shown):
        return np.log(shown["far"] + 1)  # of -1 it is infinite

    env = make_env(Walk, 2, view="far", teacher_view=sees)
    env.reset(0)
    env.step(np.array([0, 1]))
    with (
        np.errstate(divide="ignore"),
        pytest.raises(
            EnvFault,
            match=r"^LaneEnv.teacher_obs: observations must be finite, got .* in lane 0 of "
            "Walk, as its teacher sees it$",
        ),
    ):
        _ = env.teacher_obs
    own = make_env(Walk, 2, view=sees)
    own.reset(0)
    with (
        np.errstate(divide="ignore"),
        pytest.raises(
            EnvFault, match=r"^LaneEnv.step: observations must be finite, got .* in lane 0 of Walk$"
        ),
    ):
        own.step(np.array([0, 1]))


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (Walk(), TypeError, r"env must be a name, a function that makes a gymnasium.Env, or a "
         r"gymnasium VectorEnv, got <.*Walk.*>; lambda: MyEnv\(\) makes one for each lane"),
        (7, TypeError, "env must be a name, a function that makes"),
        (lambda: "pong", TypeError, "env must make a gymnasium.Env or a VectorEnv, got str"),
        (lambda: ONE, ValueError, "env must make a new environment each time"),
    ],
)  # fmt: skip
def test_what_is_no_environment_is_refused(source, error, text):
    with pytest.raises(error, match=rf"^make_env: {text}"):
        make_env(source, 2, view="far")


def test_lanes_that_do_not_say_how_they_begin_anew_are_refused():
    with pytest.raises(ValueError, match=r"^LaneEnv: env.metadata\['autoreset_mode'\] must be NEX"):
        LaneEnv(Reusing("sometimes"), name="x")
