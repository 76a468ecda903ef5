# SPDX-License-Identifier: MIT
"""Writes one shard of a collection: a teacher's play and its labels, chunk after chunk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill._files import unwritable
from fastdistill.envs import LaneEnv
from fastdistill.networks.checkpoint import read_checkpoint, versions, write_checkpoint
from fastdistill.teachers import Teacher
from fastdistill.training.collector import Collector
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import Drivers
from fastdistill.training.recording import Recording
from fastdistill.training.run import Stop, claim, say
from fastdistill.training.shards import PLAYER, Shard
from fastdistill.training.state import select, under


class ShardWriter:
    """A collector at work on one shard."""

    def __init__(
        self, shard: Shard, settings: dict[str, Any], env: LaneEnv, teacher: Teacher
    ) -> None:
        self._shard = shard
        self._settings = settings
        self._env = env
        self._teacher = teacher
        self._part = (shard.index,)
        self._recording = Recording(env.num_lanes)
        self._collector = Collector(
            env,
            Drivers(teacher, [], env.num_lanes, bfloat16=False),
            self._recording.store,
            Counters(),
            seed=settings["seed"],
            part=self._part,
        )

    def write(self, lane_steps: int, stop: Stop | None) -> bool:
        """All chunks that are not there yet; whether it came to the end."""
        size = self._settings["chunk_steps"]
        chunks = -(-lane_steps // size)
        at = -1  # the chunk that the lanes are at
        for chunk in range(chunks):
            card = {**self._settings, "chunk": chunk, "steps": min(size, lane_steps - chunk * size)}
            if self._shard.is_whole(chunk, card):
                continue
            if at != chunk:
                self._go_to(chunk)
            for _ in range(card["steps"]):
                if stop is not None and stop.requested:
                    return False
                self._collector.step(card["epsilon"])
            self._write_chunk(chunk, card)
            at = chunk + 1
            done = chunk * size + card["steps"]
            say(
                f"shard {self._shard.index}/{self._shard.count}: {done * self._env.num_lanes:,} of "
                f"{lane_steps * self._env.num_lanes:,} steps"
            )
        return True

    def _go_to(self, chunk: int) -> None:
        """Bring the lanes to where a chunk begins."""
        if chunk == 0:
            seed = self._settings["seed"]
            self._env.reset(streams.words(seed, streams.TRAINING, part=self._part))
            return
        tensors, card = read_checkpoint(self._shard.rows_path(chunk - 1))
        self._collector.restore(select(tensors, "env"), card["collector"])
        self._recording.begins = tensors["boundary"][-1].numpy()

    def _write_chunk(self, chunk: int, card: dict[str, Any]) -> None:
        columns = {name: torch.from_numpy(rows) for name, rows in self._recording.take().items()}
        write_labels(self._shard, PLAYER, chunk, columns.pop("teacher_logits"), self._teacher)
        lanes, state = self._collector.state()
        self._shard.write(
            chunk,
            {**columns, **under("env", lanes)},
            {**card, "collector": state, "versions": versions()},
        )


def write_labels(shard: Shard, name: str, chunk: int, labels: Tensor, teacher: Teacher) -> None:
    """A chunk's labels by a teacher, under a name.

    Args:
        shard: Of the chunk.
        name: Of the labels.
        chunk: Its number.
        labels: ``[steps, lanes, actions]`` float32.
        teacher: Who said them.
    """
    card = {"teacher": teacher.describe(), "chunk": chunk}
    write_checkpoint(shard.labels_path(name, chunk), {"labels": labels}, card)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """A shard's directory, made if need be, for this process alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("collect", directory, error) from error
    lock = claim(directory, "collect: shard")
    try:
        yield
    finally:
        os.close(lock)
