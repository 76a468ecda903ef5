# SPDX-License-Identifier: MIT
"""Networks of several games as files, and teachers put together."""

from __future__ import annotations

import copy

import pytest
import torch
from cartpole import assert_equal, weights
from torch import nn
from two_games import SMALL, small_network, two_games

import fastdistill as fd
from fastdistill.cli import main
from fastdistill.networks import Architecture, QNetwork, checkpoint, save_network
from fastdistill.networks.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from fastdistill.recipes import distill as recipe
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.teachers.ensemble import DrawnEnsemble


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
    assert "game must be one of the network's, CartPole-v1, FdWalk-v0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="game must be one of the network's, CartPole-v1, FdWalk-"):
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
    with pytest.raises(ValueError, match=r"must name a teacher on each side of \+ or \|, got"):
        fd.load_teacher(f"{paths[0]}+")
    plus = tmp_path / "c++"
    save_network(plus / "t", networks[0], {"game": "CartPole-v1"})
    assert fd.load_teacher(str(plus / "t")).kind == "q_values", "a plus in a name is no ensemble"


def two_teachers(tmp_path):
    """Their networks, temperatures and files."""
    networks = [QNetwork.seeded(Architecture((4,), (2,), hidden=(8,)), seed) for seed in (1, 2)]
    paths = [
        save_network(tmp_path / f"t{n}", network, {"game": "CartPole-v1", "kind": kind})
        for n, (network, kind) in enumerate(zip(networks, ("q_values", "logits"), strict=True))
    ]
    return networks, (0.01, 1.0), paths


def test_a_drawn_label_is_one_of_the_teachers(tmp_path):
    """Which one hangs on the state alone; each is drawn as often.

    False alarms: the chi-square bound of one degree of freedom is passed once in 10^6 sets of
    states (the draw has no randomness of its own, the states have), three sets.
    """
    networks, temperatures, paths = two_teachers(tmp_path)
    teacher = fd.load_teacher(f"{paths[0]}|{paths[1]}")
    assert teacher.kind == "log_probs"
    assert fd.load_teacher(teacher.source).values(torch.ones(1, 4)).shape == (1, 2)
    generator = torch.Generator().manual_seed(6)
    walk = torch.randn(4000, 4, generator=generator).cumsum(0) / 100  # neighbours are alike
    for obs in (
        torch.randn(4000, 4, generator=generator),
        walk,
        torch.arange(16000).view(-1, 4) / 1000,
    ):
        labels = teacher.values(obs)
        alone = [
            (copy.deepcopy(net).double()(obs.double()) / temperature).log_softmax(1)
            for net, temperature in zip(networks, temperatures, strict=True)
        ]
        near = torch.stack(
            [torch.isclose(labels.double(), one, 1e-3, 1e-2).all(1) for one in alone]
        )
        assert near.any(dim=0).all()
        counts = near[:, near.sum(0) == 1].sum(dim=1).double()
        assert counts.sum() > 3000
        expected = counts.sum() / 2
        assert float(((counts - expected).square() / expected).sum()) < 23.9
        pairs = near[0, 1:].double() - 0.5, near[0, :-1].double() - 0.5
        assert abs(float((pairs[0] * pairs[1]).mean())) * 4 < 4.9 / 3000**0.5, "draws of neighbours"
    order = torch.randperm(4000, generator=generator)
    assert torch.equal(teacher.values(walk)[order].argmax(1), teacher.values(walk[order]).argmax(1))
    assert teacher.values(walk[:1]).shape == (1, 2), "one teacher has no row"


def test_drawn_labels_are_the_same_after_a_stop(tmp_path):
    _, _, paths = two_teachers(tmp_path)

    class After:
        calls = 30

        @property
        def requested(self):
            self.calls -= 1
            return self.calls < 0

    options = {**SMALL, "teacher": f"{paths[0]}|{paths[1]}"}
    recipe.train(DistillConfig(run_dir=tmp_path / "whole", **options))
    config = DistillConfig(run_dir=tmp_path / "cut", **options)
    assert recipe.train(config, stop=After()).stopped
    assert not recipe.train(config, resume=True).stopped
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a|", r"must name a teacher on each side of \+ or \|, got 'a\|'"),
        ("a+b|c", r"must have \+ or \| between its teachers, not both, got 'a\+b\|c'"),
    ],
)
def test_teachers_that_cannot_go_together_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        fd.load_teacher(source)


def test_a_network_of_several_games_teaches_the_one_that_is_asked_for():
    """Also as a module, which has no card."""
    network = QNetwork.seeded(Architecture((4,), (2, 2), hidden=(8,)), 1)
    network.games = ("Acrobat-v0", "CartPole-v1")
    obs = torch.randn(5, 4)
    teacher = fd.load_teacher(network, "CartPole-v1")
    assert torch.equal(teacher.values(obs), network.for_task(1)(obs))
    with pytest.raises(ValueError, match=r"game must be one of the network's, .*, got 'FdWalk-v0'"):
        fd.load_teacher(network, "FdWalk-v0")
    with pytest.raises(ValueError, match=r"game must be one of the network's, .*, got None"):
        fd.load_teacher(network)


def test_a_card_of_another_network_makes_way(tmp_path):
    large, small = (QNetwork(Architecture((4,), (2,), hidden=(units,))) for units in (64, 8))
    card = fd.load_network(save_network(tmp_path / "t", large, {"game": "CartPole-v1"}))[1]
    save_network(tmp_path / "t", small, card)
    loaded, again = fd.load_network(tmp_path / "t")
    assert loaded.architecture == small.architecture
    assert again["parameters"] == sum(p.numel() for p in small.parameters())


def test_shared_statistics_are_spread_after_all_else_was_compared(tmp_path, monkeypatch):
    network = QNetwork(Architecture((4,), (2, 2), hidden=(8,)))
    path = save_network(tmp_path / "net", network, {})
    tensors, card = read_checkpoint(path)
    shared = {name: tensors[name][0] for name in ("obs_mean", "obs_scale")}
    write_checkpoint(tmp_path / "less", shared, card)
    monkeypatch.setattr(checkpoint, "give_each_head_its_own", lambda *_, **__: pytest.fail("early"))
    with pytest.raises(CheckpointError, match=r"heads.0.* must be floats .* got absent"):
        fd.load_network(tmp_path / "less")
    monkeypatch.undo()
    write_checkpoint(tmp_path / "large", {**tensors, **shared}, card)
    monkeypatch.setattr(checkpoint, "MAX_WEIGHTS_BYTES", 16)
    monkeypatch.setattr(checkpoint, "read_checkpoint", lambda path: ({**tensors, **shared}, card))
    with pytest.raises(CheckpointError, match="must have at most 16 bytes of obs_mean, got 32"):
        fd.load_network(tmp_path / "large")


class NeverEmpty(nn.Module):
    """As a distribution's mean, which cannot be reshaped where there is nothing."""

    def forward(self, obs):
        return obs[:, :2].reshape(len(obs), 2, -1).mean(-1)


def test_who_is_not_drawn_is_not_asked():
    members = [NeverEmpty(), NeverEmpty()]
    drawn = DrawnEnsemble(members, (1.0, 1.0))
    for row in torch.randn(20, 1, 4):
        torch.testing.assert_close(drawn(row), torch.log_softmax(row[:, :2], dim=1))
