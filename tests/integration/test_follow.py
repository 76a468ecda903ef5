# SPDX-License-Identifier: MIT
"""Teachers that others are still training: the newest one's labels, damage on the way, refusals."""

from __future__ import annotations

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from cartpole import SMALL, balancer

import fastdistill as fd
from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork, save_network
from fastdistill.recipes import distill
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.sources import open_source
from fastdistill.recipes.tasks import Given
from fastdistill.training import published
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.labelled_rows import Lesson
from fastdistill.training.metrics import read_jsonl
from fastdistill.training.published import Publications
from fastdistill.training.ranks import Ranks
from fastdistill.training.targets import auto_temperature
from fastdistill.training.task import Task


@pytest.fixture(autouse=True)
def _looks_always(monkeypatch):
    monkeypatch.setattr(published, "LOOK_SECONDS", 0.0)


def faller(path):
    """Falls at once: it always pushes left."""
    network = QNetwork(Architecture((4,), (2,), hidden=(2,)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        list(network.parameters())[-1].copy_(torch.tensor([1.0, 0.0]))
    save_network(path, network, {"game": "CartPole-v1", "trained_steps": 7})
    return str(path)


def test_labels_are_the_newest_teachers_and_a_damaged_file_waits(tmp_path, capsys):
    first = fd.load_teacher(faller(tmp_path / "teacher"))
    env = make_env("CartPole-v1", 4)
    task = Task(env.spec, first, 1.0)
    play = LabelledPlay([task], [env], [], Counters(), replay_capacity=400, seed=1, bfloat16=False)
    play.reset()
    for _ in range(20):
        play.step(0.5, None)
    following = Publications(play, fits=True)
    obs = torch.randn(9, 4)
    stored = Lesson(obs, (torch.full((9, 2), 5.0),))
    following.look()
    assert task.teacher.version == 0
    assert torch.equal(following.label(stored).labels[0], first.values(obs))
    assert task.temperature == 1.0

    balancer(tmp_path / "teacher")
    weights = tmp_path / json.loads((tmp_path / "teacher.json").read_text())["weights"]["file"]
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    following.look()
    following.look()
    assert capsys.readouterr().err.count("the teacher stays what it was") == 1
    assert torch.equal(following.label(stored).labels[0], first.values(obs))

    weights.write_bytes(whole)
    (tmp_path / "teacher.json").touch()
    following.look()
    assert "CartPole-v1: teacher 1 is taken up" in capsys.readouterr().err
    second = fd.load_teacher(tmp_path / "teacher")
    assert task.teacher.version == 1
    lesson = following.label(stored)
    assert lesson.obs is obs
    assert torch.equal(lesson.labels[0], second.values(obs))
    replayed = play.replay.sample(400, next_obs=False).obs
    # The replay is small: a sample of 1,024 rows has the same gaps to within a few percent.
    assert task.temperature == pytest.approx(auto_temperature(second.values(replayed)), rel=0.2)
    assert following.metrics() == {"teacher/version": 1}

    # The same weights with another description, as a run writes them at its end, are no news.
    network, _ = fd.load_network(tmp_path / "teacher")
    save_network(tmp_path / "teacher", network, {"game": "CartPole-v1", "scores": []})
    following.look()
    assert task.teacher.version == 1
    assert "scores" in task.teacher.card

    env.close()


def test_a_resumed_run_fits_anew_and_a_game_without_a_share_is_fitted_too(tmp_path):
    env = make_env("CartPole-v1", 4)
    teachers = [fd.load_teacher(balancer(tmp_path / name)) for name in ("a", "b")]
    tasks = [Task(env.spec, teacher, 3.0, place) for place, teacher in enumerate(teachers)]
    envs = [env, make_env("CartPole-v1", 4)]
    play = LabelledPlay(tasks, envs, [], Counters(), replay_capacity=800, seed=1, bfloat16=False)
    play.reset()
    for _ in range(30):
        play.step(0.5, None)
    following = Publications(play, fits=True)
    tasks[0].levels = tasks[1].levels = (0.0, 1.0)
    following.resume()
    assert [task.levels for task in tasks] == [None, None]
    lesson = following.label(play.sample(32))
    assert [len(labels) for labels in lesson.labels] == [0, 32]
    for place, task in enumerate(tasks):
        expected = auto_temperature(task.teacher.values(play.obs_of(place, 1024)))
        assert task.temperature == pytest.approx(expected, rel=0.2)
    for one in envs:
        one.close()


def test_a_student_ends_as_the_teacher_that_came_in_the_middle(tmp_path):
    path = faller(tmp_path / "teacher")

    class PublishInTheMiddle:
        asked = 0

        @property
        def requested(self) -> bool:
            self.asked += 1
            if self.asked == 300:
                balancer(tmp_path / "teacher")
            return False

    config = DistillConfig(
        run_dir=tmp_path / "run", teacher=path, follow=True, temperature=0.1,
        **{**SMALL, "total_updates": 600, "score_episodes": 0, "log_every_updates": 20},
    )  # fmt: skip
    distill.train(config, stop=PublishInTheMiddle())
    versions = [
        record["teacher/version"]
        for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")
        if "teacher/version" in record
    ]
    assert versions[0] == 0
    assert versions[-1] == 1
    assert versions == sorted(versions)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert np.mean(record["teacher"]["returns"]) > 100, "the balancer's; the faller has nine"
    assert np.mean(record["students"][0]["returns"]) > 50
    resumed = distill.train(config, resume=True)
    assert resumed.updates == 600


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": "somewhere"}, "data must be none with follow, got 'somewhere'"),
        ({"teacher_view": "full"}, "teacher_view must be none with follow, got 'full'"),
        ({"student_view": "part"}, "student_view must be none with follow, got 'part'"),
        ({"engine": "ray"}, "engine must be local with follow, got 'ray'"),
    ],
)
def test_what_cannot_be_labelled_anew_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        DistillConfig(follow=True, **changes)


def test_ranks_do_not_follow():
    config = DistillConfig(follow=True)
    with pytest.raises(ValueError, match="follow must be off with several ranks, got 2"):
        open_source(config, Given(), Ranks(world=2), ExitStack())


def test_what_nobody_writes_anew_is_refused(tmp_path):
    network, _ = fd.load_network(balancer(tmp_path / "teacher"))
    options = {**SMALL, "run_dir": tmp_path / "run", "follow": True}
    with pytest.raises(ValueError, match="teacher must be the path of a checkpoint with follow"):
        fd.distill(network, "CartPole-v1", **options)
    two = f"{tmp_path / 'teacher'}+{tmp_path / 'teacher'}"
    with pytest.raises(ValueError, match="teacher must be the path of a checkpoint with follow"):
        fd.distill(two, "CartPole-v1", **options)
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_a_view_is_not_followed(tmp_path):
    teacher = fd.load_teacher(balancer(tmp_path / "t"), "CartPole-v1", view=lambda record: record)
    with pytest.raises(ValueError, match="distill: teacher must have no view with follow, got one"):
        fd.distill(teacher, "CartPole-v1", follow=True, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
