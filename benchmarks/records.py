# SPDX-License-Identifier: MIT
"""Records of finished runs: what tables need of them, small enough to be kept in the repository.

Long experiments are many runs, made on several days and machines. Of each one its configuration,
its evaluation and the scores of its checkpoints are kept, and its teacher's card, without weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import pages

from fastdistill.report.results import Results
from fastdistill.training.metrics import read_jsonl

MEASURES = ("score", "share", "agreement", "kl")


def keep(run: Path, record: Path) -> None:
    """Write the record of a finished run; it names no path of this machine.

    Args:
        run: Its directory.
        record: Where, made if it is not there.
    """
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation.pop("commands", None)
    evaluation.setdefault("machine", machine.describe())
    config = json.loads((run / "config.json").read_text())
    config["config"].pop("run_dir", None)
    metrics = read_jsonl(run / "metrics.jsonl")
    scored = [
        {key: value for key, value in one.items() if _is_kept(key)}
        for one in metrics
        if one is metrics[-1] or any(key.endswith("score") or "/score/" in key for key in one)
    ]
    record.mkdir(parents=True, exist_ok=True)
    for name, content in (("evaluation.json", evaluation), ("config.json", config)):
        (record / name).write_text(json.dumps(content, indent=1) + "\n")
    (record / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in scored))
    if (run / "teacher.json").exists():
        shutil.copy(run / "teacher.json", record / "teacher.json")


def missing(
    folder: Path, record: Path, commands: dict[str, list[str]], chosen: Sequence[str]
) -> dict[str, list[str]]:
    """Those of the commands that have neither a record nor a finished run.

    Args:
        folder: Of the runs.
        record: Of the records.
        commands: Of each run, without the program and the directory.
        chosen: Which of them; all if empty.
    """
    return {
        name: words
        for name, words in commands.items()
        if (not chosen or name in chosen)
        and not (record / name).exists()
        and not (folder / name / "evaluation.json").exists()
    }


def run_missing(
    folder: Path, record: Path, commands: dict[str, list[str]], chosen: Sequence[str]
) -> None:
    """Run what is missing, one after another, in the repository's root; see ``missing``.

    What was interrupted goes on.
    """
    for name, words in missing(folder, record, commands, chosen).items():
        run_dir = (folder / name).resolve()
        resume = ["--resume"] if (run_dir / "config.json").exists() else []
        print(f"{name}: fastdistill {' '.join(words)}", file=sys.stderr)
        command = [sys.executable, "-m", "fastdistill", *words, "--run-dir", str(run_dir), *resume]
        if subprocess.run(command, check=False, cwd=pages.ROOT).returncode:
            raise SystemExit(f"{name} did not end; the same command continues")


def parse(
    about: str | None, folder: Path, commands: dict[str, list[str]], *, ray: bool = False
) -> argparse.Namespace:
    """The command line of a benchmark whose runs are kept.

    Args:
        about: Its help.
        folder: Of its runs, by default.
        commands: Of each run.
        ray: Whether the runs need nothing of each other, and may be Ray's tasks.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=folder)
    parser.add_argument(
        "--run", nargs="*", metavar="NAME", help="first run these, or all, unless they are kept"
    )
    if ray:
        parser.add_argument("--ray", action="store_true", help="each run a task of Ray's")
    arguments = parser.parse_args()
    if unknown := set(arguments.run or ()) - set(commands):
        parser.error(f"--run must name some of {', '.join(commands)}, got {', '.join(unknown)}")
    return arguments


def where(runs: dict[str, Sequence[Results]]) -> str:
    """What some runs ran on, each machine with the names of its runs.

    Args:
        runs: Name -> what it says of its games.
    """
    found: dict[str, list[str]] = {}
    for name, (first, *_) in runs.items():
        one = first.machine
        cores = one.get("cores", "some")
        place = f"{cores} core{'s' * (cores != 1)} of {one.get('cpu')}, torch {one.get('torch')}"
        found.setdefault(place, []).append(f"`{name}`")
    return "; ".join(f"{place} ({', '.join(names)})" for place, names in found.items())


def differences(configs: dict[str, dict[str, Any]]) -> list[str]:
    """What the runs of a table were told differently, as a paragraph; nothing if nothing.

    Args:
        configs: Of each run its options, but for those that make the table.
    """
    table = {"teacher", "loss", "student"}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    lines = []
    for key in [key for key in keys if key not in table]:
        values: dict[str, list[str]] = {}
        for name, config in configs.items():
            if key in config:
                values.setdefault(str(config[key]), []).append(f"`{name}`")
        if len(values) > 1:
            each = "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            lines.append(f"The runs differ in `{key}`: {each}.")
    if less := [f"`{name}`" for name, config in configs.items() if keys.keys() - config.keys()]:
        lines.append(f"Not all options are on record of {', '.join(less)}.")
    return [" ".join(lines), ""] if lines else []


def _is_kept(key: str) -> bool:
    # The third part of a student's: the second is its name, which may begin with its loss.
    first, *rest = key.split("/")
    words = rest[1:] if first == "students" else key.split("/")
    return key in ("step", "time/training_seconds") or any(
        word.startswith(MEASURES) for word in words
    )
