# SPDX-License-Identifier: MIT
"""What a training asks of the process it runs in: a device, memory that stays, strict kernels."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch

from fastdistill.envs import usable_device
from fastdistill.networks.convolutions import prefers_bfloat16


def pick_device(device: str) -> torch.device:
    """``"auto"`` is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(device)


def default_bfloat16() -> bool:
    """Whether networks compute in bfloat16 unless told otherwise: where the machine is quick at it.

    Settled when a configuration is made, and stored with it: a run that is continued elsewhere
    keeps its arithmetic.
    """
    return prefers_bfloat16(pick_device("auto"))


def keep_freed_memory() -> None:
    """Ask glibc to keep the memory of freed batches for the next one.

    By default it returns megabytes to the system at each free and takes a page fault per 4 KB at
    the next allocation: a DQN update of 64 rows took 34 ms that way and takes 20 ms without (2
    cores of an AMD EPYC, November 2026). Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the largest it accepts
    mallopt(trim_threshold, 1 << 30)


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Make torch refuse kernels that are not deterministic, in this process, until the end."""
    before = torch.are_deterministic_algorithms_enabled()
    if not wanted or before:  # asking for what is already so costs 2 s of imports
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
