# SPDX-License-Identifier: MIT
"""Teachers: what fits is loaded, what does not is refused in words."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from torch import nn

from fastdistill import cli
from fastdistill.envs import make_atari, make_env
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks.checkpoint import save_network
from fastdistill.teachers import checkpoint_path, load_teacher, recorded_game, zoo_names


@pytest.fixture(scope="module")
def pong():
    env = make_atari("pong", 1)
    yield env
    env.close()


def saved(tmp_path, env, **changes):
    card = {"game": env.spec.name, "action_meanings": list(env.spec.action_meanings), **changes}
    return save_network(tmp_path / "teacher", QNetwork(paper_architecture("4%", 6)), card)


class Plain(nn.Module):
    """A teacher of the user's: any module."""

    def __init__(self, actions: int, **options) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.layer = nn.Linear(4 * 84 * 84, actions)
        self.options = options

    def forward(self, obs):
        values = self.layer(self.dropout(obs.flatten(1) / 255))
        if self.options.get("wrap"):
            return (values, None)
        return values * self.options.get("scale", 1.0)


def test_a_checkpoint_labels_in_float32_even_under_autocast(tmp_path, pong):
    path = saved(tmp_path, pong)
    teacher = load_teacher(path, pong)
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        expected = teacher.module(obs)
    with torch.autocast("cpu", torch.bfloat16):
        labels = teacher.values(obs)
    assert labels.dtype == torch.float32
    assert not labels.requires_grad
    assert torch.equal(labels, expected)
    assert teacher.card["game"] == "pong"


def test_a_directory_and_a_path_mean_the_same_teacher(tmp_path, pong):
    path = saved(tmp_path / "run", pong)
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(load_teacher(path, pong)(obs), load_teacher(tmp_path / "run", pong)(obs))


def test_a_module_is_copied_and_the_callers_own_goes_on_learning(pong):
    module = Plain(6).train()
    teacher = load_teacher(module, pong)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    before = teacher(obs)
    assert torch.equal(before, teacher(obs))  # no dropout
    assert module.training
    loss = module(obs).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= parameter.grad
    assert torch.equal(teacher(obs), before)


def test_a_teacher_is_copied_to_where_it_is_to_run(pong):
    teacher = load_teacher(Plain(6), pong, kind="logits")
    assert teacher.to(torch.device("cpu")) is teacher
    moved = teacher.to(torch.device("meta"))
    assert {parameter.device.type for parameter in moved.module.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in teacher.module.parameters()} == {"cpu"}
    assert (moved.device.type, moved.kind, moved.module.training) == ("meta", "logits", False)


def test_a_module_that_cannot_be_copied_is_refused_in_words(pong):
    module = Plain(6)
    module.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"module must be one that can be copied.*got Plain"):
        load_teacher(module, pong)


def test_a_teacher_knows_where_it_is_from_and_what_its_values_are(tmp_path, pong):
    path = saved(tmp_path, pong, kind="logits")
    assert (load_teacher(path, pong).source, load_teacher(path, pong).kind) == (str(path), "logits")
    assert load_teacher("zoo:pong").source == "zoo:pong"
    assert load_teacher("zoo:pong").kind == "q_values"
    module = load_teacher(Plain(6), pong, kind="log_probs")
    assert (module.source, module.kind, module.version) == (None, "log_probs", 0)
    with pytest.raises(ValueError, match=r"kind must be one of q_values, .*, got 'q'"):
        load_teacher(Plain(6), pong, kind="q")


def test_half_precision_outputs_become_float32(pong):
    class Half(Plain):
        def forward(self, obs):
            return super().forward(obs).half()

    assert load_teacher(Half(6), pong)(torch.zeros(1, 4, 84, 84)).dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Plain(18), ValueError, r"must return \[batch, 6\] values.*got torch.float32 \[2, 18\]"),
        (Plain(6, wrap=True), TypeError, r"must return \[batch, 6\] values.*got tuple"),
        (Plain(6, scale=float("nan")), ValueError, "must return finite"),
        (nn.Conv2d(4, 6, 84), ValueError, "got RuntimeError.*wrap it in a module"),
        (nn.Flatten(), ValueError, r"got torch.uint8 \[2, 28224\]"),
    ],
)
def test_modules_that_do_not_fit_are_refused(pong, module, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        load_teacher(module, pong)


def test_cards_that_do_not_fit_are_refused(tmp_path, pong):
    with pytest.raises(ValueError, match="must have been trained on pong, got 'qbert'"):
        load_teacher(saved(tmp_path, pong, game="qbert"), pong)
    swapped = ["NOOP", "FIRE", "LEFT", "RIGHT", "LEFTFIRE", "RIGHTFIRE"]
    with pytest.raises(ValueError, match=r"actions must mean \['NOOP', 'FIRE', 'RIGHT'"):
        load_teacher(saved(tmp_path, pong, action_meanings=swapped), pong)
    path = saved(tmp_path, pong)
    full = make_atari("pong", 1, full_action_space=True)
    with pytest.raises(ValueError, match="must have the 18 actions of pong, got 6; is one of"):
        load_teacher(path, full)
    with pytest.raises(ValueError, match=r"observations of shape \[4\] \(CartPole-v1\)"):
        load_teacher(path, make_env("CartPole-v1", 1))
    with pytest.raises(TypeError, match=r"source must be a checkpoint path.*got int"):
        load_teacher(7, pong)


def test_a_damaged_checkpoint_is_refused(tmp_path, pong):
    path = saved(tmp_path, pong)
    weights = path.with_name(json.loads(path.read_text())["weights"]["file"])
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"must have .* bytes"):
        load_teacher(path, pong)


def test_a_card_does_not_choose_a_module_to_import(tmp_path, pong, monkeypatch):
    (tmp_path / "evilmod.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = saved(tmp_path, pong, game="evilmod:Evil-v0")
    message = r"must not name a module to import, got 'evilmod:Evil-v0'; .*--game evilmod:Evil-v0"
    with pytest.raises(ValueError, match=message):
        load_teacher(path)
    with pytest.raises(ValueError, match=message):
        recorded_game({"game": "evilmod:Evil-v0"})
    assert cli.main(["evaluate", str(path)]) == 2
    # Who names a game decides; the card is then compared like any other.
    with pytest.raises(ValueError, match="must have been trained on pong, got 'evilmod:Evil-v0'"):
        load_teacher(path, pong)
    assert recorded_game({"game": "pong"}) == "pong"
    assert recorded_game({}) is None


def test_a_path_that_is_no_checkpoint_is_named_plainly(tmp_path, pong):
    (tmp_path / "m.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        ValueError,
        match=r"m.zip must be a checkpoint of fastdistill \(NAME.json, or its directory\), got "
        "another file; a model of another library is loaded with that library and given as a",
    ):
        load_teacher(tmp_path / "m.zip", pong)
    with pytest.raises(ValueError, match=r"gone.zip must exist, got neither it nor gone.zip.json"):
        load_teacher(str(tmp_path / "gone.zip"), pong)
    for name in ("config.json", "evaluation.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        ValueError, match=r"must hold one .json file, got 2: config.json, evaluation.json; name"
    ):
        load_teacher(tmp_path, pong)


def test_zoo_names_are_paths_in_the_package():
    for name in zoo_names():
        assert checkpoint_path(f"zoo:{name}").is_file()
    with pytest.raises(ValueError, match=r"zoo teacher must be one of \[.*got 'chess'"):
        checkpoint_path("zoo:chess")


def test_a_function_teaches_as_the_module_does():
    module = nn.Linear(4, 2)

    def function(obs):
        return module(obs)

    teacher = load_teacher(function, "CartPole-v1", kind="logits")
    obs = torch.randn(5, 4)
    torch.testing.assert_close(teacher.values(obs), module(obs).detach(), rtol=0, atol=0)
    assert (teacher.source, teacher.kind) == (None, "logits")
    assert not teacher.values(obs).requires_grad
    with pytest.raises(ValueError, match="load_teacher: module must return"):
        load_teacher(lambda obs: obs, "CartPole-v1")
    with pytest.raises(TypeError, match="a torch module or a function, got type"):
        load_teacher(nn.Linear, "CartPole-v1")
