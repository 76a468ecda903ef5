# SPDX-License-Identifier: MIT
"""Which network of a training is kept: the one rule, for teachers and students."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork
from fastdistill.teachers import load_teacher
from fastdistill.training.selection import Best, Probe, Round, mean_return


def games(scores):
    """A way to play whose scores, or whole rounds, are given, and what it was asked for."""
    asked = []

    def play(episodes, seed):
        asked.append((episodes, seed))
        found = scores.pop(0)
        return found if isinstance(found, Round) else Round(found)

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
    best.wins(lambda *_: Round(3.0, 0.5, 0.75), episodes=5, seed=0)
    continued.restore(json.loads(json.dumps(best.state())))
    assert not continued.wins(lambda *_: Round(2.0), episodes=5, seed=0)
    assert (continued.score, continued.episodes) == (3.0, 10)
    assert (continued.error, continued.agreement) == (0.5, 0.75)


# The best one: 100 points with an error of 3, it agrees in 0.8. An error of 4 makes one of 5.
@pytest.mark.parametrize(
    ("found", "wins", "rounds"),
    [
        (Round(90.0, 4.0, 0.81), True, 1),  # no worse but by luck: two errors
        (Round(89.9, 4.0, 0.81), False, 1),  # beyond luck
        (Round(90.0, 4.0, 0.80), False, 1),  # no nearer to the teacher, and fewer points
        (Round(101.0, 4.0, 0.81), True, 1),  # more points, and it agrees: not luck, no more games
        (Round(101.0, 4.0, 0.79), True, 2),  # more points alone have to be shown again
        (Round(101.0, 4.0, None), True, 2),  # no teacher
        (Round(99.0, 4.0, None), False, 1),
        (Round(99.0, float("nan"), 0.9), False, 1),  # of one game: nothing is known of its luck
        (Round(100.0, 0.0, 0.9), True, 1),
    ],
)
def test_where_games_cannot_tell_two_students_apart_their_teacher_does(found, wins, rounds):
    best = Best()
    assert best.wins(lambda *_: Round(100.0, 3.0, 0.8), episodes=10, seed=0)
    play, asked = games([found, found])
    assert best.wins(play, episodes=10, seed=0) == wins
    assert len(asked) == rounds
    kept = found if wins else Round(100.0, 3.0, 0.8)
    assert (best.score, best.error, best.agreement) == kept
    assert best.episodes == (asked[-1][0] if wins else 20)


def test_a_lucky_early_student_does_not_keep_better_ones_out():
    """Students that only get better, judged by few noisy games: the last is the best.

    Each of 400 trainings has eight checkpoints, worth 60 to 100 points and nearer to the teacher
    each time; five games have an error of 15. What the kept one is worth: the rule is to lose less
    than 2 points on average (0.1 here); by scores alone more than 5 are lost (6.3 here).
    """
    rng = np.random.default_rng(0)
    worth = np.linspace(60, 100, 8)
    lost = {True: 0.0, False: 0.0}
    for _ in range(400):
        for has_teacher in lost:
            best, kept = Best(), 0
            for place, true in enumerate(worth):

                def play(episodes, _, true=true, place=place, has_teacher=has_teacher):
                    error = 15 * (5 / episodes) ** 0.5
                    agreement = 0.7 + 0.03 * place if has_teacher else None
                    return Round(rng.normal(true, error), error, agreement)

                if best.wins(play, episodes=5, seed=0):
                    kept = place
            lost[has_teacher] += (worth[-1] - worth[kept]) / 400
    assert lost[True] < 2
    assert lost[False] > 5


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
