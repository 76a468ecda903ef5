# SPDX-License-Identifier: MIT
"""A teacher that sees more than its student, in environments that are given as they are made."""

from __future__ import annotations

import json
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

import fastdistill as fd
from fastdistill import cli
from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork
from fastdistill.networks.checkpoint import read_checkpoint
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.learners.student import Student
from fastdistill.training.task import Task

QUICK = {
    "total_updates": 120, "num_lanes": 4, "batch_size": 32, "learning_starts_steps": 80,
    "replay_capacity": 2_000, "score_every_updates": 60, "checkpoint_every_updates": 60,
    "score_episodes": 4, "evaluation_episodes": 8, "temperature": 1.0, "learning_rate": 5e-3,
    "tensorboard": False, "device": "cpu", "bfloat16": False,
}  # fmt: skip


class Hidden(gymnasium.Env):
    """Guess which of three doors is right: the door is written in `secret`, a hint in `seen`."""

    action_space = spaces.Discrete(3)
    observation_space = spaces.Dict(
        {
            "secret": spaces.Discrete(3),
            "seen": spaces.Box(0, 255, (8, 9, 2), np.uint8),
            "words": spaces.Text(9),
        }
    )

    def _shown(self):
        seen = np.zeros((8, 9, 2), np.uint8)
        seen[4, 3 * self._door + 1, 1] = 255
        return {"secret": self._door, "seen": seen, "words": "door"}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time, self._door = 0, int(self.np_random.integers(3))
        return self._shown(), {}

    def step(self, action):
        reward = float(action == self._door)
        self._time += 1
        self._door = int(self.np_random.integers(3))
        return self._shown(), reward, False, self._time >= 10, {}


class Knows(nn.Module):
    """The secret itself, as one-hot logits."""

    def forward(self, obs):
        assert obs.shape[1:] == (3,)
        return 8.0 * obs.float()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def knows():
    return fd.load_teacher(Knows(), kind="logits", view="secret")


@pytest.mark.parametrize("share", [None, 1.0], ids=["teacher drives", "student drives"])
def test_the_replay_keeps_what_the_student_saw_and_what_the_teacher_said_of_that_moment(share):
    with closing(make_env(Hidden, 3, view="seen", teacher_view="secret")) as env:
        student = Student(
            QNetwork(Architecture(env.spec.obs_shape, (3,), hidden=(8,))), loss="kl", size="4%",
            seed=0, optimizer="adam", learning_rate=1e-3, bfloat16=False,
        )  # fmt: skip
        counters = Counters()
        play = LabelledPlay(
            [Task(env.spec, knows(), 1.0)], [env], [student], counters,
            replay_capacity=300, seed=5, bfloat16=False,
        )  # fmt: skip
        play.reset()
        counters.updates = 1  # students may drive
        for _ in range(150):
            play.step(0.3, share)
    batch = play.replay.sample(400)
    assert batch.obs.shape == (400, 2, 8, 9)
    assert batch.obs.dtype == torch.uint8
    # Where the picture's pixel is: the door, as the student could see it.
    door = (batch.obs[:, 1, 4].argmax(dim=1) - 1) // 3
    assert torch.equal(batch.columns["teacher_logits"].argmax(dim=1), door)
    assert len(door.unique()) == 3


def test_a_privileged_teacher_is_matched_by_a_student_that_sees_less(tmp_path):
    result = fd.distill(knows(), Hidden, student_view="seen", run_dir=tmp_path / "run", **QUICK)
    teacher = result.evaluation["teacher"]["summary"]["mean"]["value"]
    (student,) = result.evaluation["students"]
    assert teacher == 10.0, "it was played with its own view"
    assert student["summary"]["mean"]["value"] == 10.0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["game"], config["student_view"]) == ("an environment", "seen")
    _, card = read_checkpoint(tmp_path / "run" / "student")
    assert (card["view"], card["teacher"]["view"]) == ("seen", "secret")
    # Its file remembers the key, and needs no environment to be loaded.
    path = tmp_path / "run" / "student"
    assert fd.load_teacher(path).view == "seen"
    assert fd.evaluate(path, Hidden, episodes=4).mean == 10.0
    assert fd.evaluate(result.student, Hidden, episodes=4, view="seen").mean == 10.0
    assert fd.verify_teacher(knows(), Hidden, 10.0, episodes=4).agrees
    # A student can teach, by what it sees.
    assert fd.load_teacher(f"{path}+{path}").view == "seen"
    again = fd.distill(path, Hidden, student_view="secret", run_dir=tmp_path / "again", **QUICK)
    assert again.evaluation["teacher"]["summary"]["mean"]["value"] == 10.0
    other = again.run_dir / "student"
    with pytest.raises(
        ValueError, match=r"\+ or \| between them must have one view, got seen, sec"
    ):
        fd.load_teacher(f"{path}+{other}")
    with pytest.raises(TypeError, match=r"^LaneEnv: env must have vector or image .*choose a key"):
        fd.evaluate(result.student, Hidden)
    with pytest.raises(ValueError, match=r"must see observations of shape \[3\] \(Hidden\), got"):
        fd.evaluate(path, Hidden, view="secret")


def test_a_stopped_run_goes_on_with_its_keys(tmp_path):
    """Interrupted and continued, the same weights; what a file cannot hold is given again."""
    whole = fd.distill(knows(), Hidden, student_view="seen", run_dir=tmp_path / "whole", **QUICK)

    class Breaks(Hidden):
        steps = 0

        def step(self, action):
            Breaks.steps += 1
            if Breaks.steps == 900:
                raise KeyboardInterrupt
            return super().step(action)

    Breaks.__name__ = "Hidden"
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        fd.distill(knows(), Breaks, student_view="seen", run_dir=part, **QUICK)
    with pytest.raises(ValueError, match=r"^distill: env must be given again as the environment"):
        fd.distill(knows(), run_dir=part, resume=True)
    continued = fd.distill(knows(), Hidden, run_dir=part, resume=True)
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, continued.student.state_dict()[name]), name


def test_functions_are_given_again(tmp_path, capsys):
    def picture(shown):
        return shown["seen"][..., 1:]

    def secret(shown):
        return np.eye(3, dtype=np.float32)[shown["secret"]]

    teacher = fd.load_teacher(Knows(), kind="logits")
    options = {"teacher_view": secret, "student_view": picture}
    run_dir = tmp_path / "run"
    result = fd.distill(teacher, Hidden, run_dir=run_dir, **options, **QUICK)
    assert result.student.architecture.obs_shape == (1, 8, 9)
    assert result.evaluation["students"][0]["summary"]["mean"]["value"] == 10.0
    for left_out in options:
        given = {name: view for name, view in options.items() if name != left_out}
        with pytest.raises(
            ValueError,
            match=rf"^distill: {left_out} must be given again as the function that it was, got 'a "
            rf"function'; call fastdistill.distill\(..., {left_out}=function\) from Python$",
        ):
            fd.distill(teacher, Hidden, run_dir=run_dir, resume=True, **given)
    fd.distill(teacher, Hidden, run_dir=run_dir, resume=True, **options)
    with pytest.raises(
        ValueError, match=r"^load_teacher: view must be given again as the function that it was"
    ):
        fd.evaluate(run_dir / "student", Hidden)
    assert fd.evaluate(run_dir / "student", Hidden, view=picture, episodes=4).mean == 10.0
    # From the command line nothing of it can be given.
    assert cli.main(["distill", "--run-dir", str(run_dir), "--resume"]) == 2
    assert "env must be given again as the environment that it was" in capsys.readouterr().err


def test_keys_on_the_command_line(tmp_path, capsys):
    gymnasium.register("Hidden-v0", Hidden)
    try:
        first = fd.distill(knows(), "Hidden-v0", student_view="secret", run_dir=tmp_path / "one",
                           **QUICK)  # fmt: skip
        assert first.evaluation["game"] == "Hidden-v0"
        words = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()
                 if not isinstance(value, bool)]  # fmt: skip
        words += ["--no-bfloat16", "--no-tensorboard", f"--teacher={tmp_path / 'one' / 'student'}"]
        run_dir = tmp_path / "two"
        assert cli.main(["distill", "--student-view=seen", f"--run-dir={run_dir}", *words]) == 0
        assert cli.main(["evaluate", str(run_dir / "student"), "--episodes=5"]) == 0
        assert "mean      10.00" in capsys.readouterr().out
        assert (
            cli.main(["distill", "--student-view=sen", f"--run-dir={tmp_path / 'no'}", *words]) == 2
        )
        said = capsys.readouterr().err
        assert "LaneEnv: view must be one of 'secret', 'seen', 'words', got 'sen'" in said
        assert not (tmp_path / "no").exists()
    finally:
        del gymnasium.registry["Hidden-v0"]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_vector_that_is_lent_is_trained_and_judged_in(mode, tmp_path):
    lent = SyncVectorEnv([Hidden] * 4, autoreset_mode=mode)
    options = {name: value for name, value in QUICK.items() if name != "num_lanes"}
    result = fd.distill(knows(), lent, student_view="seen", run_dir=tmp_path / "run", **options)
    assert result.evaluation["students"][0]["summary"]["mean"]["value"] == 10.0
    assert lent.reset()[0]["seen"].shape == (4, 8, 9, 2), "it was left open"
    with pytest.raises(
        ValueError, match=r"^distill: num_lanes must be the 4 of the vector environment, got 3$"
    ):
        fd.distill(
            knows(), lent, student_view="seen", run_dir=tmp_path / "b", **{**QUICK, "num_lanes": 3}
        )


def test_scoring_in_a_lent_vector_does_not_disturb_the_training(tmp_path):
    """The same weights whether the same vector also judged in between, or judges had their own."""
    students = []
    for name, make in (("lent", None), ("made", True)):
        vector = SyncVectorEnv([Hidden] * 4, autoreset_mode=AutoresetMode.NEXT_STEP)
        result = fd.distill(
            knows(), Hidden if make else vector, student_view="seen", run_dir=tmp_path / name,
            **{**QUICK, "score_episodes": 4, "evaluation_episodes": 0},
        )  # fmt: skip
        students.append(result.student.state_dict())
    for name in students[0]:
        assert torch.equal(students[0][name], students[1][name]), name
