# SPDX-License-Identifier: MIT
"""Distillation loss and gradient on a GPU: ours beside torch eager, torch.compile and Liger.

One round is a sweep over several sets of inputs, together larger than any L2 cache, and one
synchronisation; the time of a call is the round divided by the calls in it. `device` is our kernel
in a captured graph, without the host's part. `extra_info` holds the bytes that any implementation
must move (both logits read, the gradient written) and the time that a copy of as many takes,
measured in the same process.

    python benchmarks/run.py --cuda
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastdistill as fd

pytestmark = pytest.mark.cuda

Step = Callable[[Tensor, Tensor, Tensor], object]

TEMPERATURE = 0.01
L2_BYTES = 128 << 20  # more than the L2 of any GPU at hand
SHAPES = (
    (32, 18, torch.float32),
    (65_536, 18, torch.float32),
    (1_048_576, 18, torch.float32),
    (1_048_576, 18, torch.bfloat16),
    (1_048_576, 6, torch.float32),
    (65_536, 512, torch.float32),
    (8_192, 32_768, torch.float32),
    (8_192, 32_768, torch.bfloat16),
    (4_096, 50_257, torch.bfloat16),
    (4_096, 131_072, torch.bfloat16),
)
COLUMNS = (
    "distill_kl",
    "distill_loss_and_grad",
    "device",
    "torch_eager",
    "torch_compile",
    "torch_compile_graphs",
    "liger",
)


@pytest.fixture(scope="module")
def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of a large device-to-device copy."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    source = torch.empty(1 << 28, device="cuda").normal_()
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds = []
    for _ in range(20):
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() * source.element_size() / sorted(seconds)[len(seconds) // 2]


def composite(student: Tensor, teacher: Tensor) -> Tensor:
    """What a user of torch writes."""
    log_q = F.log_softmax(student.float(), dim=-1)
    log_p = F.log_softmax(teacher.float() / TEMPERATURE, dim=-1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def backward_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    def step(student: Tensor, teacher: Tensor, _: Tensor) -> object:
        student.grad = None
        loss(student, teacher).backward()
        return student.grad

    return step


def ours_loss_and_grad(student: Tensor, teacher: Tensor, out: Tensor) -> object:
    return fd.distill_loss_and_grad("kl", student, teacher, temperature=TEMPERATURE, out_grad=out)


def liger() -> Callable[[Tensor, Tensor], Tensor]:
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        log_q = F.log_softmax(student.float(), dim=-1)
        log_p = F.log_softmax(teacher.float() / TEMPERATURE, dim=-1)
        result: Tensor = divergence(log_q, log_p)
        return result

    return loss


def step_of(column: str) -> Step:
    if column in ("distill_loss_and_grad", "device"):
        return ours_loss_and_grad
    if column == "distill_kl":
        return backward_of(lambda s, t: fd.distill_kl(s, t, temperature=TEMPERATURE))
    if column == "torch_eager":
        return backward_of(composite)
    if column == "torch_compile":
        return backward_of(torch.compile(composite))
    if column == "torch_compile_graphs":
        return backward_of(torch.compile(composite, mode="reduce-overhead"))
    if importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger_kernel is not installed")
    return backward_of(liger())


def graph_of(
    step: Step, inputs: list[tuple[Tensor, Tensor, Tensor]], calls: int
) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            step(*inputs[call % len(inputs)])
    return graph.replay


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(("batch", "actions", "dtype"), SHAPES)
def test_kl_forward_backward(
    benchmark: BenchmarkFixture,
    copy_bandwidth: float,
    column: str,
    batch: int,
    actions: int,
    dtype: torch.dtype,
) -> None:
    torch.compiler.reset()
    step = step_of(column)
    element_bytes = torch.empty(0, dtype=dtype).element_size()
    floor_bytes = 3 * batch * actions * element_bytes
    calls = 64 if floor_bytes < L2_BYTES else 8
    inputs = []
    for _ in range(min(calls, max(2, -(-L2_BYTES // floor_bytes)))):
        student, teacher = (torch.randn(batch, actions, device="cuda").to(dtype) for _ in range(2))
        student.requires_grad_(step is not ours_loss_and_grad)
        inputs.append((student, teacher, torch.empty_like(student)))
    for _ in range(3):  # compiles, loads, warms up
        step(*inputs[0])
    torch.cuda.synchronize()
    replay = graph_of(step, inputs, calls) if column == "device" else None

    def sweep() -> None:
        if replay is not None:
            replay()
        else:
            for call in range(calls):
                step(*inputs[call % len(inputs)])
        torch.cuda.synchronize()

    benchmark.extra_info.update(
        operation="distill_kl",
        shape=[batch, actions],
        dtype=str(dtype).removeprefix("torch."),
        column=column,
        calls=calls,
        bytes=floor_bytes,
        copy_seconds=floor_bytes / copy_bandwidth,
    )
    benchmark.pedantic(sweep, rounds=15, warmup_rounds=2)
