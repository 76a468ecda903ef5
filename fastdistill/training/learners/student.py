# SPDX-License-Identifier: MIT
"""A student: a network that learns a teacher's values by one of the distillation losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill import streams
from fastdistill.envs import EnvSpec
from fastdistill.evaluation.play import evaluation_mode
from fastdistill.losses import distill_loss_and_grad
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.training.optimizing import Optimizer
from fastdistill.training.ranks import ALONE, Forward, Ranks
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.name = f"{loss}_{size.rstrip('%')}_seed{seed}"
        self.loss = loss
        self.size = size
        self.seed = seed
        self.network = network
        self.optimizer = Optimizer(optimizer, network, learning_rate)
        self.diverged_updates: int | None = None
        self._bfloat16 = bfloat16
        self._ranks = ranks
        self._forward: nn.Module = Forward(network)
        if ranks.world > 1:
            self._forward = ranks.parallel(self._forward)
        self._grad: Tensor | None = None

    def player(self, task: int) -> nn.Module:
        """Its network of one task's game, which follows what it learns."""
        return self.network.for_task(task) if isinstance(self.network, QNetwork) else self.network

    def update(
        self,
        obs: Tensor,
        labels: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        temperatures: Sequence[float],
        learning_rate: float,
    ) -> dict[str, Tensor]:
        """One gradient step: each task's loss on its own rows, one divisor for all.

        Args:
            obs: ``[batch, *obs_shape]``, ordered by task.
            labels: Of each task ``[rows, actions]`` float32, the teacher's values.
            weights: Of each task ``[rows]``, or None.
            temperatures: Of each task's sharpened teacher.
            learning_rate: Of this step.

        Returns:
            ``loss``, a scalar; of several tasks the mean over all rows, and ``loss/PLACE``, each
            one's own, 0 where it has no rows.
        """
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self._bfloat16):
            if len(labels) == 1:
                outputs = [self._forward(obs)]
            else:
                outputs = self._forward(obs, [len(rows) for rows in labels])
        if len(labels) > 1:
            losses, grads = self._losses(outputs, labels, weights, temperatures)
        else:
            if self._grad is None or self._grad.shape != outputs[0].shape:
                self._grad = torch.empty_like(outputs[0])
            loss, grad = distill_loss_and_grad(
                self.loss, outputs[0], labels[0], weight=weights[0], out_grad=self._grad,
                **self._options(temperatures[0]),
            )  # fmt: skip
            losses, grads = [loss], [grad]
        self.network.zero_grad()
        # Of ranks every one waits for every gradient, even of a game that has no rows here.
        all_wait = self._ranks.world > 1
        learning = [place for place, rows in enumerate(labels) if len(rows) or all_wait]
        # The gradients are handed over as factors: backward(gradient) imports sympy, half a second.
        torch.autograd.backward([(outputs[i] * grads[i]).sum() for i in learning])
        self.optimizer.set_learning_rate(learning_rate)
        self.optimizer.step()
        if len(labels) == 1:
            return {"loss": losses[0]}
        parts = [loss * (len(rows) / len(obs)) for loss, rows in zip(losses, labels, strict=True)]
        each = {f"loss/{place}": loss for place, loss in enumerate(losses)}
        return {"loss": torch.stack(parts).sum(), **each}

    def _losses(
        self,
        outputs: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        temperatures: Sequence[float],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each task's mean loss over its rows; gradients of the mean over the rows of all."""
        total = sum(len(rows) for rows in labels)
        losses, grads = [], []
        for values, taught, weight, temperature in zip(
            outputs, labels, weights, temperatures, strict=True
        ):
            loss, grad = values.new_zeros(()), values.detach()
            if len(values):
                loss, grad = distill_loss_and_grad(
                    self.loss, values, taught, weight=weight, **self._options(temperature)
                )
                grad.mul_(len(values) / total)
            losses.append(loss)
            grads.append(grad)
        return losses, grads

    def _options(self, temperature: float) -> dict[str, Any]:
        return {"temperature": temperature} if self.loss in SHARPENED else {}

    def state(self) -> dict[str, Tensor]:
        """Everything that learns."""
        return learner_tensors(self.network, self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        restore_learner(self.network, self.optimizer, tensors)


def make_students(
    specs: Sequence[EnvSpec],
    *,
    losses: Sequence[str],
    sizes: Sequence[str],
    seeds: Sequence[int],
    optimizer: str,
    learning_rate: float,
    bfloat16: bool,
    device: torch.device,
    layer_norm: bool = False,
    own: OwnStudent | None = None,
    ranks: Ranks = ALONE,
) -> list[Student]:
    """All combinations; two students of one size and seed begin with the same weights.

    Args:
        specs: What they will see and do, game by game.
        losses: Of ``LOSSES``.
        sizes: Of ``fastdistill.networks.SIZES``, or ``OWN``.
        seeds: Of their first weights, which no teacher of that seed began with.
        optimizer: Of ``optimizing.OPTIMIZERS``.
        learning_rate: At first.
        bfloat16: Whether they compute under bfloat16 autocast.
        device: Where they learn.
        layer_norm: Whether the sizes have it, see ``Architecture``.
        own: For ``OWN``; a module is copied, never changed.
        ranks: That train them together.
    """
    return [
        Student(
            _network(size, seed, specs, own, layer_norm).to(device),
            loss=loss,
            size=size,
            seed=seed,
            optimizer=optimizer,
            learning_rate=learning_rate,
            bfloat16=bfloat16,
            ranks=ranks,
        )
        for loss in losses
        for size in sizes
        for seed in seeds
    ]


def _network(
    size: str, seed: int, specs: Sequence[EnvSpec], own: OwnStudent | None, layer_norm: bool
) -> nn.Module:
    if size == OWN:
        if len(specs) > 1:
            raise ValueError(
                f"distill: student must be a size where there are several games, got {OWN!r}: a "
                "module has one output, not one for each game"
            )
        with torch.random.fork_rng(devices=[]):  # what makes it may draw from the global generator
            torch.manual_seed(seed)
            return make_own(specs[0], own)
    actions = [spec.num_actions for spec in specs]
    architecture = paper_architecture(
        size, actions, obs_shape=specs[0].obs_shape, layer_norm=layer_norm
    )
    network = QNetwork.seeded(architecture, streams.native_seed(seed, streams.STUDENTS))
    if len(specs) > 1:
        network.games = tuple(spec.name for spec in specs)
    return network


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
    with torch.no_grad(), evaluation_mode(network):
        values = network(torch.zeros((2, *spec.obs_shape), dtype=spec.obs_dtype))
    got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if got != [2, spec.num_actions]:
        raise ValueError(
            f"distill: student must return [batch, {spec.num_actions}] values for "
            f"{str(spec.obs_dtype)[6:]} observations of shape {list(spec.obs_shape)}, got {got}"
        )
    return network
