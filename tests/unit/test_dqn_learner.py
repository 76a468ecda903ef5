# SPDX-License-Identifier: MIT
"""The arithmetic of Double DQN against plain loops, and impossible configurations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastdistill.networks import Architecture, QNetwork, paper_architecture
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.replay import PrioritizedReplay
from fastdistill.training.learners.dqn import DqnLearner, double_q_target


def learner_of(network, **changes):
    options = {"learning_rate": 2.5e-4, "adam_epsilon": 1.5e-4, "max_gradient_norm": 10.0}
    return DqnLearner(network, **{**options, "bfloat16": True, **changes})


class Table(nn.Module):
    """Q-values by state number."""

    def __init__(self, values) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, obs):
        return self.values[obs[:, 0].long()]

    def forward_games(self, obs, counts):
        return [self(part) for part in torch.split(obs, counts)]


def test_the_target_values_the_action_that_the_network_prefers():
    network = Table([[1.0, 2.0, 0.0], [5.0, 4.0, 3.0]])
    target = Table([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    result = double_q_target(
        network,
        target,
        next_obs=torch.tensor([[0.0], [1.0], [1.0]]),
        reward=torch.tensor([1.0, 2.0, 3.0]),
        discount=torch.tensor([0.9, 0.5, 0.0]),
        counts=[3],
    )
    torch.testing.assert_close(result, torch.tensor([1 + 0.9 * 20, 2 + 0.5 * 40, 3.0]))


def test_an_update_descends_the_weighted_huber_loss():
    torch.manual_seed(0)
    network = QNetwork(Architecture((3,), (2,), hidden=(8,)))
    learner = learner_of(network, bfloat16=False, learning_rate=0.03)
    replay = PrioritizedReplay(
        64, 1, frame_shape=(3,), frame_dtype="float32", stack=1, n_step=2, discount=0.9
    )
    rng = np.random.default_rng(0)
    for _ in range(40):
        replay.append(rng.normal(size=(1, 3)).astype(np.float32), [1], [3.0], [False], [False])
    batch = replay.sample(16)
    with torch.no_grad():
        best = network(batch.next_obs).argmax(dim=1)
        ahead = learner.target(batch.next_obs)[torch.arange(16), best]
        error = network(batch.obs)[:, 1] - (batch.reward + batch.discount * ahead)
        size = error.abs()
        huber = torch.where(size <= 1, 0.5 * size**2, size - 0.5)
        expected = (batch.weight * huber).mean()
    first = learner.update(batch)
    torch.testing.assert_close(first["td_loss"], expected)
    torch.testing.assert_close(first["td_abs"], size)
    assert float(first["q_values"]) < 1  # far below the returns at first
    for _ in range(50):
        last = learner.update(batch)
    assert last["td_loss"] < first["td_loss"] / 2


def test_an_update_in_bfloat16_reaches_every_layer():
    # Under autocast the weights cast for the target's forward pass, without gradients, must not
    # be reused for the learning one.
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("4%", 6), head_gain=1.0)
    learner = learner_of(network)
    replay = PrioritizedReplay(64, 1, n_step=1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        frame = rng.integers(256, size=(1, 84, 84), dtype=np.uint8)
        replay.append(frame, [1], [3.0], [False], [False])
    learner.update(replay.sample(16))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_the_target_follows_only_when_it_is_copied():
    learner = learner_of(QNetwork(Architecture((3,), (2,), hidden=(8,))))
    with torch.no_grad():
        learner.network.heads[0].output.weight.add_(1.0)
    obs = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(learner.target(obs), learner.network(obs))
        learner.copy_target()
        assert torch.equal(learner.target(obs), learner.network(obs))
    assert not any(parameter.requires_grad for parameter in learner.target.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_step": 0}, "n_step must be at least 1, got 0"),
        ({"priority_exponent": 2.0}, r"priority_exponent must be in \[0, 1\], got 2.0"),
        ({"samples_per_step": 0.0}, "samples_per_step must be positive, got 0.0"),
        ({"total_steps": 10_000}, "total_steps must be above learning_starts_steps 10000, or noth"),
        ({"learning_starts_steps": 3}, r"learning_starts_steps must be at least .* = 32, got 3"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DqnConfig(**change)
