# SPDX-License-Identifier: MIT
"""Students of two ranks that torchrun started: the gradients of one process, and nobody missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_program
import torch
from cartpole import SMALL

from fastdistill.training.ranks import ALONE, Ranks

PROGRAM = Path(__file__).parents[1] / "ranks_program.py"


def torchrun(*arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_weights_are_those_of_one_process_on_the_joint_batch(tmp_path):
    # Three updates by Adam in float64, states weighted by gap: one game, and two with a trunk.
    ended = torchrun("updates", str(tmp_path / "weights.pt"))
    assert ended.returncode == 0, ended.stderr
    found = torch.load(tmp_path / "weights.pt")
    wanted = ranks_program.updates(ALONE)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=name)


def test_a_killed_rank_ends_the_job_and_another_number_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    ended = torchrun("distill", str(run_dir), json.dumps({**SMALL, "die_after": 120}))
    assert ended.returncode != 0
    assert "RankLost: distill: every rank must stay until the end" in ended.stderr
    assert "exitcode  : -9" in ended.stderr  # torchrun names who it was
    assert not (run_dir / "evaluation.json").exists()
    (run_dir / "config.json").read_text()

    # One process goes on from update 100, the last checkpoint of the first rank.
    result = ranks_program.fd.distill(
        ranks_program.Balancer(), "CartPole-v1", run_dir=run_dir, resume=True
    )
    assert result.updates == 200
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["time/updates"] for row in steps if "time/updates" in row] == [50, 100, 150, 200]
    # Play of both ranks counts: 400 steps before the first update, 8 for each.
    assert [row["step"] for row in steps if "time/updates" in row] == [800, 1200, 1600, 2000]
    # As good as a run of one process: random play scores 22, the teacher 500.
    assert result.evaluation["students"][0]["summary"]["mean"]["value"] > 200


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(
        ValueError, match="DistillConfig: num_lanes must be a multiple of 3, the ranks, got 16"
    ):
        Ranks(rank=1, world=3).part_of("num_lanes", 16)
    assert Ranks(rank=1, world=4).part_of("num_lanes", 16) == 4
