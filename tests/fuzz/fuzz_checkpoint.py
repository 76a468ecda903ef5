# SPDX-License-Identifier: MIT
"""A fuzz target for the reader of checkpoints, guided by coverage; not part of `make test`.

    pip install atheris
    python tests/fuzz/fuzz_checkpoint.py -max_total_time=600 -max_len=4096

The first byte of an input says what the rest is: a card beside weights of its own, or weights
under a card with their size and hash. Any exception but CheckpointError is a finding.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastdistill.networks", "fastdistill._files"]):
    from fastdistill.networks import Architecture, QNetwork
    from fastdistill.networks.checkpoint import CheckpointError, load_network, save_network

DIRECTORY = Path(tempfile.mkdtemp(prefix="fuzz_checkpoint"))
CARD = save_network(DIRECTORY / "net", QNetwork(Architecture((4,), (2,), hidden=(8,))), {})
DESCRIPTION = json.loads(CARD.read_text())
del DESCRIPTION["card_sha256"]
WEIGHTS = CARD.with_name(DESCRIPTION["weights"]["file"])
PAYLOAD = WEIGHTS.read_bytes()


def try_one(data: bytes) -> None:
    """Load a checkpoint that is made of the input."""
    if data[:1] < b"\x80":
        WEIGHTS.write_bytes(PAYLOAD)
        CARD.write_bytes(data[1:])
    else:
        payload = data[1:]
        entry = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        WEIGHTS.write_bytes(payload)
        CARD.write_text(json.dumps({**DESCRIPTION, "weights": {**DESCRIPTION["weights"], **entry}}))
    try:
        load_network(CARD)
    except CheckpointError as error:
        if "net" not in str(error):
            raise AssertionError(f"the error must name the file, got {error}") from error


def write_seeds(folder: Path) -> None:
    """Whole files, from which mutations get further than from nothing."""
    folder.mkdir()
    (folder / "card").write_bytes(b"\x00" + json.dumps(DESCRIPTION).encode())
    (folder / "weights").write_bytes(b"\x80" + PAYLOAD)


if __name__ == "__main__":
    write_seeds(DIRECTORY / "seeds")
    atheris.Setup([*sys.argv, str(DIRECTORY / "seeds")], try_one)
    atheris.Fuzz()
