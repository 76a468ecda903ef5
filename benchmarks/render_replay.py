# SPDX-License-Identifier: MIT
"""Turns what run_replay.py measured into Markdown."""

from __future__ import annotations

from typing import Any

PEERS = ("ours", "cpprb", "cpprb n-step", "tianshou")
OPERATIONS = ("sample 32", "sample 256", "append", "update 32", "update 512")


def replay_table(measured: dict[str, Any]) -> str:
    """A line per operation: ours, the floor, and each peer with its time over ours."""
    cells: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in measured["rows"]:
        if "appenders" not in row:
            cells[row["operation"], row["heap"], row["peer"]] = row
    peers = [peer for peer in PEERS if any(key[2] == peer for key in cells)]
    lines = [
        f"| microseconds | heap | {' | '.join(peers)} | copy floor |",
        "|---" * (len(peers) + 3) + "|",
    ]
    for operation in OPERATIONS:
        for heap in ("fresh", "used"):
            if (operation, heap, "ours") not in cells:
                continue
            ours = cells[operation, heap, "ours"]
            texts = [_cell(cells.get((operation, heap, peer)), ours) for peer in peers]
            floor = ""
            if "floor_us" in ours:
                floor = f"{_number(ours['floor_us'])} ({ours['floor_us'] / ours['median_us']:.0%})"
            lines.append(f"| {operation} | {heap} | {' | '.join(texts)} | {floor} |")
    beside = [row for row in measured["rows"] if "appenders" in row]
    alone = next(row["median_us"] for row in beside if row["appenders"] == "none")
    texts = [
        f"{row['appenders']} {_number(row['median_us'])} us ({alone / row['median_us']:.0%})"
        for row in beside
    ]
    memory = next(row for row in measured["rows"] if row["operation"] == "memory")
    lines += [
        "",
        f"Sample and update 32, by threads appending beside it: {', '.join(texts)}.",
        f"Process memory: {memory['bytes_per_transition']:,.0f} bytes per transition.",
    ]
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """Time per transition appended, or per call, and its ratio to ours."""
    if row is None:
        return ""
    time, own = (r["median_us"] / r.get("transitions", 1) for r in (row, ours))
    return _number(time) if row is ours else f"{_number(time)} ({time / own:.1f}x)"


def _number(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"
