# SPDX-License-Identifier: MIT
"""Snapshots taken beside updates and appends, put together here as the race would leave them.

`save` writes the header, then the rows: what others do in between is in the rows alone.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from snapshot_mutations import crc32c

from fastdistill.replay import PrioritizedReplay

STEPS = 10
NOT_YET_LIVE = 0


def make() -> PrioritizedReplay:
    return PrioritizedReplay(
        64, 1, frame_shape=(2,), frame_dtype="float32", stack=1, priority_exponent=1.0
    )


def append(replay: PrioritizedReplay, steps: int) -> None:
    no = np.zeros(1, bool)
    for _ in range(steps):
        replay.append(np.zeros((1, 2), np.float32), [0], [0.0], no, no)


def saved(replay: PrioritizedReplay, path) -> bytes:
    replay.save(path)
    return path.read_bytes()


def end_of_header(content: bytes) -> int:
    schema_bytes = struct.unpack_from("<Q", content, 12)[0]
    return 20 + schema_bytes + 8 + 8 + 12 + 4  # seed, samplers, one sampler, checksum


def raised_after_the_header(path) -> tuple[PrioritizedReplay, bytes]:
    """A replay with a row of priority 50, and the snapshot during which the row was given it."""
    replay = make()
    append(replay, STEPS)
    before = saved(replay, path)
    replay.update_priorities(torch.tensor([3]), torch.tensor([50.0]))
    after = saved(replay, path)
    return replay, before[: end_of_header(before)] + after[end_of_header(after) :]


def test_the_largest_priority_counts_rows_that_were_updated_behind_the_header(tmp_path):
    path = tmp_path / "replay"
    original, content = raised_after_the_header(path)
    path.write_bytes(content)
    loaded = make()
    loaded.load(path)
    assert loaded.statistics()["max_priority"] == 50.0
    append(original, 4)
    append(loaded, 4)
    assert torch.equal(loaded.priorities().id, original.priorities().id)
    assert torch.equal(loaded.priorities().priority, original.priorities().priority)
    loaded.check_valid()


@pytest.mark.parametrize("given_before", [0.5, 1000.0])
def test_rows_not_yet_live_begin_with_the_snapshots_largest_priority(tmp_path, given_before):
    # The last step was published, the row that it completes was still to be made live.
    path = tmp_path / "replay"
    original, content = raised_after_the_header(path)
    row, slot_bytes = STEPS - 2, original._core.memory_layout()[1]
    begin = end_of_header(content)
    end = begin + 24 + STEPS * (slot_bytes + 8)
    rows = bytearray(content[begin:end])
    struct.pack_into("<II", rows, 24 + STEPS * slot_bytes + 8 * row, 0, NOT_YET_LIVE)
    checksum = struct.pack("<I", crc32c(bytes(rows)))
    path.write_bytes(content[:begin] + rows + checksum + content[end + 4 :])
    loaded = make()
    append(loaded, STEPS)
    loaded.update_priorities(torch.tensor([0]), torch.tensor([given_before]))
    loaded.load(path)
    expected = [1.0] * (STEPS - 1)
    expected[3] = expected[row] = 50.0
    assert loaded.priorities().priority.tolist() == expected
    assert loaded.statistics()["max_priority"] == 50.0
    loaded.check_valid()
