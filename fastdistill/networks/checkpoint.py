# SPDX-License-Identifier: MIT
"""Checkpoints: a JSON description that names and hashes one safetensors file.

The description is the commit point. Weights are written under a name that contains their hash,
then the description replaces its predecessor atomically, then the old weights go: a process killed
at any moment leaves the old checkpoint or the new one. Damage is refused. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdistill.networks.architecture import Architecture
from fastdistill.networks.qnetwork import QNetwork, num_parameters

FORMAT = "fastdistill-checkpoint-1"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not what it says."""


def write_checkpoint(path: str | Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> Path:
    """Write tensors and their description, atomically and durably.

    Args:
        path: Of the description; ``.json`` is added where missing. Directories are made.
        tensors: Any names, any dtypes; copied to the CPU.
        card: Plain JSON types.

    Returns:
        The path of the description.
    """
    path = Path(path)
    path = path if path.suffix == ".json" else path.with_name(path.name + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not save_file: the bytes are hashed before they are on disk. Clones, because safetensors
    # refuses tensors that share memory.
    payload = _safetensors().save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    )
    digest = hashlib.sha256(payload).hexdigest()
    weights = path.with_name(f"{path.stem}-{digest[:12]}.safetensors")
    _write_atomically(weights, payload)
    description = {
        "format": FORMAT,
        **card,
        "weights": {"file": weights.name, "bytes": len(payload), "sha256": digest},
    }
    _write_atomically(path, (json.dumps(description, indent=2) + "\n").encode())
    for stale in path.parent.glob(f"{path.stem}-{'[0-9a-f]' * 12}.safetensors"):
        if stale != weights:
            stale.unlink()
    return path


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_checkpoint`` wrote.

    Args:
        path: Of the description, with or without ``.json``; or of a directory that holds exactly
            one description.

    Returns:
        Tensors on the CPU and the description.

    Raises:
        CheckpointError: With what is wrong: no such file, another format, a weights file that is
            missing, short or of another hash.
    """
    path = _description_path(Path(path))
    card = read_card(path)
    entry = card.get("weights")
    if not isinstance(entry, dict) or not {"file", "bytes", "sha256"} <= set(entry):
        raise CheckpointError(
            f"read_checkpoint: {path} must describe its weights file, got {entry}"
        )
    weights = path.with_name(Path(str(entry["file"])).name)
    if not weights.is_file():
        raise CheckpointError(f"read_checkpoint: weights file {weights} must exist, got none")
    payload = weights.read_bytes()
    if len(payload) != entry["bytes"]:
        raise CheckpointError(
            f"read_checkpoint: {weights} must have {entry['bytes']} bytes, got {len(payload)}"
        )
    digest = hashlib.sha256(payload).hexdigest()
    if digest != entry["sha256"]:
        raise CheckpointError(
            f"read_checkpoint: {weights} must have SHA-256 {entry['sha256']}, got {digest}"
        )
    return _safetensors().load(payload), card


def read_card(path: str | Path) -> dict[str, Any]:
    """The description alone, without reading the weights."""
    path = _description_path(Path(path))
    try:
        card = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"read_card: {path} must be readable JSON, got {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise CheckpointError(f"read_card: {path} must have format {FORMAT!r}, got {found!r}")
    return card


def save_network(
    path: str | Path,
    network: nn.Module,
    card: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a network and its card (game, actions, preprocessing, scores...).

    Args:
        path: See ``write_checkpoint``.
        network: A ``QNetwork``, whose architecture is written into the card, so that
            ``load_network`` can build it again; of any other module the weights, for
            ``load_weights``.
        card: What else to say; ``versions`` are added.
        dtype: Of the parameters in the file; buffers stay as they are. Reading gives float32.
    """
    parameters = {name for name, _ in network.named_parameters()}
    tensors = {
        name: tensor.to(dtype) if name in parameters else tensor
        for name, tensor in network.state_dict().items()
    }
    return write_checkpoint(
        path,
        tensors,
        {
            **_origin(network),
            "parameters": num_parameters(network),
            **card,
            "versions": versions(),
        },
    )


def _origin(network: nn.Module) -> dict[str, Any]:
    if isinstance(network, QNetwork):
        return {"architecture": network.architecture.to_json()}
    return {"module": f"{type(network).__module__}.{type(network).__qualname__}"}


def load_network(path: str | Path) -> tuple[QNetwork, dict[str, Any]]:
    """Read a network in float32, in evaluation mode, and its card.

    Raises:
        CheckpointError: Damaged, or tensors that do not fit the described architecture.
    """
    tensors, card = read_checkpoint(path)
    if "module" in card:
        raise CheckpointError(
            f"load_network: {path} must describe an architecture, got the weights of a module "
            f"of the caller's ({card['module']}); make the module and call "
            "fastdistill.load_weights(path, module)"
        )
    if not isinstance(card.get("architecture"), dict):
        raise CheckpointError(f"load_network: {path} must describe an architecture, got none")
    try:
        network = QNetwork(Architecture.from_json(card["architecture"]))
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"load_network: {path} does not fit itself: {error}") from error
    return network.eval(), card


def load_weights(path: str | Path, module: nn.Module) -> dict[str, Any]:
    """Read weights that ``save_network`` wrote into a module of the same make.

    Returns:
        The card.

    Raises:
        CheckpointError: Damaged, or tensors that do not fit the module; it then stays as it was.
    """
    tensors, card = read_checkpoint(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        differing = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        raise CheckpointError(
            f"load_weights: {path} must fit {type(module).__name__}, got others for "
            f"{', '.join(differing[:5])}"
        )
    module.load_state_dict(tensors)
    return card


def versions() -> dict[str, str]:
    """What this process runs on, for cards and run records."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
    }


def _description_path(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            raise CheckpointError(
                f"read_checkpoint: directory {path} must hold one .json file, got {len(found)}"
            )
        return found[0]
    return path if path.suffix == ".json" else path.with_name(path.name + ".json")


def _write_atomically(path: Path, payload: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "fastdistill.networks.checkpoint needs safetensors: pip install 'safetensors>=0.4'"
        ) from error
    return safetensors.torch
