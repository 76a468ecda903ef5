# SPDX-License-Identifier: MIT
"""Which network of a training run becomes its teacher."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork
from fastdistill.networks.checkpoint import load_network
from fastdistill.recipes import teaching
from fastdistill.recipes.common import TrainingState


@pytest.fixture
def env():
    with closing(make_env("CartPole-v1", 2)) as env:
        yield env


@pytest.fixture
def network():
    return QNetwork(Architecture((4,), (2,), hidden=(8,)))


def save(run_dir, network, env, at, step, **options):
    """Save with every weight equal to ``step``, by which a test knows the file again."""
    at.step = step
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(step)
    stopped = options.pop("stopped", False)
    config = SimpleNamespace(
        **{
            "run_dir": run_dir,
            "game": "CartPole-v1",
            "preset": "classic",
            "score_episodes": 10,
            "evaluation_epsilon": 0.25,
            "seed": 7,
            **options,
        }
    )
    teaching.save_best(config, network, env, at, stopped=stopped)


def saved_step(run_dir):
    network, card = load_network(run_dir / "teacher")
    steps = {value for parameter in network.parameters() for value in parameter.flatten().tolist()}
    assert steps == {card["trained_steps"]}
    return card["trained_steps"], card["scoring"]


def test_the_best_score_is_kept_and_ties_go_to_the_later(tmp_path, env, network, monkeypatch):
    asked = []

    def evaluate(policy, name, **options):
        asked.append((policy, name, options))
        return SimpleNamespace(mean=scores.pop(0))

    monkeypatch.setattr(teaching, "evaluate", evaluate)
    at = TrainingState(7)
    # A network that loses the first games does not play the second.
    scores = [-20.0, -21.0, 18.0, 14.5, 14.0, 15.0, 14.5, 3.0]
    kept = []
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, network, env, at, step)
        kept.append(saved_step(tmp_path))
    assert kept == [
        (1, {"mean": -21.0, "episodes": 20}),
        (2, {"mean": 14.5, "episodes": 20}),
        (2, {"mean": 14.5, "episodes": 20}),
        (4, {"mean": 14.5, "episodes": 20}),
        (4, {"mean": 14.5, "episodes": 20}),
    ]
    assert scores == []
    assert at.best_score == 14.5
    for policy, name, options in asked:
        assert policy is network
        assert name == "CartPole-v1"
        assert options["epsilon"] == 0.25
    assert [options["episodes"] for _, _, options in asked] == [10, 20, 10, 20, 10, 10, 20, 10]
    seeds = [options["seed"] for _, _, options in asked[:2]]
    assert len({7, *seeds}) == 3  # 7 is the evaluation's


def test_luck_in_the_first_games_is_not_enough(tmp_path, env, network, monkeypatch):
    scores = [14.0, 14.0, 20.0, 13.0, 14.5, 14.5]
    monkeypatch.setattr(teaching, "evaluate", lambda *_, **__: SimpleNamespace(mean=scores.pop(0)))
    at = TrainingState(7)
    kept = []
    for step in (1, 2, 3):
        save(tmp_path, network, env, at, step)
        kept.append(saved_step(tmp_path)[0])
    assert kept == [1, 1, 3]


def test_a_continued_run_remembers_the_best_score(tmp_path, env, network, monkeypatch):
    monkeypatch.setattr(
        teaching, "evaluate", lambda *_, **__: SimpleNamespace(mean=float(at.step == 1))
    )
    at = TrainingState(7)
    save(tmp_path, network, env, at, 1)
    continued = TrainingState(7)
    continued.restore(at.card())
    at = continued
    save(tmp_path, network, env, at, 2)
    assert saved_step(tmp_path)[0] == 1


def test_without_scoring_the_last_network_is_kept(tmp_path, env, network, monkeypatch):
    monkeypatch.delattr(teaching, "evaluate")  # not played
    at = TrainingState(7)
    for step in (1, 2):
        save(tmp_path, network, env, at, step, score_episodes=0)
    assert saved_step(tmp_path) == (2, {"mean": None, "episodes": 0})
    assert at.best_score is None


def test_a_stopped_run_plays_nothing_and_replaces_no_judged_teacher(
    tmp_path, env, network, monkeypatch
):
    played = []

    def evaluate(*_, **__):
        played.append(1)
        return SimpleNamespace(mean=-21.0)

    monkeypatch.setattr(teaching, "evaluate", evaluate)
    at = TrainingState(7)
    save(tmp_path, network, env, at, 1, stopped=True)
    assert saved_step(tmp_path) == (1, {"mean": None, "episodes": 0})
    save(tmp_path, network, env, at, 2)
    save(tmp_path, network, env, at, 3, stopped=True)
    assert saved_step(tmp_path) == (2, {"mean": -21.0, "episodes": 20})
    assert len(played) == 2


def test_the_score_is_what_the_network_plays(tmp_path, env, network):
    at = TrainingState(7)
    save(tmp_path, network, env, at, 1, score_episodes=2, evaluation_epsilon=0.0)
    # Equal action values: always the first action, to the left, which falls within 12 steps.
    assert 8 <= at.best_score <= 12
