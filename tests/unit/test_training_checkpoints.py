# SPDX-License-Identifier: MIT
"""The checkpoints of a run: each one with its replay, two kept, and no kill loses both."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from fastdistill.networks.checkpoint import CheckpointError
from fastdistill.training.checkpoints import TrainingCheckpoints


class Killed(BaseException):
    """Stands for SIGKILL: nothing may clean up after it."""


def writes(text: str):
    """A replay that is one word."""
    return lambda path: path.write_text(text)


def put(store: TrainingCheckpoints, step: int, *, replay: bool = True) -> Path:
    value = torch.tensor(float(step))
    return store.write(
        step, {"x": value}, {"note": f"of {step}"}, writes(str(step)) if replay else None
    )


def got(store: TrainingCheckpoints) -> tuple[float, str, list[str]]:
    """What a resuming run would continue from: tensor, note, and what the replay was given."""
    read: list[str] = []
    tensors, card = store.latest(lambda path: read.append(whole(path)))
    return float(tensors["x"]), card["note"], read


def whole(path: Path) -> str:
    text = path.read_text()
    if not text.isdigit():
        raise ValueError(f"damaged: {text}")
    return text


def names(store: TrainingCheckpoints) -> list[str]:
    return sorted(path.name.split("-")[0] for path in store.directory.iterdir())


def of(*steps: int) -> list[str]:
    """The names of whole checkpoints, weights without their hash."""
    return sorted(
        name
        for step in steps
        for name in (f"replay_{step:012d}.bin", f"step_{step:012d}", f"step_{step:012d}.json")
    )


def weights_of(store: TrainingCheckpoints, step: int) -> Path:
    (path,) = store.directory.glob(f"step_{step:012d}-*.safetensors")
    return path


def kill_before_the_description(store: TrainingCheckpoints, step: int, monkeypatch) -> None:
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fastdistill.training.checkpoints.write_checkpoint", killed)
        with pytest.raises(Killed):
            put(store, step)


def test_the_newest_two_are_kept_with_their_replays(tmp_path):
    store = TrainingCheckpoints(tmp_path / "checkpoints")
    assert store.latest() is None
    for step in (5, 100, 20_000):
        put(store, step)
    assert names(store) == of(100, 20_000)
    assert got(store) == (20_000.0, "of 20000", ["20000"])


def test_without_replays_only_tensors_are_kept(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    for step in (5, 100, 20_000):
        put(store, step, replay=False)
    assert len(names(store)) == 4
    assert got(store) == (20_000.0, "of 20000", [])


def test_a_finished_run_keeps_no_replay(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    put(store, 5)
    put(store, 10)
    put(store, 10, replay=False)  # stopped at 10, and over without another step
    assert names(store) == ["step_000000000010", "step_000000000010.json"]
    assert got(store) == (10.0, "of 10", [])


def test_a_clean_stop_after_two_kills_keeps_its_own_replay(tmp_path, monkeypatch):
    # Once the replays kept were those of the highest names, here 472 and 552, whose descriptions
    # were never written; the ones that both descriptions need were removed.
    store = TrainingCheckpoints(tmp_path)
    put(store, 152)
    put(store, 232)
    kill_before_the_description(store, 552, monkeypatch)
    kill_before_the_description(store, 472, monkeypatch)
    put(store, 392)
    assert names(store) == of(232, 392)
    assert got(store) == (392.0, "of 392", ["392"])


def test_later_checkpoints_that_could_not_be_read_do_not_push_out_the_new_one(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    for step in (300, 400):
        put(store, step)
    for step in (300, 400):
        weights_of(store, step).write_bytes(b"rubbish")
    put(store, 100)
    assert names(store) == of(100)
    assert got(store) == (100.0, "of 100", ["100"])


def test_an_unusable_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    put(store, 2).write_text("damaged")
    put(store, 3)
    assert names(store) == of(1, 3)
    (tmp_path / "replay_000000000003.bin").unlink()
    put(store, 4)
    assert names(store) == of(1, 4)


@pytest.mark.parametrize("part", ["description", "weights", "replay"])
@pytest.mark.parametrize("damage", ["missing", "damaged", "directory", "pipe"])
def test_any_damage_falls_back_to_the_whole_pair_before(tmp_path, part, damage):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    path = put(store, 2)
    victim = {
        "description": path,
        "weights": weights_of(store, 2),
        "replay": tmp_path / "replay_000000000002.bin",
    }[part]
    victim.unlink()
    if damage == "damaged":
        victim.write_text("rubbish")
    elif damage == "directory":
        victim.mkdir()
    elif damage == "pipe":
        os.mkfifo(victim)
    assert got(store) == (1.0, "of 1", ["1"])


def test_when_every_checkpoint_is_damaged_each_is_named(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    put(store, 2)
    weights_of(store, 2).write_bytes(b"rubbish")
    (tmp_path / "replay_000000000001.bin").write_text("rubbish")
    with pytest.raises(
        CheckpointError,
        match=r"step_000000000002-\w+.safetensors must have \d+ bytes, got 7; "
        r"TrainingCheckpoints: replay .*replay_000000000001.bin of step_000000000001.json "
        "must be loaded, got damaged: rubbish",
    ):
        got(store)
    # Who wants no replay is not kept from the tensors by it.
    assert float(store.latest()[0]["x"]) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 7}, r"step of .*step_000000000001.json must be 1, got 7"),
        ({"step": "1"}, r"step of .* must be 1, got '1'"),
        ({"step": True}, "step of .* must be 1, got True"),
        ({"replay": "../../precious"}, r"replay of .* must be replay_0+1.bin, got '../../precious"),
        ({"replay": 5}, "replay of .* must be .*, got 5"),
    ],
)
def test_a_description_names_its_own_files_only(tmp_path, change, message):
    store = TrainingCheckpoints(tmp_path)
    path = put(store, 1)
    card = json.loads(path.read_text())
    del card["card_sha256"]
    path.write_text(json.dumps({**card, **change}))
    with pytest.raises(CheckpointError, match=message):
        store.latest()


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    left = [
        ".replay_000000000002.bin.4711.tmp",
        ".step_000000000002.json.4711.tmp",
        ".step_000000000002-0123456789ab.safetensors.4711.tmp",
        "step_000000000002-0123456789ab.safetensors",  # without a description
        "replay_000000000002.bin",
        "step_000000000001-0123456789ab.safetensors",  # beside the ones that its description names
    ]
    foreign = ["notes.txt", "step_1.json", "replay_best.bin", "steps.tmp", ".hidden.tmp"]
    for name in left[:5] + foreign:
        (tmp_path / name).write_text("left")
    put(store, 3)
    assert names(store) == sorted(of(1, 3) + foreign)
    (tmp_path / left[5]).write_text("left")
    put(store, 1)
    assert not (tmp_path / left[5]).exists()


def test_a_snapshot_that_cannot_be_written_leaves_both_checkpoints(tmp_path):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    put(store, 2)

    def no_space(path: Path) -> None:
        path.write_text("half of i")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.write(3, {"x": torch.tensor(3.0)}, {}, no_space)
    assert got(store) == (2.0, "of 2", ["2"])


@pytest.mark.parametrize("before", range(1, 9))
def test_a_kill_at_any_file_operation_leaves_a_whole_pair(tmp_path, monkeypatch, before):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    put(store, 2)
    calls = 0

    def counted(operation):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls >= before:
                raise Killed
            return operation(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("unlink", "replace", "write_text", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(Killed):
            put(store, 3)
    value, note, read = got(store)
    assert value in (2.0, 3.0)
    assert (note, read) == (f"of {value:.0f}", [f"{value:.0f}"])
    put(store, 4)
    assert names(store) == of(int(value), 4)


def test_a_kill_while_the_same_step_is_written_again_leaves_the_pair_before(tmp_path, monkeypatch):
    store = TrainingCheckpoints(tmp_path)
    put(store, 1)
    put(store, 2)

    def again(text: str) -> None:
        store.write(2, {"x": torch.tensor(0.5)}, {"note": text}, writes(text))

    with monkeypatch.context() as patch:
        patch.setattr("fastdistill.training.checkpoints.write_checkpoint", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again("222")
    assert got(store) == (2.0, "of 2", ["2"])
    for text in ("222", "333"):
        again(text)
        assert got(store) == (0.5, text, [text])
        assert len(names(store)) == 6
