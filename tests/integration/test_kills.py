# SPDX-License-Identifier: MIT
"""Runs killed with -9 at random moments, again and again, end with the weights of a whole one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cartpole import balancer

from fastdistill.networks.checkpoint import read_checkpoint

KILLS = int(os.environ.get("FASTDISTILL_KILLS", "20"))  # of each recipe, in the stress test

COMMON = {"device": "cpu", "score-episodes": 2, "evaluation-episodes": 2, "num-lanes": 4}
RECIPES = {
    "distill": (
        ["distill", "--teacher={teacher}"],
        {
            "total-updates": 1_500, "learning-starts-steps": 200, "batch-size": 16,
            "replay-capacity": 1_000, "checkpoint-every-updates": 40, "log-every-updates": 10,
            "score-every-updates": 700, "driver": "mixture", "loss": "kl,mse",
        },
    ),
    "dqn": (
        ["teacher", "dqn", "--game=CartPole-v1"],
        {
            "total-steps": 6_000, "learning-starts-steps": 200, "batch-size": 16,
            "samples-per-step": 8, "replay-capacity": 1_000, "epsilon-steps": 1_000,
            "checkpoint-every-steps": 300, "log-every-steps": 100,
        },
    ),
    "online": (
        ["online", "--game=CartPole-v1"],
        {
            "total-steps": 4_000, "learning-starts-steps": 200, "batch-size": 16,
            "samples-per-step": 8, "replay-capacity": 1_000, "epsilon-steps": 1_000,
            "checkpoint-every-steps": 300, "log-every-steps": 100, "student": "7%,4%",
            "student-batch-size": 16,
        },
    ),
    "guided": (
        ["teacher", "dqn", "--game=CartPole-v1", "--guide={teacher}"],
        {
            "total-steps": 4_000, "learning-starts-steps": 300, "batch-size": 16,
            "samples-per-step": 8, "replay-capacity": 1_000, "guide-updates": 300,
            "checkpoint-every-steps": 300, "log-every-steps": 100,
        },
    ),
    "pqn": (
        ["teacher", "pqn", "--game=CartPole-v1"],
        {
            "total-steps": 20_480, "rollout-steps": 16, "batch-size": 32, "spread-steps": 20,
            "checkpoint-every-steps": 1_024, "log-every-steps": 256,
        },
    ),
}  # fmt: skip


def command(recipe: str, run_dir: Path, teacher: Path, changes: dict[str, int]) -> list[str]:
    words, options = RECIPES[recipe]
    flags = [f"--{key}={value}" for key, value in {**COMMON, **options, **changes}.items()]
    words = [word.format(teacher=teacher) for word in words]
    return [
        sys.executable, "-m", "fastdistill", *words, *flags, "--no-tensorboard", "--no-bfloat16",
        f"--run-dir={run_dir}",
    ]  # fmt: skip


def start(words: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(words, env=environment, stdout=file, stderr=file)


def tensors_of(run_dir: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in (*sorted((run_dir / "students").glob("*.json")), run_dir / "teacher.json"):
        if path.exists():
            found |= {f"{path.name} {k}": v for k, v in read_checkpoint(path)[0].items()}
    return found


def leftovers(run_dir: Path) -> list[str]:
    """Files that no description names, and temporary ones."""
    return sorted(
        str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.name.endswith(".tmp")
    )


def killed_and_resumed(recipe: str, folder: Path, kills: int, seed: int, **changes: int) -> None:
    teacher = Path(f"{balancer(folder / 'teacher')}.json")
    begun = time.monotonic()
    log = folder / "log"
    whole = start(command(recipe, folder / "whole", teacher, changes), log)
    assert whole.wait() == 0, log.read_text()
    seconds = time.monotonic() - begun
    expected = tensors_of(folder / "whole")
    assert expected
    moments = random.Random(seed)
    run_dir = folder / "killed"
    words = command(recipe, run_dir, teacher, changes)
    done = ended = 0
    while done < kills:
        resume = ["--resume"] if (run_dir / "config.json").exists() else []
        begun = time.monotonic()
        process = start([*words, *resume], log)
        try:
            # From the first import to shortly before the end of a whole run.
            status = process.wait(timeout=moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            print(f"{recipe}: {done} killed", flush=True)
            continue
        assert status == 0, log.read_text()
        assert tensors_of(run_dir).keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, tensors_of(run_dir)[name]), name
        assert leftovers(run_dir) == []
        print(f"{recipe}: a run ended, equal", flush=True)
        if not resume:  # the machine has less to do than when the first one was timed
            seconds = min(seconds, time.monotonic() - begun)
        ended += 1
        run_dir = folder / f"killed{ended}"
        words = command(recipe, run_dir, teacher, changes)
    resume = ["--resume"] if (run_dir / "config.json").exists() else []
    assert start([*words, *resume], log).wait() == 0, log.read_text()
    got = tensors_of(run_dir)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert leftovers(run_dir) == []
    print(f"{recipe}: the last run ended, equal", flush=True)


def test_a_distillation_killed_twice_and_resumed_equals_one_never_killed(tmp_path):
    shorter = {"total-updates": 300, "score-every-updates": 140, "evaluation-episodes": 0}
    killed_and_resumed("distill", tmp_path, kills=2, seed=0, **shorter)


@pytest.mark.stress
@pytest.mark.timeout(180 * max(KILLS, 20))
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_killed_many_times_and_resumed_equals_never_killed(tmp_path, recipe):
    killed_and_resumed(recipe, tmp_path, kills=KILLS, seed=1)
