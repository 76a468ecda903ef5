# SPDX-License-Identifier: MIT
"""Labelled play written to disk.

Each collector writes one shard of a collection, chunk after chunk. A chunk appears in one step and
says where the lanes then stand: a collector that was killed goes on from the last one, and its
files are those of one that never was.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

from fastdistill.envs import make_env
from fastdistill.recipes.options import MOST, refuse_view
from fastdistill.recipes.tasks import share_of_cores
from fastdistill.teachers import Teacher, load_teacher, recorded_game
from fastdistill.training.process import pick_device
from fastdistill.training.run import Stop
from fastdistill.training.shard_writer import ShardWriter, claimed
from fastdistill.training.shards import Shard, spec_card


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
    if not 0 <= seed <= MOST["seed"]:
        raise ValueError(f"collect: seed must be in [0, {MOST['seed']}], got {seed}")
    if isinstance(teacher, str):
        teacher = load_teacher(teacher, game, device=pick_device(device))
    refuse_view("collect", teacher)
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
        with claimed(own.directory):
            lane_steps = -(-steps // (count * num_lanes))  # in this shard; rounded up
            return ShardWriter(own, settings, env, teacher).write(lane_steps, stop)


def _shard_number(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"collect: shard must be i/n with i from 0 to n - 1, got {text!r}")
    return int(found[1]), int(found[2])
