# SPDX-License-Identifier: MIT
"""How long a distillation takes: ours beside the plain PyTorch loop, and nine students beside one.

All with the same updates, batch size and steps of play per update, in one run, without scoring or
evaluation; the plain loop first, because ours changes the allocator for the whole process.

    python benchmarks/distill_speed.py --out benchmarks/results/distill_speed.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from plain_distill import plain_distill

import fastdistill as fd
from fastdistill.recipes.distill_config import DistillConfig


def ours(game: str, updates: int, **options: Any) -> dict[str, Any]:
    """Wall-clock time of one ``fd.distill``, from the call to its end."""
    with tempfile.TemporaryDirectory() as directory:
        begun = time.perf_counter()
        result = fd.distill(
            f"zoo:{game}",
            run_dir=Path(directory) / "run",
            total_updates=updates,
            score_episodes=0,
            evaluation_episodes=0,
            checkpoint_every_updates=updates,
            tensorboard=False,
            **options,
        )
        wall_seconds = time.perf_counter() - begun
        records = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    parts: dict[str, float] = {}
    for record in map(json.loads, records):
        for key, value in record.items():
            if key.startswith("time/") and key.split("/")[1] in PARTS:
                parts[key.split("/")[1]] = parts.get(key.split("/")[1], 0.0) + value
    return {"wall_seconds": wall_seconds, "students": len(result.students), **parts}


PARTS = ("act_seconds", "env_seconds", "replay_seconds", "learn_seconds")


def main() -> None:
    """Times all, prints the ratios and writes them where told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--game", default="pong")
    parser.add_argument("--updates", type=int, default=DistillConfig.total_updates)
    parser.add_argument("--out", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    defaults = DistillConfig()
    plain = plain_distill(
        arguments.game,
        arguments.updates,
        defaults.batch_size,
        int(defaults.steps_per_update),
        capacity=defaults.replay_capacity,
    )
    del plain["network"]
    one = ours(arguments.game, arguments.updates)
    nine = ours(arguments.game, arguments.updates, loss="kl,nll,mse", seeds=3)
    result = {
        "benchmark": "distill_speed",
        "game": arguments.game,
        "updates": arguments.updates,
        "batch_size": defaults.batch_size,
        "steps_per_update": defaults.steps_per_update,
        "plain": plain,
        "one": one,
        "nine": nine,
        "one_over_plain": one["wall_seconds"] / plain["wall_seconds"],
        "nine_over_nine_times_one": nine["wall_seconds"] / (9 * one["wall_seconds"]),
        "machine": machine.describe(),
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
