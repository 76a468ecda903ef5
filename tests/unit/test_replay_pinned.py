# SPDX-License-Identifier: MIT
"""Batches in pinned memory: torch must own it, for only its cache knows of copies under way.

Without a device nothing can be pinned; here the same code runs on plain memory of torch.
tests/gpu/test_replay_cuda.py has the copy itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay


@pytest.fixture
def as_if_pinned(monkeypatch):
    """Asks for pinned memory are noted and get plain memory."""
    empty, asked = torch.empty, []

    def fake_empty(*size, pin_memory=False, **options):
        if pin_memory:
            asked.append(size)
        return empty(*size, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", fake_empty)
    return asked


def filled(**options):
    replay = PrioritizedReplay(
        64, 1, frame_shape=(3, 5), stack=2, columns={"x": ((7,), "float64")}, **options
    )
    for step in range(40):
        replay.append(
            np.full((1, 3, 5), step, np.uint8), [step], [step], [False], [False],
            x=np.full((1, 7), step),
        )  # fmt: skip
    return replay


def test_batches_are_the_same_in_pinned_memory(as_if_pinned):
    pinned = filled(seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        plain = filled(seed=1)
    for size in (1, 8, 33):
        a, b = pinned.sample(size), plain.sample(size)
        for x, y in zip((*a[:8], *a.columns.values()), (*b[:8], *b.columns.values()), strict=True):
            assert torch.equal(x, y)
            assert x.dtype == y.dtype
            assert x.is_contiguous()
    assert len(as_if_pinned) == 3  # one block per batch


def test_the_memory_is_torchs_own_and_lent_once(as_if_pinned):
    replay = filled()
    batch = replay.sample(8)
    storage = batch.obs.untyped_storage()
    for tensor in (*batch[:8], *batch.columns.values()):
        assert tensor.untyped_storage().data_ptr() == storage.data_ptr()
        assert tensor.data_ptr() % 64 == 0
    kept, ids = batch.obs.clone(), batch.id.tolist()
    del batch, tensor
    # Somebody, such as torch's cache during a copy, still holds the storage: nobody writes to it.
    for _ in range(8):
        assert replay.sample(8).obs.untyped_storage().data_ptr() != storage.data_ptr()
    assert bytes(storage[: kept.numel()]) == kept.numpy().tobytes()
    assert replay.read(torch.tensor(ids)).id.tolist() == ids
