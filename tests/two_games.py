# SPDX-License-Identifier: MIT
"""Two small games of one observation shape, hand-made teachers of them, and short runs."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from cartpole import Balancer
from torch import nn

import fastdistill as fd
from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.learners.student import Student
from fastdistill.training.task import Task

SMALL = {
    "total_updates": 60,
    "num_lanes": 4,
    "learning_starts_steps": 160,
    "batch_size": 17,
    "replay_capacity": 2_000,
    "score_every_updates": 30,
    "score_episodes": 2,
    "evaluation_episodes": 0,
    "checkpoint_every_updates": 20,
    "log_every_updates": 10,
    "tensorboard": False,
    "bfloat16": False,
    "device": "cpu",
}


class Walk(gymnasium.Env):
    """A walk on a line, seen as CartPole is: four numbers. Reward for staying near the middle."""

    def __init__(self, actions: int = 3) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(actions)
        self._place, self._time = 0.0, 0

    def _obs(self):
        return np.array([self._place, 1.0, -self._place, self._time / 20], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._time = float(self.np_random.normal()), 0
        return self._obs(), {}

    def step(self, action):
        self._place += (int(action) - 1) / 2 + 0.1 * float(self.np_random.normal())
        self._time += 1
        reward = 1.0 if abs(self._place) < 1 else 0.0
        return self._obs(), reward, abs(self._place) > 4, self._time >= 20, {}


class Wide(Walk):
    """The same with another number of observations."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def _obs(self):
        return np.append(super()._obs(), np.float32(0))


for name, kind, options in (
    ("FdWalk-v0", Walk, {}), ("FdWalk5-v0", Walk, {"actions": 5}), ("FdWide-v0", Wide, {}),
):  # fmt: skip
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=lambda kind=kind, **more: kind(**more), kwargs=options)


class Homing(nn.Module):
    """A hand-made policy for ``Walk``: towards the middle."""

    def __init__(self, actions: int = 3) -> None:
        super().__init__()
        self.actions = actions

    def forward(self, obs):
        steps = (torch.arange(self.actions) - 1) / 2
        return -(obs[:, :1] + steps).abs()


class Names(nn.Module):
    """Values that name the game and the observation: ``game + obs[0] + action / 10``."""

    def __init__(self, game: int, actions: int) -> None:
        super().__init__()
        self.game, self.actions = game, actions

    def forward(self, obs):
        return 1000 * self.game + obs[:, :1] + torch.arange(self.actions) / 10


def two_games(run_dir, teachers=None, **options):
    if teachers is None:
        teachers = {"CartPole-v1": Balancer(), "FdWalk-v0": Homing()}
    return fd.distill(teachers, run_dir=run_dir, **{**SMALL, **options})


def made_play(seed=5, weights=(1.0, 1.0), students=()):
    """Two games under play whose labels name game and state."""
    envs = [make_env("CartPole-v1", 3, training=False), make_env("FdWalk5-v0", 3, training=False)]
    teachers = [fd.load_teacher(Names(g, env.spec.num_actions), env) for g, env in enumerate(envs)]
    tasks = [
        Task(env.spec, teacher, 0.5, weight)
        for env, teacher, weight in zip(envs, teachers, weights, strict=True)
    ]
    counters = Counters()
    play = LabelledPlay(
        tasks, envs, students, counters, replay_capacity=900, seed=seed, bfloat16=False
    )
    play.reset()
    return play, envs, counters


def small_network(*actions):
    return QNetwork.seeded(Architecture((4,), actions, hidden=(8,)), 3)


def student_of(network):
    return Student(
        network, loss="kl", size="4%", seed=0, optimizer="adam", learning_rate=1e-3, bfloat16=False
    )
