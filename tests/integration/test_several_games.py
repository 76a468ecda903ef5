# SPDX-License-Identifier: MIT
"""Several games in one student: each head learns its own game's labels, and nothing else."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import torch
from torch import nn

import fastdistill as fd

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


class Balancer(nn.Module):
    """A hand-made CartPole policy."""

    def forward(self, obs):
        lean = obs @ torch.tensor([0.1, 0.3, 1.0, 1.0])
        return torch.stack([-lean, lean], dim=1)


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
    teachers = teachers or {"CartPole-v1": Balancer(), "FdWalk-v0": Homing()}
    return fd.distill(teachers, run_dir=run_dir, **{**SMALL, **options})


def weights(run_dir):
    return {
        path.name: fd.load_network(path)[0].state_dict()
        for path in sorted((run_dir / "students").glob("*.json"))
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), (name, key)


def test_one_student_learns_two_games(tmp_path):
    result = two_games(
        tmp_path / "run",
        total_updates=600, temperature="auto", evaluation_episodes=4, learning_rate=3e-3,
        batch_size=32, loss="kl,nll", student="multi", score_every_updates=300,
    )  # fmt: skip
    student = result.student
    assert student.games == ("CartPole-v1", "FdWalk-v0")
    assert student.architecture.num_actions == (2, 3)
    assert student.obs_mean.shape == (2, 4)
    assert not torch.equal(student.obs_mean[0], student.obs_mean[1])
    for record, game in zip(result.evaluation["games"], student.games, strict=True):
        assert record["game"] == game
        assert [entry["name"] for entry in record["students"]] == [
            "kl_multi_seed1",
            "nll_multi_seed1",
        ]
        assert (
            record["students"][0]["parameters_of_all_games"] > record["students"][0]["parameters"]
        )
        again = fd.evaluate(student, game, episodes=4, seed=1, num_lanes=4)
        assert list(again.returns) == record["students"][0]["returns"]
    kl = result.evaluation["students"][0]
    assert kl["geometric_mean_percent"]["low"] <= kl["geometric_mean_percent"]["value"]
    assert kl["geometric_mean_percent"]["value"] > 50
    assert kl["percent_of_teacher"]["value"] >= kl["least_percent"]
    keys = set().union(
        *map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    )
    for measure in ("loss", "score", "agreement", "kl", "share"):
        assert f"students/kl_multi_seed1/{measure}/FdWalk-v0" in keys
    assert "students/kl_multi_seed1/share" in keys
    card = fd.load_network(tmp_path / "run" / "student")[1]
    assert [entry["game"] for entry in card["games"]] == list(student.games)
    page = result.report.read_text()
    assert "One network plays" in page
    assert 'href="report-FdWalk-v0-2.html"' in page
    assert "FdWalk-v0" in (tmp_path / "run" / "report-FdWalk-v0-2.html").read_text()
    assert card["games"][0]["temperature"] != card["games"][1]["temperature"], "auto is per game"
