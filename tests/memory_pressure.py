# SPDX-License-Identifier: MIT
"""Losses and replay with too little memory: every call gives the right answer or an error.

Run as a program it limits its own address space step by step, from none to spare to enough, and
prints one JSON line: how many calls were right, how many raised, and what was wrong. The limit
cannot be taken back reliably within a test run, so `unit/test_memory_pressure.py` starts it anew.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from loss_oracle import distill_truth, td_truth
from support import KINDS, assert_matches_truth, random_logits, temperature_options

import fastdistill as fd
from fastdistill.replay import PrioritizedReplay, ReplayBatch

STEPS = 20
MEGABYTE = 1 << 20

# Raises AssertionError unless a result is right; called when there is memory again.
Judge = Callable[[], None]


def address_space_bytes() -> int:
    """What the process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Pressure:
    """Counts the outcomes of calls under rising limits."""

    def __init__(self) -> None:
        self.right = 0
        self.raised = 0
        self.wrong: list[str] = []

    def run(self, name: str, enough_bytes: int, call: Callable[[], Judge]) -> None:
        """One call per limit, from nothing to spare to `enough_bytes`."""
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        for step in range(STEPS):
            spare = enough_bytes * step // (STEPS - 1)
            resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes() + spare, unlimited[1]))
            try:
                judge = call()
            except (MemoryError, RuntimeError, OSError) as error:
                self.raised += 1
                if not isinstance(error, MemoryError) and "memory" not in str(error):
                    self.wrong.append(f"{name}, {spare} bytes to spare: {error!r}")
                continue
            finally:
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
            self.right += 1
            try:
                judge()
            except AssertionError as error:
                self.wrong.append(f"{name}, {spare} bytes to spare: a wrong result, {error}")


def distill_call(kind: str, actions: int) -> Callable[[], Judge]:
    """A loss of two long rows."""
    student, teacher = random_logits(2, actions)
    options = temperature_options(kind, 1.0)
    truth = distill_truth(kind, student, teacher, **options)
    out = torch.empty_like(student)

    def call() -> Judge:
        out.fill_(torch.nan)
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, out_grad=out, **options)
        return lambda: assert_matches_truth(
            loss, grad, student, truth, kind=kind, reduction="batchmean"
        )

    return call


def losses(pressure: Pressure) -> None:
    """Long rows, whose scratch the worker threads allocate; each kind needs more than the last."""
    torch.set_num_threads(2)
    # The pool's threads exist from here on: without memory for them OpenMP ends the process.
    fd.distill_loss_and_grad("mse", torch.zeros(64, 1024), torch.zeros(64, 1024))
    for number, kind in enumerate(KINDS):
        actions = (number + 1) << 16
        pressure.run(kind, 48 * actions + 16 * MEGABYTE, distill_call(kind, actions))

    # Results, and the copies of arguments of another dtype.
    q, target = torch.randn(1 << 20, 2), torch.randn(1 << 20, dtype=torch.float64)
    action = torch.zeros(1 << 20, dtype=torch.int64)
    rows, td_abs, _ = td_truth(q, action, target.float(), reduction="none")

    def call_td() -> Judge:
        loss, size = fd.td_loss(q, action, target, reduction="none")

        def judge() -> None:
            assert np.allclose(loss.numpy(), rows, rtol=1e-6, atol=1e-7)
            assert np.allclose(size.numpy(), td_abs, rtol=1e-6, atol=1e-7)

        return judge

    pressure.run("td_loss", 32 * MEGABYTE, call_td)


def new_replay() -> PrioritizedReplay:
    """1024 steps of frames that tell their step: value and action agree."""
    return PrioritizedReplay(1024, 2, frame_shape=(64, 64), stack=2, seed=3)


def fill(replay: PrioritizedReplay, first: int, steps: int) -> None:
    """Appends steps with every lane's frame, action and reward equal to the step's number."""
    for step in range(first, first + steps):
        frame = np.full((2, 64, 64), step % 251, np.uint8)
        no = [False, False]
        replay.append(frame, [step % 251] * 2, [step % 251] * 2, no, no)


def check_batch(batch: ReplayBatch) -> None:
    """A whole batch of the rows that fill() made."""
    newest = batch.obs[:, -1]
    assert torch.equal(newest, batch.action[:, None, None].expand_as(newest).to(torch.uint8))
    assert torch.equal(batch.reward, batch.action.float())
    assert torch.isfinite(batch.weight).all()
    assert (batch.weight > 0).all()


def replays(pressure: Pressure) -> None:
    """Every method that allocates."""
    replay = new_replay()
    fill(replay, 0, 300)
    appended = [300]
    held: list[ReplayBatch] = []

    def call_new() -> Judge:
        other = new_replay()
        fill(other, 0, 20)
        return other.check_valid

    def call_append() -> Judge:
        fill(replay, appended[0], 1)
        appended[0] += 1
        return lambda: check_batch(replay.sample(8))

    def call_sample() -> Judge:
        batch = replay.sample(512)
        held.append(batch)  # so that the next call needs memory of its own
        return lambda: check_batch(batch)

    def call_update() -> Judge:
        rows = replay.priorities()
        # Powers of two, which the weights hold exactly enough to come back.
        given = torch.full_like(rows.priority, 4.0, dtype=torch.float32).repeat(200)
        accepted = replay.update_priorities(rows.id.repeat(200), given)

        def judge() -> None:
            assert accepted.all()
            assert torch.allclose(replay.priorities().priority, torch.tensor(4.0).double())

        return judge

    def call_save_and_load() -> Judge:
        copy = new_replay()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "replay.bin"
            replay.save(path)
            copy.load(path)

        def judge() -> None:
            copy.check_valid()
            assert torch.equal(copy.priorities().id, replay.priorities().id)
            check_batch(copy.sample(64))

        return judge

    calls = {
        "replay": (call_new, 24),
        "append": (call_append, 1),
        "sample": (call_sample, 24),
        "update_priorities": (call_update, 8),
        "save and load": (call_save_and_load, 48),
    }
    for name, (call, enough_megabytes) in calls.items():
        pressure.run(name, enough_megabytes * MEGABYTE, call)
        held.clear()
        replay.check_valid()


def main() -> None:
    """Runs the part that the command line names."""
    pressure = Pressure()
    {"losses": losses, "replays": replays}[sys.argv[1]](pressure)
    print(json.dumps(vars(pressure)))


if __name__ == "__main__":
    main()
