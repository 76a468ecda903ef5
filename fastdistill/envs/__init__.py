# SPDX-License-Identifier: MIT
"""Environments as lanes: Atari games and gymnasium ids, one plain record per step.

``lanes`` is the vector environment that everything else sees, ``views`` what is seen of it;
``atari`` and ``brought`` make them, ``spec`` describes them, ``acting`` chooses actions.
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
)
from fastdistill.envs.brought import BROUGHT, EnvSource, make_gymnasium
from fastdistill.envs.lanes import LaneEnv
from fastdistill.envs.records import EnvFault, EnvState, Episode, Step
from fastdistill.envs.spec import EnvSpec
from fastdistill.envs.views import FUNCTION, ViewSource, view_name

__all__ = [
    "BROUGHT",
    "FUNCTION",
    "PRESETS",
    "AtariPreset",
    "EnvFault",
    "EnvSource",
    "EnvSpec",
    "EnvState",
    "Episode",
    "LaneEnv",
    "Policy",
    "Step",
    "ViewSource",
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
    "view_name",
]
