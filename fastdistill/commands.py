# SPDX-License-Identifier: MIT
"""Subcommands that need no run: collections of play, exports, lists and checks of teachers.

Their docstrings are the help.
"""

from __future__ import annotations

from pathlib import Path

from fastdistill.evaluation.verify import verify_teacher as verify
from fastdistill.export import export as export_network
from fastdistill.networks.checkpoint import read_card
from fastdistill.recipes import collect as collecting
from fastdistill.recipes import relabel as relabelling
from fastdistill.teachers import checkpoint_path, load_teacher, zoo_names
from fastdistill.training.stop import STOPPED_STATUS, StopRequest


def collect(
    teacher: str,
    /,
    steps: int,
    out: Path,
    game: str | None = None,
    shard: str = "0/1",
    preset: str = "classic",
    num_lanes: int = 16,
    epsilon: float = 0.05,
    seed: int = 1,
    chunk_steps: int = 512,
    device: str = "auto",
) -> int:
    """Play with a teacher and write what it saw and said, to learn from without an emulator.

    The same command goes on where it was interrupted, and mends what is damaged.

    Args:
        teacher: A checkpoint's path, zoo:NAME, sb3:FILE or cleanrl:FILE.
        steps: Agent steps of all shards together.
        out: Directory of the collection; other collectors may be writing to it.
        game: Game or gymnasium id; the checkpoint's own by default.
        shard: i/n, which of how many this collector writes, from 0.
        preset: classic or machado.
        num_lanes: Games played at once.
        epsilon: Share of random actions.
        seed: Of everything; each shard has its own games.
        chunk_steps: Steps of each lane in a file.
        device: Where the teacher runs.
    """
    with StopRequest() as stop:
        whole = collecting.collect(
            teacher, out, steps=steps, game=game, shard=shard, preset=preset, num_lanes=num_lanes,
            epsilon=epsilon, seed=seed, chunk_steps=chunk_steps, device=device, stop=stop,
        )  # fmt: skip
    print(f"shard {shard} in {out} is {'whole' if whole else 'begun; the same command goes on'}")
    return 0 if whole else STOPPED_STATUS


def relabel(data: Path, teacher: str, /, name: str, device: str = "auto") -> None:
    """Write another teacher's labels of a collection, beside its frames.

    Args:
        data: Directory that fastdistill collect has written.
        teacher: A checkpoint's path, zoo:NAME, sb3:FILE or cleanrl:FILE.
        name: Of the labels, for fastdistill distill --labels.
        device: Where the teacher runs.
    """
    found = relabelling.relabel(data, teacher, name, device=device)
    print(f"{data}: about {found.num_rows:,} states labelled; --data {data} --labels {name}")


def zoo() -> None:
    """List the teachers that ship, with what they score."""
    for name in zoo_names():
        card = read_card(checkpoint_path(f"zoo:{name}"))
        print(
            f"zoo:{name}: {card['parameters']:,} parameters, {len(card['action_meanings'])} actions"
        )
        for score in card["scores"]:
            low, high = score["interval95"]
            print(
                f"  {score['preset']:8} epsilon {score['epsilon']:<5} mean {score['mean']:9,.2f}  "
                f"95% [{low:,.2f}, {high:,.2f}] over {score['episodes']} episodes"
            )


def export(
    checkpoint: str,
    out: Path,
    /,
    format: str = "onnx",
    game: str | None = None,
    frames: int = 1000,
) -> None:
    """Write a network for programs without fastdistill, checked on played frames.

    Args:
        checkpoint: Path of a checkpoint, or zoo:NAME.
        out: The file to write.
        format: onnx or pt2.
        game: Where the frames are played; the checkpoint's own by default.
        frames: To compare file and network on.
    """
    record = export_network(checkpoint, out, format, game=game, frames=frames)
    times = ", ".join(f"{name} {1e6 * s:.0f} us" for name, s in record.latency_seconds.items())
    print(
        f"{record.path}: {record.size_bytes:,} bytes; {record.equal_actions} of {record.frames} "
        f"greedy actions equal, values differ by at most {record.max_difference:.2g}; one "
        f"observation takes {times}"
    )


def verify_teacher(
    teacher: str,
    /,
    game: str,
    reported: float | None = None,
    episodes: int = 30,
    preset: str = "classic",
    device: str = "cpu",
) -> None:
    """Play with a teacher and say whether preset or wrappers are likely wrong.

    Args:
        teacher: A checkpoint's path, zoo:NAME, sb3:FILE or cleanrl:FILE.
        game: Game or gymnasium id.
        reported: The mean score that its author names.
        episodes: Of each policy.
        preset: classic or machado; the others are tried where the score falls short.
        device: Where the network runs.
    """
    loaded = load_teacher(teacher, game, device=device)
    found = verify(loaded, game, reported, episodes=episodes, preset=preset, device=device)
    print(found.verdict)
