# SPDX-License-Identifier: MIT
"""Checkpoints: a JSON description that names and hashes one safetensors file.

The description is the commit point. Weights are written under a name that contains their hash,
then the description replaces its predecessor atomically, then the old weights go: a process killed
at any moment leaves the old checkpoint or the new one. No pickle anywhere.

Nothing in a file is believed. A description has a digest of its own content (files from before
that have none still load), limits, and types that are checked; sizes and hashes of the weights are
compared before anything reads them, and shapes with the architecture before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdistill._files import parse_json, read_bytes, shown, write_atomically
from fastdistill.networks.architecture import Architecture
from fastdistill.networks.cards import (
    MAX_CARD_BYTES,
    MAX_WEIGHTS_BYTES,
    card_digest,
    check_card,
)
from fastdistill.networks.games import OF_EACH_HEAD, give_each_head_its_own
from fastdistill.networks.qnetwork import QNetwork, num_parameters

FORMAT = "fastdistill-checkpoint-1"

# What the writer adds to a card, and alone may.
_OWN_FIELDS = ("format", "weights", "card_sha256")

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    # Not save_file: the bytes are hashed before they are on disk. Clones, because safetensors
    # refuses tensors that share memory.
    payload = safetensors_library().torch.save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    )
    weights = f"{path.stem}-{hashlib.sha256(payload).hexdigest()[:12]}.safetensors"
    _write(path, weights, payload, card)
    stem = escape(path.stem)
    stale = [
        *path.parent.glob(f"{stem}-{'[0-9a-f]' * 12}.safetensors"),
        *path.parent.glob(f".{stem}.json.*.tmp"),  # these two of killed processes
        *path.parent.glob(f".{stem}-*.safetensors.*.tmp"),
    ]
    for file in stale:
        if file.name != weights:
            file.unlink(missing_ok=True)
    return path


def copy_checkpoint(source: str | Path, path: str | Path) -> Path:
    """Copy a checkpoint, if it is whole, to ``NAME.json`` and ``NAME.safetensors``: plain names.

    Raises:
        CheckpointError: ``source`` is damaged; nothing was written.
    """
    payload, card = _read_payload(description_path(Path(source)))
    path = Path(path).with_suffix(".json")
    _write(path, f"{path.stem}.safetensors", payload, card)
    return path


def _write(path: Path, weights: str, payload: bytes, card: dict[str, Any]) -> None:
    entry = {
        "file": weights,
        "bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    described = {name: value for name, value in card.items() if name not in _OWN_FIELDS}
    described = {"format": FORMAT, **described, "weights": entry}
    # What could not be read again is refused now. Read back before the digest is taken, because
    # JSON makes lists of tuples and strings of a dictionary's numbers.
    try:
        described = parse_json(json.dumps(described, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"write_checkpoint: card of {path} must be plain JSON, got {error}"
        ) from error
    try:
        check_card(described)
    except ValueError as error:
        raise ValueError(f"write_checkpoint: {path}: {error}") from error
    described["card_sha256"] = card_digest(described)
    description = (json.dumps(described, indent=2) + "\n").encode()
    for size, limit in ((len(description), MAX_CARD_BYTES), (len(payload), MAX_WEIGHTS_BYTES)):
        if size > limit:
            raise ValueError(
                f"write_checkpoint: files of {path} must have at most {limit} bytes, got {size}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_name(weights), payload, function="write_checkpoint")
    write_atomically(path, description, function="write_checkpoint")


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_checkpoint`` wrote.

    Args:
        path: Of the description, with or without ``.json``; or of a directory that holds exactly
            one description.

    Returns:
        Tensors on the CPU and the description.

    Raises:
        CheckpointError: With the file and what is wrong with it or with its weights.
    """
    path = description_path(Path(path))
    payload, card = _read_payload(path)
    library = safetensors_library()
    try:
        tensors: dict[str, Tensor] = library.torch.load(payload)
    except (
        library.SafetensorError,
        AssertionError,  # these are the library's own for bad dtypes and shapes
        KeyError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        weights = path.with_name(card["weights"]["file"])
        raise CheckpointError(
            f"read_checkpoint: weights of {path.name}: {weights} must be safetensors, "
            f"got {type(error).__name__}: {shown(str(error))}"
        ) from error
    return tensors, card


def _read_payload(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the weights, of the described size and hash, and the description."""
    card = read_card(path)
    entry = card["weights"]
    weights = path.with_name(entry["file"])
    try:
        payload = read_bytes(weights, limit_bytes=MAX_WEIGHTS_BYTES, exact_bytes=entry["bytes"])
    except ValueError as error:
        raise CheckpointError(f"read_checkpoint: weights of {path.name}: {error}") from error
    digest = hashlib.sha256(payload).hexdigest()
    if digest != entry["sha256"]:
        raise CheckpointError(
            f"read_checkpoint: weights of {path.name}: {weights} must have SHA-256 "
            f"{entry['sha256']}, got {digest}"
        )
    return payload, card


def read_card(path: str | Path) -> dict[str, Any]:
    """The description alone, without reading the weights.

    Returns:
        What was given to ``write_checkpoint``, with ``format`` and ``weights``. Where present,
        ``kind`` is one of ``KINDS``, ``game`` a string, ``action_meanings`` a list of strings,
        ``environment`` and ``architecture`` are dictionaries, ``parameters`` is an integer. A
        network of several games has ``games`` instead of ``game``, one object for each head.

    Raises:
        CheckpointError: With the file and what is wrong with it.
    """
    path = description_path(Path(path))
    try:
        payload = read_bytes(path, limit_bytes=MAX_CARD_BYTES)
    except ValueError as error:
        raise CheckpointError(f"read_card: {error}") from error
    try:
        card = parse_json(payload)
    except ValueError as error:
        raise CheckpointError(f"read_card: {path} must be readable JSON, got {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise CheckpointError(f"read_card: {path} must have format {FORMAT!r}, got {shown(found)}")
    digest = card.pop("card_sha256", None)
    if digest is not None and digest != (found := card_digest(card)):
        raise CheckpointError(
            f"read_card: {path} must have the content of its card_sha256 {shown(digest)}, got that "
            f"of {found}; whoever changed it on purpose removes that entry"
        )
    try:
        check_card(card)
    except ValueError as error:
        raise CheckpointError(f"read_card: {path}: {error}") from error
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
        card: What else to say; what it says of another network's architecture, as a card that was
            read does, makes way for this one's. ``versions`` are added.
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
            **{key: value for key, value in card.items() if key not in ("architecture", "module")},
            **_origin(network),
            "parameters": num_parameters(network),
            "versions": versions(),
        },
    )


def _origin(network: nn.Module) -> dict[str, Any]:
    if isinstance(network, QNetwork):
        return {"architecture": network.architecture.to_json()}
    return {"module": f"{type(network).__module__}.{type(network).__qualname__}"}


def load_network(path: str | Path) -> tuple[QNetwork, dict[str, Any]]:
    """Read a network in float32, on the CPU, in evaluation mode, and its card.

    Draws no random numbers: the network is built without weights, and nothing is initialised.

    Raises:
        CheckpointError: Damaged, tensors that are not those of the described architecture, or
            weights that are not finite.
    """
    tensors, card = read_checkpoint(path)
    if "module" in card:
        raise CheckpointError(
            f"load_network: {path} must describe an architecture, got the weights of a module "
            f"of the caller's ({card['module']}); make the module and call "
            "fastdistill.load_weights(path, module)"
        )
    if "architecture" not in card:
        raise CheckpointError(f"load_network: {path} must describe an architecture, got none")
    try:
        # On the meta device a network has shapes and takes no memory for weights.
        with torch.device("meta"):
            network = QNetwork(Architecture.from_json(card["architecture"]))
    except ValueError as error:
        raise CheckpointError(
            f"load_network: {path} must describe a network, got {error}"
        ) from error
    network.games = tuple(entry["game"] for entry in card.get("games", ()))
    heads = len(network.heads)
    if network.games and len(network.games) != heads:
        raise CheckpointError(
            f"load_network: games of {path} must be one for each of {heads} heads, got "
            f"{len(network.games)}"
        )
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        wanted, found = _kind_of(expected.get(name)), _kind_of(tensors.get(name))
        of_all = _kind_of(expected[name][0]) if heads > 1 and name in OF_EACH_HEAD else wanted
        if found not in (wanted, of_all):
            raise CheckpointError(
                f"load_network: tensor {shown(name)} of {path} must be {wanted} for its "
                f"architecture, got {found}"
            )
    if heads > 1:
        try:
            give_each_head_its_own(tensors, expected, limit_bytes=MAX_WEIGHTS_BYTES)
        except ValueError as error:
            raise CheckpointError(f"load_network: tensors of {path} must {error}") from error
    # Copies: what safetensors returns lies anywhere in memory, and on some CPUs the last bit of a
    # product depends on that. `to_empty` would import sympy and torch's symbolic shapes.
    copies = {name: tensors[name].to(like.dtype, copy=True) for name, like in expected.items()}
    network.load_state_dict(copies, assign=True)
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"load_network: tensor {name} of {path} must be finite, "
                f"got {int((~torch.isfinite(tensor)).sum())} values that are not"
            )
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


def _kind_of(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{'floats' if tensor.dtype in _FLOATS else tensor.dtype} {list(tensor.shape)}"


def versions() -> dict[str, str]:
    """What this process runs on, for cards and run records."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
    }


def description_path(path: Path) -> Path:
    """The description that a checkpoint argument means: itself, beside the weights, or inside."""
    if os.path.isdir(path):
        found = sorted(entry.name for entry in path.glob("*.json"))
        # Of a run's directory the network that it is for.
        found = [name for name in ("student.json", "teacher.json") if name in found] or found
        if len(found) != 1:
            raise CheckpointError(
                f"read_checkpoint: directory {path} must hold one .json file, got {len(found)}"
                f"{': ' if found else ''}{', '.join(found[:5])}; name the file"
            )
        return path / found[0]
    if path.suffix == ".json":
        return path
    description = path.with_name(path.name + ".json")
    if os.path.lexists(description):
        return description
    if os.path.lexists(path):
        raise CheckpointError(
            f"read_checkpoint: {path} must be a checkpoint of fastdistill (NAME.json, or its "
            "directory), got another file; a model of another library is loaded with that library "
            "and given as a module"
        )
    raise CheckpointError(
        f"read_checkpoint: {path} must exist, got neither it nor {description.name}"
    )


def safetensors_library() -> Any:
    """The optional library, or how to install it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "fastdistill.networks.checkpoint needs safetensors: pip install 'safetensors>=0.4'"
        ) from error
    return safetensors
