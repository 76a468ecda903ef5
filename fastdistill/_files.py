# SPDX-License-Identifier: MIT
"""Files that others may have written or damaged: read within limits, written in one step.

Errors of reading have no function's name before them: callers add theirs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Beyond these, JSON is refused. A random generator's state is an integer of 39 digits.
MAX_JSON_DEPTH = 32
MAX_INTEGER_DIGITS = 40


def read_bytes(path: Path, *, limit_bytes: int, exact_bytes: int | None = None) -> bytes:
    """The content of a regular file whose size is looked at first.

    Args:
        path: Symbolic links are followed.
        limit_bytes: A larger file is refused unread.
        exact_bytes: The size that the file must have, where it is known.

    Raises:
        ValueError: ``<path> must <constraint>, got <value>``.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"{path} must exist, got none") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ValueError(f"{path} must be readable, got {_reason(error)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ValueError(f"{path} must be a regular file, got {kind}")
        size = status.st_size
        if exact_bytes is not None and size != exact_bytes:
            raise ValueError(f"{path} must have {exact_bytes} bytes, got {size}")
        if size > limit_bytes:
            raise ValueError(f"{path} must have at most {limit_bytes} bytes, got {size}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(size)
    except OSError as error:
        raise ValueError(f"{path} must be readable, got {_reason(error)}") from error
    finally:
        os.close(descriptor)


def parse_json(payload: bytes, *, non_finite: bool = False) -> Any:
    """JSON as RFC 8259 has it, and nothing that Python adds or that two readers see differently.

    Args:
        payload: The text.
        non_finite: Take NaN and infinities, too, which Python writes into what it calls JSON.

    Raises:
        ValueError: What was found: not UTF-8, not JSON, NaN or infinity, a key twice, more than
            ``MAX_JSON_DEPTH`` levels, an integer of more than ``MAX_INTEGER_DIGITS`` digits.
    """
    too_deep = f"more than {MAX_JSON_DEPTH} levels of nesting"
    try:
        value = (_LENIENT if non_finite else _DECODER).decode(payload.decode())
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    if level:
        raise ValueError(too_deep)
    return value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the path's name when the block ends, complete and on disk.

    Each time another name, so that any threads and processes may write to one path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _to_disk(path.parent)  # the rename itself must survive a power cut


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, payload: bytes, *, function: str) -> None:
    """Write a file that appears under its name when complete and on disk, in one step.

    Raises:
        OSError: In the name of ``function``, with the file and the reason.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(payload)
    except OSError as error:
        raise unwritable(function, path, error) from error


def unwritable(function: str, path: Path, error: OSError) -> OSError:
    """The same error (full disk, read-only, too large...) with the name of the file."""
    return OSError(error.errno, f"{function}: {path} must be writable, got {_reason(error)}")


def is_int(value: object) -> bool:
    """Whether a JSON value is an integer; True and False are none."""
    return type(value) is int


def shown(value: object) -> str:
    """A value as an error shows it: a file may hold megabytes where a word should be."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {shown(twice)} twice")
    return fields


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {shown(text)}, which no float64 holds")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text}, which JSON has not")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float)
