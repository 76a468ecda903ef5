# SPDX-License-Identifier: MIT
"""Collections of play: the same bytes whoever is killed, and what students learn from them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cartpole import Balancer
from torch import nn

import fastdistill as fd
from fastdistill.networks import QNetwork, paper_architecture, save_network
from fastdistill.networks.checkpoint import read_checkpoint, write_checkpoint
from fastdistill.recipes.collect import collect
from fastdistill.recipes.distill import train
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.relabel import relabel
from fastdistill.replay import PrioritizedReplay
from fastdistill.teachers import load_teacher
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_shards import LabelledShards, LaneWriter
from fastdistill.training.ranks import Ranks
from fastdistill.training.shards import Collection, ShardError, spec_of
from fastdistill.training.task import Task

SMALL = {
    "total_updates": 150,
    "num_lanes": 4,
    "learning_starts_steps": 400,
    "batch_size": 32,
    "replay_capacity": 4_000,
    "score_episodes": 0,
    "evaluation_episodes": 0,
    "checkpoint_every_updates": 50,
    "tensorboard": False,
    "device": "cpu",
}
PLAY = {"steps": 1600, "num_lanes": 4, "chunk_steps": 100, "device": "cpu"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A checkpoint of an untrained network of CartPole, which can be loaded by name."""
    network = QNetwork.seeded(paper_architecture("4%", [2], obs_shape=(4,)), 0)
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    return str(save_network(path, network, {"kind": "q_values", "game": "CartPole-v1"}))


@pytest.fixture(scope="module")
def played(tmp_path_factory, teacher) -> Path:
    """A collection of one shard in four chunks."""
    out = tmp_path_factory.mktemp("played")
    assert collect(teacher, out, **PLAY)
    return out


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def distilled(run_dir: Path, **options) -> dict[str, torch.Tensor]:
    result = fd.distill(run_dir=run_dir, **{**SMALL, **options})
    return read_checkpoint(next(iter(result.students.values())))[0]


def damage(path: Path) -> Path:
    """Flip a bit in the middle of the weights that a description names."""
    file = path.with_name(json.loads(path.read_text())["weights"]["file"])
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def test_killed_collectors_leave_the_bytes_of_undisturbed_ones(tmp_path, teacher):
    options = {"steps": 16_000, "num_lanes": 4, "chunk_steps": 50, "device": "cpu"}
    for shard in ("0/2", "1/2"):
        assert collect(teacher, tmp_path / "whole", shard=shard, **options)
    rng = np.random.default_rng(5)
    context = multiprocessing.get_context("fork")
    kills = 0

    def begin(shard: str) -> multiprocessing.process.BaseProcess:
        arguments = (teacher, tmp_path / "killed")
        process = context.Process(
            target=collect, args=arguments, kwargs={"shard": shard, **options}
        )
        process.start()
        return process

    at_work = {shard: begin(shard) for shard in ("0/2", "1/2")}
    while at_work:
        time.sleep(rng.uniform(0.05, 0.4))
        shard = str(rng.choice(list(at_work)))
        process = at_work.pop(shard)
        if kills < 8 and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            at_work[shard] = begin(shard)
            continue
        process.join()
        assert process.exitcode == 0
    assert kills == 8
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert Collection(tmp_path / "killed").damaged == {}


def test_shards_differ(tmp_path, teacher):
    for shard in ("0/2", "1/2"):
        collect(teacher, tmp_path, shard=shard, **PLAY)
    first, second = (Collection(tmp_path).chunk(place, 0) for place in (0, 1))
    assert not torch.equal(first.tensors["frames"], second.tensors["frames"])


def test_a_finished_shard_is_left_alone_and_other_options_are_refused(played, teacher):
    before = {path: path.stat().st_mtime_ns for path in played.rglob("*")}
    assert collect(teacher, played, **PLAY)
    assert {path: path.stat().st_mtime_ns for path in played.rglob("*")} == before
    with pytest.raises(
        ValueError, match=r"collect: options must be those .* got seed 2 instead of"
    ):
        collect(teacher, played, seed=2, **PLAY)


def test_learning_from_shards_is_learning_live(tmp_path):
    # The same lanes, seeds and schedule: the same weights, bit by bit.
    teacher = Balancer()
    collect(load_teacher(teacher, "CartPole-v1"), tmp_path / "data", game="CartPole-v1", **PLAY)
    live = distilled(tmp_path / "live", teacher=teacher, env="CartPole-v1", driver="teacher")
    read = distilled(tmp_path / "read", teacher=teacher, data=str(tmp_path / "data"))
    assert all(torch.equal(live[name], read[name]) for name in live)


class After:
    """Asks for a stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize(
    ("damaged", "steps", "place"),
    [((), 170, (1, 70)), ((2,), 200, (2, 0)), ((0, 3), 198, (3, 0))],
    ids=["whole", "before a damaged chunk", "before two, from chunk 1, step 2"],
)
def test_a_run_on_shards_is_resumed_bitwise(tmp_path, played, damaged, steps, place):
    data = tmp_path / "data"
    shutil.copytree(played, data)
    for chunk in damaged:
        damage(data / "shard_00000-of-00001" / f"rows_{chunk:06d}.json")
    options = {**SMALL, "data": str(data), "damaged": "skip"}
    whole = distilled(tmp_path / "whole", **options)
    config = DistillConfig(run_dir=tmp_path / "two", **options)
    assert train(config, stop=After(steps)).stopped
    newest = max((tmp_path / "two" / "checkpoints").glob("*.json"))
    (reader,) = json.loads(newest.read_text())["source"]["readers"]
    assert (reader["chunk"], reader["step"]) == place
    result = train(config, resume=True)
    resumed = read_checkpoint(next(iter(result.students.values())))[0]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_damaged_chunk_is_named_and_refused_or_left_out(tmp_path, played, teacher, capsys):
    data = tmp_path / "data"
    shutil.copytree(played, data)
    file = damage(data / "shard_00000-of-00001" / "rows_000001.json")
    with pytest.raises(ShardError, match=f"distill: shards must be whole, .*{file.name}.*SHA-256"):
        distilled(tmp_path / "refused", teacher=None, data=str(data))
    assert not (tmp_path / "refused").exists()
    distilled(tmp_path / "skipped", teacher=None, data=str(data), damaged="skip")
    assert (
        f"left out: read_checkpoint: weights of rows_000001.json: {file}" in capsys.readouterr().err
    )
    # The collector mends it, to the bit.
    collect(teacher, data, **PLAY)
    assert digests(data) == digests(played)


def test_learning_waits_for_the_first_episode_that_is_known_from_its_start(
    tmp_path, teacher, capsys
):
    # An episode of CartPole has eight steps at least: none begins in the first four that are left.
    data, options = tmp_path / "data", {"data": str(tmp_path / "data"), "damaged": "skip"}
    collect(teacher, data, **{**PLAY, "chunk_steps": 4})
    damage(data / "shard_00000-of-00001" / "rows_000000.json")
    weights = distilled(tmp_path / "run", learning_starts_steps=8, **options)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    # And in these eight steps of each lane none does at all.
    shutil.rmtree(data)
    collect(teacher, data, **{**PLAY, "chunk_steps": 4, "steps": 32})
    shard = data / "shard_00000-of-00001"
    damage(shard / "rows_000000.json")
    with pytest.raises(ShardError, match=r"must be as many for each of 1 ranks, got 0"):
        distilled(tmp_path / "none", **options)
    text = f"left out: {shard}, in which no beginning of an episode can be read"
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["teacher_view", "student_view"])
def test_what_was_seen_stays_as_it_is(tmp_path, played, name):
    with pytest.raises(ValueError, match=f"DistillConfig: {name} must be none with data, got 'x'"):
        DistillConfig(data="somewhere", **{name: "x"})
    text = f"DistillConfig: {name} must be none with data, got 'a function'"
    with pytest.raises(ValueError, match=text):
        fd.distill(data=played, run_dir=tmp_path / "run", **{name: lambda record: record})


def test_labels_of_another_teacher(tmp_path):
    # Of the same teacher: stacks are put together from single frames, over chunks' borders too.
    options = {"steps": 400, "num_lanes": 2, "chunk_steps": 60, "device": "cpu"}
    collect("zoo:pong", tmp_path, **options)
    again = relabel(tmp_path, "zoo:pong", "again")
    first = Collection(tmp_path)
    for chunk in range(4):
        assert torch.equal(first.chunk(0, chunk).labels, again.chunk(0, chunk).labels)
    before = digests(tmp_path)
    relabel(tmp_path, "zoo:pong", "again")
    assert digests(tmp_path) == before
    other = fd.load_teacher("zoo:pong")
    halved = nn.Sequential(other.module, nn.Softmax(dim=1))
    with pytest.raises(ValueError, match="relabel: name must not be taken, got 'again'"):
        relabel(tmp_path, load_teacher(halved, first.spec), "again")
    changed = relabel(tmp_path, load_teacher(halved, first.spec), "probabilities")
    torch.testing.assert_close(changed.chunk(0, 3).labels, first.chunk(0, 3).labels.softmax(-1))
    with pytest.raises(ValueError, match=r"relabel: name must be .* got '\.\./x'"):
        relabel(tmp_path, "zoo:pong", "../x")


def test_stacks_of_what_is_left_are_of_one_moment():
    """Rows of two lanes with gaps and repetitions, against lists of what each episode showed."""
    spec = spec_of(
        {
            "spec": {
                "name": "made", "preset": "", "obs_shape": [3, 4, 4], "stack": 3, "num_actions": 2,
                "action_meanings": ["0", "1"], "settings": {},
            }
        }
    )  # fmt: skip
    rng = np.random.default_rng(3)
    replay = PrioritizedReplay(
        400, 2, frame_shape=(4, 4), stack=3, priority_exponent=0,
        columns={"teacher_logits": ((2,), "float32")},
    )  # fmt: skip
    writer = LaneWriter(replay, np.arange(2), spec, 2)
    wanted: dict[int, list[int]] = {}  # number of a frame -> numbers of its stack
    number, shown = 0, [[], []]
    begins = np.ones(2, bool)
    knows = [False, False]
    for _ in range(110):
        if rng.random() < 0.1:
            writer.cut()
            knows = [False, False]
        boundary = rng.random(2) < 0.15
        frames = np.zeros((2, 4, 4), np.uint8)
        for lane in range(2):
            number += 1
            frames[lane] = number
            shown[lane] = [number] if begins[lane] else [*shown[lane], number]
            knows[lane] |= bool(begins[lane])
            if knows[lane] and not boundary[lane]:
                wanted[number] = ([0, 0] + shown[lane])[-3:]
        writer.write(
            {
                "frames": frames, "action": np.zeros(2, np.int16),
                "reward": np.zeros(2, np.float32), "terminated": np.zeros(2, bool),
                "truncated": np.zeros(2, bool), "boundary": boundary, "begins": begins.copy(),
                "teacher_logits": np.stack([frames[:, 0, 0]] * 2, axis=1).astype(np.float32),
            }
        )  # fmt: skip
        begins = boundary
    batch = replay.sample(4000, next_obs=False)
    seen = {int(obs[-1, 0, 0]): obs[:, 0, 0].tolist() for obs in batch.obs}
    assert seen == {one: wanted[one] for one in seen}
    assert len(seen) >= len(wanted) - 2  # the newest row of a lane waits for the next
    assert torch.equal(batch.obs[:, -1, 0, 0].float(), batch.columns["teacher_logits"][:, 0])


def test_a_teacher_with_a_view_is_refused(tmp_path, played):
    teacher = replace(fd.load_teacher(Balancer(), "CartPole-v1"), view="pole")
    with pytest.raises(ValueError, match="collect: teacher must have no view, got one with 'pole'"):
        collect(teacher, tmp_path, game="CartPole-v1", steps=8, num_lanes=2)
    with pytest.raises(ValueError, match="relabel: teacher must have no view, got one with 'pole'"):
        relabel(played, teacher, "seen")


def test_what_a_collection_says_is_not_believed(tmp_path, played):
    data = tmp_path / "data"
    shutil.copytree(played, data)
    rows = data / "shard_00000-of-00001" / "rows_000000.json"
    tensors, card = read_checkpoint(rows)

    def refuse(pattern: str, *, change_tensors=None, **changes) -> None:
        write_checkpoint(rows, {**tensors, **(change_tensors or {})}, {**card, **changes})
        with pytest.raises(ValueError, match=pattern):
            distilled(tmp_path / "run", teacher=None, data=str(data))

    refuse("frames must be torch.float32", change_tensors={"frames": torch.zeros(3)})
    refuse("chunk.num_lanes must be an integer", num_lanes="4")
    refuse("shards in .* must be of one collection", epsilon=0.5, total_steps=7)
    for number in range(4):
        path = rows.with_name(f"rows_{number:06d}.json")
        kept, own = read_checkpoint(path)
        write_checkpoint(path, kept, {**own, "total_steps": 1600, "epsilon": 0.05,
                                      "spec": {**own["spec"], "name": "os:Evil-v0"}})  # fmt: skip
    with pytest.raises(ValueError, match="must not name a module to import, got 'os:Evil-v0'"):
        distilled(tmp_path / "run", teacher=None, data=str(data))
    with pytest.raises(ShardError, match="must hold shards that can be read, got none"):
        Collection(tmp_path)
    with pytest.raises(ValueError, match="must be at least twice the lanes of all shards = 8, got"):
        distilled(tmp_path / "run", teacher=None, data=str(played), learning_starts_steps=7)


def test_ranks_read_shards_of_their_own(tmp_path, teacher):
    for shard in ("0/2", "1/2"):
        collect(teacher, tmp_path, shard=shard, **PLAY)
    collection = Collection(tmp_path)
    task = Task(collection.spec, load_teacher(teacher), 1.0)

    def rows_of(ranks: Ranks) -> set[bytes]:
        source = LabelledShards(
            [task], [collection], Counters(), damaged="refuse", replay_capacity=2000, seed=1,
            ranks=ranks,
        )  # fmt: skip
        for _ in range(100):
            source.step(0.0, None)
        return {row.numpy().tobytes() for row in source.sample(4000).obs}

    first, second = (rows_of(Ranks(rank=rank, world=2)) for rank in (0, 1))
    assert first
    assert not first & second
    with pytest.raises(ShardError, match=r"must be as many for each of 3 ranks, got 2"):
        rows_of(Ranks(rank=0, world=3))


def test_the_teacher_of_the_data(tmp_path, played, teacher):
    network = QNetwork.seeded(paper_architecture("4%", [2], obs_shape=(4,)), 1)
    other = save_network(tmp_path / "other", network, {"kind": "q_values", "game": "CartPole-v1"})
    with pytest.raises(ValueError, match="distill: teacher must be that of the labels in"):
        distilled(tmp_path / "run", teacher=str(other), data=str(played))
    moved = tmp_path / "moved"
    shutil.copytree(Path(teacher).parent, moved)
    weights = distilled(tmp_path / "run", teacher=str(moved), data=str(played))
    again = distilled(tmp_path / "again", teacher=None, data=str(played))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shard": "2/2"}, "collect: shard must be i/n with i from 0 to n - 1, got '2/2'"),
        ({"epsilon": 2.0}, r"collect: epsilon must be in \[0, 1\], got 2.0"),
        ({"chunk_steps": 0}, "collect: chunk_steps must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(tmp_path, teacher, options, text):
    with pytest.raises(ValueError, match=text):
        collect(teacher, tmp_path / "out", **{**PLAY, **options})
    assert not (tmp_path / "out").exists()
