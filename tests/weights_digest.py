# SPDX-License-Identifier: MIT
"""Digests of the weights that short runs of every recipe end with, interrupted and not.

A change that moves code and not behaviour prints the same digests before and after, on the same
machine: ``python tests/weights_digest.py > before``. One thread, two minutes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastdistill.networks.checkpoint import read_checkpoint

COMMON = ["--no-tensorboard", "--score-episodes=0", "--evaluation-episodes=0", "--device=cpu"]
DISTILL = [
    "distill", "--total-updates=300", "--learning-starts-steps=400", "--num-lanes=4",
    "--batch-size=32", "--replay-capacity=4000", "--checkpoint-every-updates=60",
    "--log-every-updates=50",
]  # fmt: skip
DQN = [
    "teacher", "dqn", "--total-steps=1600", "--learning-starts-steps=200", "--num-lanes=4",
    "--batch-size=16", "--replay-capacity=1000", "--epsilon-steps=1000",
    "--target-update-updates=20", "--checkpoint-every-steps=400", "--log-every-steps=400",
]  # fmt: skip
PQN = [
    "teacher", "pqn", "--total-steps=5120", "--num-lanes=8", "--rollout-steps=16",
    "--spread-steps=40", "--batch-size=64", "--epochs=3", "--checkpoint-every-steps=640",
    "--log-every-steps=640",
]  # fmt: skip


def runs(cartpole_teacher: Path) -> dict[str, list[str]]:
    """Name -> arguments."""
    found = {}
    for game, more in (("pong", ["--size=4%"]), ("CartPole-v1", ["--no-bfloat16"])):
        found[f"dqn {game}"] = [*DQN, f"--game={game}", *more]
        found[f"pqn {game}"] = [*PQN, f"--game={game}", *more]
        teacher = "zoo:pong" if game == "pong" else str(cartpole_teacher)
        for driver in ("teacher", "student", "mixture"):
            options = [f"--teacher={teacher}", f"--driver={driver}", "--temperature=auto"]
            options += ["--loss=kl,mse"] if driver == "mixture" else []
            found[f"distill {driver} {game}"] = [*DISTILL, *options]
    found["distill float32 pong"] = [*DISTILL, "--teacher=zoo:pong", "--no-bfloat16"]
    return found


def execute(run_dir: Path, arguments: list[str], *, interrupt: bool) -> None:
    """Run a command to its end; interrupted once on the way if asked to."""
    command = [sys.executable, "-m", "fastdistill", *arguments, *COMMON, f"--run-dir={run_dir}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        while interrupt and process.poll() is None:
            if list((run_dir / "checkpoints").glob("step_*.json")):
                process.send_signal(signal.SIGTERM)
                process.wait()
                process = subprocess.Popen(
                    [*command, "--resume"], env=environment, stdout=output, stderr=output
                )
                break
            time.sleep(0.02)
        if process.wait() != 0:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output.read()}")


def digest(run_dir: Path) -> str:
    """Of every weight and buffer of the networks that a run published."""
    sha = hashlib.sha256()
    for path in (*sorted((run_dir / "students").glob("*.json")), run_dir / "teacher.json"):
        if path.exists():
            for name, tensor in sorted(read_checkpoint(path)[0].items()):
                sha.update(f"{path.stem} {name} {tuple(tensor.shape)}".encode())
                sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def main() -> None:
    """Print a line for each run."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "whole dqn CartPole-v1" / "teacher.json"
        todo = runs(teacher)
        first = "dqn CartPole-v1"
        for name in (first, *(name for name in todo if name != first)):
            for kind in ("whole", "interrupted"):
                run_dir = Path(folder) / f"{kind} {name}"
                execute(run_dir, todo[name], interrupt=kind == "interrupted")
                print(f"{name:28} {kind:12} {digest(run_dir)}", flush=True)


if __name__ == "__main__":
    main()
