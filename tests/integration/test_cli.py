# SPDX-License-Identifier: MIT
"""The command line as a user meets it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import fastdistill
from fastdistill import cli
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
        (["evaluate", "no/such/file"], "must exist, got neither it nor file.json"),
        (
            ["evaluate", "zoo:pong", "--game", "Nope-v0"],
            "must be one that gymnasium can make",
        ),
        (["evaluate", "zoo:pong", "--device", "nonsense"], "must be one that torch has here"),
        (
            ["evaluate", "zoo:pong", "--episodes", "many"],
            "parsing --episodes: invalid literal",
        ),
        (["evaluate", "zoo:pong", "--colour", "red"], "Unrecognized options: --colour"),
        (["evaluate", "zoo:pong", "--workers", "-1"], "workers must be at least 0, got -1"),
        (["evaluate", "zoo:pong", "--lanes", "0"], "evaluate: lanes must be at least 1, got 0"),
        (["evaluate", "zoo:pong", "--episodes", "0"], "episodes must be at least 1, got 0"),
        (
            ["collect", "zoo:pong", "--steps", "9", "--out", "shards", "--seed", "-1"],
            "collect: seed must be in [0, ",
        ),
        (
            ["distill", "--total-updates", "0"],
            "total_updates must be at least 1, got 0",
        ),
        (
            ["teacher", "dqn", "--game", "Blackjack-v1"],
            "env must have vector or image obs",
        ),
        (["teacher"], "Expected one of {dqn, pqn}"),
        (["teacher", "pqn", "--num-lanes", "0"], "PqnConfig: num_lanes must be at least 1, got 0"),
        (["teacher", "dqn", "--replay-capacity", str(10**12)], "PrioritizedReplay"),
        (["evaluate", "zoo:chess"], "zoo teacher must be one of"),
    ],
)
def test_mistakes_end_in_one_line_and_status_two(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastdistill: ")
    assert message in error
    assert "dummy" not in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_memory_is_one_line_and_a_defect_is_a_traceback(monkeypatch, capsys):
    def fails(error):
        def evaluate_env(*_, **__):
            raise error

        monkeypatch.setattr(cli, "evaluate_env", evaluate_env)

    arguments = ["evaluate", "zoo:pong", "--episodes", "1"]
    for error, said in (
        (MemoryError(), "fastdistill: out of memory\n"),
        (
            RuntimeError("[enforce] can't allocate memory: you\ntried"),
            "allocate memory: you ",
        ),
        (TypeError("evaluate: policy must return a tensor, got tuple"), "got tuple\n"),
    ):
        fails(error)
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert printed.count("\n") == 1
    fails(TypeError("'NoneType' object is not iterable"))
    with pytest.raises(TypeError, match="NoneType"):
        main(arguments)


def test_an_interrupt_during_an_evaluation_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate_env", interrupted)
    assert main(["evaluate", "zoo:pong", "--episodes", "1"]) == 130
    assert capsys.readouterr().err == "fastdistill: interrupted\n"


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdistill {fastdistill.__version__}\n"


def test_evaluate_takes_a_runs_directory(tmp_path, capsys):
    network = QNetwork(Architecture((4,), (2,), hidden=(8,)))
    save_network(tmp_path / "student", network, {"game": "CartPole-v1"})
    for name in ("config", "evaluation"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert main(["evaluate", str(tmp_path), "--episodes", "2"]) == 0
    assert "CartPole-v1: as registered" in capsys.readouterr().out


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
