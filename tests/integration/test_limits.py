# SPDX-License-Identifier: MIT
"""Limits: of a file's size, reached in the middle of a run; of what a configuration may ask for."""

from __future__ import annotations

import json
import re
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cartpole import Balancer

import fastdistill as fd
from fastdistill.cli import main
from fastdistill.networks import Architecture, QNetwork, save_network
from fastdistill.networks.checkpoint import read_checkpoint
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.metrics import read_jsonl

COMMON = ["--no-tensorboard", "--no-bfloat16", "--device=cpu", "--num-lanes=4", "--batch-size=16"]
DISTILL = [
    "--total-updates=100", "--learning-starts-steps=80", "--score-every-updates=90",
    "--score-episodes=1", "--evaluation-episodes=0", "--checkpoint-every-updates=20",
]  # fmt: skip


@contextmanager
def file_size_limit(limit_bytes: int):
    """What `ulimit -f` sets, for this process; Python ignores its signal."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def distill(run_dir: Path, teacher: Path, *more: str) -> int:
    return main(
        ["distill", f"--teacher={teacher}", f"--run-dir={run_dir}", *COMMON, *DISTILL, *more]
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = QNetwork(Architecture((4,), (2,), hidden=(8,)))
    card = {"game": "CartPole-v1", "kind": "q_values"}
    return save_network(tmp_path_factory.mktemp("teacher") / "teacher", network, card)


@pytest.mark.parametrize(
    ("capacity", "log_every", "limit_bytes", "function", "file"),
    [
        # Records pass the limit first, or a snapshot of a replay that has become larger.
        (200, 1, 30_000, "JsonlWriter", "metrics.jsonl"),
        (4_000, 100, 40_000, "save", "replay_000000000560.bin"),
    ],
)
def test_a_file_that_reaches_the_size_limit_ends_a_run_in_words_and_it_goes_on(
    tmp_path, capsys, teacher, capacity, log_every, limit_bytes, function, file
):
    options = [f"--replay-capacity={capacity}", f"--log-every-updates={log_every}"]
    assert distill(tmp_path / "whole", teacher, *options) == 0
    run_dir = tmp_path / "run"
    capsys.readouterr()
    with file_size_limit(limit_bytes):
        assert distill(run_dir, teacher, *options) == 2
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"fastdistill: .*{function}: \S*/{file} must be writable, got File too large", said[-1]
    )
    assert not list(run_dir.rglob("*.tmp"))
    assert TrainingCheckpoints(run_dir / "checkpoints").latest()[1]["step"] == 400
    assert distill(run_dir, teacher, *options, "--resume") == 0
    expected, got = (
        read_checkpoint(folder / "students" / "kl_7_seed1.json")[0]
        for folder in (tmp_path / "whole", run_dir)
    )
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
    steps = [record["step"] for record in read_jsonl(run_dir / "metrics.jsonl")]
    assert steps == [record["step"] for record in read_jsonl(tmp_path / "whole" / "metrics.jsonl")]


COMMANDS = {
    "distill": ["distill"],
    "online": ["online"],
    "teacher_dqn": ["teacher", "dqn"],
    "teacher_pqn": ["teacher", "pqn"],
}


@pytest.mark.parametrize(
    ("recipe", "values", "message"),
    [
        ("distill", {"seeds": 10**9}, "seeds must be at most 1000, got 1000000000"),
        (
            "distill",
            {"seeds": 400, "loss": "kl,mse,nll"},
            "students of all losses and sizes must be at most 1000, got 3 * seeds 400 = 1200",
        ),
        ("online", {"seeds": 10**9}, "seeds must be at most 1000, got"),
        ("online", {"student_batch_size": 10**9}, "student_batch_size must be at most 65536, got"),
        ("distill", {"num_lanes": 10**9}, "num_lanes must be at most 4096, got 1000000000"),
        ("teacher_dqn", {"num_lanes": 10**39}, "num_lanes must be at most 4096, got 1000"),
        (
            "teacher_dqn",
            {"num_lanes": 4_000, "game": "pong,breakout"},
            "num_lanes of all games together must be at most 4096, got 2 * num_lanes 4000 = 8000",
        ),
        ("distill", {"batch_size": 10**9}, "batch_size must be at most 65536, got"),
        ("teacher_pqn", {"batch_size": 10**9}, "batch_size must be at most 65536, got"),
        (
            "teacher_pqn",
            {"rollout_steps": 10**9},
            "rows of a rollout must be at most 131072, got 1000000000 * num_lanes 32 = 32000000000",
        ),
        ("distill", {"score_episodes": 10**9}, "score_episodes must be at most 1000, got"),
        ("teacher_pqn", {"evaluation_episodes": 10**9}, "evaluation_episodes must be at most"),
        ("teacher_dqn", {"seed": 2**64}, "seed must be at most 4294967295, got 1844"),
        ("teacher_dqn", {"replay_capacity": 10**12}, "PrioritizedReplay: "),
        (
            "teacher_dqn",
            {"n_step": 10**9, "learning_starts_steps": 10**11, "total_steps": 10**12},
            "n_step must be in",
        ),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_refused(
    tmp_path, capsys, recipe, values, message
):
    config = {"recipe": recipe, "config": {"game": "CartPole-v1", "device": "cpu", **values}}
    if recipe == "distill":
        del config["config"]["game"]  # its default teacher's
    (tmp_path / "config.json").write_text(json.dumps(config))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main([*COMMANDS[recipe], f"--run-dir={tmp_path}", "--resume"]) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 * 1024
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_a_module_taught_says_how_it_goes_on(tmp_path, capsys):
    options = {
        "total_updates": 30, "learning_starts_steps": 80, "num_lanes": 4, "batch_size": 16,
        "replay_capacity": 400, "score_episodes": 0, "evaluation_episodes": 0,
        "tensorboard": False, "bfloat16": False, "device": "cpu",
    }  # fmt: skip
    fd.distill(Balancer(), "CartPole-v1", run_dir=tmp_path / "run", **options)
    capsys.readouterr()
    assert main(["distill", f"--run-dir={tmp_path / 'run'}", "--resume"]) == 2
    assert capsys.readouterr().err == (
        "fastdistill: distill: teacher must be one that a file holds, got a module of the process "
        "that began this run; continue it in Python, with the same module: "
        "fastdistill.distill(module, ..., run_dir=..., resume=True)\n"
    )
    again = fd.distill(Balancer(), "CartPole-v1", run_dir=tmp_path / "run", resume=True, **options)
    assert again.updates == 30
