# SPDX-License-Identifier: MIT
"""Labelled states from shards: what was played before, as if it were played now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.envs import EnvSpec
from fastdistill.replay import PrioritizedReplay
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_rows import LabelledRows
from fastdistill.training.ranks import ALONE, Ranks
from fastdistill.training.run import say
from fastdistill.training.shards import Chunk, Collection, ShardError
from fastdistill.training.state import check_state
from fastdistill.training.task import Task

# What a reader's state is like, see ``check_state``.
_READER = {"chunk": 0, "step": 0, "open": [0]}


class LaneWriter:
    """Writes rows that were played elsewhere into lanes of a replay, whole episodes or their ends.

    Rows of a lane follow each other in time. Where some are missing, ``cut`` comes between: then
    the lane waits for its next episode, so that no stack has frames of two moments.
    """

    def __init__(
        self, replay: PrioritizedReplay, lanes: NDArray[np.int64], spec: EnvSpec, width: int
    ) -> None:
        """Args:
        replay: Written to.
        lanes: Of it, which nobody else writes.
        spec: Of what is written.
        width: Of the replay's labels; narrower ones end in zeros.
        """  # noqa: D205
        self._replay = replay
        self._lanes = lanes
        self._width = width
        self._open = np.zeros(len(lanes), np.bool_)
        # The end of an episode that nobody saw: rows before it serve as they are.
        size, dtype = len(lanes), np.uint8 if spec.is_image else np.float32
        self._end: dict[str, NDArray[Any]] = {
            "frames": np.zeros((size, *spec.frame_shape), dtype),
            "action": np.zeros(size, np.int16),
            "reward": np.zeros(size, np.float32),
            "terminated": np.zeros(size, np.bool_),
            "truncated": np.zeros(size, np.bool_),
            "boundary": np.ones(size, np.bool_),
            "teacher_logits": np.zeros((size, width), np.float32),
        }

    def cut(self, *, everything: bool = False) -> None:
        """What comes next does not follow what came last.

        Args:
            everything: Also in lanes that hold what somebody else has written.
        """
        self._append(self._end, np.ones_like(self._open) if everything else self._open)
        self._open[:] = False

    def state(self) -> list[int]:
        """Which lanes are in an episode, 0 or 1, as plain JSON types."""
        return [int(is_open) for is_open in self._open]

    def restore(self, state: list[int]) -> None:
        """The reverse of ``state``."""
        if len(state) != len(self._open):
            raise ValueError(f"lanes must be {len(self._open)}, got {len(state)}")
        self._open = np.array(state, np.int64) > 0

    def write(self, row: dict[str, NDArray[Any]]) -> int:
        """One step of every lane; how many rows of it are in episodes that are known from a start.

        Args:
            row: ``frames`` and those of ``shards.ROWS``, and ``teacher_logits``.
        """
        self._open |= row["begins"]
        self._append(row, self._open)
        return int(self._open.sum())

    def _append(self, row: dict[str, NDArray[Any]], chosen: NDArray[np.bool_]) -> None:
        if not chosen.any():
            return
        part = row if chosen.all() else {name: values[chosen] for name, values in row.items()}
        labels = part["teacher_logits"]
        if labels.shape[1] < self._width:
            labels = np.pad(labels, ((0, 0), (0, self._width - labels.shape[1])))
        self._replay.append(
            part["frames"],
            part["action"],
            part["reward"],
            part["terminated"],
            part["truncated"],
            boundary=part["boundary"],
            lanes=self._lanes[chosen],
            teacher_logits=labels,
        )


class _Reader:
    """One shard, read step by step, again and again, into lanes of a replay."""

    def __init__(
        self, collection: Collection, place: int, begin: tuple[int, int], writer: LaneWriter
    ) -> None:
        self._collection = collection
        self._place = place
        self._writer = writer
        # Rows before it would be written to no lane, yet count as if learning had them.
        self._at, self._step = begin  # chunk, step
        self._chunk: Chunk | None = None

    def step(self) -> None:
        """The next step of every lane."""
        if self._at == self._step == 0:
            self._writer.cut()  # the end of a shard is no end of an episode
        while self._chunk is None:
            self._chunk = self._collection.chunk(self._place, self._at)
            if self._chunk is None:
                self._writer.cut()
                self._advance()
        self._writer.write(self._chunk.row(self._step))
        self._step += 1
        if self._step == len(self._chunk):
            self._advance()

    def state(self) -> dict[str, Any]:
        """To continue from, as plain JSON types."""
        return {"chunk": self._at, "step": self._step, "open": self._writer.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        chunks = self._collection.num_chunks(self._place)
        chunk = self._collection.chunk(self._place, min(state["chunk"], chunks - 1))
        # A damaged one is found to be that, and left out, when its first step is wanted.
        steps = 1 if chunk is None else len(chunk)
        if state["chunk"] >= chunks or state["step"] >= steps:
            raise ValueError(
                f"source.readers must be at a step of {self._collection.directory}, got step "
                f"{state['step']} of chunk {state['chunk']}"
            )
        self._at, self._step, self._chunk = state["chunk"], state["step"], chunk
        self._writer.restore(state["open"])

    def _advance(self) -> None:
        self._chunk, self._step = None, 0
        self._at += 1
        if self._at == self._collection.num_chunks(self._place):
            self._at = 0


class LabelledShards(LabelledRows):
    """Collections of several tasks, read as if they were played.

    Each step takes the next row of every lane of every shard; behind the last comes the first
    again. Lanes, seeds and schedules being equal, students learn what they would learn from play
    that a teacher drives.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        collections: Sequence[Collection],
        counters: Counters,
        *,
        damaged: str,
        replay_capacity: int,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Args:
        tasks: Of the collections, one each.
        collections: Whose labels are learned.
        counters: Of the run.
        damaged: ``"refuse"`` or ``"skip"`` chunks that cannot be read.
        replay_capacity: States kept.
        seed: Of the batches.
        ranks: This process reads the shards whose place is its rank, modulo their number.

        Raises:
            ShardError: Something is damaged and to be refused, or there is no shard to read.
        """  # noqa: D205
        shards = []  # of each collection, those that this rank reads, and where each begins
        for collection in collections:
            _judge(collection, damaged)
            found = _readable(collection)
            if not found or len(found) % ranks.world:
                raise ShardError(
                    f"distill: shards in {collection.directory} must be as many for each of "
                    f"{ranks.world} ranks, got {len(found)}"
                )
            shards.append(found[ranks.rank :: ranks.world])
        lanes = [len(own) * c.num_lanes for own, c in zip(shards, collections, strict=True)]
        super().__init__(
            tasks,
            lanes,
            counters,
            frame_dtype="uint8" if tasks[0].spec.is_image else "float32",
            replay_capacity=replay_capacity,
            seed=seed,
            ranks=ranks,
        )
        self._readers = []
        start = 0
        for collection, own in zip(collections, shards, strict=True):
            for place, begin in own:
                group = np.arange(start, start + collection.num_lanes)
                start += collection.num_lanes
                writer = LaneWriter(self.replay, group, collection.spec, self._width)
                self._readers.append(_Reader(collection, place, begin, writer))

    def reset(self, again: int = 0) -> None:
        """Begin, with the first row."""

    def step(self, epsilon: float, students_share: float | None) -> None:
        """One step of every lane; who plays and how was settled when it was played."""
        for reader in self._readers:
            reader.step()
        self._counters.lap("replay")
        self._counters.step += self._num_lanes * self._ranks.world

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay."""
        readers = [reader.state() for reader in self._readers]
        return {}, {**self.tasks_state(), "readers": readers}

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        self.restore_tasks(card, {})
        check_state(card, {"readers": [_READER]}, "source")
        if len(card["readers"]) != len(self._readers):
            raise ValueError(
                f"source.readers must be of {len(self._readers)} shards, got {len(card['readers'])}"
            )
        for reader, state in zip(self._readers, card["readers"], strict=True):
            reader.restore(state)


def _readable(collection: Collection) -> list[tuple[int, tuple[int, int]]]:
    """The places of the shards that can be learned from, and where; names the others."""
    found = []
    for place, shard in enumerate(collection.shards):
        begin = _beginning(collection, place)
        if begin is None:
            say(f"left out: {shard.directory}, in which no beginning of an episode can be read")
        else:
            found.append((place, begin))
    return found


def _beginning(collection: Collection, place: int) -> tuple[int, int] | None:
    """Chunk and step of the first episode whose beginning can be read; None if there is none."""
    for number in range(collection.num_chunks(place)):
        chunk = collection.chunk(place, number)
        begins = None if chunk is None else chunk.tensors["begins"].any(dim=1)
        if begins is not None and begins.any():
            return number, int(begins.nonzero()[0])
    return None


def _judge(collection: Collection, damaged: str) -> None:
    """Refuse what is damaged, or name it; say what is not there."""
    reasons = list(collection.damaged.values())
    if reasons and damaged == "refuse":
        raise ShardError(
            f"distill: shards must be whole, got {len(reasons)} damaged chunks, the first: "
            f"{reasons[0]}; collect them again, or leave them out with --damaged skip"
        )
    for reason in reasons:
        say(f"left out: {reason}")
    count = collection.shards[0].count
    if len(collection.shards) < count:
        say(f"{collection.directory}: {len(collection.shards)} of {count} shards are there")
