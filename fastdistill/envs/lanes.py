# SPDX-License-Identifier: MIT
"""Lanes: a vector environment as one plain record per step, ready for the replay.

Everything above sees one protocol: NEXT_STEP autoreset with its bogus transition marked, life
losses told apart from game overs, raw rewards, own episode accounting, and an exact state (seed
and actions since the last seeded reset) to resume from. ``envs`` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdistill.envs.records import EnvFault, EnvState, Episode, Step
from fastdistill.envs.spec import EnvSpec

# Actions kept per lane before it may be seeded anew: bounds what a restore has to play.
RESEED_STEPS = 10_000


class LaneEnv:
    """A vector environment under NEXT_STEP autoreset, one lane per sub-environment.

    Its state can be saved at any step: ALE's own clone and restore loses the random generator
    (0.12.1), so a state is a seed and the actions since, and restoring plays them again. To keep
    those few, a lane whose episode ends more than ``RESEED_STEPS`` after its last seeding is
    seeded anew. (Seeding an ALE lane takes 0.1 s, it loads the ROM; hence not at every episode.)

    Attributes:
        spec: What the environment is.
        num_lanes: Number of sub-environments.
        obs: The current observation, ``[lanes, *obs_shape]``: images uint8 (bool ones, as
            MinAtar's, become 0 and 255), vectors float32.

    Raises:
        TypeError: Actions that are not Discrete from 0, observations of several parts, or images
            that are neither uint8 nor bool.
        ValueError: Another autoreset mode, or observations that are neither vectors nor images.
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
        array_seeds: bool = False,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if getattr(mode, "value", mode) != "NextStep":
            raise ValueError(
                "LaneEnv: env must use AutoresetMode.NEXT_STEP (the final observation of an "
                f"episode is read in line), got {mode}"
            )
        space = env.single_action_space
        if not _is_discrete(space) or int(space.start) != 0:
            raise TypeError(f"LaneEnv: env must have Discrete actions from 0, got {space}")
        self._env = env
        self._array_seeds = array_seeds
        self.num_lanes = int(env.num_envs)
        seen = env.single_observation_space
        shape, self._stack_of_one = _seen_shape(seen)
        is_image = len(shape) == 3
        self._seen = ((self.num_lanes, *seen.shape), np.dtype(seen.dtype))
        self._is_bool = is_image and seen.dtype == np.bool_
        if is_image and not self._is_bool and seen.dtype != np.uint8:
            raise TypeError(
                f"LaneEnv: env must have uint8 (or bool) images, got {seen.dtype} {shape}; "
                "a cast would make zeros of 0..1: scale them to 0..255 with a gymnasium wrapper "
                "(TransformObservation)"
            )
        # Of few channels, or like MinAtar's, whose bool images have up to ten.
        self._channels_last = is_image and (
            (shape[-1] in (1, 3, 4) and shape[0] > 4) or (self._is_bool and shape[-1] < shape[0])
        )
        num_actions = int(space.n)
        self.spec = EnvSpec(
            name=name,
            preset=preset,
            obs_shape=(shape[2], *shape[:2]) if self._channels_last else shape,
            stack=stack,
            num_actions=num_actions,
            action_meanings=tuple(action_meanings) or tuple(map(str, range(num_actions))),
            settings={"env": name, **({"preset": preset} if preset else {}), **(settings or {})},
        )
        self._obs_dtype = np.uint8 if self.spec.is_image else np.float32
        self.obs: NDArray[Any] = np.zeros((self.num_lanes, *self.spec.obs_shape), self._obs_dtype)
        self._seed: tuple[int, ...] = ()
        self._reseeds = np.zeros(self.num_lanes, np.int64)
        self._logs = [bytearray() for _ in range(self.num_lanes)]
        self._was_done = np.zeros(self.num_lanes, np.bool_)
        self._was_truncated = np.zeros(self.num_lanes, np.bool_)
        self._episode_frames = np.full(self.num_lanes, -1, np.int64)
        self._returns = np.zeros(self.num_lanes, np.float64)
        self._lengths = np.zeros(self.num_lanes, np.int64)

    def _take_obs(self, obs: NDArray[Any]) -> None:
        obs = obs[:, 0] if self._stack_of_one else obs
        if self._channels_last:
            obs = np.ascontiguousarray(obs.transpose(0, 3, 1, 2))
        obs = obs.astype(self._obs_dtype, copy=False)
        self.obs = obs * np.uint8(255) if self._is_bool else obs

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
            obs, info = self._env.reset(
                seed=seeds[chosen] if self._array_seeds else seeds.tolist(), options=options
            )
            self._check_obs(obs)
        except Exception as error:  # whatever a foreign environment raises
            raise ValueError(f"LaneEnv.reset: {_words(error)} of {self.spec.name}") from error
        self._take_obs(obs)
        self._episode_frames = np.asarray(info.get("episode_frame_number", self._episode_frames))
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
        if (stale & step.boundary).any():
            self._reseeds += stale & step.boundary
            self._seed_lanes(stale & step.boundary)
        return step

    def _advance(self, action: NDArray[np.int64]) -> Step:
        obs, reward, terminated, truncated, info = self._played(action)
        # From here on nothing fails: a step that did leaves the lanes where they were.
        for log, word in zip(self._logs, action.astype(np.int16), strict=True):
            log += word.tobytes()
        frame = self.obs if self.spec.stack == 1 else np.ascontiguousarray(self.obs[:, -1])
        boundary = self._was_done
        if "episode_frame_number" in info:
            # A lost life reads terminated too, but there the game's own clock goes on.
            frames = np.asarray(info["episode_frame_number"])
            boundary = boundary & (self._was_truncated | (frames <= self._episode_frames))
            self._episode_frames = frames
        episodes = tuple(
            Episode(
                int(lane),
                float(self._returns[lane]),
                int(self._lengths[lane]),
                bool(self._was_truncated[lane]),
            )
            for lane in np.flatnonzero(boundary)
        )
        self._returns = np.where(boundary, 0.0, self._returns + reward)
        self._lengths = np.where(boundary, 0, self._lengths + 1)
        self._was_done, self._was_truncated = terminated | truncated, truncated.copy()
        self._take_obs(obs)
        return Step(frame, action, reward, terminated, truncated, boundary, episodes)

    def _played(
        self, action: NDArray[np.int64]
    ) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """What the environment makes of the actions, checked; changes nothing here."""
        try:
            obs, reward, terminated, truncated, info = self._env.step(action)
            self._check_obs(obs)
            ends = [np.asarray(terminated), np.asarray(truncated)]
            if any(end.dtype != np.bool_ or end.shape != (self.num_lanes,) for end in ends):
                raise EnvFault(f"terminated and truncated must be bool, got {ends}")
            reward = np.asarray(reward, np.float32)
            if reward.shape != (self.num_lanes,):
                raise EnvFault(f"reward must be one per lane, got shape {list(reward.shape)}")
            if not np.isfinite(reward).all():
                lane = int(np.flatnonzero(~np.isfinite(reward))[0])
                raise EnvFault(f"reward must be finite, got {reward[lane]} in lane {lane}")
        except Exception as error:  # whatever a foreign environment raises
            raise EnvFault(f"LaneEnv.step: {_words(error)} of {self.spec.name}") from error
        # Copies: gymnasium hands out the same arrays at every step.
        return obs, reward, ends[0].copy(), ends[1].copy(), info

    def _check_obs(self, obs: Any) -> None:
        shape, dtype = self._seen
        if getattr(obs, "shape", None) != shape or obs.dtype != dtype:
            got = f"{getattr(obs, 'dtype', type(obs).__name__)} {list(getattr(obs, 'shape', ()))}"
            raise EnvFault(f"observations must be {dtype} {list(shape)}, got {got}")
        if obs.dtype.kind == "f":
            finite = np.isfinite(obs).reshape(self.num_lanes, -1).all(axis=1)
            if not finite.all():
                lane = int(np.flatnonzero(~finite)[0])
                raise EnvFault(
                    f"observations must be finite, got {obs[lane].tolist()} in lane {lane}"
                )

    def state(self) -> EnvState:
        """Where the environment stands, for ``restore``; two bytes per lane step."""
        lengths = np.array([len(log) // 2 for log in self._logs], np.int64)
        actions = np.frombuffer(b"".join(self._logs), np.int16)
        return EnvState(self._seed, self._reseeds.copy(), lengths, actions)

    def restore(self, state: EnvState) -> None:
        """Continue from ``state``, exactly, in this or another process.

        Takes as long as the emulators need for the recorded actions.
        """
        if state.lengths_steps.shape != (self.num_lanes,):
            raise ValueError(
                f"LaneEnv.restore: state must be of {self.num_lanes} lanes, "
                f"got {len(state.lengths_steps)}"
            )
        if min(state.lengths_steps.min(), state.reseeds.min(), *state.seed, 0) < 0:
            raise ValueError("LaneEnv.restore: state must have seeds and lengths of 0 or more")
        if state.reseeds.shape != (self.num_lanes,) or not state.seed:
            raise ValueError("LaneEnv.restore: state must have a seed, and reseeds of each lane")
        if sum(state.lengths_steps.tolist()) != len(state.actions):
            raise ValueError(
                f"LaneEnv.restore: state must have as many actions as its lengths say, "
                f"got {len(state.actions)}"
            )
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
        """Free the emulators."""
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


def _is_discrete(space: Any) -> bool:
    # By name: this module does not import gymnasium. MultiBinary has an `n` as well.
    return any(kind.__name__ == "Discrete" for kind in type(space).__mro__)


def _seen_shape(space: Any) -> tuple[tuple[int, ...], bool]:
    """Shape of one observation, and whether a leading 1 was dropped: ALE's colour screens."""
    if space.shape is None:
        raise TypeError(
            f"LaneEnv: env must have vector or image observations, got {space}; choose one part "
            "or flatten them with a gymnasium wrapper (FlattenObservation)"
        )
    shape = tuple(int(size) for size in space.shape)
    stack_of_one = len(shape) == 4 and shape[0] == 1
    shape = shape[1:] if stack_of_one else shape
    if len(shape) not in (1, 3):
        raise ValueError(f"LaneEnv: env must have vector or image observations, got shape {shape}")
    return shape, stack_of_one
