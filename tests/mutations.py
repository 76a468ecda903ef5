# SPDX-License-Identifier: MIT
"""Damage to files, at random but repeatable: bytes, blocks, and JSON values of other types."""

from __future__ import annotations

import json
import random
from typing import Any

# Of every type that JSON has, and what parsers choke on. Raw text, so that it may be no JSON.
VALUES = (
    "null", "true", "false", "0", "-1", "1.5", "1e999", "-0.0", "NaN", "-Infinity", '""', '"x"',
    '"evilmod:Evil-v0"', '"../../etc/passwd"', '"\\u0000"', '"\\ud800"', "[]", "{}", "[[]]",
    '{"a": 1, "a": 2}', "9" * 30, "9" * 5000, "65536", "4294967296", "9223372036854775808",
    "[" + "2," * 5000 + "2]", "[" * 2000 + "]" * 2000, '"' + "y" * 5000 + '"',
)  # fmt: skip
_MARK = "a value to be replaced"


def damaged_bytes(payload: bytes, rng: random.Random) -> bytes:
    """The same bytes after one to three accidents; always others than before."""
    damaged = payload
    while damaged == payload:
        for _ in range(rng.randint(1, 3)):
            damaged = _accident(damaged, rng)
    return damaged


def _accident(payload: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(payload) + 1)
    length = rng.choice((1, 2, 8, 100, 4096))
    block = payload[at : at + length]
    kind = rng.choice(("flip", "truncate", "insert", "duplicate", "remove", "zero", "move"))
    if kind == "flip" and at < len(payload):
        flipped = bytes([payload[at] ^ 1 << rng.randrange(8)])
        return payload[:at] + flipped + payload[at + 1 :]
    if kind == "truncate":
        return payload[:at]
    if kind == "insert":
        return payload[:at] + rng.randbytes(length) + payload[at:]
    if kind == "duplicate":
        return payload[:at] + block * rng.randint(2, 3) + payload[at + length :]
    rest = payload[:at] + payload[at + length :]
    if kind == "move":
        to = rng.randrange(len(rest) + 1)
        return rest[:to] + block + rest[to:]
    return payload[:at] + bytes(len(block)) + payload[at + length :] if kind == "zero" else rest


def damaged_json(text: str, rng: random.Random) -> str:
    """The same document with one value, anywhere in it, replaced by one of ``VALUES``."""
    document = json.loads(text)
    places: list[tuple[Any, Any]] = []
    parents = [document]
    while parents:
        parent = parents.pop()
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            places.append((parent, key))
            if isinstance(parent[key], (dict, list)):
                parents.append(parent[key])
    parent, key = rng.choice(places)
    if isinstance(parent, dict) and rng.random() < 0.1:
        del parent[key]
        return json.dumps(document)
    parent[key] = _MARK
    return json.dumps(document).replace(f'"{_MARK}"', rng.choice(VALUES))
