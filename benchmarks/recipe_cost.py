# SPDX-License-Identifier: MIT
"""What a recipe costs beside what it stands for: pairs of short runs, in turn.

online:  a DQN and the students that follow it, beside the same DQN alone.
several: three games in one student, beside three students of one game each, as many updates.

Only the second half of each run's updates counts, when everything that learns does so; scoring,
evaluation and checkpoints are left out. One thread.

    python benchmarks/recipe_cost.py
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

RESULT = Path(__file__).parent / "results" / "recipe_cost.json"
PAGES = {"online": "docs/online.md", "several": "docs/several_games.md"}
PARTS = ("act", "env", "replay", "learn", "students")
COMMON = "--score-episodes 0 --evaluation-episodes 0 --no-tensorboard"
DQN = (
    "--game pong --total-steps 8000 --checkpoint-every-steps 4000 --learning-starts-steps 2000 "
    "--log-every-steps 1000"
)
GAMES = ("pong", "freeway", "qbert")


def distill(games: tuple[str, ...], student: str) -> str:
    """As benchmarks/several_games.py distills, but shorter."""
    number = len(games)
    return (
        f"distill --teacher {','.join(f'zoo:{game}' for game in games)} --student {student} "
        f"--temperature auto --total-updates 240 --log-every-updates 60 "
        f"--batch-size {32 * number} --steps-per-update {4 * number} "
        f"--learning-starts-steps {2000 * number}"
    )


# case -> (what it stands for, the recipe), each one or several runs
CASES = {
    "online": ([f"teacher dqn {DQN}"], [f"online --student 100%,7% {DQN}"]),
    "several": ([distill((game,), "100%") for game in GAMES], [distill(GAMES, "multi")]),
}


def seconds_of(command: str) -> dict[str, float]:
    """Seconds of each part in the second half of a run's updates."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        words = [*command.split(), *COMMON.split(), "--run-dir", str(run_dir)]
        subprocess.run(
            [sys.executable, "-m", "fastdistill", *words],
            check=True, cwd=pages.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "time/updates" in record]
    half = records[-1]["time/updates"] / 2
    late = [record for record in records if record["time/updates"] > half]
    return {part: sum(one.get(f"time/{part}_seconds", 0.0) for one in late) for part in PARTS}


def side(commands: list[str]) -> dict[str, float]:
    """Seconds of each part, all runs together."""
    runs = [seconds_of(command) for command in commands]
    return {part: round(sum(run[part] for run in runs), 3) for part in PARTS}


def render(case: dict[str, Any], where: dict[str, Any]) -> str:
    """Markdown of one case: its ratio, and what the parts took."""
    base, recipe = (
        {part: statistics.median(pair[name][part] for pair in case["pairs"]) for part in PARTS}
        for name in ("base", "recipe")
    )
    parts = "; ".join(
        f"{part} {base[part]:.1f} and {recipe[part]:.1f} s"
        for part in PARTS
        if base[part] or recipe[part]
    )
    ratios = ", ".join(f"{ratio:.2f}" for ratio in case["ratios"])
    cores = f"{where['cores']} core{'s' * (where['cores'] != 1)} of {where['cpu']}"
    return (
        f"{case['median_ratio']:.2f} times the time ({ratios} in pairs of runs), scoring apart. "
        f"Medians of the parts: {parts}. {cores}, one thread, torch {where['torch']} "
        "(`python benchmarks/recipe_cost.py`, [result](../benchmarks/results/recipe_cost.json)).\n"
    )


def write_pages(result: dict[str, Any]) -> None:
    """What the pages say of a result."""
    for name, case in result["cases"].items():
        pages.write_part(PAGES[name], "recipe_cost.py", render(case, result["machine"]))


def main() -> None:
    """Times all cases, writes the result and what the pages say of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    cases: dict[str, Any] = {}
    for name in CASES:
        pairs = []
        for _ in range(arguments.pairs):
            base, recipe = (side(commands) for commands in CASES[name])
            pairs.append({"base": base, "recipe": recipe})
            print(name, json.dumps(pairs[-1]), file=sys.stderr)
        ratios = [sum(pair["recipe"].values()) / sum(pair["base"].values()) for pair in pairs]
        cases[name] = {
            "base": CASES[name][0],
            "recipe": CASES[name][1],
            "pairs": pairs,
            "ratios": ratios,
            "median_ratio": statistics.median(ratios),
        }
    result = {"benchmark": "recipe_cost", "cases": cases, "machine": machine.describe()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_pages(result)


if __name__ == "__main__":
    main()
