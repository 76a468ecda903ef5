# SPDX-License-Identifier: MIT
"""Lanes: a vector environment as one plain record per step, ready for the replay.

Everything above sees one protocol: episodes told apart under any autoreset mode, the bogus
transition of NEXT_STEP marked, life losses told apart from game overs, raw rewards, own episode
accounting, and an exact state (seed and actions since the last seeded reset) to resume from.
``envs`` makes them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdistill.envs.records import EnvFault, EnvState, Episode, Step
from fastdistill.envs.spec import EnvSpec
from fastdistill.envs.views import View, ViewSource, is_discrete, view_name

# Actions kept per lane before it may be seeded anew: bounds what a restore has to play.
RESEED_STEPS = 10_000


class LaneEnv:
    """A vector environment, one lane per sub-environment.

    Under NEXT_STEP autoreset the final observation of an episode has a row of its own, a
    ``boundary``. Under SAME_STEP and DISABLED (whose lanes are reset here) the next row begins the
    next episode, and the final observation is in no row.

    Its state can be saved at any step: ALE's own clone and restore loses the random generator
    (0.12.1), so a state is a seed and the actions since, and restoring plays them again. To keep
    those few, a lane whose episode ends more than ``RESEED_STEPS`` after its last seeding is
    seeded anew. (Seeding an ALE lane takes 0.1 s, it loads the ROM; hence not at every episode.)

    Attributes:
        spec: What the environment is, as ``obs`` shows it.
        teacher_spec: The same as ``teacher_obs`` shows it.
        num_lanes: Number of sub-environments.
        obs: The current observation, ``[lanes, *obs_shape]``: images uint8 (bool ones, as
            MinAtar's, become 0 and 255), vectors float32 (Discrete ones are one-hot).
        is_lent: Whether the vector environment is the caller's: it is not closed here, and others
            may play in it between two steps, if ``restore`` then brings back this one's ``state``.

    Raises:
        TypeError: Actions that are not Discrete, observations of several parts without a view of
            them, or images that are neither uint8 nor bool.
        ValueError: An unknown autoreset mode or key, or observations that are neither vectors nor
            images.
    """

    def __init__(
        self,
        env: Any,
        *,
        name: str,
        preset: str = "",
        stack: int = 1,
        action_meanings: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
        seeding: str = "list",
        view: ViewSource | None = None,
        teacher_view: ViewSource | None = None,
        is_lent: bool = False,
    ) -> None:
        """Args:
        env: A gymnasium vector environment.
        name: For records.
        preset: Of ``fastdistill.envs.PRESETS``.
        stack: Frames per observation, where nothing but those is seen.
        action_meanings: Their numbers by default.
        settings: For records.
        seeding: How ``env.reset`` takes seeds: a ``"list"`` of one for each lane, an ``"array"``
            of those to be reset, or ``"one"`` for all; then lanes are never seeded anew alone.
        view: What ``obs`` shows of what the environment returns.
        teacher_view: What ``teacher_obs`` shows.
        is_lent: See above.
        """  # noqa: D205
        mode = env.metadata.get("autoreset_mode")
        self._mode = str(getattr(mode, "value", mode))
        if self._mode not in ("NextStep", "SameStep", "Disabled"):
            raise ValueError(
                "LaneEnv: env.metadata['autoreset_mode'] must be NEXT_STEP, SAME_STEP or DISABLED, "
                f"got {mode}"
            )
        space = env.single_action_space
        if not is_discrete(space):
            raise TypeError(
                f"LaneEnv: env must have Discrete actions, got {space}; a policy is distilled as "
                "one value for each action (gymnasium.wrappers.DiscretizeAction makes such of Box)"
            )
        self._env = env
        self._seeding = seeding
        self.is_lent = is_lent
        self.num_lanes = int(env.num_envs)
        self._first_action = int(space.start)
        self._record: Any = None
        self._view = self._viewed(view)
        self._teacher_source = teacher_view
        self._source = view
        numbers = range(self._first_action, self._first_action + int(space.n))
        known = {"env": name, **({"preset": preset} if preset else {}), **(settings or {})}
        self.spec = EnvSpec(
            name=name,
            preset=preset,
            obs_shape=self._view.obs_shape,
            stack=stack if view is None else 1,
            num_actions=len(numbers),
            action_meanings=tuple(action_meanings) or tuple(map(str, numbers)),
            settings=known if view is None else {**known, "view": view_name(view)},
        )
        self.obs = np.zeros((self.num_lanes, *self.spec.obs_shape), self._view.obs_dtype)
        self._seed: tuple[int, ...] = ()
        self._reseeds = np.zeros(self.num_lanes, np.int64)
        self._logs = [bytearray() for _ in range(self.num_lanes)]
        self._was_done = np.zeros(self.num_lanes, np.bool_)
        self._was_truncated = np.zeros(self.num_lanes, np.bool_)
        self._episode_frames = np.full(self.num_lanes, -1, np.int64)
        self._returns = np.zeros(self.num_lanes, np.float64)
        self._lengths = np.zeros(self.num_lanes, np.int64)

    def _viewed(self, source: ViewSource | None) -> View:
        if callable(source) and self._record is None:
            self._record = self._env.reset()[0]  # to see what the function makes of it
        try:
            return View(source, self._env.single_observation_space, self._record, self.num_lanes)
        except EnvFault as error:
            raise ValueError(f"LaneEnv: {error}") from error

    @cached_property
    def _teacher_view(self) -> View:
        # When it is asked for: lanes of one player alone have no teacher.
        same = self._teacher_source == self._source
        return self._view if same else self._viewed(self._teacher_source)

    @property
    def teacher_spec(self) -> EnvSpec:
        """What the environment is, as ``teacher_obs`` shows it."""
        if self._teacher_view is self._view:
            return self.spec
        shape = self._teacher_view.obs_shape
        return replace(self.spec, obs_shape=shape, stack=1)

    @property
    def teacher_obs(self) -> NDArray[Any]:
        """What the teacher sees now, ``[lanes, *teacher_spec.obs_shape]``.

        Raises:
            EnvFault: The environment returned what it may not, or the view's function did.
        """
        if self._teacher_view is self._view:
            return self.obs
        try:
            return self._teacher_view(self._record)
        except EnvFault as error:
            raise EnvFault(
                f"LaneEnv.teacher_obs: {error} of {self.spec.name}, as its teacher sees it"
            ) from error

    def reset(self, seed: int | Sequence[int]) -> NDArray[Any]:
        """Start a new episode in every lane.

        Args:
            seed: Non-negative integer or integers; each lane's seed is drawn from them.

        Returns:
            The first observation, ``[lanes, *obs_shape]``.
        """
        self._seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self._reseeds[:] = 0
        self._seed_lanes(np.ones(self.num_lanes, np.bool_))
        return self.obs

    def spread(self, steps: int) -> None:
        """Bring the lanes out of step: random play, in which they start anew one after another.

        Where episodes have one length (Freeway's clock), lanes that start together end together,
        again and again, and every batch is of one moment of the game.

        Args:
            steps: Steps of every lane; lane i starts at step ``steps * i / num_lanes``. Their
                episodes are not reported.

        Raises:
            RuntimeError: Before the first ``reset``.
            ValueError: ``steps`` is negative.
        """
        if steps < 0:
            raise ValueError(f"LaneEnv.spread: steps must be at least 0, got {steps}")
        rng = np.random.default_rng([*self._seed, steps])
        starts = steps * np.arange(self.num_lanes) // self.num_lanes
        for time in range(steps):
            chosen = (starts == time) & (time > 0)
            if chosen.any():
                self._reseeds += chosen
                self._seed_lanes(chosen)
            self.step(rng.integers(self.spec.num_actions, size=self.num_lanes))

    def _seed_lanes(self, chosen: NDArray[np.bool_]) -> None:
        seeds = np.array(
            [
                # 31 bits: ALE takes an int and reads a negative one as "no seed".
                np.random.SeedSequence((*self._seed, lane, int(count))).generate_state(1)[0]
                & 0x7FFFFFFF
                for lane, count in enumerate(self._reseeds)
            ],
            np.int64,
        )
        options = None if chosen.all() else {"reset_mask": chosen.copy()}
        try:
            seed = {"array": seeds[chosen], "list": seeds.tolist(), "one": int(seeds[0])}
            shown, info = self._env.reset(seed=seed[self._seeding], options=options)
            record, obs = self._seen(shown)
        except Exception as error:  # whatever a foreign environment raises
            raise ValueError(f"LaneEnv.reset: {_words(error)} of {self.spec.name}") from error
        self._record, self.obs = record, obs
        # Of the other lanes some environments say nothing here.
        frames = np.asarray(info.get("episode_frame_number", self._episode_frames))
        self._episode_frames = np.where(chosen, frames, self._episode_frames)
        for lane in np.flatnonzero(chosen):
            self._logs[lane].clear()
        for array in (self._was_done, self._was_truncated, self._returns, self._lengths):
            array[chosen] = 0

    def step(self, action: NDArray[np.integer[Any]]) -> Step:
        """Step every lane.

        Args:
            action: ``[lanes]`` integers in ``[0, num_actions)``.

        Raises:
            RuntimeError: Before the first ``reset``.
            ValueError: Wrong shape or an action out of range (ALE would hang on it for ever).
            TypeError: Not integers.
            EnvFault: The environment raised, or returned what it may not.
        """
        step = self._advance(self._checked(action))
        stale = np.array([len(log) > 2 * RESEED_STEPS for log in self._logs])
        if stale.any() and self._seeding != "one":
            begins = np.isin(np.arange(self.num_lanes), [done.lane for done in step.episodes])
            if (chosen := stale & begins).any():
                self._reseeds += chosen
                try:
                    self._seed_lanes(chosen)
                except ValueError as error:
                    # For whoever goes on from `state` the step has not been.
                    self._reseeds -= chosen
                    for log in self._logs:
                        del log[-2:]
                    raise EnvFault(str(error)) from error
        return step

    def _advance(self, action: NDArray[np.int64]) -> Step:
        record, obs, reward, terminated, truncated, info = self._played(action)
        # From here on nothing fails: a step that did leaves the lanes where they were.
        for log, word in zip(self._logs, action.astype(np.int16), strict=True):
            log += word.tobytes()
        frame = self.obs if self.spec.stack == 1 else np.ascontiguousarray(self.obs[:, -1])
        if self._mode == "NextStep":
            boundary = ended = self._games_over(self._was_done, self._was_truncated, info)
            was_truncated, returns, lengths = self._was_truncated, self._returns, self._lengths
            self._returns = np.where(ended, 0.0, returns + reward)
            self._lengths = np.where(ended, 0, lengths + 1)
        else:
            boundary, ended = np.zeros(self.num_lanes, np.bool_), terminated | truncated
            if self._mode == "SameStep":
                ended = self._games_over(ended, truncated, info)
            was_truncated = truncated
            returns, lengths = self._returns + reward, self._lengths + 1
            self._returns, self._lengths = (
                np.where(ended, 0.0, returns),
                np.where(ended, 0, lengths),
            )
        episodes = tuple(
            Episode(int(lane), float(returns[lane]), int(lengths[lane]), bool(was_truncated[lane]))
            for lane in np.flatnonzero(ended)
        )
        self._was_done, self._was_truncated = terminated | truncated, truncated.copy()
        self._record, self.obs = record, obs
        return Step(frame, action, reward, terminated, truncated, boundary, episodes)

    def _games_over(
        self, done: NDArray[np.bool_], truncated: NDArray[np.bool_], info: dict[str, Any]
    ) -> NDArray[np.bool_]:
        """Of the lanes that read done those where a new game has begun by now.

        A lost life reads terminated, too, but there the game's own clock goes on.
        """
        if "episode_frame_number" not in info:
            return done
        frames = np.asarray(info["episode_frame_number"])
        over = done & (truncated | (frames <= self._episode_frames))
        self._episode_frames = frames
        return over

    def _played(
        self, action: NDArray[np.int64]
    ) -> tuple[
        Any, NDArray[Any], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """What the environment makes of the actions, checked; changes nothing here."""
        try:
            shown, reward, terminated, truncated, info = self._env.step(action + self._first_action)
            record, obs = self._seen(shown)
            ends = [np.asarray(terminated), np.asarray(truncated)]
            if any(end.dtype != np.bool_ or end.shape != (self.num_lanes,) for end in ends):
                raise EnvFault(f"terminated and truncated must be bool, got {ends}")
            reward = np.array(reward, np.float32)
            if reward.shape != (self.num_lanes,):
                raise EnvFault(f"reward must be one per lane, got shape {list(reward.shape)}")
            if not np.isfinite(reward).all():
                lane = int(np.flatnonzero(~np.isfinite(reward))[0])
                raise EnvFault(f"reward must be finite, got {reward[lane]} in lane {lane}")
            # Copies: gymnasium hands out the same arrays at every step.
            ends = [end.copy() for end in ends]
            if self._mode == "Disabled" and (over := ends[0] | ends[1]).any():
                record, obs = self._begun(over, obs)
        except Exception as error:  # whatever a foreign environment raises
            raise EnvFault(f"LaneEnv.step: {_words(error)} of {self.spec.name}") from error
        return record, obs, reward, ends[0], ends[1], info

    def _begun(self, over: NDArray[np.bool_], before: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        """Begin new episodes in some lanes of an environment that does not by itself."""
        record, obs = self._seen(self._env.reset(options={"reset_mask": over.copy()})[0])
        if not np.array_equal(obs[~over], before[~over]):
            raise EnvFault("reset must leave the lanes alone that options['reset_mask'] leaves out")
        return record, obs

    def _seen(self, shown: Any) -> tuple[Any, NDArray[Any]]:
        """The record, and what is seen of it."""
        # Many environments hand out the same arrays at every step; ALE's lanes do not.
        record = shown if self._seeding == "array" else copy.deepcopy(shown)
        return record, self._view(record)

    def state(self) -> EnvState:
        """Where the environment stands, for ``restore``; two bytes per lane step."""
        lengths = np.array([len(log) // 2 for log in self._logs], np.int64)
        actions = np.frombuffer(b"".join(self._logs), np.int16)
        return EnvState(self._seed, self._reseeds.copy(), lengths, actions)

    def restore(self, state: EnvState) -> None:
        """Continue from ``state``, exactly, in this or another process.

        Takes as long as the emulators need for the recorded actions.
        """
        state.check(self.num_lanes)
        self._check_actions("restore", state.actions)
        starts = np.cumsum(state.lengths_steps) - state.lengths_steps
        longest = int(state.lengths_steps.max())
        # Lanes with fewer actions wait their turn, playing anything, and are then seeded.
        waits = longest - state.lengths_steps
        self._seed, self._reseeds = state.seed, state.reseeds.copy()
        self._seed_lanes(np.ones(self.num_lanes, np.bool_))
        for time in range(longest):
            if time and (waits == time).any():
                self._seed_lanes(waits == time)
            index = np.maximum(starts + time - waits, 0)
            action = np.where(time >= waits, state.actions[index], 0)
            self._advance(action.astype(np.int64))
        if longest and (waits == longest).any():
            self._seed_lanes(waits == longest)

    def close(self) -> None:
        """Free the emulators; what is lent stays open."""
        if not self.is_lent:
            self._env.close()

    def _checked(self, action: NDArray[Any]) -> NDArray[np.int64]:
        if not self._seed:
            raise RuntimeError("LaneEnv.step: reset must be called first")
        action = np.asarray(action)
        if action.shape != (self.num_lanes,):
            raise ValueError(
                f"LaneEnv.step: action must have shape [{self.num_lanes}], got {list(action.shape)}"
            )
        if not np.issubdtype(action.dtype, np.integer):
            raise TypeError(f"LaneEnv.step: action must be integers, got {action.dtype}")
        self._check_actions("step", action)
        return action.astype(np.int64)

    def _check_actions(self, function: str, action: NDArray[Any]) -> None:
        outside = (action < 0) | (action >= self.spec.num_actions)
        if outside.any():
            place = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"LaneEnv.{function}: action must be in [0, {self.spec.num_actions}), "
                f"got {int(action[place])} in {'lane' if function == 'step' else 'place'} {place}"
            )


def _words(error: Exception) -> str:
    if isinstance(error, EnvFault):
        return str(error)
    return f"env must not raise, got {type(error).__name__}: {error}"
