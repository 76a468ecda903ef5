# SPDX-License-Identifier: MIT
"""Which network of a training is kept: the one rule, for teachers and students."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork
from fastdistill.teachers import load_teacher
from fastdistill.training.selection import Best, Probe, mean_return


def games(scores):
    """A way to play whose scores are given, and what it was asked for."""
    asked = []

    def play(episodes, seed):
        asked.append((episodes, seed))
        return scores.pop(0)

    return play, asked


def test_the_best_wins_twice_and_ties_go_to_the_later():
    best = Best()
    # Five networks: the first has nobody to win against and plays the second round alone; one
    # that loses the first games does not play the second.
    scores = [-21.0, 18.0, 14.5, 14.0, 15.0, 14.5, 3.0]
    play, asked = games(scores)
    won = [best.wins(play, episodes=10, seed=7) for _ in range(5)]
    assert won == [True, True, False, True, False]
    assert scores == []
    assert (best.score, best.episodes) == (14.5, 20)
    assert [episodes for episodes, _ in asked] == [20, 10, 20, 10, 10, 20, 10]
    seeds = {seed for _, seed in asked}
    assert len(seeds | {7}) == 3, "7 is the evaluation's"


def test_luck_in_the_first_games_is_not_enough():
    best = Best()
    play, _ = games([14.0, 20.0, 13.0, 14.5, 14.5])
    assert [best.wins(play, episodes=10, seed=7) for _ in range(3)] == [True, False, True]


def test_a_continued_run_remembers_the_best_score():
    best, continued = Best(), Best()
    best.wins(lambda *_: 3.0, episodes=5, seed=0)
    continued.restore(best.state())
    assert not continued.wins(lambda *_: 2.0, episodes=5, seed=0)
    assert (continued.score, continued.episodes) == (3.0, 10)


@pytest.fixture(scope="module")
def cartpole():
    env = make_env("CartPole-v1", 4, training=False)
    yield env
    env.close()


def test_the_score_is_what_the_network_plays(cartpole):
    network = QNetwork(Architecture((4,), (2,), hidden=(8,)))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    device = torch.device("cpu")
    mean = mean_return(network, cartpole, device, episodes=4, seed=1, epsilon=0.0)
    # Equal action values: always the first action, to the left, which falls within 12 steps.
    assert 8 <= mean <= 12


def test_a_probe_asks_the_teacher_about_every_eighth_step(cartpole):
    """Agreement and KL against the plain formulas on exactly the states that were probed."""
    torch.manual_seed(3)
    student = QNetwork(Architecture((4,), (2,), hidden=(8,)), head_gain=1.0)
    teacher = load_teacher(QNetwork(Architecture((4,), (2,), hidden=(8,)), head_gain=1.0), cartpole)
    shown = SimpleNamespace()
    probe = Probe(student, teacher, 0.5, shown)
    seen = torch.randn(20, 3, 4)
    with torch.no_grad():
        for obs in seen:
            shown.teacher_obs = obs.numpy()
            assert torch.equal(probe(obs), student(obs))
        mine = [student(obs).double() for obs in seen[::8]]
        its = [teacher(obs).double() for obs in seen[::8]]
    same, kls = [], []
    for a, b in zip(mine, its, strict=True):
        same.append(float((a.argmax(1) == b.argmax(1)).double().mean()))
        log_p, log_q = torch.log_softmax(b / 0.5, 1), torch.log_softmax(a, 1)
        kls.append(float((log_p.exp() * (log_p - log_q)).sum(1).mean()))
    assert probe.agreement == pytest.approx(sum(same) / 3)
    assert probe.kl == pytest.approx(sum(kls) / 3, rel=1e-5)
