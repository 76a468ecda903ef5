# SPDX-License-Identifier: MIT
"""Collections of labelled play on disk: written by any number of collectors, read without emulator.

A collection is a directory; shard i of n is a directory in it, written by one collector and made of
chunks, equal stretches of time of its lanes. A chunk is two checkpoints (a JSON description that
names and hashes one safetensors file, see ``networks.checkpoint``): ``rows_K`` with what was
played, frames once and not stacked, and ``labels-NAME_K`` for each teacher that was asked.
docs/scale.md has the table of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill._files import shown
from fastdistill.envs import EnvSpec
from fastdistill.networks.checkpoint import (
    CheckpointError,
    read_card,
    read_checkpoint,
    write_checkpoint,
)
from fastdistill.networks.mapped import map_checkpoint
from fastdistill.training.state import check_state

# Of the rows; ``frames`` has the environment's own dtype. Each is [steps, lanes, ...].
ROWS = {
    "action": torch.int16,
    "reward": torch.float32,
    "terminated": torch.bool,
    "truncated": torch.bool,
    "boundary": torch.bool,
    "begins": torch.bool,
}
# The labels of the teacher that played.
PLAYER = "teacher"

_SHARD = re.compile(r"shard_(\d{5})-of-(\d{5})")
_NAME = re.compile(r"[A-Za-z0-9_.]{1,64}")
_CARD = {
    "shard": [0], "chunk": 0, "steps": 0, "num_lanes": 0, "total_steps": 0, "chunk_steps": 0,
    "spec": {
        "obs_shape": [0], "stack": 0, "num_actions": 0, "action_meanings": [], "settings": {},
    },
}  # fmt: skip


class ShardError(ValueError):
    """A chunk that is missing, damaged, or not of its collection."""


@dataclass(frozen=True)
class Shard:
    """One collector's part of a collection.

    Attributes:
        directory: Its own, in that of the collection.
        index: Which of ``count``.
        count: Of the whole collection.
    """

    directory: Path
    index: int
    count: int

    @staticmethod
    def of(collection: Path, index: int, count: int) -> Shard:
        """The one of that number, whether it is there or not."""
        return Shard(collection / f"shard_{index:05d}-of-{count:05d}", index, count)

    def rows_path(self, chunk: int) -> Path:
        """Of the description of a chunk's rows."""
        return self.directory / f"rows_{chunk:06d}.json"

    def labels_path(self, name: str, chunk: int) -> Path:
        """Of the description of a chunk's labels."""
        return self.directory / f"labels-{name}_{chunk:06d}.json"

    def write(self, chunk: int, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Write a chunk's rows; its labels come before, so that rows are never without."""
        write_checkpoint(self.rows_path(chunk), tensors, card)

    def is_whole(self, chunk: int, card: dict[str, Any]) -> bool:
        """Whether a chunk is there, undamaged, with its player's labels.

        Raises:
            ValueError: It is of another collection than ``card`` says, whose fields it must have.
        """
        try:
            found = read_checkpoint(self.rows_path(chunk))[1]
            read_checkpoint(self.labels_path(PLAYER, chunk))
        except CheckpointError:
            return False
        others = [key for key in card if found.setdefault(key) != card[key]]
        if others:
            raise ValueError(
                "collect: options must be those that the shard was begun with, got "
                + ", ".join(
                    f"{k} {shown(card[k])} instead of {shown(found.get(k))}" for k in others
                )
                + f" in {self.directory}"
            )
        return True


@dataclass(frozen=True, eq=False)
class Chunk:
    """A stretch of time of a shard's lanes, mapped from its files.

    Attributes:
        tensors: ``frames`` and those of ``ROWS``, ``[steps, lanes, ...]``.
        labels: ``[steps, lanes, actions]`` float32.
    """

    tensors: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, step: int) -> dict[str, NDArray[Any]]:
        """One step of every lane, ``[lanes, ...]`` each, with ``teacher_logits``."""
        row = {name: tensor[step].numpy() for name, tensor in self.tensors.items()}
        return {**row, "teacher_logits": self.labels[step].numpy()}


class Collection:
    """What collectors have written, checked.

    Attributes:
        directory: Of all shards.
        spec: Of the environment that was played.
        card: Of one of the chunks: what is the same in all of them.
        shards: In order; those that are there.
        damaged: What is wrong with each chunk that cannot be read.
    """

    def __init__(self, directory: str | Path, labels: str = PLAYER) -> None:
        """Args:
        directory: Of the collection.
        labels: Whose.

        Raises:
            ShardError: Nothing there that could be read, or shards of different collections.
        """  # noqa: D205
        if _NAME.fullmatch(labels) is None:
            raise ValueError(f"open_collection: labels must be a name, got {labels!r}")
        self.directory = Path(directory)
        self.labels = labels
        self.damaged: dict[tuple[int, int], str] = {}
        found = sorted(path for path in self.directory.glob("shard_*") if path.is_dir())
        names = [_SHARD.fullmatch(path.name) for path in found]
        self.shards = [
            Shard(path, int(name[1]), int(name[2]))
            for path, name in zip(found, names, strict=True)
            if name is not None
        ]
        self._chunks = [self._count(shard) for shard in self.shards]
        cards = list(self._check())
        if not cards:
            reason = next(iter(self.damaged.values()), "none")
            raise ShardError(
                f"open_collection: {self.directory} must hold shards that can be read, got {reason}"
            )
        self.card = cards[0]
        self.spec = spec_of(self.card)
        self.num_lanes: int = self.card["num_lanes"]
        if len({shard.count for shard in self.shards}) > 1 or any(
            self._common(card) != self._common(self.card) for card in cards
        ):
            raise ShardError(
                f"open_collection: shards in {self.directory} must be of one collection, got "
                "several"
            )

    @staticmethod
    def _count(shard: Shard) -> int:
        numbers = [int(p.stem.rpartition("_")[2]) for p in shard.directory.glob("rows_??????.json")]
        return max(numbers, default=-1) + 1

    @staticmethod
    def _common(card: dict[str, Any]) -> dict[str, Any]:
        same = ("spec", "num_lanes", "total_steps", "chunk_steps", "labels_by")
        return {key: card.get(key) for key in same}

    def _check(self) -> Iterator[dict[str, Any]]:
        """The cards of the chunks that can be read; the others become ``damaged``."""
        for place, (shard, count) in enumerate(zip(self.shards, self._chunks, strict=True)):
            for chunk in range(count):
                try:
                    rows, card = read_checkpoint(shard.rows_path(chunk))
                    labels = read_checkpoint(shard.labels_path(self.labels, chunk))[0]
                    check_state(card, _CARD, "chunk")
                    if card["shard"] != [shard.index, shard.count] or card["chunk"] != chunk:
                        raise ValueError(f"chunk.shard must be its own, got {card['shard']}")
                    _check_tensors(rows, labels, card)
                except ValueError as error:
                    self.damaged[place, chunk] = str(error)
                else:
                    yield card

    @property
    def num_rows(self) -> int:
        """Of all chunks that can be read, nearly: each counts as a whole one."""
        whole = sum(self._chunks) - len(self.damaged)
        return whole * int(self.card["chunk_steps"]) * self.num_lanes

    def num_chunks(self, place: int) -> int:
        """Of one of ``shards``."""
        return self._chunks[place]

    def chunk(self, place: int, chunk: int) -> Chunk | None:
        """Of one of ``shards``; None if it is damaged."""
        if (place, chunk) in self.damaged:
            return None
        shard = self.shards[place]
        rows = map_checkpoint(shard.rows_path(chunk))
        labels = map_checkpoint(shard.labels_path(self.labels, chunk))["labels"]
        return Chunk({name: rows[name] for name in ("frames", *ROWS)}, labels)

    def labelled_by(self) -> dict[str, Any]:
        """What is on record of the teacher whose labels these are."""
        for place, shard in enumerate(self.shards):
            for chunk in range(self._chunks[place]):
                if (place, chunk) not in self.damaged:
                    found = read_card(shard.labels_path(self.labels, chunk)).get("teacher")
                    return found if isinstance(found, dict) else {}
        return {}


def spec_card(spec: EnvSpec) -> dict[str, Any]:
    """An environment as plain JSON types."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec).items()}


def spec_of(card: dict[str, Any]) -> EnvSpec:
    """The environment of a chunk's card."""
    spec: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in card["spec"].items()
    }
    names = (spec.get("name"), spec.get("preset"), *spec["action_meanings"])
    if spec.keys() != EnvSpec.__dataclass_fields__.keys() or not all(
        isinstance(name, str) for name in names
    ):
        raise ShardError(f"open_collection: spec must be an environment's, got {shown(spec)}")
    return EnvSpec(**spec)


def _check_tensors(
    rows: dict[str, Tensor], labels: dict[str, Tensor], card: dict[str, Any]
) -> None:
    """Refuse what is not of the card's shape, before anything is done with it."""
    spec, size = spec_of(card), (card["steps"], card["num_lanes"])
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "frames": (spec.obs_dtype, spec.frame_shape),
        **{name: (dtype, ()) for name, dtype in ROWS.items()},
        "labels": (torch.float32, (spec.num_actions,)),
    }
    found = {**rows, **labels}
    for name, (dtype, inner) in wanted.items():
        tensor = found.get(name)
        if tensor is None or (tensor.dtype, tuple(tensor.shape)) != (dtype, (*size, *inner)):
            got = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise ShardError(f"{name} must be {dtype} {[*size, *inner]}, got {got}")
    if not bool(torch.isfinite(labels["labels"]).all()):
        raise ShardError("labels must be finite, got values that are not")


def stacked(chunk: Chunk, spec: EnvSpec, before: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
    """The observations of a chunk, ``[lanes, *obs_shape]`` step by step.

    Args:
        chunk: Of ``spec``.
        spec: Frames are stacked as its environment does: zeros before an episode's first.
        before: The last observation of the chunk before; None for none.
    """
    for step in range(len(chunk)):
        frames = chunk.tensors["frames"][step].numpy()
        if spec.stack == 1:
            yield frames
            continue
        if before is None:
            before = np.zeros((len(frames), *spec.obs_shape), frames.dtype)
        before = np.concatenate([before[:, 1:], frames[:, None]], axis=1)
        before[chunk.tensors["begins"][step].numpy(), :-1] = 0
        yield before
