# SPDX-License-Identifier: MIT
"""What a network costs to run: multiply-adds, measured latency, and the machine that it was.

Works on any torch module, so that a teacher of the user's is measured like a student of ours.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastdistill.networks import QNetwork


@torch.no_grad()
def multiply_adds(module: nn.Module, obs_shape: Sequence[int], dtype: torch.dtype) -> int:
    """Multiply-adds of one forward pass for one observation (convolutions and matrix products).

    Args:
        module: Maps ``[batch, *obs_shape]`` to anything.
        obs_shape: Of one observation.
        dtype: Of observations.
    """
    if isinstance(module, QNetwork):  # counting imports torch's compiler, which takes seconds
        return module.multiply_adds()
    counter = FlopCounterMode(display=False)
    with counter:
        module(_obs(module, 1, obs_shape, dtype))
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def latency_seconds(
    module: nn.Module,
    obs_shape: Sequence[int],
    dtype: torch.dtype,
    batch_size: int,
    *,
    repeats: int = 20,
) -> float:
    """Median time of a forward pass, observations in, values out, after two to warm up.

    Args:
        module: See ``multiply_adds``; its device is where it is measured.
        obs_shape: Of one observation.
        dtype: Of observations.
        batch_size: Observations at once.
        repeats: Passes timed.
    """
    obs = _obs(module, batch_size, obs_shape, dtype)
    times = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        module(obs)
        if obs.is_cuda:
            torch.cuda.synchronize(obs.device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def describe_machine() -> dict[str, str | int]:
    """The hardware and software that a measurement was made on."""
    description: dict[str, str | int] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
    return description


def _cpu_name() -> str:
    # Family and model as well: where the name alone says little, they name the generation.
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in fields:
        return name
    return f"{name}, family {fields['cpu family']} model {fields.get('model', '?')}"


def _obs(module: nn.Module, batch_size: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    size = (batch_size, *shape)
    if dtype == torch.uint8:
        return torch.randint(0, 256, size, dtype=dtype, device=device)
    return torch.randn(size, dtype=dtype, device=device)
