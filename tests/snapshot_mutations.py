# SPDX-License-Identifier: MIT
"""Damaged snapshots, most with checksums made right again: `snapshot_mutations.py COUNT SEED`.

Each file must be refused as a ValueError, or load, agree with itself and come back the same from a
save. None may take more than 2 seconds or 500 MB; the limit on the address space stays for good, so
this is a program. Prints JSON: how many were refused and loaded, and the faults.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fastdistill.replay import PrioritizedReplay

SECONDS = 2.0
BYTES = 500 << 20
# Far more than a lane of the file holds: what a forged count could ask for.
CAPACITY = 2_000_000


def make() -> PrioritizedReplay:
    return PrioritizedReplay(
        CAPACITY, 2, frame_shape=(256,), stack=2, n_step=2, priority_exponent=[0.6, 0.0],
        columns={"logits": ((3,), "float32")},
    )  # fmt: skip


def write_seed(path: Path) -> None:
    """An intact snapshot of a few kilobytes, with ends of episodes and priorities of all kinds."""
    replay = make()
    for step in range(20):
        flag = np.full(2, step % 7 == 6)
        replay.append(
            np.full((2, 256), step, np.uint8), np.full(2, step), np.full(2, float(step)),
            flag, np.zeros(2, bool), boundary=np.full(2, step % 7 == 0),
            priority=None if step % 3 else np.full(2, step / 2, np.float32),
            logits=np.full((2, 3), step, np.float32),
        )  # fmt: skip
    batch = replay.sample(8)
    replay.update_priorities(batch.id, batch.id.remainder(9) + 0.5)
    replay.save(path)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def pieces(content: bytes, slot_bytes: int) -> list[tuple[int, int]]:
    """(begin, end) of each checksummed piece, its checksum excluded, of an intact file."""
    schema_bytes = struct.unpack_from("<Q", content, 12)[0]
    end = 20 + schema_bytes + 8 + 8 + 12 * struct.unpack_from("<Q", content, 28 + schema_bytes)[0]
    found = [(0, end)]
    while struct.unpack_from("<I", content, end + 4)[0] == 1:
        begin = end + 4
        count = struct.unpack_from("<Q", content, begin + 16)[0]
        end = begin + 24 + count * (slot_bytes + 2 * 8)
        found.append((begin, end))
    found.append((end + 4, len(content) - 4))
    return found


def mutate(rng: np.random.Generator, intact: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """One damaged file; three of four have right checksums wherever the pieces still are."""
    parts = [bytearray(intact[begin:end]) for begin, end in cuts]
    for _ in range(int(rng.integers(1, 4))):
        part = parts[rng.integers(len(parts))]
        if len(part) < 8:
            continue
        kind = rng.integers(6)
        # Half of them where lanes, steps and counts stand.
        at = int(rng.integers(min(len(part) - 7, 28 if rng.random() < 0.5 else len(part))))
        if kind == 0:
            part[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:  # numbers at the edges of their types
            value = int(rng.choice([0, 1, 900_000, 2**31, 2**32 - 1, 2**47, 2**48 - 1, 2**62]))
            struct.pack_into("<Q", part, at // 4 * 4, value + int(rng.integers(2)))
        elif kind == 2:  # floats that no priority may be
            value = float(rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e-40]))
            struct.pack_into("<f", part, at // 4 * 4, value)
        elif kind == 3:
            del part[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            part[at:at] = rng.bytes(int(rng.integers(1, 64)))
        else:
            parts.insert(int(rng.integers(len(parts))), bytearray(part))
    if rng.random() < 0.25:
        return b"".join(bytes(part) + b"\0\0\0\0" for part in parts)
    content = b"".join(bytes(part) + struct.pack("<I", crc32c(part)) for part in parts)
    return content[: int(rng.integers(len(content)))] if rng.random() < 0.05 else content


def content_of(replay: PrioritizedReplay) -> list[bytes]:
    rows = [replay.priorities(sampler=sampler) for sampler in range(2)]
    batch = replay.read(rows[0].id)
    tensors = [*rows[0], *rows[1], *batch[:8], *batch.columns.values()]
    return [tensor.contiguous().numpy().tobytes() for tensor in tensors]


def run(count: int, seed: int, directory: Path) -> dict[str, object]:
    """Counts and faults of so many files."""
    path, again = directory / "mutated", directory / "again"
    write_seed(path)
    intact = path.read_bytes()
    target, copy = make(), make()
    slot_bytes = target._core.memory_layout()[1]
    cuts = pieces(intact, slot_bytes)
    assert b"".join(intact[b:e] + struct.pack("<I", crc32c(intact[b:e])) for b, e in cuts) == intact
    target.load(path)
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    outcome = {"refused": 0, "loaded": 0}
    faults = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        path.write_bytes(mutate(rng, intact, cuts))
        start = time.monotonic()
        try:
            target.load(path)
        except ValueError as error:
            outcome["refused"] += 1
            if not str(error).startswith("load: file must be"):
                faults.append(f"{number}: {error!r}")
        except Exception as error:
            faults.append(f"{number}: {error!r}")
        else:
            outcome["loaded"] += 1
            try:
                target.check_valid()
                target.save(again)
                copy.load(again)
                if content_of(copy) != content_of(target):
                    faults.append(f"{number}: a save and a load changed the content")
            except Exception as error:
                faults.append(f"{number}: loaded, then {error!r}")
        if time.monotonic() - start > SECONDS:
            faults.append(f"{number}: took {time.monotonic() - start} seconds")
    return {**outcome, "faults": faults}


def main() -> None:
    """Runs as many files as the command line asks for."""
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), Path(directory))))


if __name__ == "__main__":
    main()
