# SPDX-License-Identifier: MIT
"""Playing full episodes to find out how good a policy is.

The quota of episodes per lane is fixed before the first step: counting the first episodes to
finish would favour short ones. Raw scores, epsilon, seed and preset go into the record.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdistill import streams
from fastdistill.envs import (
    PRESETS,
    EnvSource,
    Episode,
    LaneEnv,
    Policy,
    ViewSource,
    engine_versions,
    epsilon_greedy,
    make_env,
    policy_values,
    usable_device,
)
from fastdistill.networks import QNetwork
from fastdistill.teachers import Teacher, load_teacher


@dataclass(frozen=True)
class Evaluation:
    """Full episodes and everything that decided them.

    Attributes:
        env: Game or environment id.
        preset: Of ``fastdistill.envs.PRESETS``; empty for other environments.
        epsilon: Share of random actions.
        seed: Of resets and random actions.
        num_lanes: Lanes played at once (they share the random numbers).
        returns: Raw return of each episode, ordered by lane, then time.
        lengths_steps: Its agent steps.
        truncated: How many episodes the time limit cut.
        settings: The environment's options.
        versions: Of the environment libraries and torch.
    """

    env: str
    preset: str
    epsilon: float
    seed: int
    num_lanes: int
    returns: tuple[float, ...]
    lengths_steps: tuple[int, ...]
    truncated: int
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def mean_error(self) -> float:
        """Standard error of the mean return, over episodes; NaN of a single one."""
        number = len(self.returns)
        return float(np.std(self.returns, ddof=1)) / number**0.5 if number > 1 else math.nan

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def evaluate(
    policy: Policy | str | Path,
    env: EnvSource,
    *,
    episodes: int = 30,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    num_lanes: int = 10,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
    view: ViewSource | None = None,
) -> Evaluation:
    """Play full episodes with the epsilon-greedy policy.

    Args:
        policy: Observations to action values; or what ``load_teacher`` takes, such as
            ``"zoo:pong"``, a checkpoint's path or a run directory. A module plays in evaluation
            mode, and is then put back; a network of several games plays as it does this one.
        env: Game (``"pong"``) or gymnasium id (``"CartPole-v1"``); or a function that makes a
            ``gymnasium.Env`` (or a ``VectorEnv``), or a ``VectorEnv``, which stays open.
        episodes: How many, at least 1. Spread over the lanes beforehand.
        preset: Of ``fastdistill.envs.PRESETS``.
        epsilon: Share of random actions in [0, 1]; the preset's own by default, 0 for
            environments that are not Atari.
        seed: Non-negative. Training uses other streams of the same seed.
        num_lanes: Lanes played at once, at most ``episodes``; a ``VectorEnv`` has its own.
        device: Where the policy runs.
        max_steps: Vector steps after which a RuntimeError is raised, for policies that never end
            an episode in an environment without a time limit.
        view: What the policy sees of an environment with several observations, or of any: a key,
            or a function of what all lanes show, ``[lanes, ...]`` each; by default what a
            teacher's or a checkpoint's own is.

    Returns:
        The record of exactly ``episodes`` episodes.

    Raises:
        ValueError: An argument out of range, or a policy that does not take the observations, or
            whose values are not finite or of another shape.
        TypeError: What it returns is no tensor.
    """
    if episodes < 1:
        raise ValueError(f"evaluate: episodes must be at least 1, got {episodes}")
    if num_lanes < 1:
        raise ValueError(f"evaluate: num_lanes must be at least 1, got {num_lanes}")
    device = usable_device(device)
    if isinstance(policy, (str, Path)):
        policy = load_teacher(policy, env, device=device, view=view)
    if view is None and isinstance(policy, Teacher):
        view = policy.view
    lanes = make_env(env, min(num_lanes, episodes), preset=preset, training=False, view=view)
    try:
        return evaluate_env(
            policy,
            lanes,
            episodes=episodes,
            epsilon=epsilon,
            seed=seed,
            device=device,
            max_steps=max_steps,
        )
    finally:
        lanes.close()


def evaluate_env(
    policy: Policy,
    env: LaneEnv,
    *,
    episodes: int,
    epsilon: float | None = None,
    seed: int = 1,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
    as_teacher: bool = False,
) -> Evaluation:
    """``evaluate`` in lanes made with ``training=False``, by the teacher's view or the other."""
    if episodes < 1:
        raise ValueError(f"evaluate: episodes must be at least 1, got {episodes}")
    if seed < 0:
        raise ValueError(f"evaluate: seed must be at least 0, got {seed}")
    spec = env.spec
    policy = of_game(policy, spec.name)
    preset = spec.preset
    if epsilon is None:
        epsilon = PRESETS[preset].evaluation_epsilon if preset else 0.0
    if not 0 <= epsilon <= 1:
        raise ValueError(f"evaluate: epsilon must be in [0, 1], got {epsilon}")
    quota = episodes // env.num_lanes + (np.arange(env.num_lanes) < episodes % env.num_lanes)
    actor = EpsilonGreedy(policy, epsilon, spec.num_actions, seed, device)
    with evaluation_mode(policy):
        flat = _play(actor, env, quota, seed, max_steps, as_teacher)
    return Evaluation(
        env=spec.name,
        preset=preset,
        epsilon=epsilon,
        seed=seed,
        num_lanes=env.num_lanes,
        returns=tuple(episode.episode_return for episode in flat),
        lengths_steps=tuple(episode.length_steps for episode in flat),
        truncated=sum(episode.truncated for episode in flat),
        settings=spec.settings,
        versions={**engine_versions(), "torch": str(torch.__version__)},
    )


def _play(
    actor: EpsilonGreedy,
    env: LaneEnv,
    quota: NDArray[np.int64],
    seed: int,
    max_steps: int | None,
    as_teacher: bool,
) -> list[Episode]:
    """The first ``quota`` episodes of each lane, lane after lane."""
    env.reset(streams.words(seed, streams.EVALUATION))
    played: list[list[Episode]] = [[] for _ in range(env.num_lanes)]
    episodes = remaining = int(quota.sum())
    steps = 0
    while remaining:
        step = env.step(actor(env.teacher_obs if as_teacher else env.obs))
        steps += 1
        for episode in step.episodes:
            if len(played[episode.lane]) < quota[episode.lane]:
                played[episode.lane].append(episode)
                remaining -= 1
        if max_steps is not None and steps >= max_steps and remaining:
            raise RuntimeError(
                f"evaluate: episodes must end within {max_steps} vector steps, "
                f"got {episodes - remaining} of {episodes}"
            )
    return [episode for lane in played for episode in lane]


def of_game(policy: Policy, game: str) -> Policy:
    """A network of several games as it plays this one; any other policy as it is."""
    if isinstance(policy, QNetwork) and policy.games:
        return policy.for_task(game)
    return policy


@contextlib.contextmanager
def evaluation_mode(policy: Policy) -> Iterator[None]:
    """A module without dropout and the like, until the end; then each part as it was."""
    module = policy if isinstance(policy, nn.Module) else nn.Identity().eval()
    modes = [(part, part.training) for part in module.modules()]
    if any(training for _, training in modes):
        # An exported program has one mode, and refuses to be told.
        with contextlib.suppress(NotImplementedError):
            module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            if part.training != training:
                part.training = training


class EpsilonGreedy:
    """Observations to actions, with random numbers of its own."""

    def __init__(
        self,
        policy: Policy,
        epsilon: float,
        num_actions: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._policy = policy
        self._epsilon = epsilon
        self._num_actions = num_actions
        self._device = device
        self._rng = streams.generator(seed, streams.EVALUATION)

    def __call__(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        """``[lanes, *obs_shape]`` to ``[lanes]``."""
        try:
            values = policy_values(self._policy, obs, self._device)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"evaluate: policy must take {obs.dtype} observations of shape {list(obs.shape)}, "
                f"got {type(error).__name__}: {error}"
            ) from error
        if not isinstance(values, Tensor):
            raise TypeError(f"evaluate: policy must return a tensor, got {type(values).__name__}")
        if values.shape != (len(obs), self._num_actions):
            raise ValueError(
                f"evaluate: policy must return [{len(obs)}, {self._num_actions}] values, "
                f"got {list(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"evaluate: policy must return finite values, got {values.tolist()}")
        greedy: NDArray[np.int64] = values.argmax(dim=1).cpu().numpy()
        return epsilon_greedy(greedy, self._epsilon, self._num_actions, self._rng)
