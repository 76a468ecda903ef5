# SPDX-License-Identifier: MIT
"""Checkpoints: exact round trips, damage refused, and a kill at any moment survived."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks.checkpoint import (
    CheckpointError,
    load_network,
    read_card,
    read_checkpoint,
    save_network,
    write_checkpoint,
)

TENSORS = {
    "float": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([0.5, -2.0], dtype=torch.bfloat16),
    "counter": torch.tensor(7, dtype=torch.int64),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
}


def weights_file(path: Path) -> Path:
    return path.with_name(json.loads(path.read_text())["weights"]["file"])


def rewrite(path: Path, change) -> None:
    """Change a card as somebody would who does not want its digest to tell."""
    card = json.loads(path.read_text())
    card.pop("card_sha256", None)
    change(card)
    path.write_text(json.dumps(card))


def test_every_tensor_and_word_comes_back(tmp_path):
    path = write_checkpoint(tmp_path / "a", TENSORS, {"note": "hello", "numbers": [1, 2.5]})
    tensors, card = read_checkpoint(path)
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert card["note"] == "hello"
    assert card["numbers"] == [1, 2.5]


def test_shared_and_transposed_tensors_are_written_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    path = write_checkpoint(tmp_path / "a", {"whole": base, "row": base[1], "turned": base.T}, {})
    tensors, _ = read_checkpoint(path)
    assert torch.equal(tensors["row"], base[1])
    assert torch.equal(tensors["turned"], base.T)


def test_a_directory_with_one_description_is_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "run" / "model", TENSORS, {})
    assert set(read_checkpoint(tmp_path / "run")[0]) == set(TENSORS)
    write_checkpoint(tmp_path / "run" / "other", TENSORS, {})
    with pytest.raises(CheckpointError, match=r"must hold one .json file, got 2"):
        read_checkpoint(tmp_path / "run")


def test_overwriting_leaves_only_the_new_weights(tmp_path):
    path = write_checkpoint(tmp_path / "a", {"x": torch.zeros(3)}, {})
    write_checkpoint(tmp_path / "a", {"x": torch.ones(3)}, {})
    assert torch.equal(read_checkpoint(path)[0]["x"], torch.ones(3))
    assert len(list(tmp_path.iterdir())) == 2


def test_any_flipped_byte_of_the_weights_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "a", TENSORS, {})
    weights = weights_file(path)
    payload = weights.read_bytes()
    for index in range(0, len(payload), 7):
        weights.write_bytes(payload[:index] + bytes([payload[index] ^ 1]) + payload[index + 1 :])
        with pytest.raises(CheckpointError, match="must have SHA-256"):
            read_checkpoint(path)


def test_short_missing_or_foreign_files_are_refused(tmp_path):
    path = write_checkpoint(tmp_path / "a", TENSORS, {})
    weights = weights_file(path)
    payload = weights.read_bytes()
    weights.write_bytes(payload[:-1])
    with pytest.raises(CheckpointError, match=f"must have {len(payload)} bytes, got"):
        read_checkpoint(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="must exist, got none"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"absent must exist, got neither it nor absent.json"):
        read_card(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"absent.json must exist, got none"):
        read_card(tmp_path / "absent.json")
    path.write_text("{")
    with pytest.raises(CheckpointError, match="must be readable JSON"):
        read_card(path)
    path.write_text('{"format": "other-9"}')
    with pytest.raises(CheckpointError, match="must have format 'fastdistill-checkpoint-1', got"):
        read_card(path)


def test_a_network_comes_back_with_its_statistics_and_answers(tmp_path):
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("7%", 6, dueling=True, layer_norm=True))
    network.set_obs_statistics(torch.rand(84, 84) * 99, torch.rand(84, 84) * 30)
    path = save_network(tmp_path / "student", network, {"game": "pong"})
    loaded, card = load_network(path)
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(loaded(obs), network(obs))
    assert card["game"] == "pong"
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert card["versions"]["torch"] == torch.__version__


def test_half_precision_files_halve_the_parameters_only(tmp_path):
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("100%", 6))
    network.set_obs_statistics(torch.rand(84, 84) * 99, torch.rand(84, 84) * 30)
    path = save_network(tmp_path / "a", network, {}, dtype=torch.float16)
    tensors, _ = read_checkpoint(path)
    assert tensors["trunk.0.weight"].dtype == torch.float16
    assert torch.equal(tensors["obs_mean"], network.obs_mean)
    assert weights_file(path).stat().st_size < 4e6
    loaded, _ = load_network(path)
    assert loaded.trunk[0].weight.dtype == torch.float32
    expected = network.trunk[0].weight.half().float()
    assert torch.equal(loaded.trunk[0].weight, expected)


def test_weights_of_another_architecture_are_refused(tmp_path):
    network = QNetwork(paper_architecture("4%", 6))
    path = save_network(tmp_path / "a", network, {})
    rewrite(path, lambda card: card["architecture"].update(hidden=[128]))
    with pytest.raises(
        CheckpointError,
        match=r"tensor 'heads.0.output.weight' of .*a.json must be floats \[6, 128\] for its "
        r"architecture, got floats \[6, 64\]",
    ):
        load_network(path)
    rewrite(path, lambda card: card.pop("architecture"))
    with pytest.raises(CheckpointError, match="must describe an architecture"):
        load_network(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "a", {"x": torch.zeros(3)}, {})

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(
        OSError, match=r"write_checkpoint: .*a-\w+.safetensors must be writable, got "
    ):
        write_checkpoint(tmp_path / "a", {"x": torch.ones(3)}, {})
    assert torch.equal(read_checkpoint(path)[0]["x"], torch.zeros(3))
    assert len(list(tmp_path.iterdir())) == 2


WRITER = """
import sys, torch
from fastdistill.networks.checkpoint import write_checkpoint
torch.set_num_threads(1)
generation = 0
while True:
    generation += 1
    write_checkpoint(sys.argv[1], {"x": torch.full((50_000,), float(generation))},
                     {"generation": generation})
    print(generation, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    rng = random.Random(0)
    path = tmp_path / "a.json"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], env=environment, stdout=subprocess.PIPE
    )
    seen = []
    try:
        process.stdout.readline()
        # Stopped at random moments the files look as they would after a kill there.
        for _ in range(100):
            time.sleep(rng.random() * 0.01)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            tensors, card = read_checkpoint(path)
            assert (tensors["x"] == card["generation"]).all()
            seen.append(card["generation"])
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.communicate()
    tensors, card = read_checkpoint(path)
    assert (tensors["x"] == card["generation"]).all()
    assert seen == sorted(seen)
    assert len(set(seen)) > 20  # the writer was caught in many generations
