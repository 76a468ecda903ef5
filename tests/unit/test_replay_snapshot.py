# SPDX-License-Identifier: MIT
# Snapshots: the same replay comes back, while others write or not; nothing else ever does.
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay

OPTIONS = {
    "frame_shape": (5,),
    "stack": 2,
    "n_step": 2,
    "columns": {"logits": ((3,), "float32")},
    "priority_exponent": [0.6, 0.0],
}


def make(capacity=24, **options):
    return PrioritizedReplay(capacity, 2, **(OPTIONS | options))


def append(replay, step, lanes=(0, 1)):
    rows = len(lanes)
    flag = np.full(rows, step % 7 == 6)
    replay.append(
        np.full((rows, 5), step % 250, np.uint8),
        np.full(rows, step),
        np.full(rows, float(step)),
        flag,
        np.zeros(rows, bool),
        boundary=np.full(rows, step % 7 == 0),
        lanes=list(lanes),
        logits=np.full((rows, 3), step, np.float32),
    )


def filled(steps=40):
    replay = make()
    for step in range(steps):
        append(replay, step)
    batch = replay.sample(16)
    replay.update_priorities(batch.id, batch.id.remainder(9) + 0.5)
    return replay


def assert_same(left, right):
    for sampler in range(2):
        a, b = left.priorities(sampler=sampler), right.priorities(sampler=sampler)
        assert torch.equal(a.id, b.id)
        assert torch.equal(a.priority, b.priority)
    a, b = left.read(a.id), right.read(b.id)
    for x, y in zip((*a[:8], *a.columns.values()), (*b[:8], *b.columns.values()), strict=True):
        assert torch.equal(x, y)


def test_a_loaded_replay_goes_on_like_the_saved_one(tmp_path):
    saved, loaded = filled(), make()
    append(loaded, 3)
    saved.save(tmp_path / "replay")
    loaded.load(tmp_path / "replay")
    assert_same(saved, loaded)
    for step in range(40, 80):
        append(saved, step)
        append(loaded, step)
        a, b = saved.sample(8), loaded.sample(8)
        assert torch.equal(a.id, b.id)
        assert torch.equal(a.obs, b.obs)
        for replay in (saved, loaded):
            replay.update_priorities(a.id, a.reward.abs() + 1)
    assert_same(saved, loaded)
    loaded.check_valid()


def test_an_empty_replay_can_be_saved(tmp_path):
    loaded = filled()
    make().save(tmp_path / "replay")
    loaded.load(tmp_path / "replay")
    assert len(loaded) == 0
    loaded.check_valid()


@pytest.mark.parametrize("appended", [0, 1])
def test_cleared_rows_stay_cleared(tmp_path, appended):
    saved, loaded = filled(), make()
    saved.clear()
    for step in range(41, 41 + appended):
        append(saved, step)
    saved.save(tmp_path / "replay")
    loaded.load(tmp_path / "replay")
    assert len(loaded) == 0
    for step in range(42, 46):
        append(saved, step)
        append(loaded, step)
    assert_same(saved, loaded)


def test_every_flipped_byte_and_every_truncation_is_refused(tmp_path):
    path = tmp_path / "replay"
    filled().save(path)
    intact = path.read_bytes()
    target = filled(steps=30)
    before = filled(steps=30)
    rng = np.random.default_rng(0)
    damaged = [intact[:size] for size in range(0, len(intact), 13)]
    damaged += [intact[:-1], intact + b"\0", b"", intact[:8]]
    for at in range(len(intact)):
        flipped = bytearray(intact)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="load: file must be"):
            target.load(path)
    assert_same(target, before)
    target.check_valid()
    path.write_bytes(intact)
    target.load(path)


def test_other_options_are_refused(tmp_path):
    filled().save(tmp_path / "replay")
    other = make(n_step=1)
    with pytest.raises(ValueError, match=r"a replay with options .*\"n_step\": 1.*\"n_step\": 2"):
        other.load(tmp_path / "replay")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "replay"
    replay = filled()
    replay.save(path)
    old = path.read_bytes()
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            replay._core.save(full, "{}")
    finally:
        os.close(full)
    with pytest.raises(FileNotFoundError):
        replay.save(tmp_path / "missing" / "replay")
    with pytest.raises(FileNotFoundError):
        replay.load(tmp_path / "missing")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_snapshots_taken_while_others_write_are_consistent(tmp_path):
    replay = filled()
    stop = threading.Event()

    def write(lane):
        step = 40
        while not stop.is_set():
            append(replay, step, lanes=[lane])
            step += 1

    writers = [threading.Thread(target=write, args=(lane,)) for lane in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(30):
            replay.save(tmp_path / "replay")
            loaded = make()
            loaded.load(tmp_path / "replay")
            loaded.check_valid()
            live = loaded.priorities()
            if len(live.id) == 0:
                continue
            rows = loaded.read(live.id)
            _, step = PrioritizedReplay.decode_id(live.id)
            assert torch.equal(rows.action, step)
            assert torch.equal(rows.obs[:, -1, 0], step.remainder(250).to(torch.uint8))
            assert torch.equal(rows.columns["logits"][:, 2], step.float())
    finally:
        stop.set()
        for writer in writers:
            writer.join()


SAVES_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_replay_snapshot import append, filled
replay, step = filled(), 40
while True:
    replay.save(sys.argv[2])
    print(step, flush=True)
    append(replay, step)
    step += 1
"""


def test_kill_9_during_save_leaves_a_whole_snapshot(tmp_path):
    path = tmp_path / "replay.bin"
    rng = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOR_EVER, str(Path(__file__).parent), str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        saved = int(process.stdout.readline())
        # Saves follow one another at once: the kill falls into one, at any point of it.
        time.sleep(float(rng.uniform(0, 0.02)))
        process.kill()
        rest, _ = process.communicate()
        saved = int(rest.split("\n")[-2]) if "\n" in rest else saved
        replay = make()
        replay.load(path)
        replay.check_valid()
        # Of the last save that was reported or, when the kill came after its rename, of the next.
        candidates = []
        for last in (saved, saved + 1):
            reference = filled()
            for step in range(40, last):
                append(reference, step)
            candidates.append(reference.priorities().id.tolist())
        assert replay.priorities().id.tolist() in candidates
