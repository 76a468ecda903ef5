# SPDX-License-Identifier: MIT
"""What a container's memory limit leaves to this process: control groups of Linux, v1 and v2.

A limit may stand at any group between the process's own and the root, and the pages that files were
cached in count as used although the kernel gives them back before it kills.
Source: the kernel's documentation, admin-guide/cgroup-v1/memory and cgroup-v2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple


class _Names(NamedTuple):
    """How a version of the interface calls its files and fields."""

    limit: str
    used: str
    cache: tuple[str, ...]


_V1 = _Names(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def control_group_bytes(mounts: Path, membership: Path) -> float:
    """The least that any group above this process leaves, infinity where none limits it.

    Args:
        mounts: where the hierarchies are mounted, as a rule ``/sys/fs/cgroup``.
        membership: the process's groups, as a rule ``/proc/self/cgroup``.
    """
    available = math.inf
    for root, group, names in _hierarchies(mounts, membership):
        # Inside a container the group's path may name folders that only the host sees: then the
        # mount itself is the container's group.
        place = root / group if (root / group).is_dir() else root
        for folder in (place, *place.parents):
            available = min(available, _left(folder, names))
            if folder == root:
                break
    return available


def _hierarchies(mounts: Path, membership: Path) -> list[tuple[Path, str, _Names]]:
    """(mount, this process's group below it, names) of each hierarchy that may limit memory."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found = []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0" and controllers == "":
            # On a machine with both versions v2 has a folder of its own.
            unified = mounts / "unified"
            root = unified if unified.is_dir() else mounts
            found.append((root, group.lstrip("/"), _V2))
        elif "memory" in controllers.split(","):
            found.append((mounts / "memory", group.lstrip("/"), _V1))
    return found


def _left(folder: Path, names: _Names) -> float:
    """Limit less use in one group; its file cache does not count as used."""
    try:
        limit = int((folder / names.limit).read_text())
        used = int((folder / names.used).read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):  # no such group, or its limit reads "max"
        return math.inf
    cache = sum(int(statistics.get(name, 0)) for name in names.cache)
    return max(limit - max(used - cache, 0), 0)
