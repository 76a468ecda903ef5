# SPDX-License-Identifier: MIT
"""Learning curves of teacher runs, and the scores of the teachers they left.

Reads run directories of `fastdistill teacher dqn` and `teacher pqn`, plays 30 full episodes with
each teacher at each epsilon, and writes benchmarks/results/teachers_GAME.json (runs of other
recipes in it are kept) and the figure docs/images/teachers_GAME.png.

    OMP_NUM_THREADS=1 fastdistill teacher dqn --run-dir runs/dqn --stop-at-return 18.8
    OMP_NUM_THREADS=1 fastdistill teacher pqn --run-dir runs/pqn
    python benchmarks/teacher_curves.py runs/dqn runs/pqn
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import numpy as np

from fastdistill.evaluation import evaluate
from fastdistill.evaluation.statistics import summarize
from fastdistill.networks.checkpoint import load_network
from fastdistill.training.metrics import read_jsonl

HERE = Path(__file__).parent
WINDOW_EPISODES = 50
GOALS = {"pong": 18, "breakout": 250, "freeway": 30, "qbert": 8000}  # means worth a teacher's name


def curve_of(run_dir: Path) -> list[dict[str, float]]:
    """Steps, seconds and the mean return of about the last 50 episodes, record by record."""
    points: list[dict[str, float]] = []
    recent: list[tuple[int, float]] = []  # episodes in the record, their mean
    before = 0
    for record in read_jsonl(run_dir / "metrics.jsonl"):
        if "charts/episodic_return" not in record:
            continue
        episodes = int(record["charts/episodes"]) - before
        before += episodes
        recent.append((episodes, record["charts/episodic_return"]))
        while sum(count for count, _ in recent[1:]) >= WINDOW_EPISODES:
            recent.pop(0)
        counts, means = np.array([row[0] for row in recent]), np.array([row[1] for row in recent])
        points.append(
            {
                "step": record["step"],
                "wall_seconds": round(record["time/wall_seconds"], 1),
                "return": round(float((counts * means).sum() / counts.sum()), 3),
            }
        )
    return points


def judge(run_dir: Path, game: str, epsilon: float) -> dict[str, Any]:
    """30 full episodes of the run's teacher."""
    network, card = load_network(run_dir / "teacher")
    played = evaluate(network, game, episodes=30, epsilon=epsilon)
    return {
        "epsilon": epsilon,
        "trained_steps": card["trained_steps"],
        "returns": list(played.returns),
        "summary": asdict(summarize(played.returns, game)),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Return against time and against steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for run in result["runs"]:
        returns = [point["return"] for point in run["curve"]]
        axes[0].plot([p["wall_seconds"] / 60 for p in run["curve"]], returns, label=run["recipe"])
        axes[1].plot([p["step"] / 1e6 for p in run["curve"]], returns, label=run["recipe"])
    axes[0].set_xlabel("minutes of wall-clock time")
    axes[0].set_ylabel(f"training return, last {WINDOW_EPISODES} episodes")
    axes[1].set_xlabel("million agent steps")
    for axis in axes:
        if result["game"] in GOALS:
            axis.axhline(GOALS[result["game"]], color="0.6", linewidth=1, linestyle="--")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def main() -> None:
    """Reads, plays, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run_dirs", type=Path, nargs="+")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    arguments = parser.parse_args()
    games = {
        json.loads((run_dir / "config.json").read_text())["config"]["game"]
        for run_dir in arguments.run_dirs
    }
    if len(games) > 1:
        parser.error(f"run_dirs must be of one game, got {sorted(games)}")
    game = games.pop()
    runs = []
    for run_dir in arguments.run_dirs:
        stored = json.loads((run_dir / "config.json").read_text())
        stored["config"].pop("run_dir")
        curve = curve_of(run_dir)
        goal = GOALS.get(game)
        reached = next((point for point in curve if goal and point["return"] >= goal), None)
        runs.append(
            {
                "recipe": stored["recipe"],
                "config": stored["config"],
                "note": arguments.note,
                "machine": machine.describe(),
                "goal": goal,
                "reached_goal": reached,
                "evaluations": [judge(run_dir, game, epsilon) for epsilon in (0.05, 0.01)],
                "curve": curve,
            }
        )
        for entry in runs[-1]["evaluations"]:
            mean = entry["summary"]["mean"]
            print(stored["recipe"], f"epsilon {entry['epsilon']}", f"mean {mean['value']:.2f}")
    path = HERE / "results" / f"teachers_{game}.json"
    kept = json.loads(path.read_text())["runs"] if path.exists() else []
    fresh = {run["recipe"] for run in runs}
    runs += [run for run in kept if run["recipe"] not in fresh]
    result = {"benchmark": "teacher_curves", "game": game, "runs": runs}
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, HERE.parent / "docs" / "images" / f"teachers_{game}.png")


if __name__ == "__main__":
    main()
