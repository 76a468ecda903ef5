# SPDX-License-Identifier: MIT
"""The state of environments, networks and optimizers as checkpoint tensors, and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill._files import is_int, shown
from fastdistill.envs import EnvState, LaneEnv
from fastdistill.training.optimizing import Optimizer


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those under ``prefix.``, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``select``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def check_state(state: Any, example: Any, name: str) -> None:
    """Refuse a state from a file that is not made like ``example``.

    Args:
        state: As JSON gives it.
        example: An integer stands for those from 0 on, a float for any finite number, a string for
            itself, ``[x]`` for a list of such (``[]``: of anything), ``{"*": x}`` for an object
            of such under any names, another dictionary for an object of these names, a tuple for
            one of several.
        name: Of the state, for the error.

    Raises:
        ValueError: ``<name>.<field> must be <constraint>, got <value>``.
    """
    if isinstance(example, tuple):
        if state not in [other for other in example if other is None or isinstance(other, str)]:
            check_state(state, example[-1], name)
    elif isinstance(example, dict):
        if not isinstance(state, dict):
            raise ValueError(f"{name} must be an object, got {shown(state)}")
        for key in state if "*" in example else example:
            if key not in state:
                raise ValueError(f"{name}.{key} must be there, got none")
            check_state(state[key], example.get("*", example.get(key)), f"{name}.{key}")
    elif isinstance(example, list):
        if not isinstance(state, list):
            raise ValueError(f"{name} must be a list, got {shown(state)}")
        for index, item in enumerate(state if example else ()):
            check_state(item, example[0], f"{name}[{index}]")
    elif isinstance(example, str):
        if state != example:
            raise ValueError(f"{name} must be {example!r}, got {shown(state)}")
    elif is_int(example):
        if not is_int(state) or state < 0:
            raise ValueError(f"{name} must be an integer of 0 or more, got {shown(state)}")
    elif not (is_int(state) or isinstance(state, float)) or not math.isfinite(state):
        raise ValueError(f"{name} must be a finite number, got {shown(state)}")


_ENV = {
    "seed": torch.int64,
    "reseeds": torch.int64,
    "lengths_steps": torch.int64,
    "actions": torch.int16,
}


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
    for name, dtype in _ENV.items():
        if name not in tensors or tensors[name].dtype != dtype or tensors[name].ndim != 1:
            found = tensors.get(name)
            got = "none" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(f"tensor env.{name} must be a row of {dtype}, got {got}")
    env.restore(
        EnvState(
            tuple(tensors["seed"].tolist()),
            tensors["reseeds"].numpy(),
            tensors["lengths_steps"].numpy(),
            tensors["actions"].numpy(),
        )
    )


def learner_tensors(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """A network and its optimizer as tensors."""
    remembered = {
        f"{place}.{name}": tensor
        for place, entries in optimizer.state.items()
        for name, tensor in entries.items()
    }
    return {**under("network", network.state_dict()), **under("optimizer", remembered)}


def restore_learner(network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of ``learner_tensors``."""
    network.load_state_dict(select(tensors, "network"))
    optimizer.state.clear()
    parameters = list(network.parameters())
    for key, tensor in select(tensors, "optimizer").items():
        index, _, name = key.partition(".")
        known = name in optimizer.entries and index.isdecimal() and int(index) < len(parameters)
        scalar = torch.zeros((), dtype=torch.float32)  # whatever torch's default is
        like = parameters[int(index)] if known and name != "step" else scalar
        if not known or tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(
                f"tensor {shown(f'optimizer.{key}')} must be one of the optimizer's, got one of "
                f"shape {list(tensor.shape)}, {tensor.dtype}"
            )
        entries = optimizer.state.setdefault(int(index), {})
        # In the parameter's memory format: the fused steps go through both as they lie in memory.
        like = like.to(parameters[int(index)].device)
        entries[name] = torch.empty_like(like, requires_grad=False).copy_(tensor)
    if any(len(entries) < len(optimizer.entries) for entries in optimizer.state.values()):
        raise ValueError(
            f"tensors optimizer.* must be {sorted(optimizer.entries)} of each parameter, got less"
        )
