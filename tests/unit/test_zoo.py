# SPDX-License-Identifier: MIT
"""What ships: every zoo teacher is small, described, whole, and plays as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdistill.cli import main
from fastdistill.envs import make_env
from fastdistill.evaluation import evaluate_env
from fastdistill.networks.checkpoint import read_card
from fastdistill.teachers import ZOO, checkpoint_path, load_teacher, zoo_names


def test_pong_ships():
    assert "pong" in zoo_names()


@pytest.mark.parametrize("name", zoo_names())
def test_cards_say_what_a_user_must_know(name):
    card = read_card(checkpoint_path(f"zoo:{name}"))
    for key in ("game", "kind", "action_meanings", "environment", "training", "scores", "limits"):
        assert card[key], key
    assert (ZOO / card["weights"]["file"]).stat().st_size < 4e6
    for score in card["scores"]:
        assert len(score["returns"]) == score["episodes"] >= 30
        assert score["mean"] == pytest.approx(sum(score["returns"]) / score["episodes"], abs=0.005)
        for key in ("preset", "epsilon", "seed", "num_lanes"):
            assert key in score


@pytest.mark.parametrize("name", zoo_names())
def test_the_documented_scores_are_the_cards(name):
    page = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text()
    rows = page[page.index(f"| `zoo:{name}` |") :].splitlines()
    card = read_card(checkpoint_path(f"zoo:{name}"))
    for row, score in zip(rows, card["scores"], strict=False):
        low, high = score["interval95"]
        assert row.split("|")[2:5] == [
            f" {score['preset']}, {score['epsilon']} ",
            f" {score['mean']:.2f} [{low:.2f}, {high:.2f}] ",
            f" {score['iqm']:.2f} ",
        ]


def test_the_command_lists_them_with_their_scores(capsys):
    assert main(["zoo"]) == 0
    printed = capsys.readouterr().out
    blocks = {block.split(":")[0]: block for block in printed.split("zoo:")[1:]}
    assert sorted(blocks) == sorted(path.stem for path in ZOO.glob("*.json"))
    for name, block in blocks.items():
        card = json.loads((ZOO / f"{name}.json").read_text())
        first, *rows = block.splitlines()
        assert f"{card['parameters']:,} parameters, {len(card['action_meanings'])} actions" in first
        assert len(rows) == len(card["scores"])
        for row, score in zip(rows, card["scores"], strict=True):
            words = row.replace(",", "").split()
            assert words[:3] == [score["preset"], "epsilon", str(score["epsilon"])]
            assert float(words[4]) == pytest.approx(score["mean"], abs=0.005)
            assert [float(word.strip("[]")) for word in words[6:8]] == score["interval95"]
            assert words[8:] == ["over", str(score["episodes"]), "episodes"]


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("name", zoo_names())
def test_teachers_play_as_their_cards_say(name):
    # Another seed than the card's. Six standard errors of both means: false alarm 2e-9; a teacher
    # that stopped playing is tens of standard errors away.
    card = read_card(checkpoint_path(f"zoo:{name}"))
    score = card["scores"][0]
    env = make_env(card["game"], 10, preset=score["preset"], training=False)
    teacher = load_teacher(f"zoo:{name}", env)
    record = evaluate_env(teacher, env, episodes=20, epsilon=score["epsilon"], seed=77)
    error = score["std"] * (1 / score["episodes"] + 1 / 20) ** 0.5
    assert abs(record.mean - score["mean"]) < 6 * error
