# SPDX-License-Identifier: MIT
"""The state of environments, networks and optimizers as checkpoint tensors, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdistill.envs import EnvState, LaneEnv


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those under ``prefix.``, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``select``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def env_tensors(state: EnvState) -> dict[str, Tensor]:
    """An environment's state as tensors."""
    return {
        "seed": torch.tensor(state.seed, dtype=torch.int64),
        "reseeds": torch.from_numpy(state.reseeds),
        "lengths_steps": torch.from_numpy(state.lengths_steps),
        "actions": torch.from_numpy(state.actions.copy()),
    }


def restore_env(env: LaneEnv, tensors: dict[str, Tensor]) -> None:
    """The reverse of ``env_tensors``, played into ``env``."""
    env.restore(
        EnvState(
            tuple(tensors["seed"].tolist()),
            tensors["reseeds"].numpy(),
            tensors["lengths_steps"].numpy(),
            tensors["actions"].numpy(),
        )
    )


def learner_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A network and its optimizer as tensors."""
    moments = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }
    return {**under("network", network.state_dict()), **under("optimizer", moments)}


def restore_learner(
    network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The reverse of ``learner_tensors``."""
    network.load_state_dict(select(tensors, "network"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in select(tensors, "optimizer").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
