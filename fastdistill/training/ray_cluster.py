# SPDX-License-Identifier: MIT
"""Ray: the connection, and calls spread over its workers. The only module that imports it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastdistill.envs import Policy
from fastdistill.evaluation import Evaluation, evaluate

# Added to the seed of an evaluation for each of its parts.
EVALUATION_PARTS = 10_000_000


def connect() -> Any:
    """The library, connected: to the cluster that is, RAY_ADDRESS says, or one on this machine."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            "fastdistill.training.ray_cluster needs ray: pip install 'ray>=2.50'"
        ) from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    return ray


def spread(function: Callable[..., Any], calls: Sequence[dict[str, Any]]) -> list[Any]:
    """The results of calls that Ray's workers make, in their order; those that died, once more.

    Args:
        function: Can be sent to another process, as its arguments and results can.
        calls: Keyword arguments of each.
    """
    ray = connect()
    remote = ray.remote(max_retries=3, scheduling_strategy="SPREAD")(function)
    found: list[Any] = ray.get([remote.remote(**call) for call in calls])
    return found


def evaluate_spread(
    policy: Policy | str,
    env_name: str,
    *,
    episodes: int,
    workers: int,
    seed: int = 1,
    **options: Any,
) -> Evaluation:
    """``evaluate``, its episodes spread over Ray's workers.

    Args:
        policy: See ``evaluate``; can be sent to another process.
        env_name: See ``evaluate``.
        episodes: Of all workers together.
        workers: At most as many as episodes. Each has random numbers of its own; those of the first
            are what ``evaluate`` has.
        seed: See ``evaluate``.
        **options: See ``evaluate``.
    """
    parts = [len(part) for part in np.array_split(np.arange(episodes), min(workers, episodes))]
    calls = [
        {
            "policy": policy, "env": env_name, "episodes": part, **options,
            "seed": seed + place * EVALUATION_PARTS,
        }
        for place, part in enumerate(parts)
    ]  # fmt: skip
    played: list[Evaluation] = spread(evaluate, calls)
    return replace(
        played[0],
        num_lanes=sum(part.num_lanes for part in played),
        returns=tuple(one for part in played for one in part.returns),
        lengths_steps=tuple(one for part in played for one in part.lengths_steps),
        truncated=sum(part.truncated for part in played),
    )
