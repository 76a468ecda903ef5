# SPDX-License-Identifier: MIT
"""What lanes hand out: steps, finished episodes, the state to resume from, and their faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class EnvFault(ValueError):  # noqa: N818 (it names what happened)
    """An environment did in a step what none may do; the lanes stand where they stood before it.

    The message names environment, lane and fault; an exception of the environment's is its cause.
    """


@dataclass(frozen=True)
class Episode:
    """A finished episode: the sum of its raw rewards and its length in agent steps."""

    lane: int
    episode_return: float
    length_steps: int
    truncated: bool


@dataclass(frozen=True, eq=False)
class Step:
    """One step of every lane; the first six fields are one ``replay.append`` call.

    Attributes:
        frame: Newest plane of the observation that the action was chosen on,
            ``[lanes, *frame_shape]``.
        action: ``[lanes]`` int64.
        reward: ``[lanes]`` float32, as the environment gave it (clipping is the learner's).
        terminated: ``[lanes]`` bool, the return ends here: game over, or a lost life.
        truncated: ``[lanes]`` bool, the episode was cut by a time limit.
        boundary: ``[lanes]`` bool, ``frame`` is the final observation of an episode: the action
            was ignored, the reward is 0, and the lane's next row begins a new episode.
        episodes: Episodes whose final observation is in this row.
    """

    frame: NDArray[Any]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    boundary: NDArray[np.bool_]
    episodes: tuple[Episode, ...]


@dataclass(frozen=True, eq=False)
class EnvState:
    """Where an environment stands: each lane's last seeded reset and its actions since.

    Attributes:
        seed: As given to ``LaneEnv.reset``.
        reseeds: ``[lanes]`` int64, how often each lane was seeded anew since.
        lengths_steps: ``[lanes]`` int64, actions since its last seeding.
        actions: Those actions, int16, lane after lane.
    """

    seed: tuple[int, ...]
    reseeds: NDArray[np.int64]
    lengths_steps: NDArray[np.int64]
    actions: NDArray[np.int16]

    def check(self, num_lanes: int) -> None:
        """Refuse one that cannot be restored into so many lanes.

        Raises:
            ValueError: In the name of ``LaneEnv.restore``.
        """
        if self.lengths_steps.shape != (num_lanes,):
            raise ValueError(
                f"LaneEnv.restore: state must be of {num_lanes} lanes, "
                f"got {len(self.lengths_steps)}"
            )
        if min(self.lengths_steps.min(), self.reseeds.min(), *self.seed, 0) < 0:
            raise ValueError("LaneEnv.restore: state must have seeds and lengths of 0 or more")
        if self.reseeds.shape != (num_lanes,) or not self.seed:
            raise ValueError("LaneEnv.restore: state must have a seed, and reseeds of each lane")
        if sum(self.lengths_steps.tolist()) != len(self.actions):
            raise ValueError(
                f"LaneEnv.restore: state must have as many actions as its lengths say, "
                f"got {len(self.actions)}"
            )
