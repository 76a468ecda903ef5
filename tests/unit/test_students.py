# SPDX-License-Identifier: MIT
"""Students side by side: whose best is kept, by which measure, and in which state they go on."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cartpole import Balancer
from torch import nn
from two_games import Homing, small_network, student_of

import fastdistill as fd
from fastdistill.envs import make_env
from fastdistill.networks import QNetwork
from fastdistill.training import students as module
from fastdistill.training.counters import Counters
from fastdistill.training.learners.student import Student, make_students
from fastdistill.training.run import TrainingDiverged
from fastdistill.training.students import Students
from fastdistill.training.task import Task


class PartlyFrozen(nn.Module):
    """A student whose caller froze a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.output = nn.Linear(4, 2)

    def forward(self, obs):
        return self.output(self.norm(obs))


def run_at(tmp_path):
    def keep_diverged(name, loss, batch):
        return f"{name} saved"

    return SimpleNamespace(at=Counters(), directory=tmp_path, keep_diverged=keep_diverged)


def together(tmp_path, students, games=("CartPole-v1",), teachers=(Balancer,)):
    tasks = []
    for game, teacher in zip(games, teachers, strict=True):
        with closing(make_env(game, 1, training=False)) as env:
            tasks.append(Task(env.spec, fd.load_teacher(teacher(), env), 0.1))
    found = Students(students, tasks, run_at(tmp_path), weighting="none", score_episodes=1, seed=1)
    return found, tasks


def games_of(tasks):
    return lambda: [make_env(task.name, 1, training=False) for task in tasks]


def test_another_teachers_level_is_another_measure(tmp_path, monkeypatch):
    """A student of a weak teacher, whose share was large, does not keep a better one out."""
    scores = iter([])
    monkeypatch.setattr(
        module, "evaluate_env", lambda *_, **__: SimpleNamespace(mean=next(scores), mean_error=0.0)
    )
    monkeypatch.setattr(module, "random_score", lambda *_, **__: 0.0)
    monkeypatch.setattr(module, "Probe", lambda *_: SimpleNamespace(agreement=1.0, kl=0.0))
    levels = iter([10.0, 10.0, 100.0, 100.0])
    monkeypatch.setattr(module, "mean_return", lambda *_, **__: next(levels))
    student = student_of(small_network(2, 3))
    students, tasks = together(
        tmp_path, [student], ("CartPole-v1", "FdWalk-v0"), (Balancer, Homing)
    )
    saved = []
    monkeypatch.setattr(students, "save", lambda student: saved.append(students.updates))
    scores = iter([9.0, 9.0])  # 90% of teachers that reach 10
    students.score(games_of(tasks))
    assert saved == [0]
    students.updates = 5
    tasks[1].levels = tasks[0].levels = None  # as when others are taken up
    scores = iter([80.0, 80.0])  # 80% of teachers that reach 100
    values = students.score(games_of(tasks))
    assert values["students/kl_4_seed0/share"] == 80.0
    assert saved == [0, 5]
    students.updates = 9
    scores = iter([79.0, 79.0])
    students.score(games_of(tasks))
    assert saved == [0, 5]


@pytest.mark.parametrize("version", [0, 1])
def test_a_frozen_teacher_decides_where_games_do_not(tmp_path, monkeypatch, version):
    """Of two games, whose errors come together as shares of their teachers' levels."""
    played = iter([])
    agreement = 0.5

    def play(*_, **__):
        mean, error = next(played)
        return SimpleNamespace(mean=mean, mean_error=error)

    monkeypatch.setattr(module, "evaluate_env", play)
    monkeypatch.setattr(module, "Probe", lambda *_: SimpleNamespace(agreement=agreement, kl=0.0))
    students, tasks = together(
        tmp_path, [student_of(small_network(2, 3))], ("CartPole-v1", "Acrobot-v1"),
        (Balancer, Homing),
    )  # fmt: skip
    tasks[0].levels, tasks[1].levels = (0.0, 10.0), (-500.0, -100.0)
    for task in tasks:
        task.teacher = replace(task.teacher, version=version)
    best = next(iter(students._best.values()))

    def score(*games):
        nonlocal played
        played = iter(games)
        return students.score(games_of(tasks))

    # 60% and 80%, with errors of 3 and 4 points of percent: 70 with an error of 2.5.
    values = score((6.0, 0.3), (-180.0, 16.0))
    start = f"students/{students.all[0].name}"
    assert values[f"{start}/share_error/CartPole-v1"] == pytest.approx(3.0)
    assert values[f"{start}/share_error/Acrobot-v1"] == pytest.approx(4.0)
    assert values[f"{start}/share_error"] == pytest.approx(2.5)
    agreement = 0.6
    score((5.0, 0.3), (-180.0, 16.0))  # 65, 1.4 errors of the difference below
    assert best.score == pytest.approx(65.0 if version == 0 else 70.0)
    score((4.0, 0.3), (-180.0, 16.0))  # 60, agrees as much
    assert best.score == pytest.approx(65.0 if version == 0 else 70.0)
    agreement = 0.7
    score((2.0, 0.3), (-180.0, 16.0))  # 50, beyond luck
    assert best.score == pytest.approx(65.0 if version == 0 else 70.0)


def test_scoring_leaves_every_part_in_its_mode(tmp_path, monkeypatch):
    network = PartlyFrozen()
    network.norm.eval()
    student = Student(
        network, loss="kl", size="own", seed=1, optimizer="adam", learning_rate=1e-3,
        bfloat16=False,
    )  # fmt: skip
    students, tasks = together(tmp_path, [student])
    monkeypatch.setattr(students, "save", lambda student: None)
    seen = set()
    network.output.register_forward_hook(
        lambda *_: seen.add((network.training, network.norm.training))
    )
    students.score(games_of(tasks))
    assert seen == {(False, False)}
    assert (network.training, network.norm.training, network.output.training) == (True, False, True)


def test_weights_that_broke_in_the_last_update_end_their_student_alone(
    tmp_path, monkeypatch, capsys
):
    broken, whole = (student_of(small_network(2)) for _ in range(2))
    broken.name = "broken"
    with torch.no_grad():
        next(broken.network.parameters())[0] = float("nan")
    students, tasks = together(tmp_path, [broken, whole])
    monkeypatch.setattr(students, "save", lambda student: None)
    values = students.score(games_of(tasks))
    assert {key.split("/")[1] for key in values} == {whole.name}
    assert students.learning == [whole]
    assert "broken ends here, the others go on: diverged_broken saved" in capsys.readouterr().err
    with torch.no_grad():
        next(whole.network.parameters())[0] = float("inf")
    with pytest.raises(TrainingDiverged, match=f"{whole.name}: diverged_{whole.name} saved"):
        students.score(games_of(tasks))


def test_a_score_through_another_view_is_not_on_record(tmp_path):
    with closing(make_env("pong", 1, training=False)) as env:
        spec = env.spec
    seen = fd.load_teacher("zoo:pong")
    blind = fd.load_teacher("zoo:pong", view=np.zeros_like)
    assert Task(spec, blind, 0.1).recorded_level(10) is None
    found = Task(spec, seen, 0.1).recorded_level(10)
    assert found is None or found.mean == pytest.approx(16.33, abs=0.01)  # None: other versions


def test_a_student_does_not_begin_with_its_teachers_first_weights():
    with closing(make_env("CartPole-v1", 1)) as env:
        options = {"optimizer": "adam", "learning_rate": 1e-3, "bfloat16": False}
        students = make_students(
            [env.spec], losses=("kl", "mse"), sizes=("100%",), seeds=(1, 2),
            device=torch.device("cpu"), **options,
        )  # fmt: skip
    of_seed_1, of_seed_2, again, _ = (student.network.trunk[0].weight for student in students)
    dqn = QNetwork.seeded(students[0].network.architecture, 1).trunk[0].weight
    assert torch.equal(of_seed_1, again), "students of one seed begin with the same weights"
    assert not torch.equal(of_seed_1, dqn)
    assert not torch.equal(of_seed_1, of_seed_2)
