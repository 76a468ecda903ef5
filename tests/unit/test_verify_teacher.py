# SPDX-License-Identifier: MIT
"""Whether a teacher is asked about the right observations: the verdict in words."""

from __future__ import annotations

import re

import pytest
import torch

from fastdistill.evaluation import verify
from fastdistill.evaluation.play import Evaluation
from fastdistill.evaluation.verify import verify_teacher


def balance(obs):
    """Plays CartPole well: push to the side that the pole falls to."""
    push = obs[:, 2] + 0.5 * obs[:, 3] + 0.05 * obs[:, 0] + 0.1 * obs[:, 1]
    return torch.stack([-push, push], dim=1)


def tumble(obs):
    return -balance(obs)


def always_left(obs):
    return torch.tensor([[1.0, 0.0]]).expand(len(obs), 2)


def cartpole(policy, reported=None, **options):
    return verify_teacher(policy, "CartPole-v1", reported, episodes=10, **options)


def test_a_score_as_reported_agrees():
    result = cartpole(balance, reported=500.0)
    assert result.agrees
    assert result.preset == ""
    assert result.score.value > 450
    assert result.random.value < 60
    assert "Agrees with the reported [475.00, 525.00]." in result.verdict
    assert "Likely wrong" not in result.verdict
    assert sum(result.action_shares) == pytest.approx(1)


def test_a_module_plays_as_it_does_in_an_evaluation():
    modes = set()

    class Watched(torch.nn.Module):
        def forward(self, obs):
            modes.add(self.training)
            return balance(obs)

    policy = Watched()
    cartpole(policy)
    assert modes == {False}
    assert policy.training


def test_without_a_report_random_play_is_the_measure():
    assert cartpole(balance).agrees is None
    assert "Better than random play; give the reported score" in cartpole(balance).verdict
    assert "No better than random play: this teacher is not understood. Likely wrong: the set" in (
        cartpole(tumble).verdict
    )


def test_a_teacher_that_plays_like_chance_is_not_understood():
    result = cartpole(tumble, reported=(450, 500))
    assert result.agrees is False
    assert "Like random play, far from the reported [450.00, 500.00]." in result.verdict
    assert "missing VecNormalize statistics" in result.verdict


def test_a_teacher_that_does_one_thing_is_noticed():
    verdict = cartpole(always_left, reported=500).verdict
    assert "Action 0 is the best in 100% of its states" in verdict


def test_more_than_reported_is_no_fault():
    result = cartpole(balance, reported=200)
    assert not result.agrees
    assert "More than the reported [190.00, 210.00]" in result.verdict
    assert "Likely wrong" not in result.verdict


def test_less_than_reported_is_another_setting():
    verdict = cartpole(balance, reported=900, epsilon=0.2).verdict
    assert "Less than the reported [855.00, 945.00]: it knows the game" in verdict


def record(preset, returns):
    """A game's record; real ones under two presets take minutes."""
    return Evaluation("pong", preset, 0.05, 1, 2, returns, (10,) * len(returns), 0)


@pytest.mark.parametrize(
    ("classic", "text"),
    [
        ((18.0, 20.0), r"Preset 'classic' is the right one: 19.00 \[18.00, 20.00\] there agrees "),
        ((11.0, 9.0), r"Less than the reported .* \(and 10.00 \[9.00, 11.00\] under 'classic'\)"),
    ],
)
def test_the_other_presets_are_played_where_the_score_falls_short(classic, text, monkeypatch):
    played = []

    def evaluate(policy, env_name, *, preset, epsilon, **_):
        played.append((preset, epsilon))
        policy(torch.zeros(1, 4))
        if epsilon == 1.0:
            return record(preset, (-21.0, -20.0))
        return record(preset, classic if preset == "classic" else (3.0, 5.0))

    monkeypatch.setattr(verify, "evaluate", evaluate)
    result = verify_teacher(balance, "pong", (17.0, 21.0), preset="machado")
    assert played == [("machado", None), ("machado", 1.0), ("classic", None)]
    assert set(result.scores) == {"machado", "classic"}
    assert result.agrees is False
    assert re.search(text, result.verdict)


@pytest.mark.parametrize("reported", [float("nan"), (2, 1), (1, 2, 3), ()])
def test_reports_that_are_none(reported):
    with pytest.raises(ValueError, match=r"verify_teacher: reported must be a score or \(low"):
        cartpole(balance, reported)


def test_values_must_be_finite():
    with pytest.raises(ValueError, match="verify_teacher: teacher must return finite values"):
        cartpole(lambda obs: torch.full((len(obs), 2), torch.nan))
