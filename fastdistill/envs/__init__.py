# SPDX-License-Identifier: MIT
"""Environments as lanes: Atari games and gymnasium ids, one plain record per step.

``lanes`` is the vector environment that everything else sees, ``atari`` makes them, ``spec``
describes them, ``acting`` chooses actions.
"""

from fastdistill.envs.acting import Policy, epsilon_greedy, policy_values, usable_device
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
)
from fastdistill.envs.lanes import LaneEnv
from fastdistill.envs.records import EnvFault, EnvState, Episode, Step
from fastdistill.envs.spec import EnvSpec

__all__ = [
    "PRESETS",
    "AtariPreset",
    "EnvFault",
    "EnvSpec",
    "EnvState",
    "Episode",
    "LaneEnv",
    "Policy",
    "Step",
    "atari_games",
    "engine_options",
    "engine_versions",
    "epsilon_greedy",
    "make_atari",
    "make_atari_screen",
    "make_env",
    "make_gymnasium",
    "policy_values",
    "usable_device",
]
