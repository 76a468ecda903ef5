# SPDX-License-Identifier: MIT
"""What tests of runs on CartPole share: who balances it, a run of seconds, its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fastdistill as fd
from fastdistill.networks import Architecture, QNetwork, save_network

# A distillation of seconds.
SMALL = {
    "total_updates": 200,
    "num_lanes": 4,
    "learning_starts_steps": 400,
    "batch_size": 32,
    "replay_capacity": 4_000,
    "score_every_updates": 100,
    "score_episodes": 2,
    "evaluation_episodes": 4,
    "checkpoint_every_updates": 50,
    "log_every_updates": 50,
    "tensorboard": False,
    "device": "cpu",
}


class Balancer(nn.Module):
    """A hand-made policy: push towards where the pole is falling."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, 0.3, 1.0, 1.0]))

    def forward(self, obs: Tensor) -> Tensor:
        lean = obs @ self.weight
        return torch.stack([-lean, lean], dim=1)


def weights(run_dir: Path) -> dict[str, dict[str, Tensor]]:
    return {
        path.name: fd.load_network(path)[0].state_dict()
        for path in sorted((run_dir / "students").glob("*.json"))
    }


def assert_equal(first, second) -> None:
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), (name, key)


def balancer(path: Path, kind: str = "q_values") -> str:
    """Pushes towards where the pole falls: some 200 points, random play has 22."""
    network = QNetwork(Architecture((4,), (2,), hidden=(2,)))
    first, last = (p for p in network.parameters() if p.ndim == 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        falls = torch.tensor([0.0, 0.0, 1.0, 1.0])  # the angle and its change
        first.copy_(torch.stack([-falls, falls]))
        last.copy_(torch.eye(2))
    save_network(path, network, {"game": "CartPole-v1", "kind": kind})
    return str(path)
