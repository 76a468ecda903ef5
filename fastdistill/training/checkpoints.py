# SPDX-License-Identifier: MIT
"""The checkpoints that a run continues from: numbered, each with its replay, the newest two kept.

A checkpoint and the snapshot of its replay are one: written together, read together, removed
together. All files of a checkpoint carry its step: ``step_N.json``, ``step_N-HASH.safetensors``
and ``replay_N.bin``; where that is taken, because a checkpoint is written again at the same step,
``replay_N-1.bin``. The description comes last and makes the rest count; until then the one before
is whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdistill._files import is_int, shown
from fastdistill.networks.checkpoint import (
    CheckpointError,
    read_card,
    read_checkpoint,
    write_checkpoint,
)

# A file of a checkpoint; ``step`` is its number.
_OWN = re.compile(
    r"step_(?P<step>\d{12})(\.json|-[0-9a-f]{12}\.safetensors)"
    r"|replay_(?P<replay>\d{12})(-1)?\.bin"
)
# What a killed process left of one.
_TORN = re.compile(r"\.(step|replay)_.*\.tmp")


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The checkpoints of one run, numbered by agent step.

    One process at a time writes to a directory; any number may read.
    """

    directory: Path

    def write(
        self,
        step: int,
        tensors: dict[str, Tensor],
        card: dict[str, Any],
        replay: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write the checkpoint of ``step`` and keep, besides it, the usable one before.

        What killed processes left, and checkpoints of later steps, which could not be read or the
        run would have continued from them, are removed.

        Args:
            step: Agent steps so far.
            tensors: See ``write_checkpoint``.
            card: See ``write_checkpoint``; ``step`` and ``replay`` (its file's name) are added.
            replay: Writes the snapshot to the path that it is given. None where there is nothing
                to replay any more: then older checkpoints go with their snapshots, which are
                gigabytes.

        Returns:
            The path of the description.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_all_but(self._steps())  # first, because it makes room
        if replay is not None:
            snapshot = self.directory / f"replay_{step:012d}.bin"
            if snapshot.exists():
                snapshot = snapshot.with_name(f"{snapshot.stem}-1.bin")
            replay(snapshot)  # before the description, which must never name what is not there
            card = {**card, "replay": snapshot.name}
        path = write_checkpoint(self.description(step), tensors, {**card, "step": step})
        before = [older for older in self._steps() if older < step and self._is_usable(older)][-1:]
        if replay is None and before and self._replay_of(before[0]) is not None:
            before = []
        self._remove_all_but([*before, step])
        return path

    def latest(
        self, load_replay: Callable[[Path], None] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Args:
            load_replay: Loads a snapshot, or raises OSError or ValueError and changes nothing.
                Called if the checkpoint has one; if it fails, the checkpoint before is used, with
                its own. None leaves snapshots unread.

        Raises:
            CheckpointError: There are checkpoints, and every one is damaged.
        """
        errors: list[str] = []
        for step in reversed(self._steps()):
            try:
                return self._read(step, load_replay)
            except CheckpointError as error:
                errors.append(str(error))
        if errors:
            raise CheckpointError("; ".join(errors))
        return None

    def _read(
        self, step: int, load_replay: Callable[[Path], None] | None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.description(step)
        tensors, card = read_checkpoint(path)
        _check_names(path, card, step)
        if card.get("replay") is not None and load_replay is not None:
            snapshot = self.directory / card["replay"]
            if not snapshot.is_file():  # a pipe would be waited for
                raise CheckpointError(
                    f"TrainingCheckpoints: replay {snapshot} of {path.name} must be a regular "
                    f"file, got {'something else' if snapshot.exists() else 'none'}"
                )
            try:
                load_replay(snapshot)
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"TrainingCheckpoints: replay {snapshot} of {path.name} must be loaded, "
                    f"got {error}"
                ) from error
        return tensors, card

    def _is_usable(self, step: int) -> bool:
        """Whether a checkpoint looks whole, without reading its tensors and rows."""
        card = self._card(step)
        if card is None:
            return False
        return card.get("replay") is None or (self.directory / card["replay"]).is_file()

    def _replay_of(self, step: int) -> str | None:
        """The name of a checkpoint's snapshot, where it has one."""
        name: str | None = (self._card(step) or {}).get("replay")
        return name

    def _card(self, step: int) -> dict[str, Any] | None:
        path = self.description(step)
        try:
            card = read_card(path)
            _check_names(path, card, step)
        except CheckpointError:
            return None
        return card

    def description(self, step: int) -> Path:
        """The path of a checkpoint's description, whether there is one or not."""
        return self.directory / f"step_{step:012d}.json"

    def _steps(self) -> list[int]:
        names = (_OWN.fullmatch(path.name) for path in self.directory.glob("step_*.json"))
        return sorted(int(name["step"]) for name in names if name)

    def _remove_all_but(self, steps: list[int]) -> None:
        replays = {self._replay_of(step) for step in steps}
        # Descriptions first: one that is left alone would be a damaged checkpoint.
        for path in sorted(self.directory.iterdir(), key=lambda path: path.suffix != ".json"):
            own = _OWN.fullmatch(path.name)
            is_stale = own is not None and (
                path.name not in replays if own["replay"] else int(own["step"]) not in steps
            )
            if is_stale or _TORN.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _check_names(path: Path, card: dict[str, Any], step: int) -> None:
    if not is_int(card.get("step")) or card["step"] != step:
        raise CheckpointError(
            f"TrainingCheckpoints: step of {path} must be {step}, got {shown(card.get('step'))}"
        )
    replay = card.get("replay")
    own = _OWN.fullmatch(replay) if isinstance(replay, str) else None
    if replay is not None and (own is None or own["replay"] != f"{step:012d}"):
        raise CheckpointError(
            f"TrainingCheckpoints: replay of {path} must be replay_{step:012d}.bin, got "
            f"{shown(replay)}"
        )
