# SPDX-License-Identifier: MIT
"""The labels of another teacher, beside those of the one that played."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from fastdistill._files import shown
from fastdistill.networks.checkpoint import CheckpointError, read_checkpoint
from fastdistill.recipes.options import refuse_view
from fastdistill.teachers import Teacher, load_teacher
from fastdistill.training.process import pick_device
from fastdistill.training.run import say
from fastdistill.training.shard_writer import claimed, write_labels
from fastdistill.training.shards import PLAYER, Collection, Shard, ShardError, stacked


def relabel(
    data: str | Path, teacher: str | Teacher, name: str, *, device: str = "auto"
) -> Collection:
    """Write another teacher's labels of a collection, beside the frames.

    Begun again it goes on where it was.

    Args:
        data: Directory of the collection.
        teacher: Labels; see ``load_teacher``.
        name: Of the labels: ``fastdistill distill --data DIR --labels NAME``.
        device: Where the teacher runs.

    Raises:
        ShardError: Something of the collection is damaged; ``collect`` mends it.
        ValueError: A name that is taken by another teacher, or none.
    """
    if name == PLAYER or re.fullmatch(r"[A-Za-z0-9_.]{1,64}", name) is None:
        raise ValueError(
            f"relabel: name must be of letters, digits, _ and . and not {PLAYER!r}, got {name!r}"
        )
    played = Collection(data)
    if played.damaged:
        raise ShardError(
            f"relabel: chunks must be whole, got {next(iter(played.damaged.values()))}; the "
            "command that collected them mends them"
        )
    if isinstance(teacher, str):
        teacher = load_teacher(teacher, played.spec, device=pick_device(device))
    refuse_view("relabel", teacher)
    teacher.check(played.spec)
    for place, shard in enumerate(played.shards):
        with claimed(shard.directory):
            before: NDArray[Any] | None = None
            for number in range(played.num_chunks(place)):
                chunk = played.chunk(place, number)
                assert chunk is not None
                is_done = _is_labelled(shard, name, number, teacher)
                labels = []
                for obs in stacked(chunk, played.spec, before):
                    before = obs
                    if not is_done:
                        labels.append(teacher.values(torch.from_numpy(obs)).cpu())
                if not is_done:
                    write_labels(shard, name, number, torch.stack(labels), teacher)
        say(f"shard {shard.index}/{shard.count}: labels of {name}")
    return Collection(data, name)


def _is_labelled(shard: Shard, name: str, chunk: int, teacher: Teacher) -> bool:
    try:
        card = read_checkpoint(shard.labels_path(name, chunk))[1]
    except CheckpointError:
        return False
    if card.get("teacher") != teacher.describe():
        raise ValueError(
            f"relabel: name must not be taken, got {name!r}, which {shown(card.get('teacher'))} has"
        )
    return True
