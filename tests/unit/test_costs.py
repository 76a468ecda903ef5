# SPDX-License-Identifier: MIT
"""What networks cost, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdistill.evaluation.cost import (
    describe_machine,
    latency_seconds,
    multiply_adds,
)
from fastdistill.networks import Architecture, QNetwork, num_parameters, paper_architecture

# Convolutions: outputs x inputs per output; then the two fully connected layers.
BY_HAND = {
    "100%": 400 * 32 * 256 + 81 * 64 * 512 + 49 * 64 * 576 + 3136 * 512 + 512 * 18,
    "7%": 400 * 16 * 256 + 81 * 16 * 256 + 49 * 16 * 144 + 784 * 128 + 128 * 18,
}


@pytest.mark.parametrize("size", BY_HAND)
def test_multiply_adds_of_the_papers_networks(size):
    network = QNetwork(paper_architecture(size, 18))
    assert multiply_adds(network, (4, 84, 84), torch.uint8) == BY_HAND[size]


@pytest.mark.parametrize("obs_shape", [(4, 84, 84), (1, 36, 50), (3, 23, 9), (17,)])
@pytest.mark.parametrize("head_hidden", [0, 5])
@pytest.mark.parametrize("dueling", [False, True])
def test_multiply_adds_are_those_that_torch_counts(obs_shape, head_hidden, dueling):
    network = QNetwork(
        Architecture(
            obs_shape, (7, 3), hidden=(19, 18), head_hidden=head_hidden, dueling=dueling,
            layer_norm=dueling,
        )
    )  # fmt: skip
    dtype = torch.uint8 if len(obs_shape) == 3 else torch.float32
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, *obs_shape), dtype=dtype))
    assert 2 * multiply_adds(network, obs_shape, dtype) == counter.get_total_flops()


def test_any_module_is_measured():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert num_parameters(module) == 4 * 8 + 8 + 8 * 2 + 2
    assert multiply_adds(module, (4,), torch.float32) == 4 * 8 + 8 * 2
    one = latency_seconds(module, (4,), torch.float32, 1)
    assert 0 < one < 1
    assert {"cpu", "cores", "torch"} <= describe_machine().keys()
