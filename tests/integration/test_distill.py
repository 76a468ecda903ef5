# SPDX-License-Identifier: MIT
"""Distillations from the first step to the report, whole, stopped, killed and broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cartpole import SMALL, Balancer
from torch import nn

import fastdistill as fd
from fastdistill.networks.checkpoint import CheckpointError, load_network
from fastdistill.recipes import distill as recipe
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.tasks import Given
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.configuration import command_line
from fastdistill.training.drivers import Drivers
from fastdistill.training.run import TrainingDiverged
from fastdistill.training.stop import STOPPED_STATUS
from fastdistill.training.students import Students


def cartpole(run_dir, **changes):
    return fd.distill(Balancer(), "CartPole-v1", run_dir=run_dir, **{**SMALL, **changes})


def pong_options(**changes):
    return {
        **SMALL,
        "total_updates": 4,
        "learning_starts_steps": 64,
        "score_episodes": 0,
        "evaluation_episodes": 0,
        "checkpoint_every_updates": 2,
        "log_every_updates": 1,
        **changes,
    }


def learned(run_dir) -> dict[str, torch.Tensor]:
    tensors, _ = TrainingCheckpoints(Path(run_dir) / "checkpoints").latest()
    return tensors


def test_a_users_module_is_distilled_on_cartpole(tmp_path):
    result = cartpole(
        tmp_path / "run", student="25%", total_updates=800, learning_rate=3e-3, temperature=0.1
    )
    assert not result.stopped
    teacher = result.evaluation["teacher"]["summary"]["mean"]["value"]
    student = result.evaluation["students"][0]["summary"]["mean"]["value"]
    random = result.evaluation["random_score"]
    assert teacher > 400 > random
    assert student > 0.8 * teacher, "a random policy lasts about 20 steps"
    # The published student is the judged one, and plays without this package's run around it.
    network, card = load_network(tmp_path / "run" / "student")
    assert card["loss"] == "kl"
    assert card["game"] == "CartPole-v1"
    obs = torch.randn(3, 4)
    assert torch.equal(network(obs), result.student(obs))
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert fd.evaluate(result.student, "CartPole-v1", episodes=2).mean > 100


def test_students_of_the_papers_sizes_can_have_layer_normalisation(tmp_path):
    options = {"student": "7,25", "total_updates": 2, "score_episodes": 0, "evaluation_episodes": 0}
    cartpole(tmp_path / "with", layer_norm=True, **options)
    cartpole(tmp_path / "without", **options)
    for size in ("7", "25"):
        names = {}
        for run in ("with", "without"):
            network, _ = load_network(tmp_path / run / "students" / f"kl_{size}_seed1")
            assert network.architecture.layer_norm == (run == "with")
            names[run] = {name: tuple(one.shape) for name, one in network.named_parameters()}
        # One scale and one shift for each unit of the hidden layers, and the same weights beside.
        hidden = network.architecture.hidden
        shapes = list(names["without"].values())
        for units in hidden:
            shapes += [(units,), (units,)]
        assert sorted(shapes) == sorted(names["with"].values())


def test_many_students_learn_what_each_would_learn_alone(tmp_path):
    options = {
        "driver": "teacher",  # students that drive change the stream
        "bfloat16": False,
        "total_updates": 80,
        "score_every_updates": 40,
        "score_episodes": 1,
        "evaluation_episodes": 2,
    }
    together = cartpole(tmp_path / "all", student="7,25", loss="kl,mse", seeds=2, **options)
    assert list(together.students) == [
        f"{loss}_{size}_seed{seed}"
        for loss in ("kl", "mse")
        for size in ("7", "25")
        for seed in (1, 2)
    ]
    alone = cartpole(tmp_path / "one", student="25%", loss="mse", **options)
    same = learned(tmp_path / "all")
    for name, tensor in learned(tmp_path / "one").items():
        assert torch.equal(tensor, same[name]), name
    by_name = {entry["name"]: entry for entry in together.evaluation["students"]}
    assert by_name["mse_25_seed1"]["returns"] == alone.evaluation["students"][0]["returns"]
    # Different seeds, losses and sizes are different students.
    heads = [
        tensor for name, tensor in same.items() if name.endswith("network.heads.0.output.bias")
    ]
    assert len({tuple(head.tolist()) for head in heads}) == len(heads) == 8


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    options = pong_options(total_updates=8, seeds=2, driver="mixture", score_every_updates=3)
    fd.distill("zoo:pong", run_dir=whole, **options)

    broken = tmp_path / "broken"
    real = Students.learn
    calls = 0

    def dies(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Students, "learn", dies)
    with pytest.raises(KeyboardInterrupt):  # as Ctrl-C in a Python session
        fd.distill("zoo:pong", run_dir=broken, **options)
    monkeypatch.setattr(Students, "learn", real)
    result = fd.distill("zoo:pong", run_dir=broken, resume=True)
    assert result.updates == 8
    expected, got = learned(whole), learned(broken)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    losses = [
        [record["students/kl_7_seed1/loss"] for record in fd_records(run) if loss_in(record)]
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def fd_records(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def loss_in(record) -> bool:
    return "students/kl_7_seed1/loss" in record


def start(run_dir, *arguments) -> subprocess.Popen:
    options = {
        "total-updates": 100_000,
        "num-lanes": 4,
        "learning-starts-steps": 64,
        "replay-capacity": 2_000,
        "score-episodes": 0,
        "checkpoint-every-updates": 5,
        "log-every-updates": 1,
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "fastdistill.cli", "distill", "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [*command, *words, "--no-tensorboard", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_a_checkpoint_and_a_student(tmp_path, number):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists(), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED_STATUS, output
    assert "continue with --resume" in output
    assert TrainingCheckpoints(run_dir / "checkpoints").latest() is not None
    load_network(run_dir / "students" / "kl_7_seed1")


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for(lambda: len(list((run_dir / "checkpoints").glob("step_*.json"))) == 2, process)
    process.kill()
    process.communicate()
    before = learned(run_dir)
    again = start(run_dir, "--resume")
    updates = newest_updates(run_dir)
    wait_for(lambda: newest_updates(run_dir) > updates, again)
    again.send_signal(signal.SIGINT)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == STOPPED_STATUS, output
    after = learned(run_dir)
    assert before.keys() == after.keys()


def newest_updates(run_dir) -> int:
    loaded = TrainingCheckpoints(run_dir / "checkpoints").latest()
    return loaded[1]["counters"]["updates"] if loaded else 0


def test_a_full_disk_stops_with_the_reason_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    options = pong_options(total_updates=6)
    run_dir = tmp_path / "run"
    real = os.fsync
    full = False

    def fsync(number):
        if full:
            raise OSError(28, "No space left on device")
        real(number)

    learn = Students.learn

    def fills_the_disk(self, *arguments):
        nonlocal full
        full = self._run.at.updates >= 3
        return learn(self, *arguments)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Students, "learn", fills_the_disk)
    with pytest.raises(OSError, match="No space left on device"):
        fd.distill("zoo:pong", run_dir=run_dir, **options)
    full = False
    monkeypatch.setattr(Students, "learn", learn)
    assert newest_updates(run_dir) == 2
    assert fd.distill("zoo:pong", run_dir=run_dir, resume=True).updates == 6


def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(tmp_path):
    class Breaks(Balancer):
        def forward(self, obs):
            values = super().forward(obs)
            return torch.where(obs[:, 2:3].abs() > 0.15, torch.nan, values)

    with pytest.raises(
        TrainingDiverged, match="kl_7_seed1: training: loss must be finite, got nan"
    ):
        fd.distill(Breaks(), "CartPole-v1", run_dir=tmp_path / "run", epsilon=1.0, **SMALL)
    assert (tmp_path / "run" / "diverged_kl_7_seed1.json").exists()


def test_a_teacher_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(ValueError, match="teacher must have the 4 actions of breakout, got 6"):
        fd.distill("zoo:pong", "breakout", run_dir=run_dir, **pong_options())
    with pytest.raises(ValueError, match="module must return"):
        fd.distill(nn.Linear(5, 2), "CartPole-v1", run_dir=run_dir, **SMALL)
    few = {**SMALL, "learning_starts_steps": 3}
    with pytest.raises(ValueError, match=r"learning_starts_steps must be at least 4 \* num_lanes"):
        fd.distill(Balancer(), "CartPole-v1", run_dir=run_dir, **few)
    with pytest.raises(ValueError, match="distill: game must be given"):
        fd.distill(Balancer(), run_dir=run_dir, **SMALL)
    assert not run_dir.exists()


def test_a_damaged_teacher_file_is_refused(tmp_path):
    zoo = Path(fd.__file__).parent / "zoo"
    card = json.loads((zoo / "pong.json").read_text())
    payload = bytearray((zoo / card["weights"]["file"]).read_bytes())
    payload[len(payload) // 2] ^= 1
    (tmp_path / "pong.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]["file"]).write_bytes(payload)
    with pytest.raises(CheckpointError, match="must have SHA-256"):
        fd.distill(tmp_path / "pong.json", run_dir=tmp_path / "run", **pong_options())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l2"}, "loss must be one of kl, nll, mse, reverse_kl, jsd, got 'l2'"),
        ({"loss": "kl,kl"}, "loss must not repeat, got kl, kl"),
        ({"loss": ""}, "loss must not be empty, got ''"),
        ({"teacher": " "}, "teacher must not be empty, got ' '"),
        ({"data": ""}, "data must not be empty, got ''"),
        ({"student": ","}, "student must not be empty, got ','"),
        ({"labels": "mine"}, "labels must be left out without data, got 'mine'"),
        ({"damaged": "skip"}, "damaged must be left out without data, got 'skip'"),
        ({"actors": 4}, "actors must be left out with engine local, got 4"),
        (
            {"student": "8%"},
            "student must be one of 100%, 25%, 7%, 4%, multi, multi-wide, got '8%'",
        ),
        (
            {"student": "own", "layer_norm": True},
            "layer_norm must be False for a module of yours, got",
        ),
        ({"driver": "me"}, "driver must be one of teacher, student, mixture, got 'me'"),
        ({"weighting": "x"}, "weighting must be one of none, gap, entropy, got 'x'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, rmsprop, got 'sgd'"),
        ({"preset": "old"}, "preset must be one of classic, machado, got 'old'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"total_updates": 0}, "total_updates must be at least 1, got 0"),
        ({"score_episodes": -1}, "score_episodes must be at least 0, got -1"),
        ({"steps_per_update": 0.0}, "steps_per_update must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
        ({"max_seconds": 0.0}, "max_seconds must be positive, got 0.0"),
        ({"temperature": float("nan")}, r"temperature must be in \[1e-8, 1e8\] or 'auto', got nan"),
        ({"temperature": "warm"}, "temperature must be .* or 'auto', got 'warm'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"DistillConfig: {message}"):
        DistillConfig(**options)


def test_a_run_names_the_command_that_makes_it():
    config = DistillConfig(run_dir=Path("runs/my run"), loss="kl,nll", seeds=3, tensorboard=False)
    assert command_line(config) == (
        "fastdistill distill --run-dir 'runs/my run' --loss kl,nll --seeds 3 --no-tensorboard"
    )
    assert command_line(DistillConfig()) == "fastdistill distill"


def test_an_automatic_temperature_halves_the_teachers_entropy(tmp_path):
    from fastdistill.training.targets import auto_temperature

    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(500, 6)) * 1e-3)
    temperature = auto_temperature(values)
    p = np.exp(values.numpy() / temperature)
    p /= p.sum(axis=1, keepdims=True)
    entropy = -(p * np.log(p)).sum(axis=1).mean()
    assert entropy == pytest.approx(0.5 * np.log(6), rel=1e-3)
    # Ten times the gaps, ten times the temperature: the targets stay the same.
    assert auto_temperature(10 * values) == pytest.approx(10 * temperature, rel=1e-3)
    result = fd.distill(
        "zoo:pong", run_dir=tmp_path / "run", **pong_options(temperature="auto", total_updates=2)
    )
    _, card = load_network(next(iter(result.students.values())))
    assert 1e-4 < card["temperature"] < 1


def test_students_drive_the_share_that_the_driver_option_says(tmp_path, monkeypatch):
    real = Drivers.draw
    shares = []

    def noted(self, share, rng):
        shares.append(share)
        real(self, share, rng)

    monkeypatch.setattr(Drivers, "draw", noted)
    options = {"evaluation_episodes": 0, "score_episodes": 0}
    cartpole(tmp_path / "teacher", driver="teacher", **options)
    assert shares == []
    cartpole(tmp_path / "student", driver="student", **options)
    assert set(shares) == {1.0}
    shares.clear()
    cartpole(tmp_path / "mixture", driver="mixture", **options)
    # Drawn anew after every 64 steps of 4 lanes: 32 updates of 8 steps, after the first 400.
    played = 256 * np.arange(len(shares))
    expected = np.clip((played - 400) // 8, 0, 200) / 200
    assert len(shares) == 8
    assert shares == pytest.approx(expected.tolist())


def test_a_module_with_random_numbers_learns_the_same_again_and_resumed(tmp_path):
    """Dropout draws, and batch normalisation counts; neither does while it drives."""

    def student(spec):
        return nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, spec.num_actions)
        )

    options = {
        "student": student, "total_updates": 40, "score_episodes": 0, "evaluation_episodes": 0,
        "num_lanes": 1, "checkpoint_every_updates": 10,
    }  # fmt: skip
    cartpole(tmp_path / "whole", **options)
    torch.rand(7)  # where the global generator stands says nothing
    cartpole(tmp_path / "again", **options)
    config = DistillConfig(
        run_dir=tmp_path / "cut", teacher="a module", game="CartPole-v1",
        **{**SMALL, **options, "student": "own"},
    )  # fmt: skip
    given = Given((fd.load_teacher(Balancer(), "CartPole-v1"),))

    class Stops:
        asked = 0

        @property
        def requested(self) -> bool:
            self.asked += 1
            return self.asked > 500

    assert recipe.train(config, given=given, student=student, stop=Stops()).stopped
    recipe.train(config, given=given, student=student, resume=True)
    whole = learned(tmp_path / "whole")
    for name in ("again", "cut"):
        for key, tensor in learned(tmp_path / name).items():
            assert torch.equal(tensor, whole[key]), (name, key)
    (seen,) = (t for key, t in whole.items() if key.endswith("num_batches_tracked"))
    assert seen == 40


def test_a_resumed_run_keeps_its_device(tmp_path, monkeypatch):
    cartpole(tmp_path, total_updates=2, score_episodes=0, evaluation_episodes=0)
    asked = []
    monkeypatch.setattr(recipe, "pick_device", lambda name: asked.append(name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recipe.train(DistillConfig(run_dir=tmp_path), resume=True)
    assert asked == ["cpu"]


def test_what_tensorboard_lacks_is_said_before_there_is_a_directory(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"needs tensorboard: pip install .* tensorboard=False"):
        cartpole(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
