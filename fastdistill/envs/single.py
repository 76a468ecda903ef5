# SPDX-License-Identifier: MIT
"""One environment of a vector of them, under watch: it knows its lane, and says what was wrong.

gymnasium's vector environment copies what its environments return into arrays: None becomes False
there, and float64 whatever the array has. So it is looked at before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastdistill.envs.records import EnvFault


def watched(wrapper: type[Any]) -> Callable[[Any], Any]:
    """What wraps the environments of one vector, lane after lane.

    Args:
        wrapper: ``gymnasium.Wrapper``; gymnasium itself is imported elsewhere.
    """
    made = 0

    def wrap(env: Any) -> Any:
        nonlocal made
        made += 1
        return Watched(env, lane=made - 1)

    class Watched(wrapper):  # type: ignore[misc]
        """Checks every step."""

        def __init__(self, env: Any, lane: int) -> None:
            super().__init__(env)
            self._lane = lane

        def step(self, action: Any) -> Any:
            """As the environment's own."""
            try:
                obs, reward, terminated, truncated, info = self.env.step(action)
                _check(self.env.observation_space, obs, reward, (terminated, truncated))
            except EnvFault as error:
                raise EnvFault(f"{error} in lane {self._lane}") from error
            except Exception as error:  # whatever a foreign environment raises
                raise EnvFault(
                    f"env must not raise, got {type(error).__name__}: {error} in lane {self._lane}"
                ) from error
            return obs, reward, terminated, truncated, info

    return wrap


def _check(space: Any, obs: Any, reward: Any, ends: tuple[Any, Any]) -> None:
    if not (isinstance(ends[0], _BOOL) and isinstance(ends[1], _BOOL)):
        raise EnvFault(f"terminated and truncated must be bool, got {ends[0]!r} and {ends[1]!r}")
    if np.shape(reward) != () or not np.isfinite(reward):
        raise EnvFault(f"reward must be finite, got {reward!r}")
    _check_obs(space, obs)


def _check_obs(space: Any, obs: Any) -> None:
    parts = getattr(space, "spaces", None)
    if isinstance(parts, dict) and isinstance(obs, dict):
        for key in parts.keys() & obs.keys():
            _check_obs(parts[key], obs[key])
    if getattr(space, "shape", None) is None or parts is not None:
        return  # texts and the like; a view of them finds what it needs
    found = np.asarray(obs)
    if found.shape != space.shape or not np.can_cast(found.dtype, space.dtype, "same_kind"):
        raise EnvFault(
            f"observations must be {space.dtype} {list(space.shape)}, "
            f"got {found.dtype} {list(found.shape)}"
        )


_BOOL = (bool, np.bool_)
