# SPDX-License-Identifier: MIT
"""The command line as a user meets it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fastdistill.cli import main
from fastdistill.networks import Architecture, QNetwork, paper_architecture
from fastdistill.networks.checkpoint import save_network


def motionless_pong(path):
    network = QNetwork(paper_architecture("4%", 6))
    with torch.no_grad():
        network.heads[0].output.weight.zero_()
        network.heads[0].output.bias[0] = 1.0
    return save_network(path, network, {"game": "pong"})


def test_evaluate_prints_and_writes_the_score(tmp_path, capsys):
    path = motionless_pong(tmp_path / "teacher")
    out, gif = tmp_path / "out" / "score.json", tmp_path / "game.gif"
    arguments = ["evaluate", str(path), "--game", "pong", "--episodes", "2", "--epsilon", "0"]
    assert main([*arguments, "--lanes", "2", "--out", str(out), "--gif", str(gif)]) == 0
    printed = capsys.readouterr().out
    assert "pong: classic, epsilon 0.0, seed 1" in printed
    assert "mean      -21.00  95% [-21.00, -21.00]" in printed
    assert "human-normalised -0.008" in printed
    record = json.loads(out.read_text())
    assert record["returns"] == [-21, -21]
    assert record["summary"]["mean"]["value"] == -21
    assert record["settings"]["noop_max"] == 30
    assert gif.read_bytes()[:6] == b"GIF89a"


def test_evaluate_takes_the_game_from_the_card_and_other_environments_too(tmp_path, capsys):
    network = QNetwork(Architecture((4,), (2,), hidden=(8,)))
    path = save_network(tmp_path / "cartpole", network, {"game": "CartPole-v1"})
    assert main(["evaluate", str(path), "--episodes", "3"]) == 0
    assert "CartPole-v1: as registered, epsilon 0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "no/such/file"], "no/such/file must exist, got neither it nor file.json"),
        (["evaluate", "zoo:chess"], "zoo teacher must be one of"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastdistill: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_checkpoint_for_another_game_is_refused(tmp_path, capsys):
    path = motionless_pong(tmp_path / "teacher")
    assert main(["evaluate", str(path), "--game", "breakout"]) == 2
    assert "must have the 4 actions of breakout, got 6" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for option in ("--game", "--episodes", "--preset", "--epsilon", "--gif", "--out"):
        assert option in text


def test_without_tyro_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["evaluate", "x"]) == 2
    assert "pip install 'tyro" in capsys.readouterr().err
