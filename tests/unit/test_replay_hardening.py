# SPDX-License-Identifier: MIT
"""What attacks on the replay found: sizes that wrap, scalars of NumPy, containers, odd paths."""

from __future__ import annotations

import math
import os
import re
import stat
import threading

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay
from fastdistill.replay.control_groups import control_group_bytes


def make(capacity=64, num_lanes=1, **options):
    defaults = {"frame_shape": (2,), "frame_dtype": "float32", "stack": 1}
    return PrioritizedReplay(capacity, num_lanes, **(defaults | options))


def append(replay, step, lanes=None):
    rows = len(lanes) if lanes is not None else len(replay._lanes)
    no = np.zeros(rows, bool)
    replay.append(
        np.full((rows, 2), step, np.float32), np.full(rows, step), np.full(rows, 1.0), no, no,
        lanes=lanes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((2**31, 1), {"frame_shape": (2**33 - 40,)}, "capacity must need at most 2^47 bytes"),
        ((8, 1), {"frame_shape": (2**62,)}, "frame_shape must hold at most 2**47 elements"),
        ((8, 1), {"frame_shape": (2**32, 2**32)}, "frame_shape must hold at most 2**47 elements"),
        ((8, 1), {"frame_shape": (2**45,)}, "frame_shape and columns must take at most 2^47 bytes"),
        ((8, 1), {"columns": {"x": ((2**62, 4), "float32")}}, "columns['x'] must hold at most"),
        ((2**39, 1), {"priority_exponent": [0.5] * 64}, "capacity must need at most 2^47 bytes"),
        ((2**70, 1), {}, "capacity must be below 2**63, got 1180591620717411303424"),
        ((8, 2**40), {}, "num_lanes must be below 2**32, got 1099511627776"),
        ((8, 1), {"stack": 2**40}, "stack must be below 2**32"),
        ((8, 1), {"n_step": 2**40}, "n_step must be below 2**32"),
        ((8, 1), {"lanes_per_task": [2**40]}, "lanes_per_task must be below 2**32"),
        ((8, 1), {"seed": 2**64}, "seed must be below 2**64"),
    ],
)
def test_sizes_that_wrap_are_refused(arguments, options, text):
    options = {"frame_shape": (1,), "frame_dtype": "float64", "stack": 1} | options
    with pytest.raises(ValueError, match="^" + re.escape(f"PrioritizedReplay: {text}")):
        PrioritizedReplay(*arguments, **options)


def test_scalars_of_numpy(tmp_path):
    plain = PrioritizedReplay(
        64, 2, frame_shape=(2,), frame_dtype="float32", stack=2, n_step=2, discount=0.5,
        priority_exponent=0.5, lanes_per_task=[1, 1], initial_priority=0.25, seed=3,
    )  # fmt: skip
    scalars = PrioritizedReplay(
        np.int64(64), np.int64(2), frame_shape=np.array([2]), frame_dtype=np.float32,
        stack=np.int32(2), n_step=np.uint8(2), discount=np.float32(0.5),
        priority_exponent=np.float32(0.5), lanes_per_task=np.array([1, 1]),
        initial_priority=np.float32(0.25), seed=np.int64(3),
    )  # fmt: skip
    for step in range(8):
        append(plain, step)
        append(scalars, step)
    assert torch.equal(plain.sample(8).id, scalars.sample(np.int64(8)).id)
    plain.save(tmp_path / "plain")
    scalars.load(tmp_path / "plain")  # so they have the same options


def write_group(folder, limit, used, cache, version):
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_memory_of_control_groups(tmp_path, version):
    mounts, membership = tmp_path / "cgroup", tmp_path / "self"
    root = mounts / "memory" if version == 1 else mounts
    membership.write_text(
        "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/\n" if version == 1 else "0::/a/b\n"
    )
    assert control_group_bytes(mounts, membership) == math.inf  # nothing is mounted
    unlimited = "9223372036854771712" if version == 1 else "max"
    write_group(root / "a" / "b", unlimited, 500, 0, version)
    assert control_group_bytes(mounts, membership) > 1e18
    write_group(root / "a", 1000, 900, 300, version)  # a limit above this process's own group
    assert control_group_bytes(mounts, membership) == 400
    write_group(root / "a" / "b", 600, 500, 200, version)
    assert control_group_bytes(mounts, membership) == 300
    # In a container the path may be the host's: then the mount is the group.
    membership.write_text("4:memory:/docker/x\n" if version == 1 else "0::/../x\n")
    write_group(root, 5000, 6000, 100, version)
    assert control_group_bytes(mounts, membership) == 0
    assert control_group_bytes(mounts, tmp_path / "missing") == math.inf


def test_both_versions_of_control_groups(tmp_path):
    mounts, membership = tmp_path / "cgroup", tmp_path / "self"
    membership.write_text("4:memory:/a\n0::/b\n")
    write_group(mounts / "memory" / "a", 1000, 100, 0, 1)
    write_group(mounts / "unified" / "b", 700, 100, 0, 2)
    assert control_group_bytes(mounts, membership) == 600


def test_concurrent_saves_to_one_path(tmp_path):
    path = tmp_path / "replay"
    replay = make(num_lanes=4)
    for step in range(20):
        append(replay, step)
    errors = []

    def save():
        try:
            for _ in range(25):
                replay.save(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    replay.save(path)
    for thread in threads:
        thread.start()
    loaded = make(num_lanes=4)
    while any(thread.is_alive() for thread in threads):
        loaded.load(path)
    for thread in threads:
        thread.join()
    assert errors == []
    loaded.load(path)
    assert torch.equal(loaded.priorities().id, replay.priorities().id)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    replay = make()
    replay.save(tmp_path / "replay")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("method", ["save", "load"])
def test_only_regular_files(tmp_path, method):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/null"):
        text = f"{method}: path must name a regular file, got {str(path)!r}"
        with pytest.raises(ValueError, match=re.escape(text)):
            getattr(make(), method)(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_append_beside_load_is_an_error_and_counts_stay_right(tmp_path):
    path = tmp_path / "replay"
    replay = make(capacity=4096)
    for step in range(4000):
        append(replay, step)
    replay.save(path)
    stop = threading.Event()
    refused = []

    def write():
        step = 4000
        while not stop.is_set():
            try:
                append(replay, step)
                step += 1
            except ValueError as error:
                refused.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            try:
                replay.load(path)
            except ValueError as error:
                assert "each with one writer at a time" in str(error)  # noqa: PT017
    finally:
        stop.set()
        writer.join()
    assert all("each with one writer at a time" in text for text in refused)
    replay.check_valid()
    assert len(replay) == len(replay.priorities().id)


@pytest.mark.parametrize("normalization", ["batch", "global", "none"])
@pytest.mark.parametrize("task_weights", [None, "balanced"])
def test_weights_are_finite_from_the_first_row_on(normalization, task_weights):
    for seed in range(30):
        replay = make(num_lanes=2, lanes_per_task=[1, 1], seed=seed)
        start = threading.Barrier(3)

        def write(lane, replay=replay, start=start):
            start.wait()
            for step in range(6):
                append(replay, step, lanes=[lane])

        writers = [threading.Thread(target=write, args=(lane,)) for lane in range(2)]
        for writer in writers:
            writer.start()
        start.wait()
        for _ in range(20):
            try:
                batch = replay.sample(
                    8, task_weights=task_weights, weight_normalization=normalization
                )
            except RuntimeError:
                continue  # no row yet
            assert torch.isfinite(batch.weight).all()
            assert (batch.weight > 0).all()
        for writer in writers:
            writer.join()
        replay.check_valid()
