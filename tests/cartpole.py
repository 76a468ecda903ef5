# SPDX-License-Identifier: MIT
"""A network that balances CartPole without having learned anything."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdistill.networks import Architecture, QNetwork, save_network


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
