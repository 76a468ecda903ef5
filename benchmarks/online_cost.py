# SPDX-License-Identifier: MIT
"""What students cost that follow a DQN: an online run beside the DQN alone, in turn.

Both make the same DQN; only the steps after the first checkpoint count, when students learn from
its best network. Scoring is left out on both sides. One thread, unless OMP_NUM_THREADS says more.

    python benchmarks/online_cost.py --out benchmarks/results/online_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import pages

PARTS = ("act", "env", "replay", "learn", "students")
COMMANDS = {"alone": ("teacher", "dqn"), "online": ("online", "--student", "100%,7%")}


def seconds_of(command: tuple[str, ...], game: str, steps: int) -> dict[str, float]:
    """Seconds of each part in the last ``steps`` steps of a run of twice as many."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        words = [*command, "--game", game, "--run-dir", str(run_dir), "--no-tensorboard"]
        for name, value in {
            "total-steps": 2 * steps,
            "checkpoint-every-steps": steps,
            "learning-starts-steps": steps // 2,
            "log-every-steps": steps // 4,
            "score-episodes": 0,
            "evaluation-episodes": 0,
        }.items():
            words += [f"--{name}", str(value)]
        subprocess.run(
            [sys.executable, "-m", "fastdistill", *words],
            check=True, cwd=pages.ROOT, env={"OMP_NUM_THREADS": "1"} | os.environ,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        records = [
            json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()
        ]
    late = [record for record in records if record["step"] > steps]
    return {part: sum(one.get(f"time/{part}_seconds", 0.0) for one in late) for part in PARTS}


def main() -> None:
    """Times both, prints the ratios and writes them where told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--game", default="pong")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    pairs: list[dict[str, Any]] = []
    for _ in range(arguments.pairs):
        pair: dict[str, Any] = {
            name: seconds_of(command, arguments.game, arguments.steps)
            for name, command in COMMANDS.items()
        }
        pair["online_over_alone"] = sum(pair["online"].values()) / sum(pair["alone"].values())
        print(json.dumps(pair), file=sys.stderr)
        pairs.append(pair)
    result = {
        "benchmark": "online_cost",
        "game": arguments.game,
        "students": COMMANDS["online"][-1],
        "steps": arguments.steps,
        "pairs": pairs,
        "online_over_alone": statistics.median(pair["online_over_alone"] for pair in pairs),
        "machine": machine.describe(),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
