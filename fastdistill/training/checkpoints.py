# SPDX-License-Identifier: MIT
"""The checkpoints that a run continues from: numbered, the newest two kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdistill.networks.checkpoint import CheckpointError, read_checkpoint, write_checkpoint


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The checkpoints of one run: numbered by agent step, the newest two are kept."""

    directory: Path

    def write(self, step: int, tensors: dict[str, Tensor], card: dict[str, Any]) -> Path:
        """Write the checkpoint of ``step``, then drop all but the newest two."""
        path = write_checkpoint(self.directory / f"step_{step:012d}", tensors, card)
        for stale in self._descriptions()[:-2]:
            stale.unlink()
            for weights in self.directory.glob(f"{stale.stem}-*.safetensors"):
                weights.unlink()
        for orphan in self.directory.glob(".step_*.tmp"):  # of a killed process
            orphan.unlink()
        return path

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Raises:
            CheckpointError: There are checkpoints, and every one is damaged.
        """
        errors: list[str] = []
        for path in reversed(self._descriptions()):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                errors.append(str(error))
        if errors:
            raise CheckpointError("; ".join(errors))
        return None

    def _descriptions(self) -> list[Path]:
        return sorted(self.directory.glob("step_*.json"))
