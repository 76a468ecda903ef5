# SPDX-License-Identifier: MIT
"""The environment layer against real ROMs: every trap of the engine that corrupts a DQN."""

from __future__ import annotations

import itertools

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from fastdistill.envs import (
    atari,
    brought,
    lanes,
    make_atari,
    make_env,
    make_gymnasium,
)
from fastdistill.envs.lanes import LaneEnv

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def play(env: LaneEnv, steps: int, seed: int = 0):
    """Random play; the list of records and of the observations before each."""
    rng = np.random.default_rng(seed)
    env.reset(seed)
    records, observations = [], []
    for _ in range(steps):
        observations.append(env.obs)
        records.append(env.step(rng.integers(env.spec.num_actions, size=env.num_lanes)))
    return records, observations


def reference_game(game: str, seeds: list[int], actions: np.ndarray, *, life_loss: bool):
    """The engine itself, without our layer, as ground truth for rewards and flags."""
    env = AtariVectorEnv(
        game,
        len(seeds),
        num_threads=1,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        episodic_life=False,
        life_loss_info=life_loss,
        reward_clipping=False,
        noop_max=30,
        use_fire_reset=True,
        repeat_action_probability=0.0,
    )
    obs, info = env.reset(seed=np.asarray(seeds))
    rows = [(obs, None, None, None, info)]
    rows += [env.step(action) for action in actions]
    env.close()
    return rows


def test_each_frame_is_the_newest_plane_of_the_observation_acted_on():
    env = make_atari("breakout", 2)
    records, observations = play(env, 50)
    for record, obs in zip(records, observations, strict=True):
        assert record.frame.shape == (2, 84, 84)
        assert record.frame.dtype == np.uint8
        assert record.frame.flags.c_contiguous
        np.testing.assert_array_equal(record.frame, obs[:, -1])


def test_stacks_can_be_rebuilt_from_frames_with_zeros_before_the_episode():
    env = make_atari("breakout", 3)
    records, observations = play(env, 600)
    starts = 0
    for lane in range(3):
        history: list[np.ndarray] = []
        for record, obs in zip(records, observations, strict=True):
            history.append(record.frame[lane])
            padded = [np.zeros((84, 84), np.uint8)] * 4 + history
            np.testing.assert_array_equal(np.stack(padded[-4:]), obs[lane])
            if record.boundary[lane]:
                history, starts = [], starts + 1
    assert starts >= 2  # the rule was exercised across resets


def test_a_lost_life_terminates_the_return_while_the_game_goes_on():
    env = make_atari("breakout", 2)
    records, observations = play(env, 800)
    lost = over = 0
    for now, after, obs_after in zip(records[:-1], records[1:], observations[1:], strict=True):
        for lane in range(2):
            if now.terminated[lane] and not after.boundary[lane]:
                lost += 1
                # The stack runs on: the frames before the loss are still in it.
                assert obs_after[lane, 0].any()
            if now.terminated[lane] and after.boundary[lane]:
                over += 1
    assert over >= 2
    assert lost >= 3 * over  # five lives: four losses for each game over


def test_the_first_game_lasts_five_lives_not_one():
    env = make_atari("breakout", 1)
    records, _ = play(env, 600)
    first_boundary = next(i for i, record in enumerate(records) if record.boundary[0])
    losses = sum(bool(record.terminated[0]) for record in records[:first_boundary])
    assert losses == 5


def test_evaluation_never_reports_a_lost_life():
    env = make_atari("breakout", 1, training=False)
    records, _ = play(env, 600)
    ends = [i for i, record in enumerate(records) if record.terminated[0]]
    assert ends
    for index in ends:
        assert records[index + 1].boundary[0]


def test_the_row_after_a_game_over_is_a_boundary_with_no_reward_and_no_flags():
    for game in ("pong", "breakout"):
        env = make_atari(game, 4)
        records, _ = play(env, 1500 if game == "pong" else 400)
        rows = 0
        for before, record in itertools.pairwise(records):
            for lane in np.flatnonzero(record.boundary):
                rows += 1
                assert before.terminated[lane]
                assert record.reward[lane] == 0
                assert not record.terminated[lane]
                assert not record.truncated[lane]
        assert rows >= 4


def test_episode_accounting_matches_the_engine_played_directly():
    # Pong reports 0 lives always; Breakout loses five per game.
    for game in ("pong", "breakout"):
        env = make_atari(game, 2)
        rng = np.random.default_rng(1)
        env.reset(3)
        lane_seeds = [
            int(np.random.SeedSequence((3, lane, 0)).generate_state(1)[0] & 0x7FFFFFFF)
            for lane in range(2)
        ]
        actions = rng.integers(env.spec.num_actions, size=(1700, 2))
        ours = [episode for action in actions for episode in env.step(action).episodes]
        rows = reference_game(game, lane_seeds, actions, life_loss=False)
        expected = []
        totals, lengths, over = np.zeros(2), np.zeros(2, int), np.zeros(2, bool)
        for _, reward, terminated, truncated, _ in rows[1:]:
            for lane in range(2):
                if over[lane]:
                    expected.append((lane, totals[lane], lengths[lane]))
                    totals[lane], lengths[lane] = 0, 0
                else:
                    totals[lane] += reward[lane]
                    lengths[lane] += 1
            over = terminated | truncated
        assert [(e.lane, e.episode_return, e.length_steps) for e in ours] == expected
        assert len(ours) >= 2


def test_rewards_are_raw():
    env = make_atari("qbert", 4)
    records, _ = play(env, 300)
    assert max(record.reward.max() for record in records) == 25
    assert records[0].reward.dtype == np.float32


@pytest.mark.parametrize("action", [-1, 6, 1000])
def test_an_action_out_of_range_is_refused_before_the_engine_hangs_on_it(action):
    env = make_atari("pong", 2)
    env.reset(0)
    with pytest.raises(
        ValueError, match=rf"step: action must be in \[0, 6\), got {action} in lane 1"
    ):
        env.step(np.array([0, action]))
    assert env.step(np.array([0, 5])).action.tolist() == [0, 5]  # and the engine still answers


def test_bad_action_arrays_are_refused():
    env = make_atari("pong", 2)
    with pytest.raises(RuntimeError, match="step: reset must be called first"):
        env.step(np.zeros(2, np.int64))
    env.reset(0)
    with pytest.raises(ValueError, match=r"action must have shape \[2\], got \[3\]"):
        env.step(np.zeros(3, np.int64))
    with pytest.raises(TypeError, match="action must be integers, got float64"):
        env.step(np.zeros(2))


def test_seed_zero_is_a_seed_like_any_other():
    def first_frames(seed: int) -> np.ndarray:
        env = make_atari("breakout", 2, preset="machado")
        records, _ = play(env, 200, seed)
        env.close()
        return np.stack([record.frame for record in records])

    np.testing.assert_array_equal(first_frames(0), first_frames(0))
    assert (first_frames(0) != first_frames(1)).any()


def test_presets_differ_in_stickiness_starts_and_life_signal():
    classic, machado = make_atari("pong", 12), make_atari("pong", 12, preset="machado")
    assert classic.spec.settings["repeat_action_probability"] == 0.0
    assert machado.spec.settings["repeat_action_probability"] == 0.25
    assert classic.spec.settings["life_loss_info"]
    assert not machado.spec.settings["life_loss_info"]
    # Doing nothing for a while, only the no-op start tells the lanes apart (nothing can stick).
    screens = []
    for env in (classic, machado):
        env.reset(0)
        for _ in range(60):
            env.step(np.zeros(12, np.int64))
        screens.append(len(np.unique(env.obs.reshape(12, -1), axis=0)))
    assert screens[0] > 3
    assert screens[1] == 1


def test_sticky_actions_are_really_sticky_and_really_off():
    def frames_of_lanes(preset: str) -> np.ndarray:
        # The same actions in every lane, from the same no-op-free start: only stickiness differs.
        env = make_atari("pong", 8, preset=preset)
        env.reset(0)
        rng = np.random.default_rng(0)
        for action in rng.integers(6, size=100):
            env.step(np.full(8, action))
        return np.unique(env.obs.reshape(8, -1), axis=0)

    assert len(frames_of_lanes("machado")) > 1


def test_truncation_is_a_boundary_even_where_the_clock_would_not_show_it():
    base = AtariVectorEnv(
        "breakout",
        2,
        num_threads=1,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        life_loss_info=True,
        episodic_life=False,
        reward_clipping=False,
        max_num_frames_per_episode=80,
    )
    env = LaneEnv(base, name="breakout", stack=4, seeding="array")
    records, _ = play(env, 100)
    cuts = 0
    for before, record in itertools.pairwise(records):
        cuts += int(before.truncated.sum())
        np.testing.assert_array_equal(record.boundary & before.truncated, before.truncated)
        for episode in record.episodes:
            # A life lost in the very step of the time limit hides the truncation (0.12.1).
            assert episode.truncated == before.truncated[episode.lane]
            assert episode.truncated or before.terminated[episode.lane]
    assert cuts >= 4


def test_state_and_restore_continue_the_very_same_game():
    env = make_atari("breakout", 2, preset="machado")
    rng = np.random.default_rng(5)
    env.reset((7, 2))
    for _ in range(150):
        env.step(rng.integers(4, size=2))
    state = env.state()
    other = make_atari("breakout", 2, preset="machado")
    other.restore(state)
    np.testing.assert_array_equal(env.obs, other.obs)
    for _ in range(300):
        action = rng.integers(4, size=2)
        ours, theirs = env.step(action), other.step(action)
        np.testing.assert_array_equal(ours.frame, theirs.frame)
        np.testing.assert_array_equal(ours.reward, theirs.reward)
        assert ours.episodes == theirs.episodes


def test_restore_is_exact_across_reseeded_lanes_and_lost_lives(monkeypatch):
    # Short of 10,000 steps nothing would be seeded anew; 120 lets every lane be, at its own time.
    monkeypatch.setattr(lanes, "RESEED_STEPS", 120)
    env, other = (make_atari("breakout", 3, preset="machado") for _ in range(2))
    rng = np.random.default_rng(5)
    env.reset((7, 2))
    for checkpoint in range(3):
        for _ in range(170):
            env.step(rng.integers(4, size=3))
        state = env.state()
        other.restore(state)
        np.testing.assert_array_equal(env.obs, other.obs)
        for _ in range(100):
            action = rng.integers(4, size=3)
            ours, theirs = env.step(action), other.step(action)
            for field in ("frame", "reward", "terminated", "boundary"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
            assert ours.episodes == theirs.episodes
        assert checkpoint == 0 or state.reseeds.any()
    assert (env.state().reseeds > 0).all()
    assert len(set(env.state().lengths_steps.tolist())) > 1


def test_reseeding_keeps_logs_short_and_episodes_whole(monkeypatch):
    monkeypatch.setattr(lanes, "RESEED_STEPS", 50)
    env = make_env("CartPole-v1", 4)
    records, _ = play(env, 3000)
    played = sum(episode.length_steps for record in records for episode in record.episodes)
    rows = sum((~record.boundary).sum() for record in records)
    assert rows - played < 4 * 500  # all but the running episodes are accounted for
    assert env.state().lengths_steps.max() < 50 + 200
    other = make_env("CartPole-v1", 4)
    other.restore(env.state())
    np.testing.assert_array_equal(env.obs, other.obs)


def test_spread_lanes_start_one_after_another_and_are_restored():
    env, other = make_atari("breakout", 4), make_atari("breakout", 4)
    env.reset((7, 2))
    env.spread(82)
    state = env.state()
    assert state.lengths_steps.tolist() == [82, 82 - 20, 82 - 41, 82 - 61]
    other.restore(state)
    np.testing.assert_array_equal(env.obs, other.obs)
    action = np.zeros(4, np.int64)
    np.testing.assert_array_equal(env.step(action).frame, other.step(action).frame)
    with pytest.raises(ValueError, match=r"LaneEnv.spread: steps must be at least 0, got -1"):
        env.spread(-1)


@pytest.mark.parametrize(("spread_steps", "together"), [(0, True), (2000, False)])
def test_freeway_games_end_together_unless_spread(spread_steps, together):
    # Every game of Freeway lasts 2,041 to 2,048 steps.
    env = make_atari("freeway", 4, num_threads=2)
    env.reset(3)
    env.spread(spread_steps)
    ends: dict[int, int] = {}
    for time in range(2050):
        for lane in np.flatnonzero(env.step(np.zeros(4, np.int64)).boundary):
            ends.setdefault(int(lane), time)
    gaps = np.diff(sorted(ends.values()))
    assert len(ends) == 4
    assert (gaps < 20).all() if together else (gaps > 400).all()


def test_restore_right_after_a_reset():
    env, other = make_atari("pong", 2), make_atari("pong", 2)
    env.reset(3)
    other.restore(env.state())
    np.testing.assert_array_equal(env.obs, other.obs)


def test_restore_refuses_another_lane_count():
    env = make_atari("pong", 2)
    env.reset(0)
    with pytest.raises(ValueError, match="state must be of 3 lanes, got 2"):
        make_atari("pong", 3).restore(env.state())


def test_the_colour_twin_plays_the_same_game():
    env = make_atari("breakout", 2, preset="machado")
    screen = atari.make_atari_screen(env)
    rng = np.random.default_rng(0)
    env.reset(4)
    screen.reset(4)
    assert screen.obs.shape == (2, 3, 210, 160)
    for _ in range(300):
        action = rng.integers(4, size=2)
        ours, twin = env.step(action), screen.step(action)
        np.testing.assert_array_equal(ours.reward, twin.reward)
        np.testing.assert_array_equal(ours.terminated, twin.terminated)
        np.testing.assert_array_equal(ours.boundary, twin.boundary)


def test_gymnasium_environments_speak_the_same_protocol():
    env = make_env("CartPole-v1", 3)
    records, observations = play(env, 200)
    assert env.spec.obs_shape == env.spec.frame_shape == (4,)
    assert observations[0].dtype == np.float32
    lengths = []
    for before, record in itertools.pairwise(records):
        np.testing.assert_array_equal(record.boundary, before.terminated | before.truncated)
        lengths += [episode.length_steps for episode in record.episodes]
        assert all(e.episode_return == e.length_steps for e in record.episodes)
    assert len(lengths) > 10


def test_channels_last_images_become_channels_first():
    class Picture(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (40, 50, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.full((40, 50, 3), (1, 2, 3), np.uint8), {}

        def step(self, action):
            return np.full((40, 50, 3), (4, 5, 6), np.uint8), 0.0, False, False, {}

    vector = gymnasium.vector.SyncVectorEnv(
        [Picture, Picture], autoreset_mode=AutoresetMode.NEXT_STEP
    )
    env = LaneEnv(vector, name="picture")
    assert env.reset(0).shape == (2, 3, 40, 50)
    assert env.obs[0, :, 0, 0].tolist() == [1, 2, 3]


def test_unusable_environments_are_refused_in_words():
    silent = gymnasium.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")
    silent.metadata = {}
    with pytest.raises(
        ValueError,
        match=r"^LaneEnv: env.metadata\['autoreset_mode'\] must be NEXT_STEP, .* got None$",
    ):
        LaneEnv(silent, name="x")
    with pytest.raises(TypeError, match="env must have Discrete actions, got Box"):
        make_gymnasium("Pendulum-v1", 1)
    with pytest.raises(ValueError, match=r"game must be a ROM name in snake case.*got 'Pong'"):
        make_atari("Pong", 1)
    with pytest.raises(ValueError, match=r"preset must be one of \['classic', 'machado'\]"):
        make_atari("pong", 1, preset="hard")
    with pytest.raises(ValueError, match="num_lanes must be at least 1, got 0"):
        make_atari("pong", 0)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    def absent(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(brought.importlib, "import_module", absent)
    with pytest.raises(ImportError, match="pip install 'ale-py"):
        make_atari("pong", 1)
