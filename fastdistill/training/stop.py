# SPDX-License-Identifier: MIT
"""Stopping in good order: what the command line does with SIGINT and SIGTERM."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

# Exit status of a run that was told to stop and has left a checkpoint (EX_TEMPFAIL).
STOPPED_STATUS = 75


class StopRequest:
    """SIGINT or SIGTERM ask for a stop at the next good moment; a second one ends at once.

    For the main thread of a command: use as a context manager around a recipe and hand it over.
    Any object with ``requested`` does the same for a recipe in a thread.

    Attributes:
        requested: Whether to stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
