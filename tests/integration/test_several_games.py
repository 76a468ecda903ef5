# SPDX-License-Identifier: MIT
"""Several games in one student: each head learns its own game's labels, and nothing else."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import fastdistill as fd
from fastdistill.cli import main
from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork, save_network
from fastdistill.networks.checkpoint import write_checkpoint
from fastdistill.recipes import distill as recipe
from fastdistill.recipes import dqn
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.replay import ReplayBatch
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.learners.student import Student
from fastdistill.training.shares import Shares
from fastdistill.training.task import Task

SMALL = {
    "total_updates": 60,
    "num_lanes": 4,
    "learning_starts_steps": 160,
    "batch_size": 17,
    "replay_capacity": 2_000,
    "score_every_updates": 30,
    "score_episodes": 2,
    "evaluation_episodes": 0,
    "checkpoint_every_updates": 20,
    "log_every_updates": 10,
    "tensorboard": False,
    "bfloat16": False,
    "device": "cpu",
}


class Walk(gymnasium.Env):
    """A walk on a line, seen as CartPole is: four numbers. Reward for staying near the middle."""

    def __init__(self, actions: int = 3) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(actions)
        self._place, self._time = 0.0, 0

    def _obs(self):
        return np.array([self._place, 1.0, -self._place, self._time / 20], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._time = float(self.np_random.normal()), 0
        return self._obs(), {}

    def step(self, action):
        self._place += (int(action) - 1) / 2 + 0.1 * float(self.np_random.normal())
        self._time += 1
        reward = 1.0 if abs(self._place) < 1 else 0.0
        return self._obs(), reward, abs(self._place) > 4, self._time >= 20, {}


class Wide(Walk):
    """The same with another number of observations."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def _obs(self):
        return np.append(super()._obs(), np.float32(0))


for name, kind, options in (
    ("FdWalk-v0", Walk, {}), ("FdWalk5-v0", Walk, {"actions": 5}), ("FdWide-v0", Wide, {}),
):  # fmt: skip
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=lambda kind=kind, **more: kind(**more), kwargs=options)


class Balancer(nn.Module):
    """A hand-made CartPole policy."""

    def forward(self, obs):
        lean = obs @ torch.tensor([0.1, 0.3, 1.0, 1.0])
        return torch.stack([-lean, lean], dim=1)


class Homing(nn.Module):
    """A hand-made policy for ``Walk``: towards the middle."""

    def __init__(self, actions: int = 3) -> None:
        super().__init__()
        self.actions = actions

    def forward(self, obs):
        steps = (torch.arange(self.actions) - 1) / 2
        return -(obs[:, :1] + steps).abs()


class Names(nn.Module):
    """Values that name the game and the observation: ``game + obs[0] + action / 10``."""

    def __init__(self, game: int, actions: int) -> None:
        super().__init__()
        self.game, self.actions = game, actions

    def forward(self, obs):
        return 1000 * self.game + obs[:, :1] + torch.arange(self.actions) / 10


def two_games(run_dir, teachers=None, **options):
    if teachers is None:
        teachers = {"CartPole-v1": Balancer(), "FdWalk-v0": Homing()}
    return fd.distill(teachers, run_dir=run_dir, **{**SMALL, **options})


def weights(run_dir):
    return {
        path.name: fd.load_network(path)[0].state_dict()
        for path in sorted((run_dir / "students").glob("*.json"))
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), (name, key)


def test_one_student_learns_two_games(tmp_path):
    result = two_games(
        tmp_path / "run",
        total_updates=600, temperature="auto", evaluation_episodes=4, learning_rate=3e-3,
        batch_size=32, loss="kl,nll", student="multi", score_every_updates=300,
    )  # fmt: skip
    student = result.student
    assert student.games == ("CartPole-v1", "FdWalk-v0")
    assert student.architecture.num_actions == (2, 3)
    assert student.obs_mean.shape == (2, 4)
    assert not torch.equal(student.obs_mean[0], student.obs_mean[1])
    for record, game in zip(result.evaluation["games"], student.games, strict=True):
        assert record["game"] == game
        assert [entry["name"] for entry in record["students"]] == [
            "kl_multi_seed1",
            "nll_multi_seed1",
        ]
        assert (
            record["students"][0]["parameters_of_all_games"] > record["students"][0]["parameters"]
        )
        again = fd.evaluate(student, game, episodes=4, seed=1, num_lanes=4)
        assert list(again.returns) == record["students"][0]["returns"]
    kl = result.evaluation["students"][0]
    assert kl["geometric_mean_percent"]["low"] <= kl["geometric_mean_percent"]["value"]
    assert kl["geometric_mean_percent"]["value"] > 50
    assert kl["percent_of_teacher"]["value"] >= kl["least_percent"]
    keys = set().union(
        *map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    )
    for measure in ("loss", "score", "agreement", "kl", "share"):
        assert f"students/kl_multi_seed1/{measure}/FdWalk-v0" in keys
    assert "students/kl_multi_seed1/share" in keys
    card = fd.load_network(tmp_path / "run" / "student")[1]
    assert [entry["game"] for entry in card["games"]] == list(student.games)
    page = result.report.read_text()
    assert "One network plays" in page
    assert 'href="report-FdWalk-v0-2.html"' in page
    assert "FdWalk-v0" in (tmp_path / "run" / "report-FdWalk-v0-2.html").read_text()
    assert card["games"][0]["temperature"] != card["games"][1]["temperature"], "auto is per game"


def made_play(seed=5, weights=(1.0, 1.0), students=()):
    """Two games under play whose labels name game and state."""
    envs = [make_env("CartPole-v1", 3, training=False), make_env("FdWalk5-v0", 3, training=False)]
    teachers = [fd.load_teacher(Names(g, env.spec.num_actions), env) for g, env in enumerate(envs)]
    tasks = [
        Task(env.spec, teacher, 0.5, weight)
        for env, teacher, weight in zip(envs, teachers, weights, strict=True)
    ]
    counters = Counters()
    play = LabelledPlay(
        tasks, envs, students, counters, replay_capacity=900, seed=seed, bfloat16=False
    )
    play.reset()
    return play, envs, counters


def small_network(*actions):
    return QNetwork.seeded(Architecture((4,), actions, hidden=(8,)), 3)


def student_of(network):
    return Student(
        network, loss="kl", size="4%", seed=0, optimizer="adam", learning_rate=1e-3, bfloat16=False
    )


@pytest.mark.parametrize("share", [None, 0.5, 1.0], ids=["teacher", "mixture", "student"])
def test_a_label_never_reaches_another_games_head(share):
    """Teachers that encode their game and the state, over episode ends and a wrapped ring."""
    play, envs, counters = made_play(students=[student_of(small_network(2, 5))])
    counters.updates = 1  # students may drive
    for _ in range(400):
        play.step(0.3, share)
    for _ in range(20):
        obs, labels = play.sample(101)
        assert [part.shape[1] for part in labels] == [2, 5]
        rows = torch.split(obs, [len(part) for part in labels])
        for game, (seen, part) in enumerate(zip(rows, labels, strict=True)):
            assert torch.equal(part, play.tasks[game].teacher.values(seen))
            assert ((part[:, 0] - 1000 * game).abs() < 100).all()
    for env in envs:
        env.close()


def test_shares_of_a_batch_are_exact():
    play, envs, _ = made_play(weights=(1.0, 2.0))
    for _ in range(60):
        play.step(0.3, None)
    counts = np.array([[len(part) for part in play.sample(64).labels] for _ in range(30)])
    assert (counts.sum(axis=1) == 64).all()
    total = counts.cumsum(axis=0)
    wanted = 64 * np.arange(1, 31)[:, None] * np.array([1 / 3, 2 / 3])
    assert (np.abs(total - wanted) < 1).all()
    assert counts[:, 0].min() >= 21
    assert counts[:, 0].max() <= 22
    for env in envs:
        env.close()


@pytest.mark.parametrize("shares", [[1], [1, 1, 1], [1, 1, 2], [0, 1], [1e-9, 1, 1], [5, 0, 0.3]])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_shares_add_up_and_none_is_negative(shares, rows):
    counted = Shares(shares)
    total = np.zeros(len(shares))
    for batch in range(1, 200):
        counts = counted.take(rows)
        assert sum(counts) == rows
        assert min(counts) >= 0
        total += counts
        wanted = np.array(shares) / sum(shares) * rows * batch
        assert (np.abs(total - wanted) < len(shares)).all()
        assert (total[np.array(shares) == 0] == 0).all()
        copy = Shares(shares)
        copy.restore(json.loads(json.dumps(counted.state())))
        counted = copy


@pytest.mark.parametrize("loss", ["kl", "nll", "mse", "reverse_kl", "jsd"])
def test_an_update_is_that_of_a_plain_loop(loss):
    """Trunk once, a head and its loss on its slice, one divisor: against autograd in float64."""
    torch.manual_seed(1)
    network = small_network(2, 5, 3).double()
    for head in range(3):
        network.set_obs_statistics(torch.randn(4).double(), torch.rand(4).double(), head)
    plain = copy.deepcopy(network)
    student = Student(
        network, loss=loss, size="4%", seed=0, optimizer="adam", learning_rate=1e-2, bfloat16=False
    )
    obs, counts, temperatures = torch.randn(17, 4).double(), [6, 0, 11], [0.5, 1.0, 2.0]
    labels = [torch.randn(n, a).double() for n, a in zip(counts, (2, 5, 3), strict=True)]
    total, start = 0.0, 0
    for head, (taught, temperature) in enumerate(zip(labels, temperatures, strict=True)):
        rows = obs[start : start + len(taught)]
        start += len(taught)
        x = (rows - plain.obs_mean[head]) * plain.obs_scale[head]
        values = plain.heads[head](plain.trunk(x))
        p, log_q = (taught / temperature).softmax(1), values.log_softmax(1)
        if loss == "kl":
            total = total + (p * (p.log() - log_q)).sum()
        elif loss == "reverse_kl":
            total = total + (log_q.exp() * (log_q - p.log())).sum()
        elif loss == "jsd":
            m = (p + log_q.exp()) / 2
            total = total + (p * (p.log() - m.log())).sum() / 2
            total = total + (log_q.exp() * (log_q - m.log())).sum() / 2
        elif loss == "nll":
            total = total - log_q.gather(1, taught.argmax(1, keepdim=True)).sum()
        else:
            total = total + (values - taught).square().sum()
    expected = total / 17
    expected.backward()
    learned = student.update(obs, labels, [None] * 3, temperatures, 1e-2)
    torch.testing.assert_close(learned["loss"], expected.detach(), rtol=1e-10, atol=1e-12)
    for own, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        if theirs.grad is None or own.grad is None:
            assert own.grad is None or not own.grad.any()
            assert theirs.grad is None or not theirs.grad.any()
        else:
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    optimizer.step()
    for (name, own), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        if not name.startswith("heads.1"):  # Adam leaves what has no gradient
            torch.testing.assert_close(own, theirs, rtol=1e-7, atol=1e-9)


def test_a_heads_gradient_is_zero_on_rows_of_other_games():
    network = small_network(2, 5)
    obs = torch.randn(9, 4)
    for game, counts in ((0, [9, 0]), (1, [0, 9])):
        network.zero_grad()
        outputs = network.forward_games(obs, counts)
        outputs[game].square().sum().backward()
        for parameter in network.heads[1 - game].parameters():
            assert parameter.grad is None or not parameter.grad.any()
        assert any(p.grad.any() for p in network.heads[game].parameters())
    # Within one batch: the labels of the other game change nothing in a head.
    grads = []
    for shift in (0.0, 5.0):
        student = student_of(small_network(2, 5))
        labels = [torch.ones(4, 2) * torch.tensor([1.0, 2.0]), torch.randn(5, 5) * shift]
        student.update(obs, labels, [None, None], [1.0, 1.0], 1e-3)
        grads.append([p.grad.clone() for p in student.network.heads[0].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("driver", ["student", "mixture"])
def test_interrupted_equals_uninterrupted(tmp_path, driver):
    class Later:
        def __init__(self, calls):
            self.calls = calls

        @property
        def requested(self):
            self.calls -= 1
            return self.calls < 0

    options = {"driver": driver, "task_weights": "1,2", "temperature": "auto"}
    two_games(tmp_path / "whole", **options)
    teachers = [fd.load_teacher(Balancer(), "CartPole-v1"), fd.load_teacher(Homing(), "FdWalk-v0")]
    config = DistillConfig(
        run_dir=tmp_path / "cut", teacher="a module,a module", game="CartPole-v1,FdWalk-v0",
        **{**SMALL, **options},
    )  # fmt: skip
    assert recipe.train(config, teachers=teachers, stop=Later(50)).stopped
    while recipe.train(config, teachers=teachers, stop=Later(20), resume=True).stopped:
        pass
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    lines = [(tmp_path / d / "metrics.jsonl").read_text().splitlines() for d in ("whole", "cut")]
    for one, other in zip(*lines, strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one.keys() == other.keys()
        for key, value in one.items():
            if not key.startswith("time/") and key != "charts/SPS":
                assert value == other[key], key


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """By SIGKILL, once there is a checkpoint and once more after a while."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nimport test_several_games as own\n"
        "own.two_games(Path(sys.argv[1]), total_updates=600, resume=len(sys.argv) > 2)\n"
    )
    two_games(tmp_path / "whole", total_updates=600)
    run_dir, log = tmp_path / "killed", tmp_path / "log"
    for kill in range(3):
        words = [sys.executable, str(script), str(run_dir)]
        words += ["resume"] if kill else []
        seen = set((run_dir / "checkpoints").glob("step_*.json"))
        with log.open("w") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file)
            if kill < 2:
                while process.poll() is None:
                    if set((run_dir / "checkpoints").glob("step_*.json")) - seen:
                        process.kill()
                        break
                    time.sleep(0.005)
                assert process.wait() == -9, log.read_text()
            else:
                assert process.wait() == 0, log.read_text()
    assert_equal(weights(tmp_path / "whole"), weights(run_dir))


def test_a_single_game_by_name_is_the_same_bits(tmp_path):
    fd.distill(Balancer(), "CartPole-v1", run_dir=tmp_path / "plain", **SMALL)
    fd.distill({"CartPole-v1": Balancer()}, run_dir=tmp_path / "named", **SMALL)
    assert_equal(weights(tmp_path / "plain"), weights(tmp_path / "named"))


def test_what_cannot_be_is_refused_in_words(tmp_path):
    run_dir = tmp_path / "run"
    cartpole = fd.load_teacher(Balancer(), "CartPole-v1")
    for teachers, options, error, message in (
        ({"CartPole-v1": cartpole, "FdWide-v0": Homing()}, {}, ValueError,
         r"distill: games must have observations of one shape, got \[4\] of CartPole-v1 and \[5\] "
         r"of FdWide-v0"),
        ({}, {}, ValueError, "distill: teacher must name at least one game, got none"),
        (None, {"task_weights": "0,0"}, ValueError,
         r"DistillConfig: task_weights must be balanced, or numbers of 0 or more that are not all "
         r"0, got '0,0'"),
        (None, {"task_weights": "1,x"}, ValueError, "task_weights must be balanced, or numbers"),
        (None, {"task_weights": "1,-1"}, ValueError, "task_weights must be balanced, or numbers"),
        (None, {"task_weights": "1,1,1"}, ValueError,
         "distill: task_weights must name one for each of 2 teachers, got 3"),
        (None, {"env": "CartPole-v1"}, ValueError,
         "distill: env must be left out where each teacher has its game, got 'CartPole-v1'"),
        (None, {"learning_starts_steps": 31}, ValueError,
         r"learning_starts_steps must be at least 4 \* num_lanes \* 2 games = 32, got 31"),
        (None, {"student": nn.Linear(4, 2)}, ValueError,
         "distill: student must be a size where there are several games, got 'own'"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            two_games(run_dir, teachers, **options)
    teachers = [cartpole, cartpole]
    config = DistillConfig(run_dir=run_dir, game="CartPole-v1,CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="distill: game must not repeat, got CartPole-v1, Cart"):
        recipe.train(config, teachers=teachers)
    with pytest.raises(ValueError, match="distill: game must name one for each of 1 teachers, got"):
        recipe.train(config, teachers=teachers[:1])
    assert not run_dir.exists()


def test_a_checkpoint_of_several_games_serves_each(tmp_path, capsys):
    two_games(tmp_path / "run", total_updates=20)
    path = tmp_path / "run" / "students" / "kl_7_seed1.json"
    student, _ = fd.load_network(path)
    obs = torch.randn(6, 4)
    for game, actions in (("CartPole-v1", 2), ("FdWalk-v0", 3)):
        alone = student.for_task(game)
        assert alone(obs).shape == (6, actions)
        teacher = fd.load_teacher(path, game)
        assert teacher.card["game"] == game
        assert teacher.kind == "logits"
        assert torch.equal(teacher.values(obs), alone(obs))
        assert main(["evaluate", str(path), "--game", game, "--episodes", "2"]) == 0
        saved = save_network(tmp_path / "alone", alone, {"game": game})
        assert torch.equal(fd.load_network(saved)[0](obs), alone(obs))
        record = fd.export(path, tmp_path / "file.pt2", "pt2", game=game, frames=20)
        assert record.metadata["game"] == game
    capsys.readouterr()
    assert main(["evaluate", str(path)]) == 2
    assert "game must be one of the checkpoint's, CartPole-v1, FdWalk-v0" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="game must be one of the checkpoint's, CartPole-v1, FdWalk-"
    ):
        fd.load_teacher(path, "FdWalk5-v0")
    with pytest.raises(ValueError, match=r"CartPole-v1, FdWalk-v0, got None"):
        fd.load_teacher(path)
    with pytest.raises(
        ValueError, match="export: game must be one of the network's, CartPole-v1, "
    ):
        fd.export(path, tmp_path / "file.pt2", "pt2", game="pong")
    with pytest.raises(
        ValueError, match="for_task: game must be one of CartPole-v1, FdWalk-v0, got"
    ):
        student.for_task("pong")
    with pytest.raises(ValueError, match=r"for_task: game must be in \[0, 2\), got 2"):
        student.for_task(2)
    with pytest.raises(ValueError, match="counts must be 2 numbers of rows that add up to 6, got"):
        student.forward_games(obs, [3, 2])
    # A student of several games teaches each of them again.
    again = two_games(tmp_path / "again", dict.fromkeys(student.games, path), total_updates=20)
    assert again.student.games == student.games


def test_games_of_a_damaged_card_are_refused(tmp_path):
    network = small_network(2, 5)
    for games, message in (
        (["pong"], "games must be a list of two or more objects, each with another game"),
        ([{"game": "a"}, {"game": "a"}], "games must be a list of two or more objects"),
        ([{"game": "a"}, {}], "games must be a list of two or more objects"),
        ([{"game": "a"}, {"game": "b", "kind": "x"}], "games must be a list of two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            save_network(tmp_path / "net", network, {"games": games})
    path = save_network(tmp_path / "net", network, {"games": [{"game": g} for g in "abc"]})
    with pytest.raises(ValueError, match=r"games of .* must be one for each of 2 heads, got 3"):
        fd.load_network(path)


def test_statistics_that_heads_shared_are_given_to_each(tmp_path):
    network = small_network(2, 5)
    tensors = network.state_dict()
    shared = {"obs_mean": torch.arange(4.0), "obs_scale": torch.ones(4) / 2}
    path = write_checkpoint(
        tmp_path / "old", {**tensors, **shared}, {"architecture": network.architecture.to_json()}
    )
    loaded, _ = fd.load_network(path)
    for head in range(2):
        assert torch.equal(loaded.obs_mean[head], shared["obs_mean"])
        assert torch.equal(loaded.obs_scale[head], shared["obs_scale"])


def test_an_ensemble_is_the_mean_of_sharpened_policies(tmp_path):
    networks = [QNetwork.seeded(Architecture((4,), (2,), hidden=(8,)), seed) for seed in (1, 2)]
    kinds = ("q_values", "logits")
    paths = [
        save_network(tmp_path / f"t{n}", network, {"game": "CartPole-v1", "kind": kind})
        for n, (network, kind) in enumerate(zip(networks, kinds, strict=True))
    ]
    teacher = fd.load_teacher(f"{paths[0]}+{paths[1]}")
    assert teacher.kind == "log_probs"
    obs = torch.randn(20, 4)
    expected = sum(
        (copy.deepcopy(net).double()(obs.double()) / t).softmax(1)
        for net, t in zip(networks, (0.01, 1.0), strict=True)
    )
    torch.testing.assert_close(
        teacher.values(obs).double().exp(), expected / 2, rtol=1e-3, atol=1e-5
    )
    result = fd.distill(teacher, run_dir=tmp_path / "run", **{**SMALL, "total_updates": 5})
    assert fd.load_network(result.students["kl_7_seed1"])[1]["temperature"] == 1.0
    other = save_network(tmp_path / "o", networks[0], {"game": "Acrobot-v1"})
    with pytest.raises(ValueError, match="teacher must see observations of shape"):
        fd.load_teacher(f"{paths[0]}+{other}")
    with pytest.raises(ValueError, match=r"must name a teacher on each side of \+, got"):
        fd.load_teacher(f"{paths[0]}+")
    plus = tmp_path / "c++"
    save_network(plus / "t", networks[0], {"game": "CartPole-v1"})
    assert fd.load_teacher(str(plus / "t")).kind == "q_values", "a plus in a name is no ensemble"


JOINT = {
    "game": "CartPole-v1,FdWalk-v0",
    "total_steps": 1_600,
    "learning_starts_steps": 200,
    "num_lanes": 2,
    "batch_size": 15,
    "replay_capacity": 1_000,
    "epsilon_steps": 800,
    "target_update_updates": 20,
    "checkpoint_every_steps": 400,
    "log_every_steps": 400,
    "score_episodes": 2,
    "evaluation_episodes": 3,
    "size": "4%",
    "tensorboard": False,
    "bfloat16": False,
    "device": "cpu",
}


def test_one_dqn_learns_two_games_interrupted_or_not(tmp_path):
    class Later:
        calls = 150

        @property
        def requested(self):
            self.calls -= 1
            return self.calls < 0

    config = dqn.DqnConfig(run_dir=tmp_path / "whole", **JOINT)
    result = dqn.train(config)
    assert [record["game"] for record in result.evaluation["games"]] == list(config.games)
    network, card = fd.load_network(tmp_path / "whole" / "teacher")
    assert network.games == config.games
    assert all(len(entry["scores"][0]["returns"]) == 3 for entry in card["games"])
    teacher = fd.load_teacher(tmp_path / "whole" / "teacher", "FdWalk-v0")
    assert teacher.values(torch.randn(2, 4)).shape == (2, 3)
    cut = dqn.DqnConfig(run_dir=tmp_path / "cut", **JOINT)
    assert dqn.train(cut, stop=Later()).stopped
    assert not dqn.train(cut, resume=True).stopped
    again, _ = fd.load_network(tmp_path / "cut" / "teacher")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_joint_dqn_that_cannot_be_is_refused_in_words(tmp_path):
    for changes, message in (
        ({"game": "CartPole-v1,CartPole-v1"}, "teacher_dqn: game must not repeat, got CartPole-v1"),
        ({"game": "CartPole-v1,FdWide-v0"}, r"teacher_dqn: games must have observations of one sh"),
        ({"stop_at_return": 3.0}, "DqnConfig: stop_at_return must be left out where there are sev"),
        ({"learning_starts_steps": 15}, r"\* \(n_step \+ 1\) \* 2 games = 16, got 15"),
    ):
        with pytest.raises(ValueError, match=message):
            dqn.train(dqn.DqnConfig(run_dir=tmp_path / "run", **{**JOINT, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_td_update_of_two_games_is_that_of_a_plain_loop():
    torch.manual_seed(2)
    network = small_network(2, 5).double()
    learner = DqnLearner(
        network, learning_rate=1e-2, adam_epsilon=1e-4, max_gradient_norm=1e9, bfloat16=False
    )
    plain, counts = copy.deepcopy(network), [4, 7]
    action = torch.cat([torch.randint(2, (4,)), torch.randint(5, (7,))])
    batch = ReplayBatch(
        obs=torch.randn(11, 4).double(), action=action, reward=torch.randn(11).double(),
        discount=torch.rand(11).double(), next_obs=torch.randn(11, 4).double(),
        weight=torch.rand(11).double(), id=torch.arange(11), columns={},
        task=torch.tensor([0] * 4 + [1] * 7),
    )  # fmt: skip
    learned = learner.update(batch)
    total, errors = 0.0, []
    for row in range(11):
        head = 0 if row < counts[0] else 1
        with torch.no_grad():
            ahead = plain(batch.next_obs[row : row + 1], head)[0].max()
            target = batch.reward[row] + batch.discount[row] * ahead
        td = plain(batch.obs[row : row + 1], head)[0, action[row]] - target
        huber = td.square() / 2 if td.abs() <= 1 else td.abs() - 0.5
        total = total + batch.weight[row] * huber / 11
        errors.append(td.abs().detach())
    total.backward()
    torch.testing.assert_close(learned["td_loss"], total.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(learned["td_abs"], torch.stack(errors), rtol=1e-6, atol=1e-6)
    for own, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-9, atol=1e-12)
