# SPDX-License-Identifier: MIT
"""Playing full episodes to find out how good a policy is.

The quota of episodes per lane is fixed before the first step: counting the first episodes to
finish would favour short ones. Raw scores, epsilon, seed and preset go into the record.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdistill import streams
from fastdistill.envs import (
    PRESETS,
    LaneEnv,
    Policy,
    engine_versions,
    epsilon_greedy,
    make_env,
    policy_values,
)
from fastdistill.networks import QNetwork


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

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def evaluate(
    policy: Policy,
    env_name: str,
    *,
    episodes: int = 30,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    num_lanes: int = 10,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
) -> Evaluation:
    """Play full episodes with the epsilon-greedy policy.

    Args:
        policy: Observations to action values; a network in evaluation mode, say. One of several
            games plays as it does this one.
        env_name: Game (``"pong"``) or gymnasium id (``"CartPole-v1"``).
        episodes: How many, at least 1. Spread over the lanes beforehand.
        preset: Of ``fastdistill.envs.PRESETS``.
        epsilon: Share of random actions in [0, 1]; the preset's own by default, 0 for
            environments that are not Atari.
        seed: Non-negative. Training uses other streams of the same seed.
        num_lanes: Lanes played at once, at most ``episodes``.
        device: Where the policy runs.
        max_steps: Vector steps after which a RuntimeError is raised, for policies that never end
            an episode in an environment without a time limit.

    Returns:
        The record of exactly ``episodes`` episodes.
    """
    if episodes < 1:
        raise ValueError(f"evaluate: episodes must be at least 1, got {episodes}")
    if num_lanes < 1:
        raise ValueError(f"evaluate: num_lanes must be at least 1, got {num_lanes}")
    env = make_env(env_name, min(num_lanes, episodes), preset=preset, training=False)
    try:
        return evaluate_env(
            policy,
            env,
            episodes=episodes,
            epsilon=epsilon,
            seed=seed,
            device=device,
            max_steps=max_steps,
        )
    finally:
        env.close()


def evaluate_env(
    policy: Policy,
    env: LaneEnv,
    *,
    episodes: int,
    epsilon: float | None = None,
    seed: int = 1,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
) -> Evaluation:
    """``evaluate`` on an environment of the caller's, made with ``training=False``."""
    spec = env.spec
    if isinstance(policy, QNetwork) and policy.games:
        policy = policy.for_task(spec.name)
    preset = spec.preset
    if epsilon is None:
        epsilon = PRESETS[preset].evaluation_epsilon if preset else 0.0
    if not 0 <= epsilon <= 1:
        raise ValueError(f"evaluate: epsilon must be in [0, 1], got {epsilon}")
    quota = episodes // env.num_lanes + (np.arange(env.num_lanes) < episodes % env.num_lanes)
    actor = EpsilonGreedy(policy, epsilon, spec.num_actions, seed, device)
    env.reset(streams.words(seed, streams.EVALUATION))
    played: list[list[tuple[float, int, bool]]] = [[] for _ in range(env.num_lanes)]
    remaining = episodes
    steps = 0
    while remaining:
        step = env.step(actor(env.obs))
        steps += 1
        for episode in step.episodes:
            if len(played[episode.lane]) < quota[episode.lane]:
                played[episode.lane].append(
                    (episode.episode_return, episode.length_steps, episode.truncated)
                )
                remaining -= 1
        if max_steps is not None and steps >= max_steps and remaining:
            raise RuntimeError(
                f"evaluate: episodes must end within {max_steps} vector steps, "
                f"got {episodes - remaining} of {episodes}"
            )
    flat = [episode for lane in played for episode in lane]
    return Evaluation(
        env=spec.name,
        preset=preset,
        epsilon=epsilon,
        seed=seed,
        num_lanes=env.num_lanes,
        returns=tuple(episode[0] for episode in flat),
        lengths_steps=tuple(episode[1] for episode in flat),
        truncated=sum(episode[2] for episode in flat),
        settings=spec.settings,
        versions={**engine_versions(), "torch": str(torch.__version__)},
    )


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
        values = policy_values(self._policy, obs, self._device)
        if values.shape != (len(obs), self._num_actions):
            raise ValueError(
                f"evaluate: policy must return [{len(obs)}, {self._num_actions}] values, "
                f"got {list(values.shape)}"
            )
        greedy: NDArray[np.int64] = values.argmax(dim=1).cpu().numpy()
        return epsilon_greedy(greedy, self._epsilon, self._num_actions, self._rng)
