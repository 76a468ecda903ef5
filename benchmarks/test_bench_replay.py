# SPDX-License-Identifier: MIT
"""Replay operations on Atari-shaped steps, peers as columns.

    python -m pytest benchmarks/test_bench_replay.py --benchmark-json=benchmarks/results/replay.json

Rounds of `ours` and of the floor alternate, so that a change of the machine's memory speed hits
both; the ratio of their medians is in `extra_info`. `FASTDISTILL_BENCH_CAPACITY=1000000` repeats
the cases of ours and the floor at a million transitions, which needs 8 GB.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import threading
import time

import pytest
import torch
from replay_peers import Cpprb, CpprbNStep, Floor, Ours, Tianshou, replay_machine

CAPACITY = int(os.environ.get("FASTDISTILL_BENCH_CAPACITY", "100000"))
N_STEP = 3
PEERS = {"ours": Ours, "tianshou": Tianshou, "cpprb": Cpprb, "cpprb n-step": CpprbNStep}
if CAPACITY > 100_000:
    PEERS = {"ours": Ours}


@pytest.fixture(scope="module", params=PEERS, autouse=True)
def filled(request):
    torch.set_num_threads(1)
    peer = PEERS[request.param](CAPACITY, N_STEP)
    steps = CAPACITY // 8 + 16 if request.param == "ours" else CAPACITY
    for _ in range(steps):
        peer.add()
    peer.randomize_priorities()
    yield peer
    del peer, request  # gigabytes, before the next one fills
    gc.collect()


@pytest.fixture(autouse=True)
def machine(benchmark):
    benchmark.extra_info.update(replay_machine() | {"capacity": CAPACITY, "n_step": N_STEP})


@pytest.mark.parametrize("batch_size", [32, 256])
def test_sample(benchmark, filled, batch_size):
    benchmark.group = f"sample {batch_size}"
    if not isinstance(filled, Ours):
        benchmark.pedantic(filled.sample, (batch_size,), rounds=60, warmup_rounds=3)
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
    benchmark.group = "append"
    benchmark.extra_info["transitions"] = 8 if isinstance(filled, Ours) else 1
    benchmark.pedantic(filled.add, rounds=2000, warmup_rounds=10)


@pytest.mark.parametrize("batch_size", [32, 512])
def test_update(benchmark, filled, batch_size):
    benchmark.group = f"update {batch_size}"
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
    benchmark.group = "sample and update 32"
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
    benchmark.group = "memory"
    benchmark.extra_info["bytes_per_transition"] = bytes_per_transition
    assert bytes_per_transition <= 7250 + 12e6 / CAPACITY  # and the frames it appends from
