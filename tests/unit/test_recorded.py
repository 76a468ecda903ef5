# SPDX-License-Identifier: MIT
"""A teacher's evaluation on record: used only where it is of just the games that are asked for."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from fastdistill.envs import make_env
from fastdistill.evaluation.compare import Player, compare
from fastdistill.evaluation.play import evaluate_env
from fastdistill.evaluation.recorded import recorded_evaluation
from fastdistill.networks import Architecture, QNetwork
from fastdistill.teachers import load_teacher, zoo_names


@pytest.fixture(scope="module")
def cartpole():
    env = make_env("CartPole-v1", 2, training=False)
    yield env
    env.close()


def score_of(env, network, episodes=3):
    """What a card would say, of games that are played here."""
    return evaluate_env(network, env, episodes=episodes, seed=4).to_json()


def network():
    torch.manual_seed(0)
    return QNetwork(Architecture((4,), (2,), hidden=(8,)))


def test_a_record_is_the_evaluation_itself(cartpole):
    score = score_of(cartpole, network())
    found = recorded_evaluation({"scores": [score]}, cartpole.spec, episodes=3)
    assert found == evaluate_env(network(), cartpole, episodes=3, seed=4)


def test_the_first_that_fits_is_taken_and_others_are_not(cartpole):
    score = score_of(cartpole, network())
    other = {**score, "epsilon": 0.5}
    found = recorded_evaluation({"scores": [other, score]}, cartpole.spec, episodes=3)
    assert found is not None
    assert found.epsilon == 0.0
    noisy = recorded_evaluation({"scores": [score, other]}, cartpole.spec, episodes=3, epsilon=0.5)
    assert noisy is not None
    assert noisy.epsilon == 0.5
    assert recorded_evaluation({"scores": [score]}, cartpole.spec, episodes=4) is None
    more = recorded_evaluation({"scores": [score]}, cartpole.spec, episodes=2)
    assert more is not None
    assert len(more.returns) == 3
    assert recorded_evaluation({}, cartpole.spec, episodes=3) is None


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "classic"},
        {"settings": {"env": "CartPole-v1", "wind": 1}},
        {"versions": {"gymnasium": "0.1"}},
        {"versions": None},
        {"returns": [9.0, math.nan, 9.0]},
        {"returns": [9.0, True, 9.0]},
        {"returns": "999"},
        {"returns": [9.0, 9.0]},
        {"lengths_steps": [9, 9, 0]},
        {"lengths_steps": [9, 9]},
        {"lengths_steps": 9},
        {"seed": "4"},
        {"truncated": None},
        {"num_lanes": 2.0},
    ],
    ids=str,
)
def test_another_or_a_damaged_record_counts_as_none(cartpole, change):
    score = {**score_of(cartpole, network()), **change}
    assert recorded_evaluation({"scores": [score]}, cartpole.spec, episodes=3) is None


@pytest.mark.parametrize("scores", [None, 5, [5], {"returns": []}])
def test_scores_of_another_kind_count_as_none(cartpole, scores):
    assert recorded_evaluation({"scores": scores}, cartpole.spec, episodes=3) is None


def test_whoever_is_on_record_does_not_play_and_the_entry_says_so(cartpole, capsys):
    score = score_of(cartpole, network())
    recorded = recorded_evaluation({"scores": [score]}, cartpole.spec, episodes=3)
    record = compare(
        Player("teacher", network(), network(), {}, recorded),
        [Player("student", network(), network(), {})],
        cartpole,
        episodes=3,
        seed=1,
        device=torch.device("cpu"),
    )
    teacher, student = record["teacher"], record["students"][0]
    assert teacher["returns"] == score["returns"]
    assert teacher["on_record"] == {"seed": 4, "versions": score["versions"]}
    assert student["returns"] == list(evaluate_env(network(), cartpole, episodes=3, seed=1).returns)
    assert "on_record" not in student
    assert "on record in its card" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("name", zoo_names())
def test_the_zoos_teachers_are_on_record(name):
    """With the versions of constraints.txt; under others they play."""
    card = copy.deepcopy(load_teacher(f"zoo:{name}").card)
    env = make_env(name, 1, training=False)
    env.close()
    versions = {"ale_py": "0.12.1", "gymnasium": "1.4.0"}
    score = next(one for one in card["scores"] if one["epsilon"] == 0.05)
    assert versions.items() <= score["versions"].items()
    found = recorded_evaluation(card, env.spec, episodes=30)
    if found is not None:
        assert found.returns == tuple(score["returns"])
