# SPDX-License-Identifier: MIT
"""What both teacher recipes share: the best network by game score, and its evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastdistill.checkpoints import load_network, save_network
from fastdistill.evaluation import evaluate
from fastdistill.lanes import LaneEnv
from fastdistill.networks import QNetwork
from fastdistill.recipes.common import SCORING_SEED, TrainingState
from fastdistill.statistics import summarize


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher recipe ends with.

    Attributes:
        stopped: Ended by a signal, with a checkpoint, before its time.
        step: Agent steps taken.
        recent_return: Mean of the last training episodes, None with fewer than 20.
        evaluation: Summary of the evaluation, empty if there was none.
    """

    stopped: bool
    step: int
    recent_return: float | None
    evaluation: dict[str, Any]


def save_best(
    run_dir: Path,
    network: QNetwork,
    env: LaneEnv,
    at: TrainingState,
    *,
    episodes: int,
    epsilon: float,
    seed: int,
) -> None:
    """Write ``run_dir/teacher.json`` if the network plays better than every one saved before.

    Training returns come from a policy that moved meanwhile: they say little of the network at
    hand. Ties go to the later one.

    Args:
        run_dir: Of the run.
        network: To be judged and saved.
        env: Of the training; the games are played in another of its name and preset.
        at: Keeps the best score.
        episodes: Full episodes to judge by; 0 saves without judging.
        epsilon: Share of random actions in them.
        seed: Of the run; the episodes are not those of its evaluation.
    """
    score = None
    if episodes:
        played = evaluate(
            network,
            env.name,
            episodes=episodes,
            epsilon=epsilon,
            preset=env.settings.get("preset", "classic"),
            seed=SCORING_SEED + seed,
            device=network.obs_mean.device,
        )
        score = played.mean
        if at.best_score is not None and score < at.best_score:
            return
        at.best_score = score
    save_network(
        run_dir / "teacher",
        network,
        {
            "kind": "q_values",
            "game": env.name,
            "action_meanings": list(env.action_meanings),
            "environment": env.settings,
            "trained_steps": at.step,
            "training_return": at.recent_return,
            "scoring": {"mean": score, "episodes": episodes},
        },
    )


def evaluate_teacher(
    run_dir: Path,
    game: str,
    *,
    episodes: int,
    epsilon: float,
    preset: str,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Play the run's teacher, write the score into its card and ``evaluation.json``.

    Returns:
        The score's summary as plain JSON types.
    """
    network, card = load_network(run_dir / "teacher")
    record = evaluate(
        network.to(device),
        game,
        episodes=episodes,
        epsilon=epsilon,
        preset=preset,
        seed=seed,
        device=device,
    )
    summary = asdict(summarize(record.returns, game))
    score = {**record.to_json(), "summary": summary}
    kept = {key: value for key, value in card.items() if key not in ("format", "weights")}
    save_network(run_dir / "teacher", network, {**kept, "scores": [score]})
    (run_dir / "evaluation.json").write_text(json.dumps(score, indent=2) + "\n")
    return summary


def evaluation_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """The summary of an evaluation as metrics."""
    return {
        "eval/return_mean": summary["mean"]["value"],
        "eval/return_std": summary["std"],
        "eval/episodes": summary["episodes"],
    }
