# SPDX-License-Identifier: MIT
"""One distillation in one process, by two ranks, from shards and by Ray: the same score?

Pong, a 7% student, the same number of updates on the same number of states. With Ray there are two
nodes and four actors, one of which is killed at half of the updates. Results go to
benchmarks/results/scale_scores.json, way by way, and the table of docs/scale.md is written from
there, between its markers.

    python benchmarks/scale_scores.py            # every way; minutes on two cores
    python benchmarks/scale_scores.py ranks      # one of them
    python benchmarks/scale_scores.py --render
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import pages

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scale_scores.json"
UPDATES = 6_000
STATES = 4_000 + 8 * UPDATES  # the defaults of distill
COMMON = ["--total-updates", str(UPDATES), "--score-every-updates", "1500", "--no-tensorboard"]
RAY = {
    "teacher": "zoo:pong", "env": "pong", "actors": 4, "kill_after": UPDATES // 2,
    "total_updates": UPDATES, "score_every_updates": 1_500, "tensorboard": False,
}  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WAYS = {
    "one process": [["-m", "fastdistill", "distill", "--teacher", "zoo:pong"]],
    "ranks": [[*TORCHRUN, "-m", "fastdistill", "distill", "--teacher", "zoo:pong"]],
    "shards": [
        ["-m", "fastdistill", "collect", "zoo:pong", "--steps", str(STATES), "--out", "DIR"],
        ["-m", "fastdistill", "distill", "--data", "DIR"],
    ],
    "ray": [["tests/ray_program.py", "RUN", "OPTIONS"]],
}  # fmt: skip


def measure(way: str) -> dict[str, object]:
    """Run its commands in a directory of their own; the evaluation's summary."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        names = {"DIR": f"{folder}/data", "RUN": str(run_dir), "OPTIONS": json.dumps(RAY)}
        for words in WAYS[way]:
            words = [names.get(word, word) for word in words]
            more = [*COMMON, "--run-dir", str(run_dir)] if "distill" in words else []
            subprocess.run([sys.executable, *words, *more], check=True, cwd=HERE.parent)
        record = json.loads((run_dir / "evaluation.json").read_text())
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        restarts = max(json.loads(line).get("actors/restarts", 0) for line in lines)
    if way == "ray" and not restarts:
        raise RuntimeError("no actor died: the run shows nothing of what happens then")
    (student,) = record["students"]
    return {
        "commands": [" ".join(words) for words in WAYS[way]],
        "updates": UPDATES,
        "episodes": record["episodes"],
        "teacher": record["teacher"]["summary"]["mean"],
        "student": student["summary"]["mean"],
        "percent_of_teacher": student["percent_of_teacher"],
        "actors_restarted": restarts,
        "training_seconds": record["training_seconds"],
        "seconds": time.monotonic() - begun,
        "load_average": os.getloadavg()[1],
        "machine": machine.describe(),
    }


def render() -> None:
    """The table in the page, from the result file."""
    found = json.loads(RESULTS.read_text())
    lines = ["| way | updates | student | share of the teacher |", "|---|---|---|---|"]
    for way, row in found["ways"].items():
        cells = [
            f"{part['value']:.1f}{unit} [{part['low']:.1f}, {part['high']:.1f}]"
            for part, unit in ((row["student"], ""), (row["percent_of_teacher"], "%"))
        ]
        lines.append(f"| {way} | {row['updates']:,} | {cells[0]} | {cells[1]} |")
    pages.write_part("docs/scale.md", "scale_scores.py", "\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ways", nargs="*", default=[], metavar="way", help=", ".join(WAYS))
    parser.add_argument("--render", action="store_true", help="write the page's table and no more")
    arguments = parser.parse_args()
    if unknown := set(arguments.ways) - set(WAYS):
        parser.error(f"way must be one of {', '.join(WAYS)}, got {', '.join(unknown)}")
    if not arguments.render:
        for way in arguments.ways or WAYS:
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"ways": {}}
            found["ways"][way] = measure(way)
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    render()


if __name__ == "__main__":
    main()
