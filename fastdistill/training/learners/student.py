# SPDX-License-Identifier: MIT
"""A student: a network that learns a teacher's values by one of the distillation losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill.envs import EnvSpec
from fastdistill.losses import distill_loss_and_grad
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.training.optimizing import make_optimizer, set_learning_rate
from fastdistill.training.state import learner_tensors, restore_learner

LOSSES = ("kl", "nll", "mse", "reverse_kl", "jsd")
SHARPENED = ("kl", "reverse_kl", "jsd")  # these take the teacher's temperature

# The size of a student that is a module of the caller's.
OWN = "own"

# A module of the caller's, or what makes one for an environment.
OwnStudent = nn.Module | Callable[[EnvSpec], nn.Module]


class Student:
    """A network and what it learns by.

    Attributes:
        name: Unique within the run; also of its file.
        loss: One of ``LOSSES``.
        size: Share of the teacher's parameters, or ``OWN``.
        seed: Of the initialisation.
        network: Learns.
        optimizer: Of its parameters.
        diverged_updates: The update at which its loss was seen to be no finite number, None while
            it learns.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: str,
        size: str,
        seed: int,
        optimizer: str,
        learning_rate: float,
        bfloat16: bool,
    ) -> None:
        self.name = f"{loss}_{size.rstrip('%')}_seed{seed}"
        self.loss = loss
        self.size = size
        self.seed = seed
        self.network = network
        self.optimizer = make_optimizer(optimizer, network, learning_rate)
        self.diverged_updates: int | None = None
        self._bfloat16 = bfloat16
        self._grad: Tensor | None = None

    def update(
        self,
        obs: Tensor,
        teacher_logits: Tensor,
        weight: Tensor | None,
        temperature: float,
        learning_rate: float,
    ) -> dict[str, Tensor]:
        """One gradient step.

        Args:
            obs: ``[batch, *obs_shape]``.
            teacher_logits: ``[batch, actions]`` float32.
            weight: ``[batch]``, or None.
            temperature: Of the sharpened teacher.
            learning_rate: Of this step.

        Returns:
            ``loss``, a scalar.
        """
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self._bfloat16):
            logits = self.network(obs)
        options: dict[str, Any] = {"temperature": temperature} if self.loss in SHARPENED else {}
        if self._grad is None or self._grad.shape != logits.shape:
            self._grad = torch.empty_like(logits)
        loss, grad = distill_loss_and_grad(
            self.loss, logits, teacher_logits, weight=weight, out_grad=self._grad, **options
        )
        self.optimizer.zero_grad(set_to_none=True)
        logits.backward(grad)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        return {"loss": loss}

    def state(self) -> dict[str, Tensor]:
        """Everything that learns."""
        return learner_tensors(self.network, self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        restore_learner(self.network, self.optimizer, tensors)


def make_students(
    spec: EnvSpec,
    *,
    losses: Sequence[str],
    sizes: Sequence[str],
    seeds: Sequence[int],
    optimizer: str,
    learning_rate: float,
    bfloat16: bool,
    device: torch.device,
    own: OwnStudent | None = None,
) -> list[Student]:
    """All combinations; two students of one size and seed begin with the same weights.

    Args:
        spec: What they will see and do.
        losses: Of ``LOSSES``.
        sizes: Of ``fastdistill.networks.SIZES``, or ``OWN``.
        seeds: Of their first weights.
        optimizer: Of ``optimizing.OPTIMIZERS``.
        learning_rate: At first.
        bfloat16: Whether they compute under bfloat16 autocast.
        device: Where they learn.
        own: For ``OWN``; a module is copied, never changed.
    """
    return [
        Student(
            _network(size, seed, spec, own).to(device),
            loss=loss,
            size=size,
            seed=seed,
            optimizer=optimizer,
            learning_rate=learning_rate,
            bfloat16=bfloat16,
        )
        for loss in losses
        for size in sizes
        for seed in seeds
    ]


def _network(size: str, seed: int, spec: EnvSpec, own: OwnStudent | None) -> nn.Module:
    if size == OWN:
        with torch.random.fork_rng(devices=[]):  # what makes it may draw from the global generator
            torch.manual_seed(seed)
            return make_own(spec, own)
    architecture = paper_architecture(size, spec.num_actions, obs_shape=spec.obs_shape)
    return QNetwork.seeded(architecture, seed)


def make_own(spec: EnvSpec, own: OwnStudent | None) -> nn.Module:
    """A fresh copy of a module of the caller's, checked against an environment.

    Raises:
        ValueError: There is none, or it does not return ``[batch, actions]`` values.
        TypeError: It is no module, and makes none.
    """
    if own is None:
        raise ValueError(
            "distill: student must be given again as the module that it was, got 'own'; call "
            "fastdistill.distill(..., student=module) from Python"
        )
    network = deepcopy(own) if isinstance(own, nn.Module) else own(spec)
    if not isinstance(network, nn.Module):
        raise TypeError(
            "distill: student must be a size, a module or a function that makes a module of an "
            f"EnvSpec, got one that makes {type(network).__name__}"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("distill: student must have parameters that learn, got none")
    with torch.no_grad():
        values = network(torch.zeros((2, *spec.obs_shape), dtype=spec.obs_dtype))
    got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if got != [2, spec.num_actions]:
        raise ValueError(
            f"distill: student must return [batch, {spec.num_actions}] values for "
            f"{str(spec.obs_dtype)[6:]} observations of shape {list(spec.obs_shape)}, got {got}"
        )
    return network
