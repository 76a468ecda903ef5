# SPDX-License-Identifier: MIT
"""Damaged files: refused with an error that names the file, or read as what was written.

Each file gets 2 CPU seconds and 500 MB of address space, and no other exception may come out.
`make stress` tries 2,000 files of a kind instead of 100.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import damaged_bytes, damaged_json

from fastdistill.networks import Architecture, QNetwork
from fastdistill.networks.checkpoint import CheckpointError, load_network, save_network
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.replay import PrioritizedReplay
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.configuration import configuration_to_json
from fastdistill.training.metrics import JsonlWriter, read_jsonl
from fastdistill.training.run import Run as TrainingRun

MAX_CPU_SECONDS, MAX_MORE_BYTES = 2.0, 500_000_000

COUNTS = [100, pytest.param(2000, marks=pytest.mark.stress)]
# Of images, because for vectors `channels` says nothing.
ARCHITECTURE = Architecture((1, 36, 36), (2, 3), (2, 3, 4), (8,), head_hidden=4, dueling=True)
CARD = {
    "kind": "q_values",
    "game": "CartPole-v1",
    "action_meanings": ["left", "right"],
    "environment": {"engine": "gymnasium"},
    "scores": [{"mean": 9.5, "returns": [9.0, 10.0]}],
}


@contextmanager
def limits() -> Iterator[None]:
    """CPU seconds, so that a busy machine fails nobody; address space, so that no page is free."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MAX_MORE_BYTES, before[1]))
    begun = time.process_time()
    try:
        yield
        assert time.process_time() - begun < MAX_CPU_SECONDS
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def saved(directory: Path) -> tuple[Path, Path, QNetwork]:
    torch.manual_seed(0)
    network = QNetwork(ARCHITECTURE)
    path = save_network(directory / "net", network, CARD)
    (weights,) = directory.glob("net-*.safetensors")
    return path, weights, network


def assert_refused_or_the_same(path: Path, victim: Path, network: QNetwork) -> bool:
    """Whether it was refused."""
    try:
        with limits():
            loaded, _ = load_network(path)
    except CheckpointError as error:
        assert victim.name in str(error), error  # noqa: PT017 (or it loads)
        assert len(str(error)) < 2000  # noqa: PT017
        return True
    assert loaded.architecture == network.architecture
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    return False


def reseal(text: str) -> str:
    """With the digest that the content has: by somebody who knows how. Unchanged if it is torn."""
    try:
        card = json.loads(text)
        card.pop("card_sha256", None)
        card["card_sha256"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
        return json.dumps(card)
    except (ValueError, RecursionError, AttributeError):
        return text


def without_digest(text: str) -> str:
    """As files were before there was one."""
    card = json.loads(text)
    del card["card_sha256"]
    return json.dumps(card)


CARD_DAMAGE: dict[str, Callable[[str, random.Random], bytes]] = {
    "bytes": lambda text, rng: damaged_bytes(text.encode(), rng),
    "values": lambda text, rng: damaged_json(text, rng).encode(),
    "values of an older file": lambda text, rng: damaged_json(without_digest(text), rng).encode(),
    "values under a digest of theirs": lambda text, rng: reseal(damaged_json(text, rng)).encode(),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("damage", sorted(CARD_DAMAGE))
def test_a_damaged_card(tmp_path, damage, count):
    path, _, network = saved(tmp_path)
    text = path.read_text()
    refused = 0
    for seed in range(count):
        path.write_bytes(CARD_DAMAGE[damage](text, random.Random(seed)))
        refused += assert_refused_or_the_same(path, path, network)
    assert refused > count / 3


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_weights(tmp_path, count):
    path, weights, network = saved(tmp_path)
    payload = weights.read_bytes()
    for seed in range(count):
        weights.write_bytes(damaged_bytes(payload, random.Random(seed)))
        assert assert_refused_or_the_same(path, weights, network)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_weights_under_their_own_hash(tmp_path, count):
    # Nothing can tell that such weights are others; that they are weights is still checked.
    path, weights, network = saved(tmp_path)
    payload, card = weights.read_bytes(), json.loads(path.read_text())
    refused = 0
    for seed in range(count):
        damaged = damaged_bytes(payload, random.Random(seed))
        weights.write_bytes(damaged)
        card["weights"]["bytes"] = len(damaged)
        card["weights"]["sha256"] = hashlib.sha256(damaged).hexdigest()
        path.write_text(reseal(json.dumps(card)))
        try:
            with limits():
                loaded, _ = load_network(path)
        except CheckpointError as error:
            assert path.name in str(error)  # noqa: PT017 (or it loads)
            refused += 1
        else:
            assert loaded.architecture == network.architecture
            assert all(torch.isfinite(tensor).all() for tensor in loaded.state_dict().values())
    assert refused > count / 3


class Run:
    """A run with two checkpoints, and what to continue it with."""

    def __init__(self, directory: Path) -> None:
        self.store = TrainingCheckpoints(directory)
        self.replay = self.new_replay()
        for step in (10, 20):
            for _ in range(10):
                self.replay.append(np.full((1, 3), step, np.float32), [1], [0.5], [False], [False])
            tensors = {"network.x": torch.full((40,), float(step))}
            card = {"updates": step, "rng": {"state": 2**127}, "recent_returns": [1.0, 2.0]}
            self.store.write(step, tensors, card, self.replay.save)

    @staticmethod
    def new_replay() -> PrioritizedReplay:
        return PrioritizedReplay(64, 1, frame_shape=(3,), frame_dtype="float32", stack=1, n_step=1)

    def resumed(self) -> tuple[float, Any, int]:
        """Tensor, card and replay, each as the step that it is of."""
        replay = self.new_replay()
        tensors, card = self.store.latest(replay.load)
        (value,) = set(tensors["network.x"].tolist())
        return value, card.get("updates"), len(replay)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("part", ["json", "safetensors", "bin"])
def test_a_damaged_training_checkpoint(tmp_path, part, count):
    run = Run(tmp_path)
    whole = {20: run.resumed()}
    (victim,) = tmp_path.glob(f"*_000000000020*.{part}")
    (before,) = tmp_path.glob("step_000000000010.json")
    payload, kept = victim.read_bytes(), before.read_bytes()
    victim.unlink()
    whole[10] = run.resumed()
    assert [whole[step][:2] for step in (10, 20)] == [(10.0, 10), (20.0, 20)]
    assert whole[10][2] < whole[20][2]
    for seed in range(count):
        rng = random.Random(seed)
        if part == "json" and seed % 2:
            victim.write_text(reseal(damaged_json(payload.decode(), rng)))
        else:
            victim.write_bytes(damaged_bytes(payload, rng))
        before.write_bytes(kept)
        with limits():
            found = run.resumed()
        if found not in whole.values():  # other words under a digest of theirs, the same files
            assert part == "json"
            assert found[0] == whole[20][0]
            assert found[2] in (whole[20][2], 0)  # 0: the words may be that there is no replay
        before.write_text("damaged, too")
        try:
            with limits():
                assert run.resumed() == found
        except CheckpointError as error:
            assert victim.name in str(error)  # noqa: PT017 (or it loads)
            assert before.name in str(error)  # noqa: PT017


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("damage", ["bytes", "values"])
def test_damaged_metrics(tmp_path, damage, count, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "charts/SPS": n / 3, "time/updates": n}) for n in range(40)]
    payload = "".join(line + "\n" for line in lines).encode()
    for seed in range(count):
        rng = random.Random(seed)
        if damage == "bytes":
            damaged = damaged_bytes(payload, rng)
        else:
            changed = list(lines)
            at = rng.randrange(len(lines))
            changed[at] = damaged_json(lines[at], rng)
            damaged = "".join(line + "\n" for line in changed).encode()
        path.write_bytes(damaged)
        sound = 0  # lines before the first change, which no resume may lose
        for ours, theirs in zip(payload.split(b"\n"), damaged.split(b"\n"), strict=False):
            if ours != theirs or not ours:
                break
            sound += 1
        try:
            with limits():
                records = read_jsonl(path)
        except ValueError as error:
            number = re.search(f"{re.escape(str(path))} line (\\d+) must ", str(error))
            assert number is not None
            assert int(number[1]) > sound
            refused = True
        else:
            assert all(type(record["step"]) is int for record in records)
            refused = False
        with limits():
            JsonlWriter(path, resume_step=1000).close()
        again = read_jsonl(path)
        assert [record["step"] for record in again[:sound]] == list(range(sound))
        asides = list(tmp_path.glob("metrics.jsonl.damaged-*"))
        assert len(asides) == refused
        for aside in asides:
            assert damaged.endswith(aside.read_bytes())
            aside.unlink()
    capsys.readouterr()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("damage", ["bytes", "values"])
def test_a_damaged_configuration(tmp_path, damage, count):
    path = tmp_path / "config.json"
    asked = DistillConfig(run_dir=tmp_path)
    text = json.dumps({"recipe": "distill", "config": configuration_to_json(asked)}, indent=2)
    types = {name: {type(value)} for name, value in vars(asked).items()}
    texts = ("game", "data", "teacher_view", "student_view")
    types |= {name: {str, type(None)} for name in texts}
    types |= {"max_seconds": {float, int, type(None)}}
    types |= {"temperature": {float, int, str, type(None)}}
    refused = 0
    for seed in range(count):
        rng = random.Random(seed)
        if damage == "bytes":
            path.write_bytes(damaged_bytes(text.encode(), rng))
        else:
            path.write_text(damaged_json(text, rng))
        try:
            with limits():
                config = TrainingRun("distill", asked, resume=True, unit="updates").config
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (or it is read)
            assert len(str(error)) < 2000  # noqa: PT017
            refused += 1
            continue
        for name, value in vars(config).items():
            allowed = types[name] | ({int} if types[name] == {float} else set())
            assert isinstance(value, Path) if name == "run_dir" else type(value) in allowed, name
    assert refused > count / 3
