# SPDX-License-Identifier: MIT
"""Students that follow a DQN: what they learn, what they leave alone, stopped and resumed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import fastdistill as fd
from fastdistill import streams
from fastdistill.cli import main
from fastdistill.envs import make_env
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks.checkpoint import read_checkpoint
from fastdistill.recipes import dqn, online
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.dqn_teaching import DqnTeaching
from fastdistill.recipes.online import OnlineConfig
from fastdistill.training.metrics import read_jsonl
from fastdistill.training.run import Run

TINY = {
    "game": "CartPole-v1", "total_steps": 1200, "num_lanes": 4, "batch_size": 16,
    "samples_per_step": 4, "learning_starts_steps": 200, "target_update_updates": 20,
    "epsilon_steps": 1000, "replay_capacity": 600, "score_episodes": 0, "evaluation_episodes": 0,
    "checkpoint_every_steps": 240, "log_every_steps": 120, "tensorboard": False, "device": "cpu",
    "bfloat16": False,
}  # fmt: skip
STUDENTS = {"student": "7%,4%", "student_batch_size": 24, "student_every_updates": 3}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in (*sorted((run_dir / "students").glob("*.json")), run_dir / "teacher.json"):
        found |= {f"{path.name} {key}": value for key, value in read_checkpoint(path)[0].items()}
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StopAt:
    """Asks to stop when it was asked so often."""

    def __init__(self, times: int) -> None:
        self.left = times

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module", params=["best", "latest"])
def whole(request, tmp_path_factory):
    config = OnlineConfig(
        run_dir=tmp_path_factory.mktemp(request.param) / "run",
        follow=request.param, temperature="auto", **TINY, **STUDENTS,
    )  # fmt: skip
    return config, online.train(config)


def test_the_teacher_is_the_one_that_learns_without_students(whole, tmp_path):
    config, _ = whole
    dqn.train(DqnConfig(run_dir=tmp_path / "alone", **TINY))
    alone = weights(tmp_path / "alone")
    found = weights(config.run_dir)
    assert alone
    assert equal(alone, {name: found[name] for name in alone})


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(whole, tmp_path):
    config, _ = whole
    cut = OnlineConfig(**{**vars(config), "run_dir": tmp_path / "cut"})
    result = online.train(cut, stop=StopAt(170))
    assert result.stopped
    assert result.updates > 0
    result = online.train(cut, resume=True)
    assert not result.stopped
    assert equal(weights(config.run_dir), weights(cut.run_dir))


def test_students_that_never_had_a_teacher_leave_no_files_stopped_or_not(tmp_path):
    config = OnlineConfig(
        run_dir=tmp_path / "run", **{**TINY, "total_steps": 400, "checkpoint_every_steps": 400}
    )
    assert online.train(config, stop=StopAt(70)).stopped
    result = online.train(config, resume=True)
    assert result.students == {}
    with pytest.raises(ValueError, match=r"student: .* must have one that learned, got none"):
        _ = result.student


def test_students_learn_what_a_plain_loop_learns(tmp_path):
    """The loop is written out, with torch's own softmax, divergence and Adam."""
    temperature, rate = 0.5, 5e-4
    config = OnlineConfig(
        run_dir=tmp_path / "run", temperature=temperature, student_learning_rate=rate,
        **TINY, **{**STUDENTS, "student": "7%"},
    )  # fmt: skip
    online.train(config)
    learned = read_checkpoint(tmp_path / "run" / "students" / "kl_7_seed1.json")[0]

    run = Run("teacher_dqn", DqnConfig(run_dir=tmp_path / "plain", **TINY), resume=False,
              unit="steps")  # fmt: skip
    env = make_env("CartPole-v1", 4)
    teaching = DqnTeaching(run.config, run, [env], torch.device("cpu"), uniform_sampler=True)
    seed = streams.native_seed(1, streams.STUDENTS)
    student = QNetwork.seeded(paper_architecture("7%", [2], obs_shape=(4,)), seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    best = None
    update = teaching.learn

    def learn() -> None:
        update()
        if run.at.updates % 3 or best is None:
            return
        rows = teaching.play.replay.sample(24, sampler=1, next_obs=False).obs
        with torch.no_grad():
            p = F.softmax(best(rows) / temperature, dim=1)
        loss = F.kl_div(F.log_softmax(student(rows), dim=1), p, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    teaching.learn = learn
    with run:
        teaching.begin()
        for name in ("obs_mean", "obs_scale"):
            getattr(student, name).copy_(getattr(teaching.learner.network, name))
        while run.at.step < 1200:
            teaching.step()
            if run.at.step % 240 == 0:  # without scoring the last is the best
                best = deepcopy(teaching.learner.network)
    env.close()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(learned[name], value, rtol=1e-4, atol=1e-5, msg=name)
    untaught = QNetwork.seeded(paper_architecture("7%", [2], obs_shape=(4,)), seed).state_dict()
    assert not torch.allclose(learned["trunk.0.weight"], untaught["trunk.0.weight"], atol=1e-3)


def test_scores_of_teacher_and_students_are_recorded_and_evaluated(tmp_path, capsys):
    options = {
        **TINY, **STUDENTS, "score_episodes": 2, "evaluation_episodes": 3, "total_steps": 720,
    }  # fmt: skip
    words = ["online", "--no-tensorboard", "--no-bfloat16", f"--run-dir={tmp_path / 'run'}"]
    for name, value in options.items():
        if not isinstance(value, bool):
            words.append(f"--{name.replace('_', '-')}={value}")
    assert main(words) == 0
    assert "kl_7_seed1" in capsys.readouterr().out
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    scored = [record for record in records if "teacher/score" in record]
    assert [record["step"] for record in scored] == [240, 480, 720]
    assert all(record["teacher/score_error"] >= 0 for record in scored)
    assert sum("students/kl_7_seed1/score" in record for record in records) == 2  # not untaught
    assert main(["evaluate", str(tmp_path / "run" / "student"), "--episodes", "2"]) == 0


def test_the_function_is_the_command(whole, tmp_path, monkeypatch):
    config, _ = whole
    monkeypatch.chdir(tmp_path)
    options = {"follow": config.follow, "temperature": "auto", **TINY, **STUDENTS}
    result = fd.distill_online(options.pop("game"), **options)
    assert result.run_dir == Path("runs/online-CartPole-v1-1")
    assert equal(weights(config.run_dir), weights(result.run_dir))
    assert isinstance(result.student, QNetwork)
    with pytest.raises(TypeError, match="distill_online: options must be fields of OnlineConfig, "):
        fd.distill_online("CartPole-v1", driver="student")
    with pytest.raises(ValueError, match="distill_online: run_dir must be given to resume"):
        fd.distill_online("CartPole-v1", resume=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"game": "pong,freeway"}, "OnlineConfig: game must be one, got pong,freeway"),
        ({"follow": "newest"}, "follow must be one of best, latest, got 'newest'"),
        ({"student": "9%"}, "student must be one of"),
        ({"loss": "l1"}, "loss must be one of"),
        ({"temperature": 0.0}, r"temperature must be in \[1e-8, 1e8\] or 'auto', got 0.0"),
        ({"student_every_updates": 0}, "student_every_updates must be at least 1, got 0"),
        ({"student_learning_rate": 0.0}, "student_learning_rate must be positive, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        OnlineConfig(**changes)
