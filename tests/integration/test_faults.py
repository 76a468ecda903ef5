# SPDX-License-Identifier: MIT
"""Runs that meet a fault: in words, with everything that can be kept, and nothing made up.

Each run is of seconds, on CartPole or on an environment that misbehaves when it is told to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from cartpole import Balancer

import fastdistill as fd
from fastdistill.envs import EnvFault
from fastdistill.networks.checkpoint import CheckpointError, write_checkpoint
from fastdistill.recipes import dqn, pqn
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.pqn import PqnConfig
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.run import Run

COMMON = {
    "num_lanes": 4, "batch_size": 16, "score_episodes": 2, "evaluation_episodes": 2,
    "tensorboard": False, "bfloat16": False, "device": "cpu",
}  # fmt: skip


class Faulty(gymnasium.Env):
    """CartPole's shapes; ``fault`` happens at the step ``at`` of any one environment."""

    observation_space = gymnasium.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    fault, at, steps = None, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = 0
        return self.np_random.random(4, np.float32), {}

    def step(self, action):
        Faulty.steps += 1
        self.length += 1
        result = [self.np_random.random(4, np.float32), 1.0, self.length >= 20, False, {}]
        if Faulty.fault is not None and Faulty.steps == Faulty.at:
            Faulty.fault(result)
        return tuple(result)


def raises(result):
    raise ZeroDivisionError("the wheels came off")


def put(index, value):
    def fault(result):
        result[index] = value

    return fault


FAULTS = {
    "raises": (raises, "env must not raise, got ZeroDivisionError: the wheels came off"),
    "NaN": (put(0, np.array([0, np.nan, 0, 0], np.float32)), r"must be finite, got \[0.0, nan"),
    "infinite": (put(0, np.full(4, np.inf, np.float32)), r"must be finite, got \[inf"),
    "shape": (put(0, np.zeros(5, np.float32)), r"must be float32 \[4\], got float32 \[5\]"),
    "dtype": (put(0, np.array(list("abcd"))), r"must be float32 \[4\], got <U1 \[4\]"),
    "reward": (put(1, float("nan")), "reward must be finite, got nan"),
    "no reward": (put(1, None), "got TypeError"),
    "done": (put(2, None), "terminated and truncated must be bool, got None and False"),
}


@pytest.fixture(autouse=True)
def _sound_again():
    if "Faulty-v0" not in gymnasium.registry:
        gymnasium.register("Faulty-v0", Faulty, disable_env_checker=True)
    Faulty.fault, Faulty.steps = None, 0
    yield
    Faulty.fault = None


def run_distill(run_dir, game="CartPole-v1", **options):
    more = {
        "total_updates": 60, "learning_starts_steps": 80, "replay_capacity": 2_000,
        "score_every_updates": 25, "checkpoint_every_updates": 20, "log_every_updates": 7,
    }  # fmt: skip
    return fd.distill(Balancer(), game, run_dir=run_dir, **{**COMMON, **more, **options})


def run_dqn(run_dir, game="CartPole-v1", stop=None, resume=False, **options):
    more = {
        "total_steps": 800, "learning_starts_steps": 80, "epsilon_steps": 400,
        "samples_per_step": 2, "replay_capacity": 600, "checkpoint_every_steps": 200,
        "log_every_steps": 60,
    }  # fmt: skip
    config = DqnConfig(run_dir=run_dir, game=game, **{**COMMON, **more, **options})
    return dqn.train(config, stop=stop, resume=resume)


def run_pqn(run_dir, game="CartPole-v1", stop=None, resume=False, **options):
    more = {
        "total_steps": 1_024, "rollout_steps": 16, "spread_steps": 8,
        "checkpoint_every_steps": 256, "log_every_steps": 192,
    }  # fmt: skip
    config = PqnConfig(run_dir=run_dir, game=game, **{**COMMON, **more, **options})
    return pqn.train(config, stop=stop, resume=resume)


RUNS = {"distill": run_distill, "dqn": run_dqn, "pqn": run_pqn}


def interrupt(monkeypatch, moments):
    """A KeyboardInterrupt whenever cadence is asked for the first time at one of these counts."""
    real, left = Run.due, set(moments)

    def due(self, what):
        if self._count in left:
            left.discard(self._count)
            raise KeyboardInterrupt
        return real(self, what)

    monkeypatch.setattr(Run, "due", due)


def untimed(run_dir) -> list[dict]:
    """metrics.jsonl but for what a clock says."""
    return [
        {k: v for k, v in json.loads(line).items() if "seconds" not in k and k != "charts/SPS"}
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("recipe", sorted(RUNS))
def test_metrics_after_interruptions_are_those_of_an_undisturbed_run(tmp_path, monkeypatch, recipe):
    run = RUNS[recipe]
    run(tmp_path / "whole")
    interrupt(monkeypatch, {"distill": (22, 45), "dqn": (324, 612), "pqn": (320, 832)}[recipe])
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", resume=resume)
    run(tmp_path / "broken", resume=True)
    expected = untimed(tmp_path / "whole")
    assert untimed(tmp_path / "broken") == expected
    assert len(expected) >= 6


class StopAt:
    """Asks for a stop once ``count`` steps are done."""

    def __init__(self) -> None:
        self.requested = False


@pytest.mark.parametrize(("recipe", "moment"), [("dqn", 400), ("pqn", 512)])
def test_a_stop_at_a_checkpoints_own_moment_changes_no_choice(
    tmp_path, monkeypatch, recipe, moment
):
    # Stopped there, the network of that moment was once never judged, and another one was kept.
    run, stop, real = RUNS[recipe], StopAt(), Run.due
    run(tmp_path / "whole")

    def due(self, what):
        stop.requested = stop.requested or self.at.step == moment
        return real(self, what)

    monkeypatch.setattr(Run, "due", due)
    assert run(tmp_path / "stopped", stop=stop).stopped
    monkeypatch.undo()
    run(tmp_path / "stopped", resume=True)
    cards = [
        json.loads((tmp_path / name / "teacher.json").read_text()) for name in ("whole", "stopped")
    ]
    assert cards[0]["scoring"] == cards[1]["scoring"]
    assert cards[0]["weights"] == cards[1]["weights"]


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_an_environment_that_misbehaves_ends_a_run_in_words_with_a_checkpoint(tmp_path, fault):
    Faulty.fault, message = FAULTS[fault]
    Faulty.at = 4 * 500 + 602  # after the random play of the input statistics; it happens in lane 1
    with pytest.raises(EnvFault, match=rf"^LaneEnv.step: .*{message}.* in lane 1 of Faulty-v0$"):
        run_dqn(tmp_path / "run", "Faulty-v0", score_episodes=0)
    _, card = TrainingCheckpoints(tmp_path / "run" / "checkpoints").latest()
    steps = card["counters"]["step"]
    assert 500 < steps < 800
    replay = fd.PrioritizedReplay(
        600, 4, frame_shape=(4,), frame_dtype="float32", stack=1, n_step=3, priority_exponent=0.5
    )
    replay.load(tmp_path / "run" / "checkpoints" / card["replay"])
    assert replay.statistics()["appended_steps"] in (0, steps)  # nothing of that step
    Faulty.fault = None
    assert run_dqn(tmp_path / "run", "Faulty-v0", score_episodes=0, resume=True).step == 800


def test_the_environments_exception_is_chained(tmp_path):
    Faulty.fault, Faulty.at = raises, 150
    with pytest.raises(EnvFault) as caught:
        run_distill(tmp_path / "run", "Faulty-v0", score_episodes=0)
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], ZeroDivisionError)
    assert list((tmp_path / "run" / "checkpoints").glob("step_*.json"))
    Faulty.fault = None
    result = run_distill(tmp_path / "run", "Faulty-v0", score_episodes=0, resume=True)
    assert result.updates == 60


def forged(run_dir: Path, change) -> Path:
    """The newest checkpoint with another content, under a digest of its own."""
    store = TrainingCheckpoints(run_dir / "checkpoints")
    tensors, card = store.latest()
    card = {k: v for k, v in card.items() if k not in ("format", "weights")}
    change(tensors, card)
    return write_checkpoint(store.description(card["step"]), tensors, card)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """One run of each kind that has not ended."""
    folder = tmp_path_factory.mktemp("stopped")
    stop = StopAt()
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, (50, 640))
        for name in ("distill", "dqn"):
            with pytest.raises(KeyboardInterrupt):
                RUNS[name](folder / name)
    assert not stop.requested
    return folder


def at(*path_and_value):
    *path, last, value = path_and_value

    def change(tensors, card):
        place = card
        for key in path:
            place = place[key]
        place[last] = value

    return change


def drop(*path):
    def change(tensors, card):
        place = card
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def other_tensor(name, tensor):
    def change(tensors, card):
        assert name in tensors
        tensors[name] = tensor

    return change


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("dqn", at("counters", 5), "counters must be an object, got 5"),
        ("dqn", drop("counters"), "no 'counters'"),
        ("dqn", at("counters", "step", "x"), "counters.step must be an integer of 0 or more, got"),
        ("dqn", at("counters", "updates", 1.5), "counters.updates must be an integer"),
        ("dqn", at("counters", "recent_returns", [None]), r"recent_returns\[0\] must be a finite"),
        ("dqn", at("play", "collectors", 0, "rng", []),
         r"collector.rng must be an object, got \[\]"),
        ("dqn", at("play", "collectors", 0, "rng", "state", "inc", -1),
         "rng.state.inc must be an int"),
        ("dqn", at("play", "collectors", 0, "rng", "bit_generator", "MT"), "must be 'PCG64', got"),
        ("dqn", at("play", "collectors", 3), "play.collectors must be a list, got 3"),
        ("dqn", at("play", "collectors", []), "play.shares must be of 1 games, got 0 and 1"),
        ("dqn", at("play", "shares", "x"), "play.shares must be a list, got 'x'"),
        ("dqn", at("best", 7), "best must be a list, got 7"),
        ("dqn", at("best", ["a", 0]), "best.score must be a finite number, got 'a'"),
        ("dqn", at("means", "sums", 3), "means.sums must be an object, got 3"),
        ("dqn", drop("means", "count"), "means.count must be there, got none"),
        ("distill", at("source", None), "source must be an object, got None"),
        ("distill", at("source", "tasks", 0, "temperature", "hot"), "temperature must be a finite"),
        ("distill", at("source", "tasks", 0, "drivers", "lanes", [9]), "lanes must be 4 integers"),
        ("distill", drop("students", "kl_7_seed1"), "students.kl_7_seed1 must be there, got none"),
        ("distill", at("students", "kl_7_seed1", "means", 1), "kl_7_seed1.means must be an object"),
        ("dqn", other_tensor("learner.network.obs_mean", torch.zeros(3)), "size mismatch for obs"),
        ("dqn", other_tensor("play.env0.actions", torch.zeros(3, dtype=torch.int16)),
         "as many actions"),
        ("dqn", other_tensor("play.env0.seed", torch.zeros(3)), "tensor env.seed must be a row of"),
        ("distill", other_tensor("students.kl_7_seed1.optimizer.0.exp_avg", torch.zeros(3)),
         r"tensor 'optimizer.0.exp_avg' must be one of the optimizer's, got one of shape \[3\]"),
    ],
)  # fmt: skip
def test_a_forged_checkpoint_is_refused_with_its_file_and_the_field(
    tmp_path, stopped, recipe, change, message
):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped / recipe, run_dir)
    path = forged(run_dir, change)
    with pytest.raises(CheckpointError, match=rf"^resume: .*{path.name} must be .*{message}"):
        RUNS[recipe](run_dir, resume=True)


@pytest.mark.parametrize("recipe", ["distill", "dqn"])
def test_a_run_directory_that_vanished_is_not_made_anew(tmp_path, monkeypatch, recipe):
    run_dir, real = tmp_path / "run", Run.checkpoint

    def checkpoint(self, *arguments):
        shutil.rmtree(run_dir)
        real(self, *arguments)

    monkeypatch.setattr(Run, "checkpoint", checkpoint)
    with pytest.raises(FileNotFoundError, match="must stay while it is trained in, got none"):
        RUNS[recipe](run_dir, score_episodes=0)
    assert not run_dir.exists()


def test_another_directory_in_the_place_of_the_runs_is_noticed(tmp_path, monkeypatch):
    run_dir, real = tmp_path / "run", Run.write

    def write(self, values):
        if not (tmp_path / "moved").exists():
            run_dir.rename(tmp_path / "moved")
            run_dir.mkdir()
        real(self, values)

    monkeypatch.setattr(Run, "write", write)
    with pytest.raises(FileNotFoundError, match="must stay while it is trained in, got another at"):
        run_distill(run_dir)
    assert list(run_dir.iterdir()) == []


def test_what_killed_processes_left_goes_at_the_next_start(tmp_path, stopped):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped / "distill", run_dir)
    (run_dir / "students").mkdir(exist_ok=True)
    left = [
        ".config.json.4711.tmp", ".evaluation.json.4711.tmp", ".report.html.4711.tmp",
        ".student.json.4711.tmp", ".student.safetensors.4711.tmp", ".metrics.jsonl.4711.tmp",
        "students/.kl_7_seed1.json.4711.tmp", ".metrics.jsonl.damaged-1.4711.tmp",
        "students/.kl_7_seed1-0123456789ab.safetensors.4711.tmp",
    ]  # fmt: skip
    foreign = ["notes.txt", ".mine.tmp", "students/.json.tmp"]
    for name in left + foreign:
        (run_dir / name).write_text("left")
    run_distill(run_dir, resume=True)
    assert [name for name in left if (run_dir / name).exists()] == []
    assert [name for name in foreign if not (run_dir / name).exists()] == []


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("config.json", "open_run"),
        ("student.json", "write_checkpoint"),
        ("evaluation.json", "write_evaluation"),
        ("report.html", "write_report"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_with_the_reason(
    tmp_path, monkeypatch, file, function
):
    if file == "report.html":
        pytest.importorskip("matplotlib")
    real = Path.replace

    def replace(self, target):
        if target.name == file:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(
        OSError, match=rf"{function}: .*{file} must be writable, got No space left on device"
    ):
        run_distill(tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []
