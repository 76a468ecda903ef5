# SPDX-License-Identifier: MIT
"""What an environment is, as a record that can be stored, compared and sent to another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class EnvSpec:
    """An environment, described: enough to make it again and to fit a network to it.

    Attributes:
        name: Atari game or gymnasium id.
        preset: Of ``fastdistill.envs.PRESETS``; empty where it is no Atari game.
        obs_shape: Of one observation: ``(stack, 84, 84)``, ``(channels, height, width)`` or
            ``(features,)``.
        stack: Frames per observation, 1 where the environment does not stack.
        num_actions: Number of discrete actions.
        action_meanings: What each action does, where known, else its number.
        settings: Every option that changes what is played, for records.
    """

    name: str
    preset: str
    obs_shape: tuple[int, ...]
    stack: int
    num_actions: int
    action_meanings: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        """Whether observations are images, which are uint8; vectors are float32."""
        return len(self.obs_shape) == 3

    @property
    def obs_dtype(self) -> torch.dtype:
        """Of observations, as a policy gets them."""
        return torch.uint8 if self.is_image else torch.float32

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of what one step adds to the observation: without the stack."""
        return self.obs_shape if self.stack == 1 else self.obs_shape[1:]
