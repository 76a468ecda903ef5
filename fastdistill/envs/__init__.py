# SPDX-License-Identifier: MIT
"""Environments as lanes: Atari games and gymnasium ids, one plain record per step.

``lanes`` is the vector environment that everything else sees, ``atari`` makes them.
"""

from fastdistill.envs.atari import (
    PRESETS,
    AtariPreset,
    atari_games,
    engine_options,
    engine_versions,
    make_atari,
    make_atari_screen,
    make_env,
    make_gymnasium,
    observation_statistics,
)
from fastdistill.envs.lanes import EnvState, Episode, LaneEnv, Step

__all__ = [
    "PRESETS",
    "AtariPreset",
    "EnvState",
    "Episode",
    "LaneEnv",
    "Step",
    "atari_games",
    "engine_options",
    "engine_versions",
    "make_atari",
    "make_atari_screen",
    "make_env",
    "make_gymnasium",
    "observation_statistics",
]
