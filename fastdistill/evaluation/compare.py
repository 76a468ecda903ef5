# SPDX-License-Identifier: MIT
"""Players of one game side by side: scores, shares of the teacher, costs; ``evaluation.json``.

A run that ends, whatever its recipe, leaves this one record: the teacher, and the students if it
has any. Its presence says that the run is finished.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdistill._files import write_atomically
from fastdistill.envs import EnvSpec, LaneEnv, Policy, engine_versions
from fastdistill.evaluation.cost import (
    describe_machine,
    latency_seconds,
    multiply_adds,
)
from fastdistill.evaluation.play import Evaluation, evaluate_env
from fastdistill.evaluation.statistics import (
    HUMAN_SCORES,
    Interval,
    bootstrap_interval,
    over_games,
    summarize,
)
from fastdistill.networks import num_parameters

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Player:
    """Someone to be evaluated.

    Attributes:
        name: Unique in the record.
        policy: Plays.
        module: Is measured for its costs.
        facts: What else to say of it.
        recorded: A teacher's evaluation, if that is on record; it does not play then.
    """

    name: str
    policy: Policy
    module: nn.Module
    facts: dict[str, Any]
    recorded: Evaluation | None = None


def compare(
    teacher: Player,
    students: Iterable[Player],
    env: LaneEnv,
    *,
    episodes: int,
    seed: int,
    device: torch.device,
    epsilon: float | None = None,
) -> dict[str, Any]:
    """Play full episodes with the teacher, then with each student, and print a line of each.

    A teacher whose evaluation is on record does not play; its entry has the seed and the
    versions of that evaluation as ``on_record``.

    Args:
        teacher: The first, by whom the students are measured; sees what the environment shows a
            teacher.
        students: None of them chosen by these episodes.
        env: Made with ``training=False``.
        episodes: Of each.
        seed: See ``evaluate``.
        device: Where they play.
        epsilon: See ``evaluate``.

    Returns:
        The record, of plain JSON types: every episode's return, summaries, each student's share of
        the teacher's score above random play with its bootstrap interval, parameters,
        multiply-adds, latency.
    """
    options: dict[str, Any] = {
        "episodes": episodes,
        "epsilon": epsilon,
        "seed": seed,
        "device": device,
    }
    reference = teacher.recorded or evaluate_env(teacher.policy, env, **options, as_teacher=True)
    entry = _entry(teacher, reference, env.teacher_spec)
    random = random_score(teacher.policy, env, episodes=episodes, seed=seed, device=device)
    entries = []
    for student in students:
        played = evaluate_env(student.policy, env, **options)
        share = share_of_teacher(played.returns, reference.returns, random)
        entries.append(
            {
                **_entry(student, played, env.spec),
                "percent_of_teacher": None if share is None else asdict(share),
            }
        )
    return {
        "game": env.spec.name,
        "preset": env.spec.preset,
        "epsilon": reference.epsilon,
        "seed": seed,
        "episodes": episodes,
        "random_score": random,
        "settings": reference.settings,
        "versions": {**engine_versions(), "torch": str(torch.__version__)},
        "machine": describe_machine(),
        "teacher": entry,
        "students": entries,
    }


def together(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records of several games as one; of a single game its own, unchanged.

    Args:
        records: Of ``compare``, one for each game, with the same students.

    Returns:
        ``games``, the records as they are; and ``students``, those that played all of them, with
        what ``OverGames`` says of them, the mean share as ``percent_of_teacher``.
    """
    if len(records) == 1:
        return records[0]
    by_name = [{entry["name"]: entry for entry in record["students"]} for record in records]
    students = []
    for name, first in by_name[0].items():
        if not all(name in entries for entries in by_name):
            continue
        found = asdict(
            over_games(
                [[entries[name]["returns"]] for entries in by_name],
                [record["teacher"]["returns"] for record in records],
                [record["random_score"] for record in records],
            )
        )
        facts = ("name", "kind", "size", "seed", "diverged_updates", "parameters_of_all_games")
        students.append(
            {
                **{key: first[key] for key in facts if key in first},
                "percent_of_teacher": found["percent"],
                "least_percent": found["least_percent"],
                "geometric_mean_percent": found["geometric_mean_percent"],
            }
        )
    return {"games": list(records), "students": students, "machine": records[0]["machine"]}


def _entry(player: Player, played: Evaluation, spec: EnvSpec) -> dict[str, Any]:
    summary = asdict(summarize(played.returns, spec.name))
    mean = summary["mean"]
    on_record = {"seed": played.seed, "versions": played.versions} if player.recorded else None
    print(
        f"{player.name}: mean {mean['value']:.2f}, 95% [{mean['low']:.2f}, {mean['high']:.2f}]"
        + (", on record in its card" if player.recorded else ""),
        file=sys.stderr,
    )
    return {
        "name": player.name,
        **player.facts,
        **({"on_record": on_record} if on_record else {}),
        "parameters": num_parameters(player.module),
        "flops": 2 * multiply_adds(player.module, spec.obs_shape, spec.obs_dtype),
        "latency_seconds": {
            str(size): latency_seconds(player.module, spec.obs_shape, spec.obs_dtype, size)
            for size in (1, 1024)
        },
        "returns": list(played.returns),
        "lengths_steps": list(played.lengths_steps),
        "truncated": played.truncated,
        "summary": summary,
    }


def random_score(
    policy: Policy, env: LaneEnv, *, episodes: int, seed: int, device: torch.device
) -> float:
    """Mean return of random play: on record for Atari-57, else played (``policy`` is not heard)."""
    if env.spec.name in HUMAN_SCORES:
        return HUMAN_SCORES[env.spec.name][0]
    return evaluate_env(
        policy, env, episodes=episodes, epsilon=1.0, seed=seed, device=device, as_teacher=True
    ).mean


def share_of_teacher(
    student: tuple[float, ...], teacher: tuple[float, ...], random: float
) -> Interval | None:
    """``100 (student - random) / (teacher - random)`` of the means, both sides resampled.

    None where the teacher is not clearly better than random play: the ratio would mean nothing.
    """
    split = len(student)

    def ratio(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        above = scores[:, split:].mean(axis=1) - random
        return np.asarray(100 * (scores[:, :split].mean(axis=1) - random) / above)

    if bootstrap_interval([teacher]).low <= random:
        return None
    return bootstrap_interval([student, teacher], ratio)


def write_evaluation(run_dir: Path, record: dict[str, Any]) -> None:
    """Write ``evaluation.json``, at once: a reader finds all of it or none."""
    payload = (json.dumps(record, indent=2) + "\n").encode()
    write_atomically(run_dir / EVALUATION_FILE, payload, function="write_evaluation")
