# SPDX-License-Identifier: MIT
"""Replay operations on Atari-shaped steps: one peer per process, see replay_peers.py.

``benchmarks/run_replay.py`` runs this file for each peer and keeps the medians. It sets:

- FASTDISTILL_BENCH_PEER, a name of ``PEERS``; FASTDISTILL_BENCH_CAPACITY, in transitions.
- FASTDISTILL_BENCH_HEAP. Peers return fresh arrays, so what their sample() costs depends on whether
  malloc kept the memory of the batch before or has to ask the kernel for zeroed pages again. With
  glibc's defaults both occur. "fresh": the process has done nothing but fill the replay. "used": it
  has once freed one array of 30 MB, as training does; glibc then keeps up to 60 MB.

Rounds of ours and of the floor alternate, so that a change of the machine's memory speed hits both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from replay_peers import Cpprb, CpprbNStep, Floor, Ours, Tianshou

CAPACITY = int(os.environ.get("FASTDISTILL_BENCH_CAPACITY", "100000"))
N_STEP = 3
PEERS = {"ours": Ours, "tianshou": Tianshou, "cpprb": Cpprb, "cpprb n-step": CpprbNStep}
PEER = os.environ.get("FASTDISTILL_BENCH_PEER", "ours")
HEAP = os.environ.get("FASTDISTILL_BENCH_HEAP", "used")
FREED_BYTES = 30_000_000


@pytest.fixture(scope="module", autouse=True)
def filled():
    torch.set_num_threads(1)
    peer = PEERS[PEER](CAPACITY, N_STEP)
    for _ in range(CAPACITY // 8 + 16 if PEER == "ours" else CAPACITY):
        peer.add()
    peer.randomize_priorities()
    if HEAP == "used":
        np.ones(FREED_BYTES, np.uint8)
    return peer


@pytest.fixture(autouse=True)
def row(benchmark):
    benchmark.extra_info.update(peer=PEER, capacity=CAPACITY, heap=HEAP)


@pytest.mark.parametrize("batch_size", [32, 256])
def test_sample(benchmark, filled, batch_size):
    benchmark.extra_info["operation"] = f"sample {batch_size}"
    if not isinstance(filled, Ours):
        benchmark.pedantic(filled.sample, (batch_size,), rounds=200, warmup_rounds=5)
        return
    floor, floor_seconds = Floor(filled, N_STEP, batch_size), []

    def copy_once():
        start = time.perf_counter()
        floor.sample()
        floor_seconds.append(time.perf_counter() - start)
        return (batch_size,), {}

    obs = benchmark.pedantic(filled.sample, setup=copy_once, rounds=500, warmup_rounds=5)
    assert obs.shape == (batch_size, 4, 84, 84)
    floor_median = statistics.median(floor_seconds)
    benchmark.extra_info["floor_us"] = floor_median * 1e6
    if benchmark.enabled:
        benchmark.extra_info["speed_over_floor"] = floor_median / benchmark.stats.stats.median


def test_append(benchmark, filled):
    """Eight transitions in ours (one step in each of 8 lanes), one in a peer."""
    benchmark.extra_info["operation"] = "append"
    benchmark.extra_info["transitions"] = 8 if isinstance(filled, Ours) else 1
    benchmark.pedantic(filled.add, rounds=2000, warmup_rounds=10)


@pytest.mark.parametrize("batch_size", [32, 512])
def test_update(benchmark, filled, batch_size):
    benchmark.extra_info["operation"] = f"update {batch_size}"
    benchmark.pedantic(
        filled.apply,
        setup=lambda: (filled.update(batch_size), {}),
        rounds=300,
        warmup_rounds=5,
    )


@pytest.mark.parametrize("appenders", ["none", "two at 1000 steps/s", "one unpaced", "two unpaced"])
def test_sample_and_update_beside_appends(benchmark, filled, appenders):
    """Sample 32 and update them, while other threads append to their own lanes."""
    if not isinstance(filled, Ours):
        pytest.skip("the peers hold a lock or are not safe to use so")
    benchmark.extra_info["operation"] = "sample and update 32"
    benchmark.extra_info["appenders"] = appenders
    stop, appended = threading.Event(), [0, 0]

    def append(thread, pause_seconds):
        lanes = list(range(thread * 4, thread * 4 + 4))
        frames, flags = filled._frames[:, lanes], filled._flags[:4]
        while not stop.is_set():
            frame = frames[appended[thread] % len(frames)]
            filled.replay.append(
                frame, filled._action[:4], filled._reward[:4], flags, flags, lanes=lanes
            )
            appended[thread] += 1
            if pause_seconds:
                time.sleep(pause_seconds)

    def learn():
        batch = filled.replay.sample(32)
        filled.replay.update_priorities(batch.id, batch.weight)

    pause = 0.001 if "at 1000" in appenders else 0.0
    count = {"none": 0, "one": 1, "two": 2}[appenders.split()[0]]
    threads = [threading.Thread(target=append, args=(i, pause)) for i in range(count)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    benchmark.pedantic(learn, rounds=2000, warmup_rounds=10)
    seconds = time.perf_counter() - start
    stop.set()
    for thread in threads:
        thread.join()
    benchmark.extra_info["appended_rows_per_second"] = sum(appended) * 4 / seconds


def test_process_memory_per_transition(benchmark, filled):
    """Resident memory of a fresh process that fills the replay, in bytes per transition."""
    if not isinstance(filled, Ours):
        pytest.skip("measured for ours only")
    script = (
        "import os, sys; sys.path[:0] = ['benchmarks', '.']\n"
        "from replay_peers import Ours\n"
        "page = os.sysconf('SC_PAGE_SIZE')\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * page\n"
        f"before, n = rss(), {CAPACITY}\n"
        "ours = Ours(n, 3)\n"
        "for _ in range(n // 8 + 16): ours.add()\n"
        "print((rss() - before) / n)\n"
    )
    if CAPACITY > 100_000:
        filled.replay = filled._batch = None  # one replay of this size at a time
    run = [sys.executable, "-c", script]
    done = benchmark.pedantic(subprocess.run, (run,), {"capture_output": True, "check": True})
    bytes_per_transition = float(done.stdout)
    benchmark.extra_info["operation"] = "memory"
    benchmark.extra_info["bytes_per_transition"] = bytes_per_transition
    assert bytes_per_transition <= 7250 + 12e6 / CAPACITY  # and the frames it appends from
