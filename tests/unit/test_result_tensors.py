# SPDX-License-Identifier: MIT
"""The tensors that the native calls return: memory of our own, handed over to torch."""

from __future__ import annotations

import gc
import io
import itertools
import os
import threading

import pytest
import torch

import fastdistill as fd
from fastdistill import _core

MIB = 2**20
LARGE = (MIB // 4 // 64, 64)  # 1 MiB of float32, the smallest that is pooled


def gradient(batch, actions):
    student = torch.randn(batch, actions)
    teacher = torch.zeros(batch, actions)
    _, grad = fd.distill_loss_and_grad("mse", student, teacher, reduction="sum")
    return grad, 2 * student


@pytest.fixture
def pool():
    """Keeps what others have left in the pool, so that a test gets only what it gave back."""
    gc.collect()
    grads = []
    for rows in (LARGE[0] * 2**k for k in range(10)):
        before = _core.pooled_bytes()
        for _ in range(5):
            grads.append(gradient(rows, LARGE[1])[0])
            if _core.pooled_bytes() == before:
                break
            before = _core.pooled_bytes()
        if _core.pooled_bytes() == 0:
            break
    assert _core.pooled_bytes() == 0
    yield grads
    grads.clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (5, 18), LARGE, (513, 1025)], ids=str)
def test_results_are_contiguous_tensors_like_any_other(shape, dtype):
    student = torch.randn(shape[::-1]).to(dtype).t()
    teacher = torch.randn(shape).to(dtype)
    loss, grad = fd.distill_loss_and_grad("mse", student, teacher, reduction="none")
    assert grad.shape == shape
    assert grad.stride() == torch.empty(shape).stride()
    assert grad.dtype == dtype
    assert loss.shape == shape[:1]
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for tensor in (loss, grad):
        assert type(tensor) is torch.Tensor
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert tensor.data_ptr() % 64 == 0
        file = io.BytesIO()
        torch.save(tensor, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=True), tensor)
    expected = 2 * (student.float() - teacher.float())
    assert torch.allclose(grad.float(), expected, rtol=1e-2, atol=1e-2)
    grad.add_(1)  # writable


def test_scalars():
    loss, _ = fd.distill_loss_and_grad("mse", torch.ones(2, 3), torch.zeros(2, 3))
    assert loss.shape == ()
    assert loss.item() == 3.0


def test_td_loss_of_rows_that_are_not_adjacent():
    q = torch.randn(3, 4).t()
    loss, td_abs = fd.td_loss(
        q.requires_grad_(), torch.tensor([0, 1, 2, 0]), torch.zeros(4), reduction="none"
    )
    loss.sum().backward()
    assert loss.shape == td_abs.shape == (4,)
    expected = torch.zeros(4, 3)
    taken = q.detach()[torch.arange(4), torch.tensor([0, 1, 2, 0])]
    expected[torch.arange(4), torch.tensor([0, 1, 2, 0])] = taken.clamp(-1, 1)
    assert torch.equal(q.grad, expected)


@pytest.mark.parametrize("shape", [(3, 18), LARGE], ids=str)
def test_living_results_never_share_memory(shape):
    pairs = [gradient(*shape) for _ in range(20)]
    for grad, expected in pairs:
        assert torch.equal(grad, expected)
    ranges = sorted((g.data_ptr(), g.data_ptr() + 4 * g.numel()) for g, _ in pairs)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges))


def test_a_large_gradient_returns_to_the_pool_and_serves_again(pool):
    grad, _ = gradient(*LARGE)
    place = grad.data_ptr()
    assert _core.pooled_bytes() == 0
    view = grad[3:]
    del grad
    assert _core.pooled_bytes() == 0  # the view still needs it
    del view
    assert _core.pooled_bytes() == 2 * MIB
    small, _ = gradient(LARGE[0] - 1, LARGE[1])
    assert small.data_ptr() != place
    grad, expected = gradient(*LARGE)
    assert grad.data_ptr() == place
    assert torch.equal(grad, expected)
    assert _core.pooled_bytes() == 0


def test_a_block_is_kept_for_gradients_of_at_least_half_its_size(pool):
    grad, _ = gradient(8 * LARGE[0], LARGE[1])
    place = grad.data_ptr()
    del grad
    assert _core.pooled_bytes() == 8 * MIB
    small, _ = gradient(4 * LARGE[0] - 1, LARGE[1])
    assert small.data_ptr() != place
    half, _ = gradient(4 * LARGE[0], LARGE[1])
    assert half.data_ptr() == place


def test_four_blocks_are_kept_and_the_oldest_goes(pool):
    grads = [gradient(*LARGE)[0] for _ in range(6)]
    places = [grad.data_ptr() for grad in grads]
    while grads:
        del grads[0]
    assert _core.pooled_bytes() == 4 * 2 * MIB
    again = [gradient(*LARGE)[0] for _ in range(4)]
    assert {grad.data_ptr() for grad in again} == set(places[2:])


def test_a_gradient_may_die_on_any_thread(pool):
    grads = [gradient(*LARGE)[0]]
    thread = threading.Thread(target=grads.clear)
    thread.start()
    thread.join()
    assert _core.pooled_bytes() == 2 * MIB


# Python warns of a fork with threads alive; tests/cpp/test_gradient_pool.cpp has them busy.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_pool_of_its_own(pool):
    kept, expected = gradient(*LARGE)
    gradient(*LARGE)
    assert _core.pooled_bytes() == 2 * MIB
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            grad, wanted = gradient(*LARGE)
            right = torch.equal(grad, wanted) and torch.equal(kept, expected)
            del kept, grad
            status = 0 if right and _core.pooled_bytes() == 4 * MIB else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _core.pooled_bytes() == 2 * MIB
    assert torch.equal(kept, expected)
