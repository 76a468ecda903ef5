# SPDX-License-Identifier: MIT
"""The paper's two tables for every teacher of the zoo: same-size students by loss, and compression.

Each table of each game is one distillation, whose students learn side by side. Keeps a record of
each finished one in benchmarks/results/distill, without weights, so that runs of several days and
machines come together; of the records the tables and figures of docs/results.md and the README's
are made. With --run what has no record is run first, one after another (with --ray each a task of
Ray's), and continued where it was interrupted.

    python benchmarks/distill_tables.py runs/tables --run
    python benchmarks/distill_tables.py runs/tables --run pong_losses pong_sizes
    python benchmarks/distill_tables.py runs/tables
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pages
import records
from render_tables import draw, render, render_summary

from fastdistill.report.results import read_results
from fastdistill.teachers.teacher import zoo_names
from fastdistill.training.ray_cluster import spread

RECORDS = Path(__file__).parent / "results" / "distill"
TABLES = {
    "losses": "--student 100% --loss kl,nll,mse",
    "sizes": "--student 25%,7%,4% --loss kl",
}


def commands() -> dict[str, list[str]]:
    """Run -> what makes it, in float32 on every machine."""
    common = "--seeds 3 --no-bfloat16 --no-tensorboard"
    return {
        f"{game}_{table}": f"distill --teacher zoo:{game} {words} {common}".split()
        for game in zoo_names()
        for table, words in TABLES.items()
    }


def run_one(words: list[str], run_dir: str) -> None:
    """Run a command of the package's, wherever that is."""
    resume = ["--resume"] if (Path(run_dir) / "config.json").exists() else []
    command = [sys.executable, "-m", "fastdistill", *words, "--run-dir", run_dir, *resume]
    subprocess.run(command, check=True)


def main() -> None:
    """Runs what is missing if asked, keeps what is finished, writes the pages."""
    arguments = records.parse(__doc__, Path("runs/tables"), commands(), ray=True)
    if arguments.run is not None:
        missing = records.missing(arguments.folder, RECORDS, commands(), arguments.run)
        if arguments.ray:
            folder = arguments.folder.resolve()
            calls = [
                {"words": words, "run_dir": str(folder / name)} for name, words in missing.items()
            ]
            spread(run_one, calls)
        else:
            records.run_missing(arguments.folder, RECORDS, commands(), arguments.run)
    for path in sorted(arguments.folder.glob("*/evaluation.json")):
        records.keep(path.parent, RECORDS / path.parent.name)
    found = {
        path.parent.name: read_results(path.parent, by="steps")  # a distillation's are updates
        for path in sorted(RECORDS.glob("*/evaluation.json"))
    }
    images = pages.ROOT / "docs" / "images"
    pages.write_part("docs/results.md", "distill_tables.py", render(found, draw(found, images)))
    pages.write_part("README.md", "distill_tables.py", render_summary(found))


if __name__ == "__main__":
    main()
