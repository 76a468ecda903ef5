# SPDX-License-Identifier: MIT
"""Distillation run directories made up for tests of the report: the files, none of the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastdistill.evaluation.compare import together
from fastdistill.evaluation.statistics import bootstrap_interval, summarize

RANDOM_SCORE = -20.7
SIZES = {
    "100%": (1687206, 9345024),
    "25%": (424790, 2812416),
    "7%": (111798, 1560000),
    "4%": (61174, 1450000),
}
LEVELS = {"kl": 1.0, "nll": 0.93, "mse": 0.72, "reverse_kl": 0.96, "jsd": 0.98}


def made_up_run(
    run_dir: Path,
    *,
    kinds: Sequence[str] = ("kl",),
    sizes: Sequence[str] = ("7%",),
    seeds: int = 1,
    episodes: int = 30,
    records: int = 40,
    training_seconds: float = 174.0,
) -> dict[str, Any]:
    """Write config.json, metrics.jsonl and evaluation.json; the last one's content is returned."""
    rng = np.random.default_rng(0)
    run_dir.mkdir(parents=True, exist_ok=True)
    teacher = rng.integers(12, 21, episodes).astype(float)
    students, lines = [], [dict[str, float]() for _ in range(records)]
    for record, line in enumerate(lines):
        line["step"] = (record + 1) * 2400
        line["time/training_seconds"] = training_seconds * (record + 1) / records
        line["charts/SPS"] = 800 + 30 * rng.normal()
    for kind in kinds:
        for size in sizes:
            for seed in range(seeds):
                small = {"100%": 1.02, "25%": 1.0, "7%": 0.99, "4%": 0.9}.get(size, 1.0)
                level = RANDOM_SCORE + LEVELS.get(kind, 0.9) * small * (16.3 - RANDOM_SCORE)
                scores = np.clip(np.rint(rng.normal(level, 2.2, episodes)), -21, 21)
                name = f"{kind}-{size.rstrip('%')}-{seed}"
                parameters, flops = SIZES.get(size, (5000, 4800))
                students.append(
                    player(name, scores, parameters, flops, kind=kind, size=size, seed=seed)
                    | {"percent_of_teacher": percent_of_teacher(scores, teacher)}
                )
                for record, line in enumerate(lines):
                    done = (record + 1) / records
                    kl = 0.16 + 1.1 * np.exp(-6 * done) + 0.015 * rng.normal()
                    line[f"students/{name}/kl"] = kl
                    line[f"students/{name}/loss"] = kl + 0.02 * rng.normal()
                    line[f"students/{name}/agreement"] = 0.76 - 0.5 * np.exp(-5 * done)
                    if record % 5 == 4:
                        line[f"students/{name}/score"] = (
                            RANDOM_SCORE
                            + (level - RANDOM_SCORE) / (1 + np.exp(-12 * (done - 0.4)))
                            + rng.normal()
                        )
    evaluation = {
        "game": "pong",
        "preset": "classic",
        "epsilon": 0.05,
        "seed": 1,
        "episodes": episodes,
        "random_score": RANDOM_SCORE,
        "machine": {"cpu": "an imagined one", "cores": 2, "memory_bytes": 8_000_000_000},
        "commands": ["fastdistill distill --teacher zoo:pong --student 7 --loss kl"],
        "training_seconds": training_seconds,
        "teacher": player("zoo:pong", teacher, *SIZES["100%"], size="100%"),
        "students": students,
    }
    config = {"teacher": "zoo:pong", "temperature": 0.01, "seed": 0}
    versions = {"python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"}
    (run_dir / "config.json").write_text(
        json.dumps({"recipe": "distill", "config": config, "versions": versions})
    )
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_evaluation(run_dir, evaluation)
    return evaluation


# Game -> random play, the teacher's mean, its standard deviation.
GAMES = {"pong": (-20.7, 16.3, 2.5), "freeway": (0.0, 31.0, 1.2), "qbert": (163.9, 2300.0, 900.0)}


def made_up_games_run(
    run_dir: Path,
    games: Sequence[str] = tuple(GAMES),
    *,
    levels: dict[str, float] | None = None,
    size: str = "multi",
    seeds: int = 2,
    episodes: int = 20,
    recipe: str = "distill",
    training_seconds: float = 3000.0,
    seed: int = 0,
) -> dict[str, Any]:
    """A run of one or several games; of another recipe than distill its teacher is the network.

    Args:
        levels: Loss -> share of the teachers' level.
    """
    rng = np.random.default_rng(seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    levels = {"kl": 1.0} if levels is None else levels
    lines = [
        {"step": 2400 * n, "time/training_seconds": training_seconds * n / 8} for n in range(1, 9)
    ]
    records = []
    for game in games:
        random, teacher, deviation = GAMES[game]
        own = np.random.default_rng(99).normal(teacher, deviation, episodes)  # the same in all runs
        students = []
        for kind, level in levels.items() if recipe == "distill" else ():
            for k in range(seeds):
                name = f"{kind}_{size.rstrip('%')}_seed{k + 1}"
                facts = {"kind": kind, "size": size, "seed": k + 1}
                if len(games) > 1:
                    facts["parameters_of_all_games"] = 1_882_668
                mean = random + level * (teacher - random)
                scores = rng.normal(mean, deviation, episodes)
                students.append(player(name, scores, 1_687_206, 9_345_024, **facts))
                students[-1]["percent_of_teacher"] = {"value": 100.0, "low": 95.0, "high": 105.0}
                for n, line in enumerate(lines, start=1):
                    done, suffix = 1 - np.exp(-0.7 * n), f"/{game}" if len(games) > 1 else ""
                    line[f"students/{name}/score{suffix}"] = random + done * (mean - random)
                    line[f"students/{name}/share"] = 100 * level * done
        if not students:
            own = rng.normal(random + 0.6 * (teacher - random), deviation, episodes)
        records.append(
            {
                "game": game, "preset": "classic", "epsilon": 0.05, "seed": 1,
                "episodes": episodes, "random_score": random, "machine": {"cpu": "imagined"},
                "teacher": player("teacher", own, 1_687_206, 9_345_024), "students": students,
            }
        )  # fmt: skip
    evaluation = together(records) | {
        "training_seconds": training_seconds, "updates": 6000, "commands": ["fastdistill distill"],
    }  # fmt: skip
    teachers = ",".join(f"zoo:{game}" for game in games)
    config = {"teacher": teachers} if recipe == "distill" else {"size": size}
    (run_dir / "config.json").write_text(json.dumps({"recipe": recipe, "config": config}))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_evaluation(run_dir, evaluation)
    return evaluation


def player(name: str, returns: Any, parameters: int, flops: int, **more: Any) -> dict[str, Any]:
    returns = [float(score) for score in returns]
    return {
        "name": name,
        "kind": "",
        "seed": 0,
        "parameters": parameters,
        "flops": flops,
        "returns": returns,
        "summary": asdict(summarize(returns, "pong")),
        "percent_of_teacher": None,
        "latency_seconds": {"1": 1.3e-4 + parameters * 2e-10, "1024": 0.011 + flops * 1e-8},
        **more,
    }


def percent_of_teacher(scores: Any, teacher: Any) -> dict[str, float]:
    scale = 100 / (np.mean(teacher) - RANDOM_SCORE)
    return asdict(bootstrap_interval([[(score - RANDOM_SCORE) * scale for score in scores]]))


def write_evaluation(run_dir: Path, evaluation: Any) -> None:
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
