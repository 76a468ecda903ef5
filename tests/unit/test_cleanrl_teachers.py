# SPDX-License-Identifier: MIT
"""Files in the layouts of CleanRL's scripts, made from plain modules: the same outputs."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from fastdistill.teachers import load_teacher
from fastdistill.teachers.cleanrl import load_cleanrl


class Script(nn.Module):
    """A network named as in a script, and what that script computes with it."""

    def __init__(self, output, scale=1.0, **parts):
        super().__init__()
        self.output, self.scale = output, scale
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, obs):
        return self.output(self, obs / self.scale)


def mlp(inputs, outputs, activation, hidden=(120, 84)):
    sizes = (inputs, *hidden)
    layers = []
    for size, units in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(size, units), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def convolutions(planes=4):
    return [
        nn.Conv2d(planes, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
    ]  # fmt: skip


def q_of(script, x):
    return script.network(x)


def logits_of(script, x):
    return script.actor(script.network(x)) if hasattr(script, "network") else script.actor(x)


def mean_of(script, x):
    pmfs = script.network(x).view(len(x), -1, len(script.atoms)).softmax(dim=2)
    return (pmfs * script.atoms).sum(2)


def c51(network, scale=1.0):
    script = Script(mean_of, scale, network=network)
    script.register_buffer("atoms", torch.linspace(-10, 10, 51))
    return script


SCRIPTS = {
    "dqn": (lambda: Script(q_of, network=mlp(4, 2, nn.ReLU)), "DQN", "q_values", [4], 2),
    "dqn_atari": (lambda: Script(q_of, 255.0, network=nn.Sequential(
        *convolutions(), nn.Linear(512, 6))), "DQN", "q_values", [4, 84, 84], 6),
    "c51": (lambda: c51(mlp(4, 2 * 51, nn.ReLU)), "C51", "q_values", [4], 2),
    "c51_atari": (lambda: c51(nn.Sequential(*convolutions(), nn.Linear(512, 6 * 51)), 255.0),
                  "C51", "q_values", [4, 84, 84], 6),
    "ppo": (lambda: Script(logits_of, critic=mlp(4, 1, nn.Tanh, (64, 64)),
                           actor=mlp(4, 2, nn.Tanh, (64, 64))), "PPO", "logits", [4], 2),
    "ppo_atari": (lambda: Script(logits_of, 255.0, network=nn.Sequential(*convolutions()),
                                 actor=nn.Linear(512, 6), critic=nn.Linear(512, 1)),
                  "PPO", "logits", [4, 84, 84], 6),
    "one plane": (lambda: Script(q_of, 255.0, network=nn.Sequential(
        *convolutions(1), nn.Linear(512, 18))), "DQN", "q_values", [1, 84, 84], 18),
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
@torch.no_grad()
def test_outputs_are_the_scripts(script, tmp_path):
    build, algorithm, kind, obs_shape, num_actions = SCRIPTS[script]
    module = build()
    torch.save(module.state_dict(), tmp_path / "x.cleanrl_model")
    loaded, card = load_cleanrl(tmp_path / "x.cleanrl_model")
    obs = (
        torch.randint(0, 256, (16, *obs_shape), dtype=torch.uint8)
        if len(obs_shape) == 3
        else torch.randn(16, *obs_shape)
    )
    torch.testing.assert_close(loaded(obs), module(obs), rtol=1e-5, atol=1e-6)
    assert card == {
        "kind": kind, "obs_shape": obs_shape, "num_actions": num_actions, "algorithm": algorithm,
        "obs_dtype": "uint8" if len(obs_shape) == 3 else "float32",
        "source": f"cleanrl:{tmp_path / 'x.cleanrl_model'}",
    }  # fmt: skip


@torch.no_grad()
def test_c51_with_its_arguments_beside_the_weights(tmp_path):
    module = c51(mlp(4, 2 * 51, nn.ReLU))
    state = {name: value for name, value in module.state_dict().items() if name != "atoms"}
    arguments = {"v_min": -10, "v_max": 10.0, "n_atoms": 51, "env_id": "CartPole-v1", "seed": 1}
    torch.save({"model_weights": state, "args": arguments}, tmp_path / "x")
    obs = torch.randn(16, 4)
    torch.testing.assert_close(load_cleanrl(tmp_path / "x")[0](obs), module(obs))


def test_a_loaded_network_is_a_teacher(tmp_path):
    torch.save(SCRIPTS["dqn_atari"][0]().state_dict(), tmp_path / "x")
    teacher = load_teacher(load_cleanrl(tmp_path / "x")[0], "pong")
    assert teacher.values(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 6)


def test_observations_that_do_not_fit_are_refused(tmp_path):
    torch.save(SCRIPTS["dqn_atari"][0]().state_dict(), tmp_path / "x")
    module, _ = load_cleanrl(tmp_path / "x")
    with pytest.raises(ValueError, match=r"teacher: obs must be uint8 images, got torch.float32"):
        module(torch.zeros(2, 4, 84, 84))
    with pytest.raises(ValueError, match=r"teacher: obs must have shape .*84, 84\], got \[2, 4\]"):
        module(torch.zeros(2, 4))


ATARI = {"network.0.weight": torch.zeros(32, 4, 8, 8), "network.0.bias": torch.zeros(32)}
REFUSED = {
    "continuous": ({"actor_mean.0.weight": torch.zeros(2, 2)}, "has continuous actions"),
    "sac": ({"fc_mean.weight": torch.zeros(2, 2)}, "has continuous actions"),
    "recurrent": ({"lstm.weight_ih_l0": torch.zeros(2, 2)}, "is recurrent"),
    "another": ({"fc1.weight": torch.zeros(2, 2)},
                r"does not have the layers of CleanRL's dqn, c51 or ppo.* pass a torch module"),
    "four layers": ({f"network.{i}.{part}": torch.zeros(*(2, 2)[: 2 if part == "weight" else 1])
                     for i in (0, 2, 4, 6) for part in ("weight", "bias")}, "does not have the"),
    "few layers": (ATARI, r"must have the layers of CleanRL's Atari networks, network\.\[0, 2"),
    "atoms": ({f"network.{i}.{part}": torch.zeros(*(2, 2)[: 2 if part == "weight" else 1])
               for i in (0, 2, 4) for part in ("weight", "bias")} | {"atoms": torch.zeros(3)},
              "must have 3 outputs for each action, got 2"),
    "no atoms": ({"model_weights": {}, "args": [1]}, "must hold a state dict"),
    "arguments": ({"model_weights": {
        f"network.{i}.{part}": torch.zeros(*(2, 2)[: 2 if part == "weight" else 1])
        for i in (0, 2, 4) for part in ("weight", "bias")}, "args": {"n_atoms": 1 << 40}},
        r"must say v_min, v_max and n_atoms, got \[None, None, 1099511627776\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_scripts_are_refused_in_words(case, tmp_path):
    state, text = REFUSED[case]
    torch.save(state, tmp_path / "x")
    with pytest.raises(ValueError, match=rf"^load_cleanrl: .*/x {text}"):
        load_cleanrl(tmp_path / "x")


def test_wrong_sizes_are_refused(tmp_path):
    state = SCRIPTS["dqn_atari"][0]().state_dict()
    state["network.7.weight"] = torch.zeros(512, 64 * 7 * 6)
    torch.save(state, tmp_path / "x")
    with pytest.raises(
        ValueError, match=r"must hold network.7.weight of shape \[units, 3136\], got \[512, 2688\]"
    ):
        load_cleanrl(tmp_path / "x")
    state["network.7.weight"] = torch.full((512, 3136), math.inf)
    torch.save(state, tmp_path / "x")
    with pytest.raises(ValueError, match=r"must hold finite weights in 'network.7.weight'"):
        load_cleanrl(tmp_path / "x")


def test_a_whole_module_is_refused_without_being_unpickled(tmp_path):
    file = io.BytesIO()
    torch.save(SCRIPTS["dqn"][0]().network, file)
    (tmp_path / "x").write_bytes(file.getvalue())
    with pytest.raises(ValueError, match="must hold nothing but tensors and plain values"):
        load_cleanrl(tmp_path / "x")
