# SPDX-License-Identifier: MIT
"""Several games in one batch: each head learns its own game's labels, and nothing else."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from two_games import (
    made_play,
    small_network,
    student_of,
)

from fastdistill.replay import ReplayBatch
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.learners.student import Student
from fastdistill.training.shares import Shares


@pytest.mark.parametrize("share", [None, 0.5, 1.0], ids=["teacher", "mixture", "student"])
def test_a_label_never_reaches_another_games_head(share):
    """Teachers that encode their game and the state, over episode ends and a wrapped ring."""
    play, envs, counters = made_play(students=[student_of(small_network(2, 5))])
    counters.updates = 1  # students may drive
    for _ in range(400):
        play.step(0.3, share)
    for _ in range(20):
        obs, labels = play.sample(101)
        assert [part.shape[1] for part in labels] == [2, 5]
        rows = torch.split(obs, [len(part) for part in labels])
        for game, (seen, part) in enumerate(zip(rows, labels, strict=True)):
            assert torch.equal(part, play.tasks[game].teacher.values(seen))
            assert ((part[:, 0] - 1000 * game).abs() < 100).all()
    for env in envs:
        env.close()


def test_shares_of_a_batch_are_exact():
    play, envs, _ = made_play(weights=(1.0, 2.0))
    for _ in range(60):
        play.step(0.3, None)
    counts = np.array([[len(part) for part in play.sample(64).labels] for _ in range(30)])
    assert (counts.sum(axis=1) == 64).all()
    total = counts.cumsum(axis=0)
    wanted = 64 * np.arange(1, 31)[:, None] * np.array([1 / 3, 2 / 3])
    assert (np.abs(total - wanted) < 1).all()
    assert counts[:, 0].min() >= 21
    assert counts[:, 0].max() <= 22
    for env in envs:
        env.close()


@pytest.mark.parametrize("shares", [[1], [1, 1, 1], [1, 1, 2], [0, 1], [1e-9, 1, 1], [5, 0, 0.3]])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_shares_add_up_and_none_is_negative(shares, rows):
    counted = Shares(shares)
    total = np.zeros(len(shares))
    for batch in range(1, 200):
        counts = counted.take(rows)
        assert sum(counts) == rows
        assert min(counts) >= 0
        total += counts
        wanted = np.array(shares) / sum(shares) * rows * batch
        assert (np.abs(total - wanted) < len(shares)).all()
        assert (total[np.array(shares) == 0] == 0).all()
        copy = Shares(shares)
        copy.restore(json.loads(json.dumps(counted.state())))
        counted = copy


@pytest.mark.parametrize("loss", ["kl", "nll", "mse", "reverse_kl", "jsd"])
def test_an_update_is_that_of_a_plain_loop(loss):
    """Trunk once, a head and its loss on its slice, one divisor: against autograd in float64."""
    torch.manual_seed(1)
    network = small_network(2, 5, 3).double()
    for head in range(3):
        network.set_obs_statistics(torch.randn(4).double(), torch.rand(4).double(), head)
    plain = copy.deepcopy(network)
    student = Student(
        network, loss=loss, size="4%", seed=0, optimizer="adam", learning_rate=1e-2, bfloat16=False
    )
    obs, counts, temperatures = torch.randn(17, 4).double(), [6, 0, 11], [0.5, 1.0, 2.0]
    labels = [torch.randn(n, a).double() for n, a in zip(counts, (2, 5, 3), strict=True)]
    total, start = 0.0, 0
    for head, (taught, temperature) in enumerate(zip(labels, temperatures, strict=True)):
        rows = obs[start : start + len(taught)]
        start += len(taught)
        x = (rows - plain.obs_mean[head]) * plain.obs_scale[head]
        values = plain.heads[head](plain.trunk(x))
        p, log_q = (taught / temperature).softmax(1), values.log_softmax(1)
        if loss == "kl":
            total = total + (p * (p.log() - log_q)).sum()
        elif loss == "reverse_kl":
            total = total + (log_q.exp() * (log_q - p.log())).sum()
        elif loss == "jsd":
            m = (p + log_q.exp()) / 2
            total = total + (p * (p.log() - m.log())).sum() / 2
            total = total + (log_q.exp() * (log_q - m.log())).sum() / 2
        elif loss == "nll":
            total = total - log_q.gather(1, taught.argmax(1, keepdim=True)).sum()
        else:
            total = total + (values - taught).square().sum()
    expected = total / 17
    expected.backward()
    learned = student.update(obs, labels, [None] * 3, temperatures, 1e-2)
    torch.testing.assert_close(learned["loss"], expected.detach(), rtol=1e-10, atol=1e-12)
    for own, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        if theirs.grad is None or own.grad is None:
            assert own.grad is None or not own.grad.any()
            assert theirs.grad is None or not theirs.grad.any()
        else:
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    optimizer.step()
    for (name, own), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        if not name.startswith("heads.1"):  # Adam leaves what has no gradient
            torch.testing.assert_close(own, theirs, rtol=1e-7, atol=1e-9)


def test_a_heads_gradient_is_zero_on_rows_of_other_games():
    network = small_network(2, 5)
    obs = torch.randn(9, 4)
    for game, counts in ((0, [9, 0]), (1, [0, 9])):
        network.zero_grad()
        outputs = network.forward_games(obs, counts)
        outputs[game].square().sum().backward()
        for parameter in network.heads[1 - game].parameters():
            assert parameter.grad is None or not parameter.grad.any()
        assert any(p.grad.any() for p in network.heads[game].parameters())
    # Within one batch: the labels of the other game change nothing in a head.
    grads = []
    for shift in (0.0, 5.0):
        student = student_of(small_network(2, 5))
        labels = [torch.ones(4, 2) * torch.tensor([1.0, 2.0]), torch.randn(5, 5) * shift]
        student.update(obs, labels, [None, None], [1.0, 1.0], 1e-3)
        grads.append([p.grad.clone() for p in student.network.heads[0].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_td_update_of_two_games_is_that_of_a_plain_loop():
    torch.manual_seed(2)
    network = small_network(2, 5).double()
    learner = DqnLearner(
        network, learning_rate=1e-2, adam_epsilon=1e-4, max_gradient_norm=1e9, bfloat16=False
    )
    plain, counts = copy.deepcopy(network), [4, 7]
    action = torch.cat([torch.randint(2, (4,)), torch.randint(5, (7,))])
    batch = ReplayBatch(
        obs=torch.randn(11, 4).double(), action=action, reward=torch.randn(11).double(),
        discount=torch.rand(11).double(), next_obs=torch.randn(11, 4).double(),
        weight=torch.rand(11).double(), id=torch.arange(11), columns={},
        task=torch.tensor([0] * 4 + [1] * 7),
    )  # fmt: skip
    learned = learner.update(batch)
    total, errors = 0.0, []
    for row in range(11):
        head = 0 if row < counts[0] else 1
        with torch.no_grad():
            ahead = plain(batch.next_obs[row : row + 1], head)[0].max()
            target = batch.reward[row] + batch.discount[row] * ahead
        td = plain(batch.obs[row : row + 1], head)[0, action[row]] - target
        huber = td.square() / 2 if td.abs() <= 1 else td.abs() - 0.5
        total = total + batch.weight[row] * huber / 11
        errors.append(td.abs().detach())
    total.backward()
    torch.testing.assert_close(learned["td_loss"], total.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(learned["td_abs"], torch.stack(errors), rtol=1e-6, atol=1e-6)
    for own, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-9, atol=1e-12)
