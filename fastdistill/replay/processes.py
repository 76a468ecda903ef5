# SPDX-License-Identifier: MIT
"""A replay is of one process: a forked child, a pickle or a copy would be another with its rows.

A child of fork has the same random state and the same lanes: workers of a DataLoader would all
draw the same rows, and their priorities would reach nobody.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, NoReturn


class OfOneProcess:
    """Whatever has native rows in ``_core``: refuses, in words, to be used by another process."""

    _core: Any

    def __init__(self) -> None:
        _alive.add(self)

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"{name}: a replay must stay in its process, got a pickle or a copy; save(path) and "
            "load(path) move its rows"
        )


class _Forked:
    """In the place of ``_core`` in a child, so that no call pays for a check."""

    def __init__(self, core: Any) -> None:
        self._kept = core  # freeing it would take locks that the parent may have held

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(
            "PrioritizedReplay: a replay must be used by the process that made it, got a forked "
            "one; sample in the parent (num_workers=0), or make a replay in the child"
        )


_alive: weakref.WeakSet[OfOneProcess] = weakref.WeakSet()


def _mark_forked() -> None:
    for replay in _alive:
        replay._core = _Forked(replay._core)


os.register_at_fork(after_in_child=_mark_forked)
