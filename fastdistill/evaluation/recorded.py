# SPDX-License-Identifier: MIT
"""A teacher's evaluation that its card has on record, instead of the same games again."""

from __future__ import annotations

import math
from typing import Any

from fastdistill.envs import PRESETS, EnvSpec, engine_versions
from fastdistill.evaluation.play import Evaluation


def recorded_evaluation(
    card: dict[str, Any], spec: EnvSpec, *, episodes: int, epsilon: float | None = None
) -> Evaluation | None:
    """What ``evaluate`` would find out, where the card of a network says it already.

    The seed may be another one: the games are others then. So may torch's version, whose rounding
    also only leads to other games; and they may be more than asked for, which says more.

    Args:
        card: Of the network; its ``scores`` are read.
        spec: Of the environment of the evaluation.
        episodes: Of the evaluation.
        epsilon: Of the evaluation; the preset's own by default.

    Returns:
        The first of the scores that was of at least so many episodes with this preset, epsilon,
        settings and versions of the environment's libraries; None if there is none, or it is
        damaged.
    """
    if epsilon is None:
        epsilon = PRESETS[spec.preset].evaluation_epsilon if spec.preset else 0.0
    scores = card.get("scores")
    for score in scores if isinstance(scores, list) else ():
        if isinstance(score, dict) and _is_of(score, spec, episodes, epsilon):
            return Evaluation(
                env=spec.name,
                preset=spec.preset,
                epsilon=epsilon,
                seed=score["seed"],
                num_lanes=score["num_lanes"],
                returns=tuple(map(float, score["returns"])),
                lengths_steps=tuple(score["lengths_steps"]),
                truncated=score["truncated"],
                settings=spec.settings,
                versions=score["versions"],
            )
    return None


def _is_of(score: dict[str, Any], spec: EnvSpec, episodes: int, epsilon: float) -> bool:
    asked = {"preset": spec.preset, "epsilon": epsilon, "settings": spec.settings}
    if any(score.get(key) != value for key, value in asked.items()):
        return False
    versions = score.get("versions")
    if not isinstance(versions, dict) or not engine_versions().items() <= versions.items():
        return False
    returns, lengths = score.get("returns"), score.get("lengths_steps")
    if not isinstance(returns, list) or not isinstance(lengths, list):
        return False
    return (
        len(returns) == len(lengths) >= episodes
        and all(type(one) in (int, float) and math.isfinite(one) for one in returns)
        and all(type(one) is int and one > 0 for one in lengths)
        and all(type(score.get(key)) is int for key in ("seed", "num_lanes", "truncated"))
    )
