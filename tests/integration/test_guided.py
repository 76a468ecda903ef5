# SPDX-License-Identifier: MIT
"""A DQN that begins from a guide (QDagger): its loss, its phases, its weight, a collapse undone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cartpole import balancer
from torch.nn import functional as F

from fastdistill.cli import main
from fastdistill.envs import make_env
from fastdistill.networks import Architecture, QNetwork, save_network
from fastdistill.networks.checkpoint import read_checkpoint
from fastdistill.recipes import dqn
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.guided_teaching import GuidedTeaching
from fastdistill.report import write_report
from fastdistill.report.beside import read_contenders
from fastdistill.report.results import read_games
from fastdistill.teachers import load_teacher
from fastdistill.training.counters import Counters
from fastdistill.training.guide import Guide, GuideTerm
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.metrics import read_jsonl
from fastdistill.training.remembered_play import RememberedPlay
from fastdistill.training.run import Run

TINY = {
    "game": "CartPole-v1", "size": "7%", "total_steps": 800, "num_lanes": 4, "batch_size": 16,
    "samples_per_step": 4, "learning_starts_steps": 200, "target_update_updates": 20,
    "replay_capacity": 600, "score_episodes": 2, "evaluation_episodes": 3, "guide_updates": 40,
    "checkpoint_every_steps": 200, "log_every_steps": 100, "tensorboard": False, "device": "cpu",
    "bfloat16": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    return balancer(tmp_path_factory.mktemp("guide") / "guide")


def config_of(run_dir: Path, guide: str | None, **changes) -> DqnConfig:
    options = {**TINY, **changes}
    if guide is None:
        del options["guide_updates"]
    return DqnConfig(run_dir=run_dir, guide=guide, **options)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_dir / "teacher.json")[0]


def test_one_update_has_both_gradients():
    """Against float64 autograd on the formula, targets from the learner's own networks."""
    torch.manual_seed(0)
    env = make_env("CartPole-v1", 4)
    network = QNetwork.seeded(Architecture((4,), (2,), hidden=(16,)), 3)
    learner = DqnLearner(
        network, learning_rate=1e-3, adam_epsilon=1e-8, max_gradient_norm=1e9, bfloat16=False
    )
    teacher = load_teacher(QNetwork.seeded(Architecture((4,), (2,), hidden=(8,)), 4))
    play = RememberedPlay(
        [env], network, Counters(), replay_capacity=400, n_step=2, discount=0.9,
        priority_exponent=0.5, clip_rewards=False, seed=1, bfloat16=False, guide=teacher,
    )  # fmt: skip
    play.reset()
    learner.copy_target()
    for _ in range(40):
        play.step(0.3, by_guide=True)
    batch = play.sample(32, 0.4)
    torch.testing.assert_close(batch.columns["teacher_logits"], teacher.values(batch.obs))

    twin = QNetwork.seeded(Architecture((4,), (2,), hidden=(16,)), 3)
    twin.load_state_dict(network.state_dict())
    twin = twin.double()
    obs, following = batch.obs.double(), batch.next_obs.double()
    with torch.no_grad():
        best = twin(following).argmax(1, keepdim=True)
        target = batch.reward + batch.discount * twin(following).gather(1, best)[:, 0]
    q = twin(obs)
    td = q.gather(1, batch.action[:, None])[:, 0] - target
    huber = torch.where(td.abs() <= 1, 0.5 * td**2, td.abs() - 0.5)
    p = F.softmax(batch.columns["teacher_logits"].double() / 0.5, dim=1)
    kl = (p * (p.log() - F.log_softmax(q / 0.25, dim=1))).sum(1).mean()
    ((huber * batch.weight).mean() + 0.7 * kl).backward()
    learned = learner.update(batch, GuideTerm(0.7, guide_temperature=0.5, temperature=0.25))
    env.close()
    assert float(learned["guide_loss"]) == pytest.approx(float(kl.detach()), rel=1e-4)
    for own, expected in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad.double(), expected.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "recent", "steps", "weight"),
    [
        ("return", None, 0, 2.0),  # nothing known yet
        ("return", -20.0, 0, 2.0),  # a guide of negative scores, too
        ("return", -12.5, 0, 1.0),
        ("return", -5.0, 0, 0.0),
        ("return", 30.0, 0, 0.0),
        ("return", -90.0, 0, 2.0),
        ("linear", 30.0, 0, 2.0),
        ("linear", None, 75, 0.5),
        ("linear", None, 200, 0.0),
    ],
)
def test_the_weight_falls_with_the_share_or_the_steps(guide, schedule, recent, steps, weight):
    teacher = load_teacher(guide)
    found = Guide(teacher, weight=2.0, temperature=0.1, schedule=schedule, steps=100)
    found.set_levels(-20.0, -5.0)
    assert found.term(recent, steps).weight == pytest.approx(weight)


def test_a_policy_is_not_sharpened(tmp_path):
    teacher = load_teacher(balancer(tmp_path / "logits", kind="logits"))
    found = Guide(teacher, weight=1.0, temperature=0.1, schedule="return", steps=100)
    found.set_levels(0.0, 1.0)
    assert found.term(None, 0) == (1.0, 1.0, 0.1)


def test_the_guide_plays_first_and_the_run_resumes_bitwise(guide, tmp_path, capsys):
    class StopAt:
        def __init__(self, times: int) -> None:
            self.left = times

        @property
        def requested(self) -> bool:
            self.left -= 1
            return self.left < 0

    whole = config_of(tmp_path / "whole", guide)
    result = dqn.train(whole)
    assert "the guide scores" in capsys.readouterr().err
    (entry,) = result.evaluation["students"]
    assert entry["name"] == "guided"
    assert np.mean(result.evaluation["teacher"]["returns"]) > 100
    records = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    first = next(record for record in records if record["step"] == 200)
    assert first["charts/episodes"] < 8  # the guide's games are long, random ones last 22 steps
    assert [r["guide/weight"] for r in records if "guide/weight" in r][-1] <= 1.0
    dqn.train(config_of(tmp_path / "alone", None, score_episodes=0))
    page = write_report(tmp_path / "whole", [tmp_path / "alone"]).read_text()
    for text in ("guided 7%", "dqn 7%", "agent steps", "of its level", "How steady"):
        assert text in page, text
    games = read_games(tmp_path / "whole")
    contenders = read_contenders(tmp_path / "whole", games, [tmp_path / "alone"])
    assert [one.label for one in contenders] == ["guided 7%", "dqn 7%"]
    (curve,) = contenders[0].curves["CartPole-v1"]
    scored = [record for record in records if "teacher/score" in record]
    assert curve.at.tolist() == [record["step"] for record in scored]
    assert curve.mean.tolist() == [record["teacher/score"] for record in scored]
    for cut in (10, 70, 130):  # in the guide's play, in the updates on it, and after
        config = config_of(tmp_path / f"cut{cut}", guide, evaluation_episodes=0)
        assert dqn.train(config, stop=StopAt(cut)).stopped
        dqn.train(config, resume=True)
        found, expected = weights(config.run_dir), weights(whole.run_dir)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_command_says_what_the_network_scores_not_its_guide(guide, tmp_path, capsys):
    options = {**TINY, "score_episodes": 0, "guide": guide, "run_dir": tmp_path / "run"}
    words = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in options.items()
        if not isinstance(value, bool)
    ]
    assert main(["teacher", "dqn", "--no-tensorboard", "--no-bfloat16", *words]) == 0
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    mean = np.mean(record["students"][0]["returns"])
    assert f"mean {mean:.2f}" in capsys.readouterr().out.splitlines()[-1]


def test_a_collapse_without_the_guide_is_undone(guide, tmp_path, capsys):
    config = config_of(tmp_path / "run", guide, guide_schedule="linear", guide_steps=1)
    run = Run("teacher_dqn", config, resume=False, unit="steps")
    env = make_env("CartPole-v1", 4)
    parts = GuidedTeaching(config, run, [env], torch.device("cpu"))
    with run:
        parts.begin()
        while run.at.step < 240:
            parts.step()
        assert parts.weaned
        parts.best.score = 100.0
        expected = {name: t.clone() for name, t in parts.learner.network.state_dict().items()}
        save_network(run.directory / "teacher", parts.learner.network, {"game": "CartPole-v1"})
        with torch.no_grad():  # always pushes left: nine points
            for parameter in parts.learner.network.parameters():
                parameter.zero_()
        assert parts.judge(stopped=False) is False
        assert parts.undone == 1
        for copy in (parts.learner.network, parts.learner.target):
            state = copy.state_dict()
            assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert "it goes on from the best" in capsys.readouterr().err
        parts.learn()  # with a fresh optimizer
    env.close()


def test_what_cannot_be_is_refused(guide, tmp_path):
    with pytest.raises(ValueError, match="guide must be left out of several games, got 'zoo:pong'"):
        config_of(tmp_path / "a", "zoo:pong", game="pong,freeway")
    with pytest.raises(ValueError, match="guide_schedule must be one of return, linear, got 'x'"):
        config_of(tmp_path / "b", guide, guide_schedule="x")
    with pytest.raises(ValueError, match="guide_weight must be positive, got -1"):
        config_of(tmp_path / "c", guide, guide_weight=-1.0)
    flat = QNetwork(Architecture((4,), (2,), hidden=(8,)))
    save_network(tmp_path / "flat", flat, {"game": "CartPole-v1", "kind": "q_values"})
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
    save_network(tmp_path / "flat", flat, {"game": "CartPole-v1", "kind": "q_values"})
    with pytest.raises(ValueError, match="guide_updates must be left out without a guide, got 7"):
        DqnConfig(guide_updates=7)
    with pytest.raises(ValueError, match="guide must score more than random play, got"):
        dqn.train(config_of(tmp_path / "d", str(tmp_path / "flat")))
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError, match="must"):
        dqn.train(config_of(tmp_path / "e", "zoo:pong"))
    assert not (tmp_path / "e").exists()


def test_a_network_below_random_play_has_not_collapsed(guide):
    found = Guide(load_teacher(guide), weight=1.0, temperature=0.1, schedule="linear", steps=1)
    found.set_levels(0.0, 10.0)
    assert found.collapsed(3.0, best=8.0)
    assert not found.collapsed(5.0, best=8.0)
    assert not found.collapsed(-6.0, best=-10.0)
