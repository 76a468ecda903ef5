# SPDX-License-Identifier: MIT
"""Limits: of a file's size, reached in the middle of a run; of what a configuration may ask for."""

from __future__ import annotations

import json
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import fastdistill as fd
from fastdistill.cli import main
from fastdistill.networks import Architecture, QNetwork, save_network
from fastdistill.networks.checkpoint import read_checkpoint
from fastdistill.training.checkpoints import TrainingCheckpoints

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher) -> dict[str, dict[str, torch.Tensor]]:
    """The students of a run without limits, by the capacity of its replay."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for capacity in ("200", "4000"):
        assert distill(folder / capacity, teacher, f"--replay-capacity={capacity}") == 0
        found[capacity] = read_checkpoint(folder / capacity / "students" / "kl_7_seed1.json")[0]
    return found


@pytest.mark.parametrize(
    ("capacity", "log_every", "limit_bytes", "file", "updates"),
    [
        ("200", "1", 30_000, "metrics.jsonl", 0),
        ("4000", "100", 40_000, r"replay_\d+.bin", 0),
    ],
)
def test_a_file_that_reaches_the_size_limit_ends_a_run_in_words_and_it_goes_on(
    tmp_path, capsys, teacher, whole, capacity, log_every, limit_bytes, file, updates
):
    run_dir = tmp_path / "run"
    options = [f"--replay-capacity={capacity}", f"--log-every-updates={log_every}"]
    with file_size_limit(limit_bytes):
        status = distill(run_dir, teacher, *options)
    print(status, capsys.readouterr().err)
    for path in sorted(run_dir.rglob("*")):
        print(path.name, path.stat().st_size)
    assert 0
