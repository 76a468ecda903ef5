# SPDX-License-Identifier: MIT
"""Runs the benchmarks and writes what the documents show.

python benchmarks/run.py            all rows; writes benchmarks/results/, docs/benchmarks.md and
                                    the table of README.md
python benchmarks/run.py --short    the smaller rows, printed only
python benchmarks/run.py --render   rewrites the documents from the results, measuring nothing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import render

ROOT = Path(__file__).resolve().parent.parent
SHORT_ROWS = "(32x18 or 4096x18 or 65536x18) and float32"


def measure(short: bool) -> dict[str, object]:
    """Runs pytest-benchmark in a process of its own and returns machine and medians."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default",
            "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds",
            f"--benchmark-json={raw}", str(ROOT / "benchmarks" / "test_bench_losses.py"),
        ]  # fmt: skip
        if short:
            command += ["-k", SHORT_ROWS]
        # A folder without fastdistill/ in it: the installed package is what is measured.
        status = subprocess.run(command, cwd=ROOT / "benchmarks", check=False).returncode
        if status != 0:
            raise SystemExit(status)
        rows = [
            {
                **entry["extra_info"],
                "median_seconds": entry["stats"]["median"],
                "iqr_seconds": entry["stats"]["iqr"],
            }
            for entry in json.loads(raw.read_text())["benchmarks"]
        ]
    return {"machine": machine.describe(), "rows": rows}


def main() -> None:
    """Parses the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="the smaller rows, printed only")
    parser.add_argument(
        "--render", action="store_true", help="rewrite the documents, measure nothing"
    )
    arguments = parser.parse_args()
    os.chdir(ROOT)
    results = ROOT / "benchmarks" / "results" / "losses_cpu.json"
    if not arguments.render:
        measured = measure(arguments.short)
        print(render.losses_table(measured))
        if arguments.short:
            return
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(measured, indent=1) + "\n")
    render.write_documents(ROOT)


if __name__ == "__main__":
    main()
