# SPDX-License-Identifier: MIT
"""Damaged snapshots are refused in words or load consistently, in little time and memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import snapshot_mutations

PROGRAM = Path(__file__).parent.parent / "snapshot_mutations.py"


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(2000, 1, marks=pytest.mark.stress)]
)
def test_mutated_snapshots(count, seed):
    run = subprocess.run(
        [sys.executable, PROGRAM, str(count), str(seed)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert outcome["faults"] == []
    assert outcome["refused"] + outcome["loaded"] == count
    assert outcome["refused"] >= count // 2
    assert outcome["loaded"] >= count // 50


def forged(path, piece, offset, format, *values):
    """The seed file with numbers written over a piece, and its checksum made right."""
    snapshot_mutations.write_seed(path)
    content = path.read_bytes()
    slot_bytes = snapshot_mutations.make()._core.memory_layout()[1]
    parts = [bytearray(content[b:e]) for b, e in snapshot_mutations.pieces(content, slot_bytes)]
    struct.pack_into(format, parts[piece], offset, *values)
    crc = snapshot_mutations.crc32c
    path.write_bytes(b"".join(bytes(p) + struct.pack("<I", crc(p)) for p in parts))


HEADER = 24  # of a piece of rows: kind, lane, first step, count
PRIORITY = HEADER + 256 + 12  # of its first slot: frame of 256 bytes, action, reward
FLAGS = PRIORITY + 6


@pytest.mark.parametrize(
    ("piece", "offset", "format", "values", "text"),
    [
        (1, PRIORITY, "<f", [float("inf")], "a priority that is not finite and >= 0"),
        (1, PRIORITY, "<f", [-1.0], "a priority that is not finite and >= 0"),
        (1, FLAGS, "<B", [2], "a flag that is neither true nor false"),
        (1, 8, "<QQ", [2**47 - 10, 20], "more steps than can be counted"),
        (1, 8, "<Q", [2**48 - 1], "a damaged block"),
        (1, 16, "<Q", [900_000], "a damaged block"),
        (1, 16, "<Q", [10_000], "fewer bytes than it should have"),
        (3, 4, "<QQ", [2**62, 2**62], "more steps than can be counted"),
    ],
)
def test_forged_values_are_refused(tmp_path, piece, offset, format, values, text):
    path = tmp_path / "replay"
    forged(path, piece, offset, format, *values)
    with pytest.raises(ValueError, match=f"^load: file must be an intact snapshot, got {text}$"):
        snapshot_mutations.make().load(path)


def test_ids_stay_within_their_bits(tmp_path):
    # An empty lane's run may be forged at will: its next step is what ids are made of.
    path = tmp_path / "replay"
    snapshot_mutations.make().save(path)
    content = bytearray(path.read_bytes())
    runs = struct.pack("<QQ", 2**48 - 1, 2**48 - 1)
    trailer = bytes(content[-4 - 36 : -4][:4]) + runs + runs
    path.write_bytes(
        content[:-40] + trailer + struct.pack("<I", snapshot_mutations.crc32c(trailer))
    )
    with pytest.raises(ValueError, match="more steps than can be counted"):
        snapshot_mutations.make().load(path)


MEASURES_MEMORY = """
import re, sys
sys.path.insert(0, sys.argv[1])
import snapshot_mutations
def largest_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
replay = snapshot_mutations.make()
before = largest_kib()
try:
    replay.load(sys.argv[2])
except ValueError:
    print(largest_kib() - before)
"""


def test_memory_is_not_taken_for_what_a_file_claims(tmp_path):
    path = tmp_path / "replay"
    forged(path, 1, 16, "<Q", 900_000)
    command = [sys.executable, "-c", MEASURES_MEMORY, str(PROGRAM.parent), str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 32 * 1024  # a block and its reader
