# SPDX-License-Identifier: MIT
"""Measures the replay and its peers and writes benchmarks/results/replay_100k.json or _1m.json.

By default 100k transitions and all peers (6 GB, 4 minutes); with ``--million`` a million, ours and
the floor only (8 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import machine
import render_replay

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("ours", "cpprb", "cpprb n-step", "tianshou")


def measure(peer: str, capacity: int, heap: str) -> list[dict[str, object]]:
    """Medians of one peer, in a process of its own so that no other's heap is inherited."""
    environment = os.environ | {
        "FASTDISTILL_BENCH_PEER": peer,
        "FASTDISTILL_BENCH_CAPACITY": str(capacity),
        "FASTDISTILL_BENCH_HEAP": heap,
    }
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        test = ROOT / "benchmarks" / "test_bench_replay.py"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
        command += [f"--benchmark-json={raw}", "--benchmark-columns=median,iqr,rounds", str(test)]
        if heap == "fresh":
            command += ["-k", "test_sample and not beside"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return [
            {
                **entry["extra_info"],
                "median_us": round(entry["stats"]["median"] * 1e6, 2),
                "iqr_us": round(entry["stats"]["iqr"] * 1e6, 2),
            }
            for entry in json.loads(raw.read_text())["benchmarks"]
        ]


def main() -> None:
    """Parses the command line, measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true", help="a million transitions")
    million = parser.parse_args().million
    rows = []
    for peer in PEERS[:1] if million else PEERS:
        for heap in ("used",) if million else ("fresh", "used"):
            rows += measure(peer, 1_000_000 if million else 100_000, heap)
    # One thread samples; the machine's default for torch is not what was used.
    where = machine.describe() | {"threads": 1}
    where |= {name: version(name) for name in ("numpy", "cpprb", "tianshou")}
    name = "replay_1m.json" if million else "replay_100k.json"
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    (ROOT / "benchmarks" / "results" / name).write_text(
        f'{{"machine": {json.dumps(where)},\n "rows": [\n  {lines}\n ]}}\n'
    )
    print(render_replay.replay_table({"machine": where, "rows": rows}))


if __name__ == "__main__":
    main()
