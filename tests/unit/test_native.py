# SPDX-License-Identifier: MIT
"""What the package says where a part of it, or of torch, is missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest
import torch

import fastdistill as fd
from fastdistill import _core, _native


@pytest.fixture
def _without_cuda_module(monkeypatch):
    monkeypatch.setattr(_native, "_cuda", None)
    monkeypatch.delattr(fd, "_cuda", raising=False)
    monkeypatch.setitem(sys.modules, "fastdistill._cuda", None)  # import now raises


@pytest.mark.usefixtures("_without_cuda_module")
def test_cuda_kernels_are_missing():
    assert fd.has_cuda_kernels() is False
    with pytest.raises(RuntimeError, match=r"^fastdistill: the CUDA kernels are not available\. L"):
        _native.cuda_module()
    loss = fd.distill_kl(torch.zeros(2, 3), torch.ones(2, 3))  # the CPU does not need them
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 5), "80-real,90-real,100-real,120", False),  # T4
        ((7, 0), "80-real,90", False),  # V100
        ((8, 0), "80-real,90-real,100-real,120", True),
        ((8, 9), "80-real,90-real,100-real,120", True),  # machine code of its generation
        ((9, 0), "80-real,90", True),
        ((11, 0), "80-real,90-real,100-real,120", False),
        ((12, 1), "80-real,90-real,100-real,120", True),
        ((13, 0), "80-real,90-real,100-real,120", True),  # PTX of the newest
        ((12, 0), "80-real,90", True),
        ((7, 5), "75-virtual", True),
        ((7, 5), "native", True),
    ],
)
def test_kernels_of_the_devices_architecture(monkeypatch, capability, architectures, runs):
    module = types.SimpleNamespace(architectures=architectures)
    monkeypatch.setattr(_native, "_cuda", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fd.has_cuda_kernels() is runs


def test_native_module_is_missing(monkeypatch):
    spec = importlib.util.find_spec("fastdistill._native")
    monkeypatch.setitem(sys.modules, "fastdistill._core", None)
    monkeypatch.delattr(fd, "_core")
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=r"^fastdistill: the native module _core did not load\."):
        spec.loader.exec_module(module)


def test_torch_too_old():
    old = types.SimpleNamespace(Tensor=type("Tensor", (), {}), __version__="2.9.1")
    module = types.ModuleType("torch")
    vars(module).update(vars(old))
    try:
        with pytest.raises(ImportError, match=r"^fastdistill: torch must be 2\.10 or later, got 2"):
            _core.bind_torch(module)
    finally:
        _core.bind_torch(torch)
    assert torch.isfinite(fd.distill_kl(torch.zeros(2, 3), torch.ones(2, 3)))
