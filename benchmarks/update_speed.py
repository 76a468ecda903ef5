# SPDX-License-Identifier: MIT
"""How long one training update takes on the CPU: our float32 convolutions beside torch's.

A distillation update is forward, ``distill_kl``, backward and fused Adam on one batch of uint8
frames; a PQN update has layer normalisation, a squared error and gradient clipping. Both sides run
in turn, round by round, in one process, so that what else the machine does meets both. Minimum and
median of the wall-clock and of the process's CPU time; with one thread the latter leaves out the
time in which other processes ran.

    python benchmarks/update_speed.py --out benchmarks/results/update_speed.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor

from fastdistill import _core, distill_loss_and_grad
from fastdistill.networks import QNetwork, convolutions, paper_architecture

Update = Callable[[], None]

ACTIONS = 6
# (update, size, batch)
CASES = (
    ("distill", "7%", 32),
    ("distill", "7%", 64),
    ("distill", "25%", 64),
    ("distill", "100%", 32),
    ("distill", "100%", 64),
    ("pqn", "100%", 256),
)


def make_network(size: str, *, layer_norm: bool, native: bool) -> QNetwork:
    """The same weights on both sides."""
    torch.manual_seed(0)
    network = QNetwork(paper_architecture(size, ACTIONS, layer_norm=layer_norm))
    network.set_obs_statistics(100 * torch.rand(84, 84), 5 + 40 * torch.rand(84, 84))
    network.uses_frames = native and network.uses_frames
    return network


def distill_update(size: str, batch: int, *, native: bool) -> Update:
    """As a student learns from stored labels."""
    network = make_network(size, layer_norm=False, native=native)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    obs = torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)
    labels, grad = torch.randn(batch, ACTIONS), torch.empty(batch, ACTIONS)

    def update() -> None:
        logits = network(obs)
        distill_loss_and_grad("kl", logits, labels, temperature=0.01, out_grad=grad)
        optimizer.zero_grad(set_to_none=True)
        logits.backward(grad)
        optimizer.step()

    return update


def pqn_update(size: str, batch: int, *, native: bool) -> Update:
    """As a PQN teacher learns from its returns."""
    network = make_network(size, layer_norm=True, native=native)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    obs = torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)
    action, returns = torch.randint(0, ACTIONS, (batch, 1)), torch.randn(batch)

    def update() -> None:
        taken: Tensor = network(obs).gather(1, action).squeeze(1)
        loss = 0.5 * (taken - returns).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()

    return update


def compare(updates: dict[str, Update], rounds: int) -> dict[str, dict[str, float]]:
    """Times all in turn; the first two rounds warm up."""
    wall: dict[str, list[float]] = {name: [] for name in updates}
    cpu: dict[str, list[float]] = {name: [] for name in updates}
    for index in range(rounds + 2):
        for name, update in updates.items():
            wall_begun, cpu_begun = time.perf_counter(), time.process_time()
            update()
            wall_seconds, cpu_seconds = (
                time.perf_counter() - wall_begun,
                time.process_time() - cpu_begun,
            )
            if index >= 2:
                wall[name].append(wall_seconds)
                cpu[name].append(cpu_seconds)
    return {
        name: {
            "wall_min_seconds": min(wall[name]),
            "wall_median_seconds": statistics.median(wall[name]),
            "cpu_min_seconds": min(cpu[name]),
            "cpu_median_seconds": statistics.median(cpu[name]),
        }
        for name in updates
    }


def measure(threads: int, rounds: int) -> list[dict[str, Any]]:
    """All cases with that many threads."""
    torch.set_num_threads(threads)
    rows = []
    for kind, size, batch in CASES:
        make = distill_update if kind == "distill" else pqn_update
        updates = {
            "ours": make(size, batch, native=True),
            "torch": make(size, batch, native=False),
        }
        times = compare(updates, max(5, rounds * 32 // batch))
        ratios = {
            name.removesuffix("_seconds"): times["torch"][name] / times["ours"][name]
            for name in times["ours"]
        }
        row = {
            "update": kind,
            "size": size,
            "batch": batch,
            "threads": threads,
            **times,
            "torch_over_ours": ratios,
        }
        print(
            f"{kind:8} {size:>4} batch {batch:3} threads {threads}: "
            + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()),
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    """Times all, prints the ratios and writes them where told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="at batch 32; fewer at larger ones")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    if not convolutions.is_available():
        raise SystemExit("update_speed: this CPU has no AVX2 or was told not to use it")
    result = {
        "benchmark": "update_speed",
        "instruction_set": _core.cpu_isa(),
        "rounds": arguments.rounds,
        "rows": [row for n in arguments.threads for row in measure(n, arguments.rounds)],
        "machine": machine.describe(),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
