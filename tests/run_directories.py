# SPDX-License-Identifier: MIT
"""Distillation run directories made up for tests of the report: the files, none of the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

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
