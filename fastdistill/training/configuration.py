# SPDX-License-Identifier: MIT
"""A recipe's configuration in and out of ``config.json``, checked field by field."""

from __future__ import annotations

import dataclasses
import shlex
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from fastdistill._files import parse_json, read_bytes, shown


class Config(Protocol):
    """What every recipe's configuration has: a frozen dataclass of plain fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    COMMAND: ClassVar[str]  # of fastdistill's, that runs the recipe

    @property
    def run_dir(self) -> Path:
        """Where everything is written."""

    @property
    def tensorboard(self) -> bool:
        """Whether to write TensorBoard files beside metrics.jsonl."""


ConfigT = TypeVar("ConfigT", bound=Config)

_LIMIT_BYTES = 1 << 20


def configuration_to_json(config: Config) -> dict[str, Any]:
    """The fields as plain JSON types."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }


def read_configuration(path: Path, recipe: str, asked: ConfigT) -> ConfigT:
    """The configuration of a run that is to be continued.

    Args:
        path: Of ``config.json``.
        recipe: That the run must be of.
        asked: What the caller wants; a field that is not its default must be the run's.

    Raises:
        ValueError: No run, another recipe, a damaged file, or other options than the run's.
    """
    if not path.exists():
        raise ValueError(f"open_run: run_dir must hold a run to resume, got {path.parent}")
    try:
        stored = parse_json(read_bytes(path, limit_bytes=_LIMIT_BYTES))
    except ValueError as error:
        raise ValueError(f"open_run: {path} must be readable JSON, got {error}") from error
    stored = stored if isinstance(stored, dict) else {}
    if stored.get("recipe") != recipe:
        raise ValueError(
            f"open_run: run must be of {recipe}, got {shown(stored.get('recipe'))} in {path}"
        )
    values = stored.get("config")
    if not isinstance(values, dict):
        raise ValueError(f"open_run: {path} must hold config (an object), got {shown(values)}")
    hints = typing.get_type_hints(type(asked))
    fields = {field.name: field for field in dataclasses.fields(asked)}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"open_run: {path} must name options of {recipe}, got {shown(name)}")
        if not _fits(value, hints[name]):
            raise ValueError(
                f"open_run: {path} must give {name} as {fields[name].type}, got {shown(value)}"
            )
        values[name] = Path(value) if hints[name] is Path else value
    others = [
        f"{name} {getattr(asked, name)!r} instead of {values[name]!r}"
        for name, field in fields.items()
        if name in values
        and name != "run_dir"  # it may have been moved
        and getattr(asked, name) not in (default_of(field), values[name])
    ]
    if others:
        raise ValueError(
            "open_run: a resumed run must keep its own options, got "
            f"{', '.join(others)}; leave them out, or begin a new run"
        )
    try:
        return type(asked)(**{**values, "run_dir": path.parent})
    except ValueError as error:
        text = str(error)  # quotes the value, which may be megabytes
        text = text if len(text) <= 500 else f"{text[:497]}..."
        raise ValueError(f"open_run: {path}: {text}") from error


def check_types(config: Config) -> None:
    """Refuse fields of another type than they are declared with, and text that says nothing.

    Raises:
        TypeError: With the field.
        ValueError: Likewise.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            raise TypeError(
                f"{type(config).__name__}: {field.name} must be of type {field.type}, got {value!r}"
            )
        if isinstance(value, str) and not value.strip(" ,"):
            raise ValueError(
                f"{type(config).__name__}: {field.name} must not be empty, got {value!r}"
            )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a field is where nothing else is said."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def command_line(config: Config) -> str:
    """The command that runs a recipe with this configuration."""
    words = [f"fastdistill {config.COMMAND}"]
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        flag = option.name.replace("_", "-")
        if value == default_of(option):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag} {shlex.quote(str(value))}")
    return " ".join(words)


def _fits(value: Any, hint: Any) -> bool:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if kind is Path and isinstance(value, str):
            return True
        if kind in (int, float) and isinstance(value, bool):
            continue
        if kind is float and isinstance(value, int):
            return True
        if isinstance(value, kind):
            return True
    return False
