# SPDX-License-Identifier: MIT
"""The files of the replay's snapshots: what may be one, and how one appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def regular_file(function: str, path: str | os.PathLike[str]) -> Path:
    """The path, unless something else than a regular file is there: a device, a pipe, a folder.

    A snapshot would take such a thing's place, and opening a pipe waits for its other end.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ValueError(f"{function}: path must name a regular file, got {str(target)!r}")
    return target


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the target's name when the block ends, complete and on disk.

    Each has a temporary name of its own, so that any threads and processes may write to one target.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
