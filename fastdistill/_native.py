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


_workspaces: list[torch.Tensor] = []


def cuda_workspace(device_index: int, size_bytes: int, keep: bool) -> torch.Tensor:
    """Returns zeroed scratch memory of the CUDA kernels; `keep` holds it till the process ends."""
    workspace = torch.zeros(size_bytes, dtype=torch.uint8, device=f"cuda:{device_index}")
    if keep:
        _workspaces.append(workspace)
    return workspace


def has_cuda_kernels() -> bool:
    """Whether losses of CUDA tensors can run here: kernels built, driver and device present."""
    try:
        cuda_module()
    except RuntimeError:
        return False
    return torch.cuda.is_available()
