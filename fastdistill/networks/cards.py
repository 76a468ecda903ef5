# SPDX-License-Identifier: MIT
"""What a checkpoint's description may say: fields, their types and limits, and its digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from typing import Any

from fastdistill._files import is_int, shown

# What a network's outputs are; a description without a kind means the first.
KINDS = ("q_values", "logits", "log_probs")

# Larger files are refused: a description of 4 MiB holds 200,000 scores, and no network here comes
# near 8 GiB.
MAX_CARD_BYTES, MAX_WEIGHTS_BYTES = 4 << 20, 8 << 30


def card_digest(card: dict[str, Any]) -> str:
    """Of the content, whatever the order and the white space."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _is_word(value: object) -> bool:
    """Printable: neither control characters nor half a surrogate pair, which no file name has."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 255


def _is_weights_file(name: object) -> bool:
    return (
        isinstance(name, str)
        and _is_word(name)
        and name.endswith(".safetensors")
        and name == os.path.basename(name)
    )


def _are_games(value: object) -> bool:
    """Heads' games: objects, each with a name of its own, their fields as in a description."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        return False
    names = [entry.get("game") for entry in value]
    fit = all(
        name not in entry or _FIELDS[name][1](entry[name])
        for entry in value
        for name in ("kind", "game", "action_meanings", "environment")
    )
    return fit and all(map(_is_word, names)) and len(set(names)) == len(names) > 1


# What a description may say, if it says it: the constraint in words, and its test.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": (f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    "game": ("a name", _is_word),
    "view": ("a key of observations", _is_word),
    "action_meanings": (
        "a list of names",
        lambda value: isinstance(value, list) and all(map(_is_word, value)),
    ),
    "environment": ("an object", lambda value: isinstance(value, dict)),
    "architecture": ("an object", lambda value: isinstance(value, dict)),
    "parameters": ("a positive integer", lambda value: is_int(value) and value > 0),
    "games": ("a list of two or more objects, each with another game", _are_games),
}
_WEIGHTS_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "file": ("a file name without a path, ending in .safetensors", _is_weights_file),
    "bytes": (
        f"an integer in [8, {MAX_WEIGHTS_BYTES}]",
        lambda value: is_int(value) and 8 <= value <= MAX_WEIGHTS_BYTES,
    ),
    "sha256": (
        "64 hexadecimal digits",
        lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    ),
}


def check_card(card: dict[str, Any]) -> None:
    """Refuse a description whose fields are not what they must be.

    Raises:
        ValueError: ``<field> must <constraint>, got <value>``.
    """
    for name, (constraint, fits) in _FIELDS.items():
        if name in card and not fits(card[name]):
            raise ValueError(f"{name} must be {constraint}, got {shown(card[name])}")
    entry = card.get("weights")
    if not isinstance(entry, dict):
        raise ValueError(f"weights must describe a file, got {shown(entry)}")
    for name, (constraint, fits) in _WEIGHTS_FIELDS.items():
        if not fits(entry.get(name)):
            raise ValueError(f"weights.{name} must be {constraint}, got {shown(entry.get(name))}")
