# SPDX-License-Identifier: MIT
"""Checkpoints that are mapped instead of read: what is larger than memory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastdistill.networks.checkpoint import (
    CheckpointError,
    description_path,
    read_card,
    safetensors_library,
)


def map_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, mapped from its file: pages are read when they are used.

    The file's hash is not compared, which would read all of it: ``read_checkpoint`` does that. It
    must not be changed while a tensor is in use; those who write checkpoints replace them.

    Args:
        path: See ``read_checkpoint``.

    Raises:
        CheckpointError: No such checkpoint, or its tensors do not fit into their file.
    """
    path = description_path(Path(path))
    weights = path.with_name(read_card(path)["weights"]["file"])
    library = safetensors_library()
    try:
        with library.safe_open(str(weights), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (library.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"map_checkpoint: {weights} must be safetensors, got {error}"
        ) from error
