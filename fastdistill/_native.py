# SPDX-License-Identifier: MIT
"""The native modules: the only place that imports them and explains why one is missing.

`_core` (CPU losses, replay) is required. `_cuda` (CUDA kernels) is loaded when the first CUDA
tensor arrives, so that this package works on machines without a driver or built without nvcc.
"""

from __future__ import annotations

from types import ModuleType

import torch

try:
    from fastdistill import _core
except ImportError as error:
    raise ImportError(
        "fastdistill: the native module _core did not load. Likely causes: (1) the package was "
        "imported from its source tree without `pip install .`; (2) it was built for another "
        "Python; (3) this machine's C++ runtime is older than the one it was built with. "
        f"{error}"
    ) from error

core = _core
uses_torch_threads: bool = core.bind_torch(torch)

_cuda: ModuleType | None = None


def cuda_module() -> ModuleType:
    """Returns `_cuda`, loading it at the first call.

    Raises:
        RuntimeError: It was not built, or this machine lacks what it needs.
    """
    global _cuda
    if _cuda is None:
        try:
            from fastdistill import _cuda as module
        except ImportError as error:
            raise RuntimeError(
                "fastdistill: the CUDA kernels are not available. Likely causes: (1) the package "
                "was built without nvcc (build it with FASTDISTILL_CUDA=ON to be told why); (2) it "
                f"was built for another Python. {error}"
            ) from error
        _cuda = module
    return _cuda


def graph_workspace(device_index: int, size_bytes: int, ticket_bytes: int) -> torch.Tensor:
    """Returns scratch memory of a graph being captured, which zeroes the ticket at each replay."""
    workspace = torch.empty(size_bytes, dtype=torch.uint8, device=f"cuda:{device_index}")
    workspace[:ticket_bytes].zero_()
    return workspace


def has_cuda_kernels() -> bool:
    """Whether losses of CUDA tensors can run here.

    That is: kernels built, driver and device present, and each visible device of an architecture
    that the kernels were compiled for.
    """
    try:
        architectures = cuda_module().architectures
    except RuntimeError:
        return False
    if not torch.cuda.is_available():
        return False
    devices = range(torch.cuda.device_count())
    return all(runs_on(torch.cuda.get_device_capability(i), architectures) for i in devices)


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether a device runs code for architectures, named as CMake does with commas between.

    Machine code ("90-real") runs on later devices of its own generation, PTX ("90-virtual", or
    "90" for both) on all later ones. Special values such as "native" are taken to fit.
    """
    for entry in architectures.split(","):
        number, _, kind = entry.partition("-")
        if not number.isdigit():
            return True
        compiled = divmod(int(number), 10)
        if compiled <= capability and (kind != "real" or compiled[0] == capability[0]):
            return True
    return False
