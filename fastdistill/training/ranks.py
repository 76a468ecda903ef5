# SPDX-License-Identifier: MIT
"""Several processes that train the same students: what torchrun starts, and torch.distributed does.

A rank has lanes (or shards), a replay and copies of the students of its own; gradients are averaged
over the ranks at every update. The first rank owns directory, records, scoring and checkpoints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RankLost(RuntimeError):  # noqa: N818 (it names what happened)
    """Another rank ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
        device: Where it learns.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether it owns what the ranks have in common."""
        return self.rank == 0

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any rank has been asked to stop, and the seconds of the slowest."""
        if self.world == 1:
            return stop, seconds
        both = torch.tensor([float(stop), seconds], dtype=torch.float64)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return bool(both[0] > 0), float(both[1])

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars, averaged over the ranks."""
        if self.world == 1:
            return dict(values)
        total = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(total)
        return dict(zip(values, total / self.world, strict=True))

    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite these by what the first rank has."""
        for tensor in tensors if self.world > 1 else ():
            dist.broadcast(tensor, 0)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients will be the ranks' mean; its weights become the first's.

        Every update has to use every parameter. Buffers stay each rank's own: they are set alike.
        """
        parallel = nn.parallel.DistributedDataParallel
        new = "forward_sync_buffers" in signature(parallel).parameters  # its name since torch 2.13
        sync: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        return parallel(network, **sync)

    def part_of(self, name: str, value: int) -> int:
        """This rank's part of something that is counted over all of them.

        Raises:
            ValueError: It cannot be divided among them.
        """
        if value % self.world:
            raise ValueError(
                f"DistillConfig: {name} must be a multiple of {self.world}, the ranks, got {value}"
            )
        return value // self.world


ALONE = Ranks()


def launched_rank() -> int:
    """This process's rank where torchrun has started it, else 0."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_world() -> int:
    """How many processes torchrun has started on this machine, which share its cores."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


@contextmanager
def open_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the ranks that torchrun has started; without it, or with one, nothing is opened.

    Args:
        device: Of this rank. CUDA without a number becomes that of the rank's place on the machine.

    Raises:
        RankLost: Another rank ended meanwhile.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Ranks(device=device)
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or re.search(_LOST, str(error)):
            raise RankLost(
                "distill: every rank must stay until the end, got one that ended "
                f"({str(error).splitlines()[0][:200]}); begin again with --resume, with as many "
                "ranks as there are"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


# How gloo says it, whose errors have no type of their own.
_LOST = r"gloo|Connection (closed|reset|refused) by peer|Broken pipe"


class Forward(nn.Module):
    """A network of one game or of several, called in the one way that can be made parallel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, obs: Tensor, counts: Sequence[int] | None = None) -> Any:
        """``network(obs)``; with the rows of each game, its heads' outputs."""
        if counts is None:
            return self.network(obs)
        return self.network.forward_games(obs, counts)
