# SPDX-License-Identifier: MIT
"""What may be evaluated, and what is refused in words; modules of torch's other makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastdistill as fd
from fastdistill.networks import Architecture, QNetwork, save_network

OPTIONS = {"episodes": 2, "num_lanes": 2, "max_steps": 500}


def of_cartpole() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def test_paths_and_zoo_names_are_evaluated_as_the_command_does(tmp_path):
    network = QNetwork(Architecture((4,), (2,), hidden=(8,))).eval()
    path = save_network(tmp_path / "student", network, {"game": "CartPole-v1"})
    expected = fd.evaluate(network, "CartPole-v1", **OPTIONS)
    for source in (path, str(path), tmp_path):
        assert fd.evaluate(source, "CartPole-v1", **OPTIONS).returns == expected.returns
    with pytest.raises(ValueError, match="teacher must see observations of shape"):
        fd.evaluate("zoo:pong", "CartPole-v1", **OPTIONS)


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (
            nn.Linear(5, 2),
            ValueError,
            r"must take float32 observations of shape \[2, 4\], got R",
        ),
        (nn.Linear(4, 3), ValueError, r"must return \[2, 2\] values, got \[2, 3\]"),
        (lambda obs: (obs, None), TypeError, "must return a tensor, got tuple"),
        (
            lambda obs: obs[:, :2] * float("nan"),
            ValueError,
            r"must return finite values, got \[\[",
        ),
        (lambda obs: obs[:, :2] + float("inf"), ValueError, "must return finite values"),
    ],
)
def test_policies_that_do_not_fit_are_refused(policy, error, message):
    with pytest.raises(error, match=f"^evaluate: policy {message}"):
        fd.evaluate(policy, "CartPole-v1", **OPTIONS)


def test_a_module_plays_in_evaluation_mode_and_is_put_back_part_by_part():
    module = nn.Sequential(of_cartpole(), nn.Dropout(0.9)).train()
    module[0][1].eval()  # as somebody freezes a part
    first = fd.evaluate(module, "CartPole-v1", **OPTIONS)
    assert fd.evaluate(module, "CartPole-v1", **OPTIONS).returns == first.returns
    assert [part.training for part in module.modules()] == [True, True, True, False, True, True]


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device must be one that torch has here, got 'nowhere'"):
        fd.evaluate(of_cartpole(), "CartPole-v1", device="nowhere", **OPTIONS)
    with pytest.raises(ValueError, match="device must be one that torch has here"):
        fd.load_teacher(of_cartpole(), "CartPole-v1", device="nowhere")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, of its copies
def test_script_modules_and_exported_programs_teach():
    module = of_cartpole().eval()
    obs = torch.randn(3, 4)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes=({0: batch},))
    for other in (torch.jit.script(module), torch.jit.trace(module, obs), program.module()):
        teacher = fd.load_teacher(other, "CartPole-v1")
        assert torch.allclose(teacher.values(obs), module(obs))
    with pytest.raises(TypeError, match=r"got ExportedProgram; give its .module\(\)"):
        fd.load_teacher(program, "CartPole-v1")
