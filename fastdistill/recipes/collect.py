# SPDX-License-Identifier: MIT
"""Labelled play written to disk, and the labels of other teachers beside it.

Each collector writes one shard of a collection, chunk after chunk. A chunk appears in one step and
says where the lanes then stand: a collector that was killed goes on from the last one, and its
files are those of one that never was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill import streams
from fastdistill._files import shown, unwritable
from fastdistill.envs import LaneEnv, make_env
from fastdistill.networks.checkpoint import (
    CheckpointError,
    read_checkpoint,
    versions,
    write_checkpoint,
)
from fastdistill.recipes.tasks import share_of_cores
from fastdistill.teachers import Teacher, load_teacher, recorded_game
from fastdistill.training.collector import Collector
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import Drivers
from fastdistill.training.process import pick_device
from fastdistill.training.recording import Recording
from fastdistill.training.run import Stop, claim, say
from fastdistill.training.shards import (
    PLAYER,
    Collection,
    Shard,
    ShardError,
    spec_card,
    stacked,
)
from fastdistill.training.state import select, under


def collect(
    teacher: str | Teacher,
    out: str | Path,
    *,
    steps: int,
    game: str | None = None,
    shard: str = "0/1",
    preset: str = "classic",
    num_lanes: int = 16,
    epsilon: float = 0.05,
    seed: int = 1,
    chunk_steps: int = 512,
    device: str = "auto",
    stop: Stop | None = None,
) -> bool:
    """Play with a teacher and write one shard of what it saw and said.

    Begun again it goes on where it was; finished it does nothing. Chunks that are damaged are
    written anew.

    Args:
        teacher: Plays and labels; see ``load_teacher``.
        out: Directory of the collection, which other collectors may be writing to.
        steps: Agent steps of all shards together.
        game: Atari game or gymnasium id; the teacher's own by default.
        shard: ``"i/n"``, which of how many this is, from 0.
        preset: Of ``fastdistill.envs.PRESETS``.
        num_lanes: Games played at once.
        epsilon: Share of random actions.
        seed: Of everything; each shard has its own games. Shard 0 is what ``distill`` plays.
        chunk_steps: Steps of each lane in a file.
        device: Where the teacher runs.
        stop: Asked between steps; the chunk under way is then left out.

    Returns:
        Whether the shard is whole.

    Raises:
        ValueError: An argument out of range, or others than the shard was begun with.
    """
    index, count = _shard_number(shard)
    for name, value in (("steps", steps), ("num_lanes", num_lanes), ("chunk_steps", chunk_steps)):
        if value < 1:
            raise ValueError(f"collect: {name} must be at least 1, got {value}")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"collect: epsilon must be in [0, 1], got {epsilon}")
    if isinstance(teacher, str):
        teacher = load_teacher(teacher, game, device=pick_device(device))
    game = game or recorded_game(teacher.card)
    if not game:
        raise ValueError("collect: game must be given, the teacher does not name one")
    made = make_env(game, num_lanes, preset=preset, training=False, num_threads=share_of_cores())
    with closing(made) as env:
        teacher.check(env)
        settings = {
            "shard": [index, count],
            "total_steps": steps,
            "chunk_steps": chunk_steps,
            "num_lanes": num_lanes,
            "epsilon": epsilon,
            "seed": seed,
            "spec": spec_card(env.spec),
            "labels_by": teacher.describe(),
        }
        own = Shard.of(Path(out), index, count)
        with _claimed(own.directory):
            lane_steps = -(-steps // (count * num_lanes))  # in this shard; rounded up
            return _Writer(own, settings, env, teacher).write(lane_steps, stop)


class _Writer:
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
        _write_labels(self._shard, PLAYER, chunk, columns.pop("teacher_logits"), self._teacher)
        lanes, state = self._collector.state()
        self._shard.write(
            chunk,
            {**columns, **under("env", lanes)},
            {**card, "collector": state, "versions": versions()},
        )


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
    teacher.check(played.spec)
    for place, shard in enumerate(played.shards):
        with _claimed(shard.directory):
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
                    _write_labels(shard, name, number, torch.stack(labels), teacher)
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


def _write_labels(shard: Shard, name: str, chunk: int, labels: Tensor, teacher: Teacher) -> None:
    card = {"teacher": teacher.describe(), "chunk": chunk}
    write_checkpoint(shard.labels_path(name, chunk), {"labels": labels}, card)


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
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


def _shard_number(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"collect: shard must be i/n with i from 0 to n - 1, got {text!r}")
    return int(found[1]), int(found[2])
