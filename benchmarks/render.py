# SPDX-License-Identifier: MIT
"""Turns benchmarks/results/*.json into docs/benchmarks.md and the table of README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pages

BARE_PASS = (
    "A bare pass is `torch.add(a, b, out=c)` on such matrices: it moves the same bytes and\n"
    "computes next to nothing. The column is its time over that of `distill_loss_and_grad`; above\n"
    "1x we are faster. For 32 x 18 it is `student.sum().backward()`, the least that autograd can\n"
    "do, over `distill_kl`."
)


def duration(seconds: float) -> str:
    """Three significant digits with a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def machine_line(machine: dict[str, Any]) -> str:
    """One sentence that names the hardware and the versions."""
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{gpu}; torch {machine['torch']}, "
        f"{machine['threads']} threads; commit {machine['commit']}."
    )


def losses_table(measured: dict[str, Any], dtype: str | None = None) -> str:
    """Markdown: a line per shape and dtype, ours beside torch and a bare pass."""
    lines = [
        "| batch x actions | dtype | torch eager | torch.compile | `distill_kl` "
        "| `distill_loss_and_grad` | `distill_kl` against eager / compile "
        "| `distill_loss_and_grad` against eager / compile | against a bare pass |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, int, str], dict[str, float]] = {}
    for row in measured["rows"]:
        if row["operation"] != "distill_kl":
            continue
        key = (row["shape"][0], row["shape"][1], row["dtype"])
        groups.setdefault(key, {})[row["column"]] = row["median_seconds"]
    for (batch, actions, row_dtype), columns in groups.items():
        if dtype not in (None, row_dtype):
            continue
        eager, compiled = columns["torch_eager"], columns["torch_compile"]
        ours, direct, floor = (
            columns["distill_kl"], columns["distill_loss_and_grad"], columns["floor"],
        )  # fmt: skip
        # Autograd's own cost for the smallest batch, torch.add's of the same bytes otherwise. It is
        # no floor: a loss that moves its bytes better than torch.add does is faster than it.
        bare = floor / (ours if batch < 1000 else direct)
        times = " | ".join(duration(value) for value in (eager, compiled, ours, direct))
        lines.append(
            f"| {batch:,} x {actions:,} | {row_dtype} | {times} "
            f"| {eager / ours:.1f}x / {compiled / ours:.1f}x "
            f"| {eager / direct:.1f}x / {compiled / direct:.1f}x | {bare:.2f}x |"
        )
    return "\n".join(lines)


def cuda_table(measured: dict[str, Any]) -> str:
    """Markdown: a line per shape and dtype on a GPU, ours beside torch, Liger and a copy."""
    lines = [
        "| batch x actions | dtype | torch eager | torch.compile | with CUDA graphs | Liger "
        "| `distill_kl` | `distill_loss_and_grad` | its kernel | share of a copy "
        "| `distill_loss_and_grad` against the fastest peer |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, int, str], dict[str, dict[str, Any]]] = {}
    for row in measured["rows"]:
        key = (row["shape"][0], row["shape"][1], row["dtype"])
        groups.setdefault(key, {})[row["column"]] = row
    peers = ("torch_eager", "torch_compile", "torch_compile_graphs", "liger")
    for (batch, actions, dtype), columns in groups.items():
        seconds = {name: row["median_seconds"] for name, row in columns.items()}
        times = " | ".join(
            duration(seconds[name]) if name in seconds else "-"
            for name in (*peers, "distill_kl", "distill_loss_and_grad", "device")
        )
        share = columns["device"]["copy_seconds"] / seconds["device"]
        peer = min(seconds[name] for name in peers if name in seconds)
        lines.append(
            f"| {batch:,} x {actions:,} | {dtype} | {times} | {share:.0%} "
            f"| {peer / seconds['distill_loss_and_grad']:.1f}x |"
        )
    return "\n".join(lines)


def cuda_section(results: Path) -> str:
    """The part of docs/benchmarks.md about a GPU, if one was measured."""
    if not results.is_file():
        return ""
    measured = json.loads(results.read_text())
    return (
        "\n## Losses on a GPU\n\n"
        "KL, forward and backward, temperature 0.01; medians of 15 rounds of 64 calls (of 8 where\n"
        "one moves more than 128 MB), over inputs that are together larger than the L2 cache.\n"
        "`its kernel` is the same in a captured graph, without the host's part; the share is of\n"
        "a large copy's bandwidth. Written by `python benchmarks/run.py --cuda`.\n\n"
        f"{machine_line(measured['machine'])}\n\n{cuda_table(measured)}\n"
    )


def write_documents(root: Path) -> None:
    """Rewrites docs/benchmarks.md and the marked part of README.md from the committed results."""
    results = root / "benchmarks" / "results"
    losses = json.loads((results / "losses_cpu.json").read_text())
    where = machine_line(losses["machine"])
    (root / "docs" / "benchmarks.md").write_text(
        "# Benchmarks\n\n"
        "Written by `make bench` from benchmarks/results; not edited by hand.\n\n"
        "## Losses on the CPU\n\n"
        "KL, forward and backward, temperature 0.01; medians of 101 rounds, for the larger half\n"
        "of the rows 21, after 12 for warming up, all columns in one run.\n"
        f"`distill_loss_and_grad` writes into `out_grad`.\n\n{BARE_PASS}\n\n"
        f"{where}\n\n{losses_table(losses)}\n{cuda_section(results / 'losses_cuda.json')}"
    )
    table = losses_table(losses, dtype="float32")
    pages.write_part("README.md", "run.py", f"{table}\n\n{BARE_PASS}\n\n{where}\n")
