# SPDX-License-Identifier: MIT
"""One DQN that learns several games by itself."""

from __future__ import annotations

import pytest
import torch

import fastdistill as fd
from fastdistill.recipes import dqn

JOINT = {
    "game": "CartPole-v1,FdWalk-v0",
    "total_steps": 1_600,
    "learning_starts_steps": 200,
    "num_lanes": 2,
    "batch_size": 15,
    "replay_capacity": 1_000,
    "epsilon_steps": 800,
    "target_update_updates": 20,
    "checkpoint_every_steps": 400,
    "log_every_steps": 400,
    "score_episodes": 2,
    "evaluation_episodes": 3,
    "size": "4%",
    "tensorboard": False,
    "bfloat16": False,
    "device": "cpu",
}


def test_one_dqn_learns_two_games_interrupted_or_not(tmp_path):
    class Later:
        calls = 150

        @property
        def requested(self):
            self.calls -= 1
            return self.calls < 0

    config = dqn.DqnConfig(run_dir=tmp_path / "whole", **JOINT)
    result = dqn.train(config)
    assert [record["game"] for record in result.evaluation["games"]] == list(config.games)
    network, card = fd.load_network(tmp_path / "whole" / "teacher")
    assert network.games == config.games
    assert all(len(entry["scores"][0]["returns"]) == 3 for entry in card["games"])
    teacher = fd.load_teacher(tmp_path / "whole" / "teacher", "FdWalk-v0")
    assert teacher.values(torch.randn(2, 4)).shape == (2, 3)
    cut = dqn.DqnConfig(run_dir=tmp_path / "cut", **JOINT)
    assert dqn.train(cut, stop=Later()).stopped
    assert not dqn.train(cut, resume=True).stopped
    again, _ = fd.load_network(tmp_path / "cut" / "teacher")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_joint_dqn_that_cannot_be_is_refused_in_words(tmp_path):
    for changes, message in (
        ({"game": "CartPole-v1,CartPole-v1"}, "teacher_dqn: game must not repeat, got CartPole-v1"),
        ({"game": "CartPole-v1,FdWide-v0"}, r"teacher_dqn: games must have observations of one sh"),
        ({"stop_at_return": 3.0}, "DqnConfig: stop_at_return must be left out where there are sev"),
        ({"learning_starts_steps": 15}, r"\* \(n_step \+ 1\) \* 2 games = 16, got 15"),
    ):
        with pytest.raises(ValueError, match=message):
            dqn.train(dqn.DqnConfig(run_dir=tmp_path / "run", **{**JOINT, **changes}))
    assert not (tmp_path / "run").exists()
