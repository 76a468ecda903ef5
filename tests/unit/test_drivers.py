# SPDX-License-Identifier: MIT
"""Who drives: exact shares, and the labels and actions of whoever is at the wheel."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdistill.training.drivers import TEACHER, Drivers


class Always(torch.nn.Module):
    """Prefers one action whatever it sees."""

    def __init__(self, action: int, actions: int = 5) -> None:
        super().__init__()
        self.action, self.actions = action, actions

    def forward(self, obs):
        return torch.nn.functional.one_hot(
            torch.full((len(obs),), self.action), self.actions
        ).float() * (1 + obs[:, :1])


def drivers_of(num_students: int, num_lanes: int) -> Drivers:
    teacher = SimpleNamespace(values=Always(4), device=torch.device("cpu"))
    students = [Always(action) for action in range(num_students)]
    return Drivers(teacher, students, num_lanes, bfloat16=False)


@pytest.mark.parametrize("num_students", [1, 2, 3])
@pytest.mark.parametrize("num_lanes", [1, 3, 16, 17])
@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.999, 1.0])
def test_the_share_of_the_students_is_exact(num_students, num_lanes, share):
    drivers, rng = drivers_of(num_students, num_lanes), np.random.default_rng(0)
    total = 0
    turns = np.zeros(num_students, np.int64)
    for draw in range(1, 61):
        drivers.draw(share, rng)
        driving = drivers.lanes[drivers.lanes != TEACHER]
        total += len(driving)
        # To within the one lane that is still owed, after every draw.
        assert share * num_lanes * draw - 1 < total + 1e-6
        assert total <= share * num_lanes * draw + 1e-6
        counts = np.bincount(driving, minlength=num_students)
        assert counts.max() - counts.min() <= 1, "students take turns"
        turns += counts
    if share == 1.0:
        assert total == 60 * num_lanes
    if share == 0.0:
        assert total == 0


def test_a_rising_share_is_exact_in_its_sum():
    drivers, rng = drivers_of(2, 16), np.random.default_rng(1)
    shares = np.linspace(0, 1, 101)
    total = 0
    for share in shares:
        drivers.draw(float(share), rng)
        total += int((drivers.lanes != TEACHER).sum())
    assert total == pytest.approx(16 * shares.sum(), abs=1)


@pytest.mark.statistical
def test_every_lane_gets_its_turn():
    """Of 400 draws with half the lanes each lane has 140 to 260: 6 deviations, false alarm 1e-8.

    Drivers that always took the first lanes would give 400 and 0.
    """
    drivers, rng = drivers_of(1, 8), np.random.default_rng(2)
    driven = np.zeros(8)
    for _ in range(400):
        drivers.draw(0.5, rng)
        driven += drivers.lanes != TEACHER
    assert driven.sum() == 1600
    assert driven.min() > 140
    assert driven.max() < 260


def test_each_lane_is_driven_by_its_driver_and_labelled_by_the_teacher():
    drivers = drivers_of(3, 6)
    obs = np.arange(6, dtype=np.float32)[:, None]
    drivers.lanes = np.array([2, TEACHER, 0, 1, TEACHER, 2])
    choice = drivers(SimpleNamespace(obs=obs, teacher_obs=obs))
    assert choice.greedy.tolist() == [4] * 6, "students have nothing to say before they learned"
    drivers.students_ready = True
    choice = drivers(SimpleNamespace(obs=obs, teacher_obs=obs))
    assert choice.greedy.tolist() == [2, 4, 0, 1, 4, 2]
    labels = choice.columns["teacher_logits"]
    assert labels[:, 4].tolist() == [1, 2, 3, 4, 5, 6]
    assert not labels[:, :4].any()


def test_a_continued_run_owes_what_was_owed():
    first, second = drivers_of(1, 3), drivers_of(1, 3)
    rngs = [np.random.default_rng(3), np.random.default_rng(3)]
    first.draw(0.5, rngs[0])
    second.draw(0.5, rngs[1])
    continued = drivers_of(1, 3)
    continued.restore(second.state())
    for _ in range(5):
        first.draw(0.5, rngs[0])
        continued.draw(0.5, rngs[1])
        assert first.lanes.tolist() == continued.lanes.tolist()


def test_a_student_drives_as_it_plays_in_an_evaluation():
    """One lane, of which batch normalisation in training could say nothing."""
    student = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 5))
    teacher = SimpleNamespace(values=Always(4), device=torch.device("cpu"))
    drivers = Drivers(teacher, [student], 1, bfloat16=False)
    drivers.lanes[:], drivers.students_ready = 0, True
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    obs = np.ones((1, 3), np.float32)
    drivers(SimpleNamespace(obs=obs, teacher_obs=obs))
    assert student.training
    assert all(torch.equal(student.state_dict()[name], before[name]) for name in before)
