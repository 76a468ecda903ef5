# SPDX-License-Identifier: MIT
"""Makes a zoo teacher of a run's: float16 weights, played as they ship, and a card with the scores.

Only the run's own files and the games played here say what the card says, apart from its limits.

    python benchmarks/ship_teacher.py runs/pqn pong_pqn --limits "Never met sticky actions."
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastdistill.evaluation import evaluate
from fastdistill.evaluation.statistics import summarize
from fastdistill.networks.checkpoint import load_network, save_network
from fastdistill.teachers import ZOO
from fastdistill.training.metrics import read_jsonl

CONDITIONS = (("classic", 0.05), ("classic", 0.01), ("machado", 0.05))


def score(network: torch.nn.Module, game: str, preset: str, epsilon: float) -> dict[str, Any]:
    """30 episodes under one condition, as the cards have them."""
    played = evaluate(network, game, episodes=30, preset=preset, epsilon=epsilon)
    summary = asdict(summarize(played.returns, game))
    mean = summary["mean"]
    return {
        "preset": preset,
        "epsilon": epsilon,
        "seed": played.seed,
        "num_lanes": played.num_lanes,
        "episodes": len(played.returns),
        "mean": round(mean["value"], 2),
        "interval95": [round(mean["low"], 2), round(mean["high"], 2)],
        "iqm": round(summary["iqm"]["value"], 2),
        "median": summary["median"],
        "std": round(summary["std"], 2),
        "truncated": played.truncated,
        "returns": list(played.returns),
    }


def described(run_dir: Path, card: dict[str, Any]) -> str:
    """How it was trained, from the run's own files."""
    stored = json.loads((run_dir / "config.json").read_text())
    chosen = {
        key: value
        for key, value in stored["config"].items()
        if key not in ("run_dir", "game", "preset", "device", "tensorboard")
    }
    records = read_jsonl(run_dir / "metrics.jsonl")
    seconds = max(record.get("time/wall_seconds", 0) for record in records)
    options = ", ".join(f"{key} {value}" for key, value in chosen.items())
    return (
        f"{stored['recipe']}, {card['trained_steps']:,} agent steps, run of {seconds / 60:.0f} "
        f"minutes ({options})"
    )


def main() -> None:
    """Writes, plays, writes again with the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("name", help="what follows zoo:")
    parser.add_argument("--limits", required=True, help="what a user must know")
    arguments = parser.parse_args()
    network, stored = load_network(arguments.run_dir / "teacher")
    card = {
        "name": arguments.name,
        "kind": stored["kind"],
        "game": stored["game"],
        "license": "MIT",
        "action_meanings": stored["action_meanings"],
        "obs": "uint8 [4, 84, 84], oldest plane first; the network standardises it",
        "environment": stored["environment"],
        "training": described(arguments.run_dir, stored),
        "limits": arguments.limits,
    }
    path = save_network(ZOO / arguments.name, network, card, dtype=torch.float16)
    shipped, _ = load_network(path)
    scores = [score(shipped, stored["game"], *condition) for condition in CONDITIONS]
    save_network(ZOO / arguments.name, network, {**card, "scores": scores}, dtype=torch.float16)
    for entry in scores:
        print(entry["preset"], entry["epsilon"], entry["mean"], entry["interval95"])


if __name__ == "__main__":
    main()
