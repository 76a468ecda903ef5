# SPDX-License-Identifier: MIT
"""What may be a file of a replay's snapshot."""

from __future__ import annotations

import os
from pathlib import Path


def regular_file(function: str, path: str | os.PathLike[str]) -> Path:
    """The path, unless something else than a regular file is there: a device, a pipe, a folder.

    A snapshot would take such a thing's place, and opening a pipe waits for its other end.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ValueError(f"{function}: path must name a regular file, got {str(target)!r}")
    return target
