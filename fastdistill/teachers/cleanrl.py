# SPDX-License-Identifier: MIT
"""Teachers that CleanRL saved: DQN, C51 and PPO, classic and Atari, without that library.

CleanRL has no classes to import: each of its scripts holds its network, and ``--save-model``
writes the state dict (``*.cleanrl_model``). A layout is recognised by the names of its tensors;
what a state dict does not tell (activations, scaling) is that of the script.

Source: the scripts dqn.py, dqn_atari.py, c51.py, c51_atari.py, ppo.py and ppo_atari.py of CleanRL,
as their documentation describes them; none is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdistill.teachers.archives import Source, checked_tensors, read_tensors
from fastdistill.teachers.foreign import (
    MeanOfAtoms,
    Observations,
    check_actions,
    finished,
    layer_indices,
    linear,
    linear_layers,
    nature_convolutions,
)

ATARI_SHAPE = (84, 84)  # of all its Atari scripts; a state dict does not say it
_FIRST_LINEAR = 7  # in its Atari networks, after three convolutions and Flatten
_REMEDY = "pass a torch module that maps observations to values or logits instead"

# Beginning of a tensor's name -> why its script is not served.
_REFUSED = {
    "actor_mean.": "has continuous actions, and only discrete ones can be distilled",
    "actor_logstd": "has continuous actions, and only discrete ones can be distilled",
    "fc_mean.": "has continuous actions, and only discrete ones can be distilled",
    "lstm.": "is recurrent: it needs more than one observation",
}


def load_cleanrl(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a ``.cleanrl_model`` file, or in a state dict saved likewise.

    The layouts of CleanRL's dqn, dqn_atari, c51, c51_atari (the mean of the distribution), ppo and
    ppo_atari. Layers may have other sizes than in the script; their number and order may not
    differ, and activations are taken to be the script's.

    Args:
        path: Of the file.

    Returns:
        A module in evaluation mode, ``[batch, *obs_shape]`` observations (uint8 ``[planes, 84,
        84]`` images, or vectors) to ``[batch, num_actions]`` float32, Q-values or logits. And its
        card: ``kind`` ("q_values" or "logits"), ``obs_shape``, ``num_actions``, ``algorithm``
        ("DQN", "C51" or "PPO"), ``source``.

    Raises:
        ValueError: Not such a file, damaged, hostile, or of another script; the text says what
            to do.
    """
    source = Source("load_cleanrl", Path(path))
    with source.open() as file:
        payload = file.read()
    saved = read_tensors(source, payload, "the file")
    arguments: Mapping[str, Any] = {}
    if "model_weights" in saved:
        saved, arguments = saved["model_weights"], saved.get("args", {})
    if not isinstance(saved, dict) or not isinstance(arguments, dict):
        raise source.refuse("hold a state dict", type(saved).__name__)
    for name in saved:
        for beginning, reason in _REFUSED.items():
            if str(name).startswith(beginning):
                raise source.cannot(reason, _REMEDY)
    tensors = {
        name: tensor
        for name, tensor in saved.items()
        if str(name).startswith(("network.", "actor.", "atoms"))
    }
    checked_tensors(source, tensors, len(payload))

    is_ppo = any(name.startswith("actor.") for name in tensors)
    first = getattr(tensors.get("actor.0.weight" if is_ppo else "network.0.weight"), "shape", ())
    is_atari = "actor.weight" in tensors or len(first) == 4
    layers, outputs, obs_shape = (_atari if is_atari else _classic)(source, tensors, is_ppo)
    algorithm = "PPO" if is_ppo else "DQN"
    num_actions = outputs
    if "atoms" in tensors or "n_atoms" in arguments:
        algorithm = "C51"
        atoms = _atoms(source, tensors, arguments)
        num_actions = outputs // len(atoms)
        if num_actions * len(atoms) != outputs:
            raise source.refuse(f"have {len(atoms)} outputs for each action", outputs)
        layers.append(MeanOfAtoms(atoms))
    check_actions(source, num_actions)
    return finished(layers), {
        "kind": "logits" if is_ppo else "q_values",
        "obs_shape": list(obs_shape),
        "obs_dtype": "uint8" if is_atari else "float32",
        "num_actions": num_actions,
        "algorithm": algorithm,
        "source": f"cleanrl:{path}",
    }


Layers = tuple[list[nn.Module], int, tuple[int, ...]]


def _atari(source: Source, tensors: Mapping[str, Any], is_ppo: bool) -> Layers:
    weight = tensors.get("network.0.weight")
    planes = weight.shape[1] if weight is not None and weight.dim() == 4 else 0
    obs_shape = (int(planes), *ATARI_SHAPE)
    indices = layer_indices(tensors, "network")
    wanted = [0, 2, 4, _FIRST_LINEAR] if is_ppo else [0, 2, 4, _FIRST_LINEAR, _FIRST_LINEAR + 2]
    if indices != wanted:
        raise source.refuse(
            f"have the layers of CleanRL's Atari networks, network.{wanted}", indices
        )
    convolutions, size = nature_convolutions(source, tensors, "network", obs_shape)
    convolved = tuple(f"network.{index}." for index in (0, 2, 4))
    rest = {name: value for name, value in tensors.items() if not name.startswith(convolved)}
    hidden, size = linear_layers(
        source, rest, "network", size, nn.ReLU, ends_active=is_ppo, first=_FIRST_LINEAR
    )
    layers = [Observations(obs_shape, divisor=255.0), *convolutions, *hidden]
    if is_ppo:
        layers.append(linear(source, tensors, "actor", size))
        size = len(tensors["actor.weight"])
    return layers, size, obs_shape


def _classic(source: Source, tensors: Mapping[str, Any], is_ppo: bool) -> Layers:
    prefix = "actor" if is_ppo else "network"
    weight = tensors.get(f"{prefix}.0.weight")
    if weight is None or weight.dim() != 2 or len(layer_indices(tensors, prefix)) != 3:
        raise source.cannot(
            "does not have the layers of CleanRL's dqn, c51 or ppo, classic or Atari "
            f"(got {sorted(tensors)[:8]})",
            _REMEDY,
        )
    features = int(weight.shape[1])
    activation = nn.Tanh if is_ppo else nn.ReLU
    hidden, size = linear_layers(source, tensors, prefix, features, activation, ends_active=False)
    return [Observations((features,)), *hidden], size, (features,)


def _atoms(
    source: Source, tensors: Mapping[str, Any], arguments: Mapping[str, Any]
) -> torch.Tensor:
    """Values of the distribution's atoms: a buffer of the network, else from its arguments."""
    if "atoms" in tensors:
        atoms: torch.Tensor = tensors["atoms"].detach().float().clone()
        if atoms.dim() != 1 or len(atoms) < 2:
            raise source.refuse("hold atoms of shape [atoms]", list(atoms.shape))
        return atoms
    values = [arguments.get(name) for name in ("v_min", "v_max", "n_atoms")]
    low, high, count = values
    if not (
        isinstance(low, (int, float))
        and isinstance(high, (int, float))
        and isinstance(count, int)
        and 2 <= count <= 10_000
    ):
        raise source.refuse("say v_min, v_max and n_atoms", values)
    return torch.linspace(low, high, count)
