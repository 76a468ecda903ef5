# SPDX-License-Identifier: MIT
"""Runs the benchmarks and writes what the documents show.

python benchmarks/run.py            all rows; writes benchmarks/results/, docs/benchmarks.md and
                                    the table of README.md
python benchmarks/run.py --short    the smaller rows, printed only
python benchmarks/run.py --cuda     the losses on this machine's GPU, instead of those on its CPU
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


def measure(program: str, *options: str) -> dict[str, object]:
    """Runs pytest-benchmark in a process of its own and returns machine and medians of a call."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default",
            "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds",
            f"--benchmark-json={raw}", str(ROOT / "benchmarks" / program), *options,
        ]  # fmt: skip
        # A folder without fastdistill/ in it: the installed package is what is measured.
        status = subprocess.run(command, cwd=ROOT / "benchmarks", check=False).returncode
        if status != 0:
            raise SystemExit(status)
        rows = []
        for entry in json.loads(raw.read_text())["benchmarks"]:
            row = entry["extra_info"]
            calls = row.pop("calls", 1)
            row["median_seconds"] = entry["stats"]["median"] / calls
            row["iqr_seconds"] = entry["stats"]["iqr"] / calls
            rows.append(row)
    return {"machine": machine.describe(), "rows": rows}


def main() -> None:
    """Parses the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="the smaller rows, printed only")
    parser.add_argument("--cuda", action="store_true", help="on the GPU of this machine")
    parser.add_argument(
        "--render", action="store_true", help="rewrite the documents, measure nothing"
    )
    arguments = parser.parse_args()
    os.chdir(ROOT)
    results = ROOT / "benchmarks" / "results"
    if arguments.cuda:
        measured = measure("test_bench_losses_cuda.py")
        print(render.cuda_table(measured))
        (results / "losses_cuda.json").write_text(json.dumps(measured, indent=1) + "\n")
    elif not arguments.render:
        measured = measure("test_bench_losses.py", *(["-k", SHORT_ROWS] if arguments.short else []))
        print(render.losses_table(measured))
        if arguments.short:
            return
        results.mkdir(exist_ok=True)
        (results / "losses_cpu.json").write_text(json.dumps(measured, indent=1) + "\n")
    render.write_documents(ROOT)


if __name__ == "__main__":
    main()
