# SPDX-License-Identifier: MIT
"""The engine's promises: labels, students of the caller's, threads, one process per directory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cartpole import Balancer, assert_equal, balancer, weights
from torch import nn

import fastdistill as fd
from fastdistill.cli import main
from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork, save_network
from fastdistill.networks.checkpoint import CheckpointError
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.distill_parts import DistillParts
from fastdistill.training.configuration import command_line
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.learners.student import Student
from fastdistill.training.run import Run, TrainingDiverged
from fastdistill.training.task import Task

SMALL = {
    "total_updates": 60,
    "num_lanes": 4,
    "learning_starts_steps": 80,
    "batch_size": 16,
    "replay_capacity": 2_000,
    "score_every_updates": 30,
    "score_episodes": 2,
    "evaluation_episodes": 0,
    "checkpoint_every_updates": 20,
    "log_every_updates": 10,
    "tensorboard": False,
    "bfloat16": False,
    "device": "cpu",
}


class Fingerprint(nn.Module):
    """Values that name the observation: for images exact sums of each plane, weighted by place."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.actions = actions

    def forward(self, obs):
        if obs.ndim == 2:
            sums = obs
        else:
            planes = obs.double()
            rows = torch.arange(1, obs.shape[2] + 1, dtype=torch.float64)[:, None]
            sums = (planes * (1 + rows / 128)).sum(dim=(2, 3))
        return sums[:, torch.arange(self.actions) % sums.shape[1]].float()


def two_layers(spec):
    return nn.Sequential(nn.Linear(spec.obs_shape[0], 8), nn.Tanh(), nn.Linear(8, spec.num_actions))


def cartpole(run_dir, **options):
    return fd.distill(Balancer(), "CartPole-v1", run_dir=run_dir, **{**SMALL, **options})


@pytest.mark.parametrize("share", [None, 0.5, 1.0], ids=["teacher", "mixture", "student"])
@pytest.mark.parametrize(("game", "steps"), [("CartPole-v1", 300), ("pong", 1_300)])
def test_a_stored_label_is_the_teachers_value_of_that_very_frame(game, steps, share):
    """Over episode ends and a ring that has wrapped, whoever drives."""
    with closing(make_env(game, 3, training=False)) as env:
        spec = env.spec
        teacher = fd.load_teacher(Fingerprint(spec.num_actions), env)
        student = Student(
            QNetwork(Architecture(spec.obs_shape, (spec.num_actions,), hidden=(8,))),
            loss="kl", size="4%", seed=0, optimizer="adam", learning_rate=1e-3, bfloat16=False,
        )  # fmt: skip
        counters = Counters()
        play = LabelledPlay(
            [Task(spec, teacher, 1.0)], [env], [student], counters,
            replay_capacity=1_800, seed=5, bfloat16=False,
        )  # fmt: skip
        play.reset()
        counters.updates = 1  # students may drive
        for _ in range(steps):
            play.step(0.3, share)
    assert counters.episodes >= 3
    batch = play.replay.sample(1_500)
    assert torch.equal(batch.columns["teacher_logits"], teacher.values(batch.obs))
    # The check can fail: the label of another state is another one.
    shifted = torch.roll(batch.columns["teacher_logits"], 1, dims=0)
    assert not torch.equal(shifted, teacher.values(batch.obs))


@pytest.mark.parametrize("own", ["module", "factory"])
def test_a_student_of_the_callers_own_learns_is_saved_and_loaded(tmp_path, own):
    spec = SimpleNamespace(obs_shape=(4,), num_actions=2)
    torch.manual_seed(3)
    module = two_layers(spec)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = cartpole(
        tmp_path / "run",
        student=module if own == "module" else two_layers,
        temperature=0.1,
        evaluation_episodes=2,
        total_updates=300,
        learning_rate=1e-2,
    )
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), "the caller's module is copied, never changed"
    student = result.student
    assert isinstance(student, nn.Sequential)
    assert not torch.equal(student[0].weight, module[0].weight)
    assert [entry["size"] for entry in result.evaluation["students"]] == ["own"]
    again = two_layers(spec)
    path = result.students["kl_own_seed1"]
    card = fd.load_weights(path, again)
    assert card["game"] == "CartPole-v1"
    assert torch.equal(again[0].weight, student[0].weight)
    with pytest.raises(CheckpointError, match=r"a module of the caller's \(torch.*Sequential\)"):
        fd.load_network(path)
    with pytest.raises(CheckpointError, match=r"must fit Linear, got others for 0.bias"):
        fd.load_weights(path, nn.Linear(4, 2))


def test_a_student_that_cannot_be_is_refused_in_words(tmp_path):
    for student, error, message in (
        (7, TypeError, "student must be sizes such as '7%'.*got 7"),
        (nn.Linear(4, 3), ValueError, r"student must return \[batch, 2\] values.*got \[2, 3\]"),
        (nn.Flatten(), ValueError, "student must have parameters that learn, got none"),
        (lambda spec: 3, TypeError, "got one that makes int"),
        ("own", ValueError, "student must be given again as the module that it was"),
    ):
        with pytest.raises(error, match=message):
            cartpole(tmp_path / "run", student=student)
    with pytest.raises(TypeError, match="options must be fields of DistillConfig, got updates"):
        cartpole(tmp_path / "run", updates=3)
    with pytest.raises(TypeError, match="distill: game must be given as env, got game='pong'"):
        fd.distill("zoo:pong", game="pong", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_teacher_alone(tmp_path):
    run_dir = tmp_path / "run"
    first = balancer(tmp_path / "first")
    options = {"total_updates": 2, "evaluation_episodes": 0, "score_episodes": 0}
    fd.distill(first, run_dir=run_dir, **{**SMALL, **options})
    # What is the default of the command line counts as left out there.
    with pytest.raises(
        ValueError, match=r"^distill: teacher must be the run's own, .*first, got zo"
    ):
        fd.distill("zoo:pong", run_dir=run_dir, resume=True)
    for other in (balancer(tmp_path / "second"), Balancer()):
        with pytest.raises(
            ValueError, match="a resumed run must keep its own options, got teacher"
        ):
            fd.distill(other, run_dir=run_dir, resume=True)
    assert fd.distill(first, run_dir=run_dir, resume=True).updates == 2


def test_whoever_learned_since_the_last_scores_is_scored(tmp_path, monkeypatch):
    """Also where the time is over just after a record, which leaves no news to be recorded."""
    over = []
    log, fraction = DistillParts.log, DistillParts.fraction.fget
    monkeypatch.setattr(
        DistillParts, "log", lambda self: over.append(self.run.at.updates) or log(self)
    )
    monkeypatch.setattr(
        DistillParts, "fraction", property(lambda self: 1.0 if over else fraction(self))
    )
    result = cartpole(
        tmp_path / "run", log_every_updates=10, score_every_updates=1_000, evaluation_episodes=2
    )
    assert over == [10]
    assert result.updates == 10
    card = fd.load_network(tmp_path / "run" / "student")[1]
    assert card["trained_updates"] == 10
    assert card["scoring"]["episodes"] == 4
    again = fd.distill(Balancer(), "CartPole-v1", run_dir=tmp_path / "run", resume=True)
    before, after = (one.evaluation["students"][0]["returns"] for one in (result, again))
    assert before == after


def test_two_distillations_in_threads_do_not_disturb_each_other(tmp_path):
    for seed in (1, 2):
        cartpole(tmp_path / f"alone{seed}", seed=seed, seeds=2)
    state = torch.get_rng_state()
    errors = []

    def work(seed):
        try:
            cartpole(tmp_path / f"thread{seed}", seed=seed, seeds=2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert torch.equal(torch.get_rng_state(), state), "no global seeding"
    for seed in (1, 2):
        assert_equal(weights(tmp_path / f"alone{seed}"), weights(tmp_path / f"thread{seed}"))


def test_a_run_directory_belongs_to_one_process(tmp_path):
    run_dir = tmp_path / "run"
    cartpole(run_dir)
    config = DistillConfig(run_dir=run_dir)
    with Run("distill", config, resume=True, unit="updates"):
        with pytest.raises(ValueError, match="run_dir must belong to one process at a time"):
            cartpole(run_dir, resume=True)
        command = [sys.executable, "-m", "fastdistill", "teacher", "dqn", "--resume"]
        other = subprocess.run(
            [*command[:3], "distill", "--resume", "--run-dir", run_dir],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert other.returncode == 2
    assert "module" in other.stderr or "belong to one process" in other.stderr
    with Run("distill", config, resume=True, unit="updates"):
        pass  # the lock ended with its holder


def test_a_resumed_run_keeps_its_own_options(tmp_path):
    run_dir = tmp_path / "run"
    cartpole(run_dir)
    assert cartpole(run_dir, resume=True).updates == 60
    with pytest.raises(
        ValueError, match=r"keep its own options, got student '25%' instead of '7%'"
    ):
        cartpole(run_dir, resume=True, student="25%")
    with pytest.raises(ValueError, match="run_dir must be given to resume"):
        fd.distill(Balancer(), "CartPole-v1", resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json must be readable JSON"),
        ("[" * 100_000, "config.json must be readable JSON"),
        ("[]", "run must be of distill, got None"),
        ('{"recipe": "distill"}', "config.json must hold config"),
        ('{"recipe": "distill", "config": {"seed": "x"}}', "must give seed as int, got 'x'"),
        ('{"recipe": "distill", "config": {"seed": true}}', "must give seed as int, got True"),
        ('{"recipe": "distill", "config": {"colour": 1}}', "options of distill, got 'colour'"),
        ('{"recipe": "distill", "config": {"seeds": 0}}', "seeds must be at least 1, got 0"),
    ],
)
def test_a_damaged_configuration_names_file_and_field(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Run("distill", DistillConfig(run_dir=tmp_path), resume=True, unit="updates")


def test_checkpoints_of_an_older_engine_are_refused_with_a_way_out(tmp_path):
    run_dir = tmp_path / "run"
    cartpole(run_dir)
    from fastdistill.training import run as run_module

    checkpoint = sorted((run_dir / "checkpoints").glob("*.json"))[-1]
    card = json.loads(checkpoint.read_text())
    assert card["engine"] == run_module.ENGINE
    monkey = pytest.MonkeyPatch()
    monkey.setattr(run_module, "ENGINE", run_module.ENGINE + 1)
    with pytest.raises(ValueError, match="finish the run with the version that began it"):
        cartpole(run_dir, resume=True)
    monkey.undo()


def test_a_student_that_diverges_ends_alone_and_is_named(tmp_path, monkeypatch, capsys):
    real = Student.update

    def poisoned(self, *arguments):
        learned = real(self, *arguments)
        return {"loss": learned["loss"] * float("nan")} if self.loss == "mse" else learned

    monkeypatch.setattr(Student, "update", poisoned)
    result = cartpole(tmp_path / "run", loss="mse,kl", evaluation_episodes=2)
    assert "mse_7_seed1 ends here, the others go on" in capsys.readouterr().err
    assert (tmp_path / "run" / "diverged_mse_7_seed1.json").exists()
    entries = {entry["name"]: entry for entry in result.evaluation["students"]}
    assert list(entries) == ["kl_7_seed1"], "one that was never saved cannot be judged"
    assert result.updates == 60
    assert list(result.students) == ["kl_7_seed1"]
    assert (tmp_path / "run" / "student.json").is_file(), "the first that learned to the end"
    assert fd.load_network(tmp_path / "run" / "student")[1]["loss"] == "kl"
    monkeypatch.undo()
    alone = cartpole(tmp_path / "alone", loss="kl", driver="teacher")
    beside = tmp_path / "beside"
    monkeypatch.setattr(Student, "update", poisoned)
    cartpole(beside, loss="kl,mse", driver="teacher")
    path = alone.students["kl_7_seed1"]
    expected, got = fd.load_network(path)[0], fd.load_network(beside / "students" / path.name)[0]
    for a, b in zip(expected.parameters(), got.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(TrainingDiverged, match="mse_7_seed1: training: loss must be finite"):
        cartpole(tmp_path / "all", loss="mse")


def test_a_loaded_teacher_is_named_in_the_records_and_resumes_on_the_command_line(tmp_path):
    network = QNetwork(Architecture((4,), (2,), hidden=(8,)))
    path = save_network(tmp_path / "mine", network, {"game": "CartPole-v1", "kind": "logits"})
    run_dir = tmp_path / "run"
    result = fd.distill(fd.load_teacher(path), run_dir=run_dir, **SMALL)
    stored = json.loads((run_dir / "config.json").read_text())["config"]
    assert stored["teacher"] == str(path)
    _, card = fd.load_network(result.students["kl_7_seed1"])
    assert card["teacher"]["kind"] == "logits"
    assert card["temperature"] == 1.0, "logits are a policy already"
    assert main(["distill", "--resume", "--run-dir", str(run_dir)]) == 0
    assert "--teacher" in command_line(DistillConfig(run_dir=run_dir, teacher=str(path)))


def test_a_finished_distillation_writes_its_report(tmp_path):
    pytest.importorskip("matplotlib")
    result = cartpole(tmp_path / "run", evaluation_episodes=2)
    assert result.report == tmp_path / "run" / "report.html"
    assert "CartPole-v1" in result.report.read_text()


def test_the_default_temperature_is_said(tmp_path, capsys):
    cartpole(tmp_path / "run", total_updates=2)
    assert "temperature 0.01, the default for q_values" in capsys.readouterr().err
    policy = fd.load_teacher(Balancer(), "CartPole-v1", kind="logits")
    fd.distill(policy, "CartPole-v1", run_dir=tmp_path / "logits", **{**SMALL, "total_updates": 2})
    assert "temperature 1.0, the default for logits" in capsys.readouterr().err


def test_a_size_is_said_as_a_share_of_the_teacher(tmp_path, capsys):
    teacher = nn.Sequential(nn.Linear(4, 100), nn.Tanh(), nn.Linear(100, 2))  # 702 parameters
    options = {**SMALL, "total_updates": 2, "student": "7%,4%", "loss": "kl,nll"}
    fd.distill(teacher, "CartPole-v1", run_dir=tmp_path / "run", **options)
    said = capsys.readouterr().err
    # 4 -> 32 -> 32 -> 2 and 4 -> 24 -> 24 -> 2.
    assert said.count("student 7%: 1,282 parameters, 183% of the teacher's") == 1
    assert said.count("student 4%: 770 parameters, 110% of the teacher's") == 1


def test_numbers_drawn_by_others_change_nothing(tmp_path):
    cartpole(tmp_path / "first")
    torch.rand(17), np.random.default_rng().random(3)
    cartpole(tmp_path / "second")
    assert_equal(weights(tmp_path / "first"), weights(tmp_path / "second"))
