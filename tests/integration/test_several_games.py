# SPDX-License-Identifier: MIT
"""Several games in one student: whole runs, interrupted or not, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from cartpole import Balancer, assert_equal, weights
from torch import nn
from two_games import SMALL, Homing, two_games

import fastdistill as fd
from fastdistill import cli
from fastdistill.cli import main
from fastdistill.envs import make_env
from fastdistill.evaluation import evaluate_env
from fastdistill.recipes import distill as recipe
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.tasks import Given


def test_one_student_learns_two_games(tmp_path):
    result = two_games(
        tmp_path / "run",
        total_updates=300, temperature="auto", evaluation_episodes=4, learning_rate=3e-3,
        batch_size=32, loss="kl,nll", student="multi", score_every_updates=300,
    )  # fmt: skip
    student = result.student
    assert student.games == ("CartPole-v1", "FdWalk-v0")
    assert student.architecture.num_actions == (2, 3)
    assert student.obs_mean.shape == (2, 4)
    assert not torch.equal(student.obs_mean[0], student.obs_mean[1])
    for record, game in zip(result.evaluation["games"], student.games, strict=True):
        assert record["game"] == game
        assert [entry["name"] for entry in record["students"]] == [
            "kl_multi_seed1",
            "nll_multi_seed1",
        ]
        assert (
            record["students"][0]["parameters_of_all_games"] > record["students"][0]["parameters"]
        )
        again = fd.evaluate(student, game, episodes=4, seed=1, num_lanes=4)
        assert list(again.returns) == record["students"][0]["returns"]
    kl = result.evaluation["students"][0]
    assert kl["geometric_mean_percent"]["low"] <= kl["geometric_mean_percent"]["value"]
    assert kl["geometric_mean_percent"]["value"] > 50
    assert kl["percent_of_teacher"]["value"] >= kl["least_percent"]
    keys = set().union(
        *map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    )
    for measure in ("loss", "score", "agreement", "kl", "share"):
        assert f"students/kl_multi_seed1/{measure}/FdWalk-v0" in keys
    assert "students/kl_multi_seed1/share" in keys
    card = fd.load_network(tmp_path / "run" / "student")[1]
    assert [entry["game"] for entry in card["games"]] == list(student.games)
    page = result.report.read_text()
    assert "One network plays" in page
    assert 'href="report-FdWalk-v0-2.html"' in page
    assert "FdWalk-v0" in (tmp_path / "run" / "report-FdWalk-v0-2.html").read_text()
    assert card["games"][0]["temperature"] != card["games"][1]["temperature"], "auto is per game"


def test_a_score_on_record_is_a_teachers_level_without_a_game(tmp_path, capsys):
    teacher = fd.load_teacher(Balancer(), "CartPole-v1")
    with closing(make_env("CartPole-v1", 2, training=False)) as env:
        score = evaluate_env(teacher, env, episodes=4, seed=4).to_json()
    teacher.card["scores"] = [{**score, "returns": [123.0] * 4}]  # nobody would play that
    two_games(
        tmp_path / "run", {"CartPole-v1": teacher, "FdWalk-v0": Homing()},
        total_updates=2, evaluation_episodes=0,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "CartPole-v1: the teacher scores 123, " in said
    assert "FdWalk-v0: the teacher scores " in said
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    start = "students/kl_7_seed1"
    random = float(re.search(r"scores 123, random play (\S+)", said)[1])
    share = 100 * (record[f"{start}/score/CartPole-v1"] - random) / (123 - random)
    assert record[f"{start}/share/CartPole-v1"] == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("driver", ["student", "mixture"])
def test_interrupted_equals_uninterrupted(tmp_path, driver):
    class Later:
        def __init__(self, calls):
            self.calls = calls

        @property
        def requested(self):
            self.calls -= 1
            return self.calls < 0

    options = {"driver": driver, "task_weights": "1,2", "temperature": "auto"}
    two_games(tmp_path / "whole", **options)
    teachers = (fd.load_teacher(Balancer(), "CartPole-v1"), fd.load_teacher(Homing(), "FdWalk-v0"))
    given = Given(teachers)
    config = DistillConfig(
        run_dir=tmp_path / "cut", teacher="a module,a module", game="CartPole-v1,FdWalk-v0",
        **{**SMALL, **options},
    )  # fmt: skip
    assert recipe.train(config, given=given, stop=Later(50)).stopped
    while recipe.train(config, given=given, stop=Later(20), resume=True).stopped:
        pass
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    lines = [(tmp_path / d / "metrics.jsonl").read_text().splitlines() for d in ("whole", "cut")]
    for one, other in zip(*lines, strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one.keys() == other.keys()
        for key, value in one.items():
            if not key.startswith("time/") and key != "charts/SPS":
                assert value == other[key], key


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """By SIGKILL, once there is a checkpoint and once more after a while."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\nimport two_games as own\n"
        "own.two_games(Path(sys.argv[1]), total_updates=300, resume=len(sys.argv) > 2)\n"
    )
    two_games(tmp_path / "whole", total_updates=300)
    run_dir, log = tmp_path / "killed", tmp_path / "log"
    for kill in range(3):
        words = [sys.executable, str(script), str(run_dir)]
        words += ["resume"] if kill else []
        seen = set((run_dir / "checkpoints").glob("step_*.json"))
        with log.open("w") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file)
            if kill < 2:
                while process.poll() is None:
                    if set((run_dir / "checkpoints").glob("step_*.json")) - seen:
                        process.kill()
                        break
                    time.sleep(0.005)
                assert process.wait() == -9, log.read_text()
            else:
                assert process.wait() == 0, log.read_text()
    assert_equal(weights(tmp_path / "whole"), weights(run_dir))


def test_a_single_game_by_name_is_the_same_bits(tmp_path):
    fd.distill(Balancer(), "CartPole-v1", run_dir=tmp_path / "plain", **SMALL)
    fd.distill({"CartPole-v1": Balancer()}, run_dir=tmp_path / "named", **SMALL)
    assert_equal(weights(tmp_path / "plain"), weights(tmp_path / "named"))


def test_what_cannot_be_is_refused_in_words(tmp_path):
    run_dir = tmp_path / "run"
    cartpole = fd.load_teacher(Balancer(), "CartPole-v1")
    for teachers, options, error, message in (
        ({"CartPole-v1": cartpole, "FdWide-v0": Homing()}, {}, ValueError,
         r"distill: games must have observations of one shape, got \[4\] of CartPole-v1 and \[5\] "
         r"of FdWide-v0"),
        ({}, {}, ValueError, "distill: teacher must name at least one game, got none"),
        (None, {"task_weights": "0,0"}, ValueError,
         r"DistillConfig: task_weights must be balanced, or numbers of 0 or more that are not all "
         r"0, got '0,0'"),
        (None, {"task_weights": "1,x"}, ValueError, "task_weights must be balanced, or numbers"),
        (None, {"task_weights": "1,-1"}, ValueError, "task_weights must be balanced, or numbers"),
        (None, {"task_weights": "1,1,1"}, ValueError,
         "distill: task_weights must name one for each of 2 teachers, got 3"),
        (None, {"env": "CartPole-v1"}, ValueError,
         "distill: env must be left out where each teacher has its game, got 'CartPole-v1'"),
        (None, {"learning_starts_steps": 31}, ValueError,
         r"learning_starts_steps must be at least 4 \* num_lanes \* 2 games = 32, got 31"),
        (None, {"student": nn.Linear(4, 2)}, ValueError,
         "distill: student must be a size where there are several games, got 'own'"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            two_games(run_dir, teachers, **options)
    for number, message in (
        (2, "distill: game must not repeat, got CartPole-v1, CartPole-v1"),
        (1, "distill: game must name one for each of 1 teachers, got"),
    ):
        config = DistillConfig(
            run_dir=run_dir, game="CartPole-v1,CartPole-v1",
            teacher=",".join(["a module"] * number), **SMALL,
        )  # fmt: skip
        with pytest.raises(ValueError, match=message):
            recipe.train(config, given=Given((cartpole,) * number))
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("distill --teacher zoo:pong,zoo:pong", "distill: game must not repeat, got pong, pong"),
        ("distill --teacher zoo:pong,zoo:freeway --game pong,nope",
         "game must be a ROM name in snake case such as 'pong', got 'nope'"),
        ("distill --teacher zoo:pong,zoo:freeway --game freeway,pong",
         "must have the 3 actions of freeway, got 6"),
        ("distill --teacher zoo:pong,zoo:freeway --game pong",
         "game must name one for each of 2 teachers, got 1"),
        ("distill --teacher zoo:pong,zoo:freeway --task-weights 0,0",
         "not all 0, got '0,0'"),
        ("teacher dqn --game pong,pong", "teacher_dqn: game must not repeat, got pong, pong"),
        ("quickstart --games pong,chess",
         "games must be of breakout, freeway, pong, qbert, which have teachers that ship, got 'ch"),
        ("quickstart --games pong,pong", "games must name each game once, got 'pong,pong'"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_is_refused_in_one_line(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_of_several_games(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "distill", lambda config, resume: asked.append((config, resume)) or 0)
    run_dir = tmp_path / "run"
    words = ["quickstart", "--run-dir", str(run_dir), "--seed", "3"]
    assert main([*words, "--games", "pong,freeway,breakout"]) == 0
    config, resume = asked.pop()
    assert config.teachers == ("zoo:pong", "zoo:freeway", "zoo:breakout")
    assert (config.temperature, config.seed, resume) == ("auto", 3, False)
    assert config.max_seconds <= 300, "leaves half of ten minutes to the evaluation"
    said = capsys.readouterr().err
    assert "one network learns pong, freeway, breakout from 3 teachers: at most 4 minutes" in said
    assert main(words) == 0
    alone = DistillConfig(run_dir=run_dir, seed=3, total_updates=6_000, score_every_updates=3_000)
    assert asked.pop()[0] == alone, "Pong, nothing else chosen"
    # An unfinished one is continued, a finished one kept.
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    assert main([*words, "--games", "pong,freeway"]) == 0
    assert asked.pop()[1] is True
    (run_dir / "evaluation.json").write_text("{}")
    assert main([*words, "--games", "pong,freeway"]) == 0
    assert asked.pop()[1] is False
    assert (tmp_path / "run.1" / "evaluation.json").exists()
