# SPDX-License-Identifier: MIT
"""Optimizers beside torch's own classes, bit by bit."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from fastdistill.training.optimizing import OPTIMIZERS, Optimizer
from fastdistill.training.state import learner_tensors, restore_learner

RATES = (0.1, 0.03, 0.01, 0.003, 0.001)


def network() -> nn.Sequential:
    """The last layer never has a gradient, the middle one only later."""
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(3, 2, bias=False), nn.Conv2d(1, 2, 3))


def learn(network: nn.Sequential, step: int) -> None:
    network.zero_grad()
    generator = torch.Generator().manual_seed(step)
    loss = network[0](torch.randn(4, 7, generator=generator)).square().sum()
    if step >= 2:
        loss = loss + network[1](torch.randn(4, 3, generator=generator)).exp().sum()
    loss.backward()


def of_torch(name: str, network: nn.Module, epsilon: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(network.parameters(), lr=RATES[0], eps=epsilon, fused=True)
    return torch.optim.RMSprop(
        network.parameters(), lr=RATES[0], alpha=0.95, eps=0.01, centered=True
    )


@pytest.mark.parametrize("epsilon", [1e-8, 1.5e-4])
@pytest.mark.parametrize("resumed_at", [None, 0, 1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torchs_classes(
    name: str, resumed_at: int | None, epsilon: float
) -> None:
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(name, ours, RATES[0], epsilon=epsilon)
    peer = of_torch(name, theirs, epsilon)
    for step, rate in enumerate(RATES):
        if step == resumed_at:
            saved = {key: t.clone() for key, t in learner_tensors(ours, optimizer).items()}
            ours = network()
            optimizer = Optimizer(name, ours, 1.0, epsilon=epsilon)
            restore_learner(ours, optimizer, saved)
        learn(ours, step)
        learn(theirs, step)
        optimizer.set_learning_rate(rate)
        peer.param_groups[0]["lr"] = rate
        optimizer.step()
        peer.step()
        for got, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(got, wanted)
    remembered = peer.state_dict()["state"]
    assert optimizer.state.keys() == remembered.keys() == {0, 1, 2}
    for place, entries in remembered.items():
        assert optimizer.state[place].keys() == entries.keys()
        for entry, tensor in entries.items():
            assert torch.equal(optimizer.state[place][entry], tensor)


def test_what_was_restored_is_a_copy() -> None:
    source, copy = network(), network()
    optimizer, other = Optimizer("adam", source, 0.1), Optimizer("adam", copy, 0.1)
    learn(source, 3)
    optimizer.step()
    restore_learner(copy, other, learner_tensors(source, optimizer))
    before = deepcopy(other.state)
    learn(source, 4)
    optimizer.step()
    for place, entries in before.items():
        assert all(torch.equal(other.state[place][name], entries[name]) for name in entries)


def test_a_state_is_restored_under_another_default_dtype() -> None:
    source, copy = network(), network()
    optimizer, other = Optimizer("adam", source, 0.1), Optimizer("adam", copy, 0.1)
    learn(source, 0)
    optimizer.step()
    torch.set_default_dtype(torch.float64)
    try:
        restore_learner(copy, other, learner_tensors(source, optimizer))
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.state[0]["step"] == 1


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("0.exp_avg", torch.zeros(()), r"'optimizer.0.exp_avg' must .*, got one of shape \[\], "),
        ("0.step", torch.zeros(5, 7), r"'optimizer.0.step' must be .*, got one of shape \[5, 7\]"),
        ("0.exp_avg", torch.zeros(5, 7, dtype=torch.float64), r"shape \[5, 7\], torch.float64"),
        ("0.square_avg", torch.zeros(5, 7), r"'optimizer.0.square_avg' must be one of the optim"),
        ("5.exp_avg", torch.zeros(5, 7), r"'optimizer.5.exp_avg' must be one of the optimizer's"),
        ("-1.exp_avg", torch.zeros(5, 7), r"'optimizer.-1.exp_avg' must be one of the optimizer"),
        ("2.step", torch.zeros(()), r"must be \['exp_avg', 'exp_avg_sq', 'step'\] of each param"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(
    key: str, tensor: torch.Tensor, message: str
) -> None:
    source = network()
    optimizer = Optimizer("adam", source, 0.1)
    learn(source, 0)
    optimizer.step()
    tensors = {**learner_tensors(source, optimizer), f"optimizer.{key}": tensor}
    with pytest.raises(ValueError, match=message):
        restore_learner(network(), Optimizer("adam", network(), 0.1), tensors)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_imports_no_compiler(name: str) -> None:
    program = f"""
import sys, torch
from fastdistill.training.learners.student import Student
student = Student(
    torch.nn.Linear(3, 2), loss="kl", size="own", seed=1, optimizer={name!r}, learning_rate=0.1,
    bfloat16=False,
)
student.update(torch.ones(4, 3), [torch.ones(4, 2)], [None], [0.1], 0.1)
slow = {{"torch._dynamo", "sympy"}} & sys.modules.keys()
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_state_lies_in_memory_as_its_parameter_does(name: str) -> None:
    ours, resumed = (nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last) for _ in range(2))
    optimizer, another = Optimizer(name, ours, 0.1), Optimizer(name, resumed, 0.1)
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    def learn(network: nn.Module, optimizer: Optimizer) -> None:
        network.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()

    learn(ours, optimizer)
    stored = learner_tensors(ours, optimizer)
    restore_learner(resumed, another, {key: t.clone().contiguous() for key, t in stored.items()})
    learn(ours, optimizer)
    learn(resumed, another)
    assert torch.equal(ours.weight, resumed.weight)
