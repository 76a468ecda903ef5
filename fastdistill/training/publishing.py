# SPDX-License-Identifier: MIT
"""The files of trained networks: a run's students by name, and the one under plain names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastdistill.envs import EnvSpec
from fastdistill.networks import load_network, load_weights, save_network
from fastdistill.networks.checkpoint import copy_checkpoint
from fastdistill.training.learners.student import OWN, OwnStudent, Student, make_own
from fastdistill.training.task import Task


def network_card(spec: EnvSpec, kind: str) -> dict[str, Any]:
    """What every checkpoint of a trained network says of its game."""
    return {
        "kind": kind,
        "game": spec.name,
        "action_meanings": list(spec.action_meanings),
        "environment": spec.settings,
        **({"view": spec.settings["view"]} if "view" in spec.settings else {}),
    }


def student_path(run_dir: Path, name: str) -> Path:
    """Of a student's description."""
    return run_dir / "students" / f"{name}.json"


def games_card(kind: str, tasks: Sequence[tuple[EnvSpec, dict[str, Any]]]) -> dict[str, Any]:
    """What a network of one game says of it, or one of several, in ``games``, of each.

    Args:
        kind: Of its outputs.
        tasks: Each game, and what else to say of it.
    """
    if len(tasks) == 1:
        return {**network_card(tasks[0][0], kind), **tasks[0][1]}
    return {"kind": kind, "games": [{**network_card(spec, kind), **card} for spec, card in tasks]}


def save_student(
    run_dir: Path, student: Student, tasks: Sequence[Task], card: dict[str, Any]
) -> Path:
    """Write a student as it is now."""
    kind = "q_values" if student.loss == "mse" else "logits"
    taught = [
        (task.spec, {"teacher": task.teacher.describe(), "temperature": task.temperature})
        for task in tasks
    ]
    return save_network(
        student_path(run_dir, student.name),
        student.network,
        {
            **games_card(kind, taught),
            "loss": student.loss,
            "size": student.size,
            "seed": student.seed,
            **card,
        },
    )


def load_student(path: Path, size: str, spec: EnvSpec, own: OwnStudent | None) -> nn.Module:
    """A student as it was saved, in evaluation mode; ``own`` makes it if it is the caller's."""
    if size != OWN:
        return load_network(path)[0]
    network = make_own(spec, own)
    load_weights(path, network)
    return network.eval()


def publish_student(run_dir: Path, name: str) -> Path:
    """Copy a student to ``run_dir/student.json`` and ``student.safetensors``, plain names."""
    return copy_checkpoint(student_path(run_dir, name), run_dir / "student")
