# SPDX-License-Identifier: MIT
"""Play by Ray actors on two nodes of this machine: no row twice, none torn, and nobody missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import fastdistill as fd
from fastdistill.envs import make_env
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.sources import open_source
from fastdistill.recipes.tasks import MODULE, Given
from fastdistill.training import labelled_actors
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_actors import AHEAD, LabelledActors
from fastdistill.training.ranks import Ranks
from fastdistill.training.ray_actors import Actor, Block, Order, Plan, Reborn, checksum
from fastdistill.training.task import Task

PROGRAM = Path(__file__).parents[1] / "ray_program.py"
sys.path.insert(0, str(PROGRAM.parent))
import ranks_program  # noqa: E402


def test_a_block_knows_what_it_is():
    rows = {"frames": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "reward": np.ones((2, 3))}
    order = Order(life=1, number=2, epsilon=0.05, students_share=1.0, updates=30)
    block = Block(order, rows, (), checksum(order, rows))
    assert block.is_whole(order)
    assert not block.is_whole(order._replace(number=3))
    assert not block.is_whole(order._replace(life=0))
    for name in rows:  # every byte counts
        flat = rows[name].reshape(-1).view(np.uint8)
        for place in range(flat.size):
            flat[place] ^= 1
            assert not block.is_whole(order), (name, place)
            flat[place] ^= 1
    assert block.is_whole(order)


def test_two_nodes_four_actors_one_killed_at_work_then_all_at_rest(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fastdistill[ray]'")
    options = {
        "total_updates": 1_200, "num_lanes": 8, "actors": 4, "learning_starts_steps": 1_024,
        "batch_size": 32, "replay_capacity": 8_000, "score_every_updates": 600,
        "score_episodes": 2, "evaluation_episodes": 4, "checkpoint_every_updates": 300,
        "log_every_updates": 50, "tensorboard": False, "device": "cpu", "kill_after": 50,
        "kill_idle_after": 150,
    }  # fmt: skip
    run_dir = tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(run_dir), json.dumps(options)],
        capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    # Ray's own words about those that died may come between and after.
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith('{"nodes"')]
    found = json.loads(line)
    assert found["nodes"] == 2
    # Two episodes of the first worker, which plays as no worker does, and one of the second.
    alone = fd.evaluate(ranks_program.Balancer(), "CartPole-v1", episodes=2)
    assert found["spread"][:2] == list(alone.returns)
    assert len(found["spread"]) == 3
    lives: dict[tuple[int, int, int], list[int]] = {}
    for task, actor, life, number in found["taken"]:
        lives.setdefault((task, actor, life), []).append(number)
    # Each block once, in its order, and none but the last ones of a life missing.
    assert all(numbers == list(range(len(numbers))) for numbers in lives.values())
    assert found["asked_at_most"] <= AHEAD
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    restarts = [record["actors/restarts"] for record in records if "actors/restarts" in record]
    assert found["restarts_before"] == 1
    # Nobody sees that an actor dies when it has nothing to do; what its successor plays is of
    # another life, which not all must have begun before the run was over.
    assert len(found["ends"]) == 4
    for *life, asked in found["ends"]:
        assert len(lives.get(tuple(life), ())) <= asked
    assert 2 <= restarts[-1] <= 5
    # Rows in the replay: those of all blocks that were taken, 64 steps of 2 lanes each.
    assert records[-1]["step"] == len(found["taken"]) * 128
    assert found["updates"] == 1_200
    assert found["mean"] > 200  # as a run without Ray: random play scores 22, the teacher 500


def test_a_new_process_does_not_go_on_with_the_games_of_another():
    env = make_env("CartPole-v1", 2)
    student = torch.nn.Linear(4, 2)
    plan = Plan(
        spec=env.spec, num_lanes=2, teacher=fd.load_teacher(ranks_program.Balancer()),
        networks=[student], bfloat16=False, seed=1, task=0,
    )  # fmt: skip
    env.close()
    order = Order(life=0, number=0, epsilon=0.1, students_share=None, updates=0)
    actor = Actor(plan, 0)
    assert actor.collect(order, None).is_whole(order)
    following = order._replace(number=1)
    assert actor.collect(following, None).is_whole(following)
    with pytest.raises(Reborn, match="asked for block 1 of life 0"):
        Actor(plan, 0).collect(following, None)
    with pytest.raises(Reborn, match="asked for block 1 of life 1"):
        actor.collect(following._replace(life=1), None)


class RayHere:
    """What is used of Ray, in this process; the first answer is that the actor has died."""

    exceptions = SimpleNamespace(RayActorError=ChildProcessError)
    has_died = False

    def put(self, value):
        return value

    def remote(self, **_):
        return lambda kind: SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=partial(self._begin, kind))
        )

    def _begin(self, kind, *arguments):
        actor = kind(*arguments)
        return SimpleNamespace(collect=SimpleNamespace(remote=partial(partial, actor.collect)))

    def wait(self, answers, **_):
        return answers, []

    def get(self, answer):
        if not self.has_died:
            self.has_died = True
            raise ChildProcessError("killed")
        return answer()


def test_actors_that_died_stay_counted_in_a_resumed_run(monkeypatch):
    monkeypatch.setattr(labelled_actors, "connect", RayHere)
    env = make_env("CartPole-v1", 2)
    env.close()
    task = Task(env.spec, fd.load_teacher(ranks_program.Balancer()), 1.0)

    def actors() -> LabelledActors:
        return LabelledActors(
            [task], [], Counters(), actors=2, num_lanes=2, replay_capacity=1_000, seed=1,
            bfloat16=False,
        )  # fmt: skip

    first, resumed = actors(), actors()
    first.step(0.1, None)
    assert first.metrics()["actors/restarts"] == 1
    card = json.loads(json.dumps(first.state()[1]))
    resumed.restore({}, card)
    assert resumed.metrics()["actors/restarts"] == 1
    resumed.step(0.1, None)
    assert resumed.metrics()["actors/restarts"] == 2
    del card["restarts"]
    with pytest.raises(ValueError, match=r"source\.restarts must be there, got none"):
        actors().restore({}, card)


def test_what_actors_cannot_be_given_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled_actors, "connect", lambda: pytest.fail("it began"))
    for name in ("teacher_view", "student_view"):
        text = f"DistillConfig: {name} must be none with engine ray, got 'a function'"
        with pytest.raises(ValueError, match=text):
            fd.distill(
                ranks_program.Balancer(), "CartPole-v1", engine="ray", run_dir=tmp_path / "run",
                **{name: lambda record: record},
            )  # fmt: skip
    text = "DistillConfig: env must be a name with engine ray, got 'an environment'"
    with pytest.raises(ValueError, match=text):
        fd.distill(
            ranks_program.Balancer(), lambda: gymnasium.make("CartPole-v1"), engine="ray",
            run_dir=tmp_path / "run",
        )  # fmt: skip
    sees = fd.load_teacher(ranks_program.Balancer(), "CartPole-v1", view=lambda record: -record)
    config = DistillConfig(teacher=MODULE, game="CartPole-v1", engine="ray")
    text = "distill: teacher must have no view with engine ray, got one with 'a function'"
    with ExitStack() as opened, pytest.raises(ValueError, match=text):
        open_source(config, Given(teachers=(sees,)), Ranks(), opened)
    assert not (tmp_path / "run").exists()


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="num_lanes must be a multiple of 3 actors, got 16"):
        DistillConfig(engine="ray", actors=3)
    with pytest.raises(ValueError, match="data must be none with engine ray, got 'x'"):
        DistillConfig(engine="ray", data="x")
    with pytest.raises(ValueError, match="student_view must be none with engine ray, got 'x'"):
        DistillConfig(engine="ray", student_view="x")
