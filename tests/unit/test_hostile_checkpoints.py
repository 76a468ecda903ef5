# SPDX-License-Identifier: MIT
"""Checkpoints that somebody made up: refused in words, before they cost time or memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fastdistill.networks import Architecture, QNetwork, architecture
from fastdistill.networks.checkpoint import (
    CheckpointError,
    copy_checkpoint,
    load_network,
    read_card,
    read_checkpoint,
    save_network,
    write_checkpoint,
)

SMALL = Architecture((4,), (2,), hidden=(8, 8))
CARD = {"kind": "logits", "game": "CartPole-v1", "action_meanings": ["0", "1"], "environment": {}}


@pytest.fixture
def path(tmp_path) -> Path:
    return save_network(tmp_path / "a", QNetwork(SMALL), CARD)


def rewrite(path: Path, change) -> None:
    """Change a card as somebody would who does not want its digest to tell."""
    card = json.loads(path.read_text())
    card.pop("card_sha256", None)
    path.write_text(json.dumps(change(card) or card))


def put_weights(path: Path, payload: bytes) -> None:
    """Other weights, with the size and the hash that they have."""
    entry = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    rewrite(path, lambda card: card["weights"].update(entry))
    path.with_name(json.loads(path.read_text())["weights"]["file"]).write_bytes(payload)


def test_a_card_has_a_digest_of_its_content(path):
    card = json.loads(path.read_text())
    digest = card.pop("card_sha256")
    # Stated anew: sorted keys, Python's separators.
    assert digest == hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    assert "card_sha256" not in read_card(path)
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)))  # other white space is the same content
    assert read_card(path)["game"] == "CartPole-v1"
    path.write_text(text.replace("CartPole-v1", "CartPole-v0"))
    with pytest.raises(
        CheckpointError,
        match=f"read_card: .*a.json must have the content of its card_sha256 '{digest}', got that",
    ):
        read_card(path)
    rewrite(path, lambda card: None)  # without a digest, as older files are
    assert read_card(path)["game"] == "CartPole-v0"


def test_every_changed_character_of_a_card_is_noticed(path):
    text = path.read_text()
    expected = read_card(path)
    for index in range(0, len(text), 3):
        path.write_text(text[:index] + chr(ord(text[index]) ^ 1) + text[index + 1 :])
        try:
            card = read_card(path)
        except CheckpointError as error:
            assert "a.json" in str(error)  # noqa: PT017 (either this or the same content)
        else:
            card = {name: value for name, value in card.items() if not name.startswith("bard_sha")}
            assert {k: v for k, v in card.items() if k in expected} == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "values", "kind must be one of q_values, logits, log_probs, got 'values'"),
        ("kind", None, "kind must be one of .* got None"),
        ("game", 5, "game must be a name, got 5"),
        ("game", "", "game must be a name, got ''"),
        ("game", "pong\ud800", r"game must be a name, got 'pong\\ud800'"),
        ("action_meanings", "NOOP", "action_meanings must be a list of names, got 'NOOP'"),
        ("action_meanings", [1, 2], r"action_meanings must be a list of names, got \[1, 2\]"),
        ("environment", [], r"environment must be an object, got \[\]"),
        ("parameters", 7.0, "parameters must be a positive integer, got 7.0"),
        ("architecture", "100%", "architecture must be an object, got '100%'"),
        ("weights", 7, "weights must describe a file, got 7"),
        ("weights.file", "../b.safetensors", "weights.file must be a file name without a path"),
        ("weights.file", "/etc/passwd", "weights.file must be a file name without a path"),
        ("weights.file", "..", "weights.file must be a file name without a path"),
        ("weights.file", "a\0.safetensors", "weights.file must be a file name without a path"),
        ("weights.file", 5, "weights.file must be a file name without a path"),
        ("weights.bytes", 10.0, r"weights.bytes must be an integer in \[8, 8589934592\], got 10.0"),
        ("weights.bytes", True, r"weights.bytes must be an integer in .*, got True"),
        ("weights.bytes", -1, "weights.bytes must be an integer in .*, got -1"),
        ("weights.bytes", 50 << 30, "weights.bytes must be an integer in .*, got 53687091200"),
        ("weights.sha256", "00", "weights.sha256 must be 64 hexadecimal digits, got '00'"),
        ("weights.sha256", ["0"] * 64, "weights.sha256 must be 64 hexadecimal digits"),
    ],
)
def test_fields_have_types_and_ranges(path, field, value, message):
    def change(card):
        *parents, last = field.split(".")
        (card[parents[0]] if parents else card)[last] = value

    rewrite(path, change)
    with pytest.raises(CheckpointError, match=f"read_card: .*a.json: {message}"):
        load_network(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 32 levels of nesting"),
        ('{"a":' * 500 + "1" + "}" * 500, "more than 32 levels of nesting"),
        ('{"format": NaN}', "NaN, which JSON has not"),
        ('{"format": -Infinity}', "-Infinity, which JSON has not"),
        ('{"format": -1e400}', "number '-1e400', which no float64 holds"),
        ('{"format": %s}' % ("9" * 5000), "an integer of 5000 digits"),
        ('{"a": 1, "format": 2, "a": 3}', "key 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "key 'b' twice"),
        ("\ufeff{}", "Expecting value"),
        ("", "Expecting value"),
    ],
)  # fmt: skip
def test_json_that_python_alone_would_take_is_refused(path, text, message):
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"a.json must be readable JSON, got {message}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": [12000, 12000]}, "tensor .* must be floats .* got floats"),
        ({"num_actions": [2] * 100_000}, "num_actions must have at most 256 entries, got 100000"),
        ({"num_actions": [2] * 256}, "tensor 'heads.1.output.bias' .* got absent"),
        ({"hidden": [8] * 100_000}, "hidden must have at most 32 entries, got 100000"),
        ({"hidden": [65_536] * 32}, r"must be floats \[2, 65536\] .* got floats \[2, 8\]"),
        ({"hidden": [10**12]}, r"hidden must be at most 65536, got \(1000000000000,\)"),
        ({"head_hidden": 10**9}, "head_hidden must be at most 65536, got 1000000000"),
        ({"head_hidden": -5}, "head_hidden must be 0 or more, got -5"),
        ({"obs_shape": [4.0]}, r"from_json: obs_shape must be a list of integers, got \[4.0\]"),
        ({"obs_shape": [True]}, "obs_shape must be a list of integers"),
        ({"obs_shape": 4}, "obs_shape must be a list of integers, got 4"),
        ({"obs_shape": []}, r"obs_shape must be \(planes, height, width\)"),
        ({"obs_shape": [65_536] * 3}, "tensor .* must be "),
        ({"hidden": {"a": 1}}, "hidden must be a list of integers"),
        ({"dueling": 1}, "dueling must be true or false, got 1"),
        ({"head_hidden": "0"}, "head_hidden must be an integer, got '0'"),
        ({"colour": [1] * 1000}, "unexpected keyword argument 'colour'"),
    ],
)
def test_an_architecture_that_is_not_the_weights_costs_nothing(path, changes, message):
    rewrite(path, lambda card: card["architecture"].update(changes))
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=f"load_network: .*{message}") as caught:
        load_network(path)
    assert time.process_time() - begun < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage < 100_000  # kilobytes
    assert "a.json" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_largest_sizes_can_be_multiplied():
    most = architecture.MAX_SIZE
    with torch.device("meta"):
        network = QNetwork(Architecture((most, most, most), (most,), (most,) * 3, (most,)))
    assert network.trunk[7].weight.shape == (most, most * 8188**2)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = QNetwork(SMALL)
    with torch.no_grad():
        network.trunk[2].bias[3] = float("nan")
        network.trunk[2].bias[4] = float("-inf")
    path = save_network(tmp_path / "a", network, {})
    with pytest.raises(
        CheckpointError, match=r"tensor trunk.2.bias of .*a.json must be finite, got 2 values that"
    ):
        load_network(path)
    # As float64 it is finite, as the network's float32 it is not.
    state = {
        name: tensor.double().nan_to_num() for name, tensor in QNetwork(SMALL).state_dict().items()
    }
    state["trunk.0.bias"][0] = 1e300
    put_weights(path, save(state))
    with pytest.raises(CheckpointError, match=r"trunk.0.bias of .* must be finite, got 1 values"):
        load_network(path)


def test_other_tensors_than_the_networks_are_refused(path):
    state = QNetwork(SMALL).state_dict()
    for change, message in (
        ({"extra": torch.zeros(2)}, "tensor 'extra' of .* must be absent .* got floats"),
        ({"obs_mean": torch.zeros(4, dtype=torch.int64)}, r"got torch.int64 \[4\]"),
        ({"obs_mean": torch.zeros(4, dtype=torch.complex64)}, r"got torch.complex64 \[4\]"),
        ({"obs_mean": torch.zeros(5)}, r"must be floats \[4\] .* got floats \[5\]"),
    ):
        put_weights(path, save({**state, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_network(path)


def header(entries: object, data: bytes = b"\0" * 8) -> bytes:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff" * 8,
        header(b"["),
        header([]),
        header({"x": 1}),
        header({"x": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}),
        header({"x": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}),
        header({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        header({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}),
        header({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}),
        header({"x": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}, b""),
        header({"x": {"dtype": "F32", "shape": [0, 2**62, 8], "data_offsets": [0, 0]}}, b""),
        header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}),
    ],
)
def test_weights_that_are_not_safetensors_are_refused(path, payload):
    put_weights(path, payload)
    with pytest.raises(
        CheckpointError,
        match=r"read_checkpoint: weights of a.json: .*a-\w+.safetensors must be safetensors, got ",
    ):
        read_checkpoint(path)


def test_a_weights_file_is_refused_by_its_size_before_it_is_read(path):
    weights = path.with_name(read_card(path)["weights"]["file"])
    size = weights.stat().st_size
    os.truncate(weights, 50 << 30)  # sparse: reading it would take minutes and 50 GB
    with pytest.raises(CheckpointError, match=f"must have {size} bytes, got {50 << 30}"):
        read_checkpoint(path)
    os.truncate(path, 50 << 30)
    with pytest.raises(CheckpointError, match=r"a.json must have at most 4194304 bytes, got"):
        read_checkpoint(path)


@pytest.mark.parametrize("part", ["description", "weights"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(path, part, kind):
    victim = path if part == "description" else path.with_name(read_card(path)["weights"]["file"])
    victim.unlink()
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "device":
        victim.symlink_to("/dev/zero")
    else:
        victim.mkdir()
    with pytest.raises(CheckpointError, match=re.escape(str(victim))):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a\0b", "a\0b.json", "n" * 5000, "n" * 5000 + ".json"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"must (exist|be readable), got "):
        read_checkpoint(tmp_path / name)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    for card, message in (
        ({"score": float("nan")}, "card of .*a.json must be plain JSON, got Out of range float"),
        ({"path": tmp_path}, "must be plain JSON, got Object of type PosixPath is not JSON"),
        ({"big": 10**60}, "must be plain JSON, got an integer of 61 digits"),
        ({1: "a", "1": "b"}, "must be plain JSON, got key '1' twice"),
        ({"kind": "values"}, "a.json: kind must be one of q_values"),
        ({"scores": ["x" * 100] * 50_000}, "must have at most 4194304 bytes, got"),
    ):
        with pytest.raises(ValueError, match=f"write_checkpoint: .*{message}"):
            write_checkpoint(tmp_path / "a", {"x": torch.zeros(1)}, card)
    assert list(tmp_path.iterdir()) == []
    path = write_checkpoint(tmp_path / "a", {}, {"pairs": (1, 2), "by_step": {10: "a", 9: "b"}})
    assert read_card(path)["by_step"] == {"10": "a", "9": "b"}


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    left = [".a.json.7.tmp", ".a-0123456789ab.safetensors.7.tmp", "a-0123456789ab.safetensors"]
    foreign = [".ab.json.7.tmp", "ab-0123456789ab.safetensors", "a-notes.safetensors"]
    for name in left + foreign:
        (tmp_path / name).write_text("left")
    write_checkpoint(tmp_path / "a", {}, {})
    found = {entry.name for entry in tmp_path.iterdir()}
    assert found.isdisjoint(left)
    assert found >= set(foreign)
    # A name with the characters of a pattern is a name all the same.
    for value in (1.0, 2.0):
        write_checkpoint(tmp_path / "b[0-9]", {"x": torch.tensor(value)}, {})
    assert len(list(tmp_path.glob("b*.safetensors"))) == 1


def test_a_copy_has_plain_names_and_loads(path, tmp_path):
    copy = copy_checkpoint(path, tmp_path / "out" / "student")
    assert sorted(entry.name for entry in copy.parent.iterdir()) == [
        "student.json",
        "student.safetensors",
    ]
    ours, theirs = load_network(path)[0].state_dict(), load_network(copy)[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert "card_sha256" in json.loads(copy.read_text())
    weights = path.with_name(read_card(path)["weights"]["file"])
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="must have SHA-256"):
        copy_checkpoint(path, tmp_path / "again")
    assert not (tmp_path / "again.json").exists()


def test_loading_draws_no_random_numbers(path):
    before = torch.get_rng_state()
    load_network(path)
    assert torch.equal(torch.get_rng_state(), before)
