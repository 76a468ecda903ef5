# SPDX-License-Identifier: MIT
"""Checks of what a recipe is given, in one form of words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from fastdistill.envs import view_name
from fastdistill.teachers import Teacher

# Larger values are refused before anything is made of them: no machine has the memory for what they
# ask for, or no generator the bits. A replay knows its own limits.
MOST = {
    "num_lanes": 4_096,  # of all games together
    "batch_size": 65_536,
    "student_batch_size": 65_536,
    "score_episodes": 1_000,  # played at once
    "evaluation_episodes": 100_000,
    "seeds": 1_000,
    "seed": 2**32 - 1,
}
MOST_STUDENTS = 1_000
MOST_ROLLOUT_ROWS = 131_072


def within_limits(config: object, num_games: int = 1) -> None:
    """Refuse fields above ``MOST``."""
    for name, most in MOST.items():
        if getattr(config, name, 0) > most:
            _refuse(config, name, f"be at most {most}", getattr(config, name))
    at_most(config, MOST["num_lanes"], "num_lanes of all games together", num_games, "num_lanes")


def at_most(config: object, most: int, what: str, number: int, times: str) -> None:
    """Refuse ``number`` times the field ``times`` above ``most``."""
    got = number * getattr(config, times)
    if got > most:
        _refuse(config, what, f"be at most {most}", f"{number} * {times} {got // number} = {got}")


def at_least(config: object, least: int, *names: str) -> None:
    """Refuse fields below ``least``."""
    for name in names:
        if not getattr(config, name) >= least:
            _refuse(config, name, f"be at least {least}", getattr(config, name))


def positive(config: object, *names: str) -> None:
    """Refuse fields that are not finite and above 0; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            _refuse(config, name, "be positive", value)


def share(config: object, *names: str) -> None:
    """Refuse fields outside [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            _refuse(config, name, "be in [0, 1]", getattr(config, name))


def must_be_default(config: Any, where: str, *names: str) -> None:
    """Refuse fields that would do nothing."""
    for field in dataclasses.fields(config):
        if field.name in names and getattr(config, field.name) != field.default:
            _refuse(config, field.name, f"be left out {where}", repr(getattr(config, field.name)))


def names(text: str | None) -> tuple[str, ...]:
    """Names with commas between; none where there is nothing."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def shares(config: object, name: str) -> tuple[float, ...]:
    """A field of numbers with commas between, 0 or more and not all 0; empty for "balanced"."""
    text = getattr(config, name)
    if text == "balanced":
        return ()
    try:
        found = tuple(float(number) for number in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= number < math.inf for number in found) or not sum(found) > 0:
        _refuse(config, name, "be balanced, or numbers of 0 or more that are not all 0", repr(text))
    return found


def temperature_option(config: Any) -> None:
    """Refuse a ``temperature`` that is no number in its range, "auto" or None."""
    value = config.temperature
    named = value is None or value == "auto"
    if not named and not (isinstance(value, (int, float)) and 1e-8 <= value <= 1e8):
        _refuse(config, "temperature", "be in [1e-8, 1e8] or 'auto'", repr(value))


def refuse_view(function: str, teacher: Teacher, where: str = "") -> None:
    """Where everybody sees all of what an environment shows."""
    if teacher.view is not None:
        raise ValueError(
            f"{function}: teacher must have no view{where}, got one with "
            f"{view_name(teacher.view)!r}"
        )


def one_of(config: object, name: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse values that are not allowed, or given twice."""
    values, allowed = list(values), list(allowed)
    for value in values:
        if value not in allowed:
            _refuse(config, name, f"be one of {', '.join(allowed)}", repr(value))
    if len(set(values)) < len(values):
        _refuse(config, name, "not repeat", ", ".join(values))


def _refuse(config: object, name: str, constraint: str, got: Any) -> None:
    raise ValueError(f"{type(config).__name__}: {name} must {constraint}, got {got}")
