# SPDX-License-Identifier: MIT
"""The losses on a real GPU, through the public API, against float64 references on the CPU.

What the kernels compute is covered without a GPU by tests/cpp/test_cuda_*.cpp; here is what only
the device and torch can show: streams, graphs, synchronisation, large offsets, several devices.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastdistill as fd
from fastdistill.losses.reference import distill_reference, td_reference, topk_reference

pytestmark = [
    pytest.mark.cuda,
    # What torch says of its own tools.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

KINDS = ("kl", "reverse_kl", "jsd", "nll", "mse")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# The places where tiles, warps and blocks end, and (47, 1500, 5000) where a kernel takes just less
# shared memory than is had without asking.
SIZES = (1, 2, 3, 4, 6, 8, 9, 16, 17, 18, 32, 33, 47, 64, 65, 128, 1000, 1500, 2048)
SIZES += (2049, 4096, 5000, 32768, 50257, 131072)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield
    torch.cuda.synchronize()


def options(kind: str) -> dict[str, float]:
    return {"temperature": 0.5} if kind in ("kl", "reverse_kl", "jsd") else {}


def random_rows(
    batch: int, actions: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device="cuda").manual_seed(seed + 1000 * actions + batch)
    shape = (2, batch, actions)
    rows = torch.randn(shape, generator=generator, device="cuda").mul_(2).to(dtype)
    return rows[0], rows[1]


def exact(kind: str, student: Tensor, teacher: Tensor, **kwargs: object) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64 on the CPU; the gradient is of the sum of what comes back."""
    wide = student.detach().cpu().double().requires_grad_()
    moved = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    loss = distill_reference(kind, wide, teacher.cpu().double(), **moved)
    (grad,) = torch.autograd.grad(loss.sum(), wide)
    return loss.detach(), grad


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype, floor: float = 0.0) -> None:
    """Relative to the largest value or `floor`: 64 roundings of float32, 4 of the dtype."""
    bound = max(64 * torch.finfo(torch.float32).eps, 4 * torch.finfo(dtype).eps)
    if dtype == torch.float64:
        bound = 1e-12
    error = float((got.detach().cpu().double() - want).abs().max())
    assert error <= bound * max(float(want.abs().max()), floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", SIZES)
def test_sizes(kind: str, actions: int) -> None:
    # Few rows get a warp each, many a thread.
    for batch in (31, 4500) if actions <= 64 else (37,):
        student, teacher = random_rows(batch, actions, torch.float32)
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options(kind))
        want_loss, want_grad = exact(kind, student, teacher, **options(kind))
        assert_close(loss, want_loss, torch.float32, floor=1.0)
        assert_close(grad, want_grad, torch.float32, floor=1e-3 / batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("student_dtype", DTYPES)
@pytest.mark.parametrize("teacher_dtype", DTYPES)
def test_dtypes(kind: str, student_dtype: torch.dtype, teacher_dtype: torch.dtype) -> None:
    for batch, actions in ((64, 18), (9000, 18), (9001, 24), (64, 304), (64, 5000)):
        student = random_rows(batch, actions, student_dtype)[0]
        teacher = random_rows(batch, actions, teacher_dtype, seed=1)[1]
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **options(kind))
        float64 = torch.float64 in (student_dtype, teacher_dtype)
        assert loss.dtype == (torch.float64 if float64 else torch.float32)
        assert grad.dtype == student_dtype
        want_loss, want_grad = exact(kind, student, teacher, **options(kind))
        assert_close(loss, want_loss, loss.dtype)
        assert_close(grad, want_grad, student_dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", [18, 300, 5000])
def test_masks_weights_and_row_losses(kind: str, actions: int) -> None:
    batch = 9000 if actions == 18 else 257
    student, teacher = random_rows(batch, actions, torch.float32)
    action_mask = torch.rand(batch, actions, device="cuda") < 0.7
    action_mask[3] = False
    weight = torch.rand(batch, device="cuda")
    weight[5] = 0
    student[5, 0] = float("nan")
    kwargs = {"action_mask": action_mask, "weight": weight, "reduction": "none", **options(kind)}
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, **kwargs)
    assert loss[3] == 0
    assert loss[5] == 0
    assert not grad[5].any()
    student[5, 0] = 0
    want_loss, want_grad = exact(kind, student, teacher, **kwargs)
    assert_close(loss, want_loss, torch.float32)
    assert_close(grad, want_grad, torch.float32)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.01, 10.0])
def test_extreme_temperatures_stay_finite(kind: str, temperature: float) -> None:
    for batch in (512, 9000):
        student, teacher = random_rows(batch, 18, torch.float32)
        teacher = teacher * 5e3
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, temperature=temperature)
        want_loss, want_grad = exact(kind, student, teacher, temperature=temperature)
        assert_close(loss, want_loss, torch.float32)
        assert_close(grad, want_grad, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "actions"), [(40, 18), (9000, 18), (9000, 24), (300, 512), (200, 8192)]
)
def test_actions_that_the_logits_rule_out(batch: int, actions: int, dtype: torch.dtype) -> None:
    student, teacher = random_rows(batch, actions, dtype)
    student[1::7, 3] = -torch.inf  # the loss is infinite, unless the teacher rules it out, too
    teacher[2::7, 2] = -torch.inf
    student[3::7, 1] = teacher[3::7, 1] = -torch.inf
    student[4::7], teacher[5::7] = -torch.inf, -torch.inf
    for kind in KINDS:
        loss, grad = fd.distill_loss_and_grad(
            kind, student, teacher, reduction="none", **options(kind)
        )
        want_loss, want_grad = exact(kind, student, teacher, reduction="none", **options(kind))
        assert torch.equal(loss.isinf().cpu(), want_loss.isinf())
        finite = want_loss.isfinite()
        assert_close(loss.cpu()[finite], want_loss[finite], torch.float32)
        assert_close(grad.cpu()[finite], want_grad[finite], dtype)
        assert grad.isfinite().all()


@pytest.mark.parametrize("actions", [18, 64, 300, 4096])
def test_strides_and_misalignment(actions: int) -> None:
    flat = torch.randn(2 + 3 * 100 * (actions + 5), device="cuda")
    padded = flat[2 : 2 + 100 * (actions + 5)].view(100, actions + 5)
    student = padded[:, 1 : actions + 1]
    teacher = flat[1 : 1 + actions].expand(100, actions)
    transposed = torch.randn(actions, 100, device="cuda").t()
    for s, t in ((student, teacher), (student, transposed), (transposed, student)):
        loss, grad = fd.distill_loss_and_grad("kl", s, t, temperature=0.5)
        want_loss, want_grad = exact("kl", s, t, temperature=0.5)
        assert_close(loss, want_loss, torch.float32)
        assert_close(grad, want_grad, torch.float32)


def test_autograd_and_out_grad() -> None:
    student, teacher = random_rows(1000, 18, torch.float32)
    student.requires_grad_()
    (3 * fd.distill_kl(student, teacher, temperature=0.5)).backward()
    out = torch.empty_like(student)
    _, grad = fd.distill_loss_and_grad("kl", student, teacher, temperature=0.5, out_grad=out)
    assert grad is out
    torch.testing.assert_close(student.grad, 3 * out)


@pytest.mark.parametrize("kind", ["huber", "mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_td_loss(kind: str, dtype: torch.dtype) -> None:
    q = torch.randn(3001, 18, dtype=dtype, device="cuda", requires_grad=True)
    action = torch.randint(0, 18, (3001,), device="cuda")
    target = torch.randn(3001, dtype=dtype, device="cuda")
    weight = torch.rand(3001, dtype=dtype, device="cuda")
    loss, td_abs = fd.td_loss(q, action, target, weight=weight, kind=kind)
    (grad,) = torch.autograd.grad(loss, q)
    wide = q.detach().cpu().double().requires_grad_()
    want, want_abs = td_reference(
        wide, action.cpu(), target.cpu().double(), weight=weight.cpu().double(), kind=kind
    )
    (want_grad,) = torch.autograd.grad(want, wide)
    assert_close(loss, want.detach(), dtype)
    assert_close(td_abs, want_abs, dtype)
    assert_close(grad, want_grad, dtype)


def test_td_action_out_of_range_spoils_only_its_row() -> None:
    q = torch.randn(100, 4, device="cuda", requires_grad=True)
    action = torch.zeros(100, dtype=torch.int64, device="cuda")
    action[7] = 4
    action[8] = -1
    loss, td_abs = fd.td_loss(q, action, torch.zeros(100, device="cuda"), reduction="none")
    (grad,) = torch.autograd.grad(loss.nansum(), q)
    assert loss.isnan().nonzero().flatten().tolist() == [7, 8]
    assert td_abs.isnan().nonzero().flatten().tolist() == [7, 8]
    assert not grad[7:9].any()


def test_nothing_synchronises() -> None:
    student, teacher = random_rows(4096, 18, torch.float32)
    weight = torch.rand(4096, device="cuda")
    q = student.clone().requires_grad_()
    action = torch.zeros(4096, dtype=torch.int64, device="cuda")
    fd.distill_kl(student, teacher)  # loads the module and its workspace
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for kind in KINDS:
            fd.distill_loss_and_grad(kind, student, teacher, weight=weight)
        fd.distill_kl(student.requires_grad_(), teacher).backward()
        fd.td_loss(q, action, weight)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("actions", [18, 300, 5000])
def test_streams_run_side_by_side(actions: int) -> None:
    """Calls on many streams at once must not share a workspace."""
    streams = [torch.cuda.Stream() for _ in range(8)]
    rows = [
        random_rows(20000 // (1 + actions // 64), actions, torch.float32, seed) for seed in range(8)
    ]
    want = [fd.distill_kl(student, teacher).clone() for student, teacher in rows]
    torch.cuda.synchronize()
    losses: list[list[Tensor]] = [[] for _ in streams]
    for _ in range(50):
        for stream, (student, teacher), results in zip(streams, rows, losses, strict=True):
            with torch.cuda.stream(stream):
                results.append(fd.distill_kl(student, teacher))
    torch.cuda.synchronize()
    for results, expected in zip(losses, want, strict=True):
        assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("actions", [18, 300, 5000])
def test_cuda_graph(actions: int) -> None:
    student, teacher = random_rows(3000, actions, torch.float32)
    out = torch.empty_like(student)
    fd.distill_loss_and_grad("kl", student, teacher, out_grad=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, _ = fd.distill_loss_and_grad("kl", student, teacher, out_grad=out)
    for seed in range(1, 4):
        fresh_student, fresh_teacher = random_rows(3000, actions, torch.float32, seed)
        student.copy_(fresh_student)
        teacher.copy_(fresh_teacher)
        graph.replay()
        # An eager call while the graph runs: each has a workspace of its own.
        eager_loss, eager_grad = fd.distill_loss_and_grad("kl", fresh_student, fresh_teacher)
        torch.cuda.synchronize()
        assert torch.equal(loss, eager_loss)
        assert torch.equal(out, eager_grad)


def test_one_kernel_per_call() -> None:
    student, teacher = random_rows(100_000, 18, torch.float32)
    out = torch.empty_like(student)
    fd.distill_loss_and_grad("kl", student, teacher, out_grad=out)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        fd.distill_loss_and_grad("kl", student, teacher, out_grad=out)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
    assert len(names) == 1, names
    assert "small_rows" in names[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", [18, 300, 5000])
def test_same_bits_every_time(kind: str, actions: int) -> None:
    student, teacher = random_rows(5000, actions, torch.float32)
    first = fd.distill_loss_and_grad(kind, student, teacher)
    for _ in range(100):
        again = fd.distill_loss_and_grad(kind, student, teacher)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@pytest.mark.slow
@pytest.mark.parametrize("actions", [6, 18, 300, 32768])
def test_more_than_2_31_elements(actions: int) -> None:
    batch = 2**31 // actions + 1000
    if torch.cuda.mem_get_info()[0] < 7 * 2 * batch * actions:
        pytest.skip("not enough device memory")
    student = torch.empty(batch, actions, dtype=torch.bfloat16, device="cuda").normal_()
    teacher = torch.empty(batch, actions, dtype=torch.bfloat16, device="cuda").normal_()
    loss, grad = fd.distill_loss_and_grad("kl", student, teacher, temperature=0.5, reduction="none")
    want_loss, want_grad = exact(
        "kl", student[-500:], teacher[-500:], temperature=0.5, reduction="none"
    )
    assert_close(loss[-500:], want_loss, torch.float32)
    assert_close(grad[-500:], want_grad, torch.bfloat16)
    total, _ = fd.distill_loss_and_grad("kl", student, teacher, temperature=0.5, reduction="sum")
    torch.testing.assert_close(total.double(), loss.double().sum(), rtol=1e-6, atol=0)


@pytest.mark.two_devices
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_device_of_the_tensors_not_the_current_one() -> None:
    student, teacher = random_rows(1000, 18, torch.float32)
    want = fd.distill_kl(student, teacher)
    got = fd.distill_kl(student.to("cuda:1"), teacher.to("cuda:1"))
    assert got.device.index == 1
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(got.cpu(), want.cpu())


def test_tensors_on_different_devices_are_refused() -> None:
    student, teacher = random_rows(8, 18, torch.float32)
    with pytest.raises(ValueError, match="teacher_logits must be on the device of student_logits"):
        fd.distill_kl(student, teacher.cpu())


def test_out_of_memory_leaves_the_process_usable() -> None:
    student, teacher = random_rows(1000, 18, torch.float32)
    want = fd.distill_kl(student, teacher)
    rows = torch.cuda.get_device_properties(0).total_memory // 4
    huge = student[:1].expand(rows, 18)  # its gradient alone is 18 times the device's memory
    with pytest.raises(torch.OutOfMemoryError):
        fd.distill_loss_and_grad("kl", huge, huge)
    assert torch.equal(fd.distill_kl(student, teacher), want)


def test_empty() -> None:
    for batch, actions in ((0, 18), (3, 0)):
        empty = torch.empty(batch, actions, device="cuda")
        loss, grad = fd.distill_loss_and_grad("kl", empty, empty)
        assert loss == 0
        assert grad.shape == (batch, actions)


def test_compiled_matches_eager() -> None:
    student, teacher = random_rows(1000, 18, torch.float32)
    compiled = torch.compile(fd.distill_kl, fullgraph=True)
    assert torch.equal(compiled(student, teacher), fd.distill_kl(student, teacher))


def test_autocast_changes_nothing() -> None:
    student, teacher = random_rows(1000, 18, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        inside = fd.distill_kl(student, teacher)
    assert torch.equal(inside, fd.distill_kl(student, teacher))


def test_reduce_overhead_runs_in_graphs():
    # Its private pool must hold nothing of ours but results; several shapes, several recordings.
    def step(student, teacher):
        loss = fd.distill_kl(student, teacher, temperature=0.5)
        loss.backward()
        return loss

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s, t: fd.distill_kl(s, t, temperature=0.5), mode="reduce-overhead"
    )
    for _ in range(5):
        for batch in (64, 65):
            student, teacher = torch.randn(2, batch, 18, device="cuda")
            student.requires_grad_()
            torch.compiler.cudagraph_mark_step_begin()
            loss = compiled(student, teacher)
            loss.backward()
            leaf = student.detach().clone().requires_grad_()
            expected = step(leaf, teacher)
            assert torch.equal(loss, expected)
            assert torch.equal(student.grad, leaf.grad)


CONTEXTS = """
import torch, fastdistill as fd
student = torch.zeros(4, 5, device="cuda:1")
fd.distill_kl(student, student)
assert torch.cuda.current_device() == 0
print(torch._C._cuda_hasPrimaryContext(0), torch._C._cuda_hasPrimaryContext(1))
"""


@pytest.mark.two_devices
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_no_context_on_a_device_that_is_not_used():
    run = subprocess.run([sys.executable, "-c", CONTEXTS], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "True"], run.stderr


def topk_rows(batch: int, actions: int, k: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    student, teacher = random_rows(batch, actions, dtype)
    values, indices = teacher.float().log_softmax(1).topk(k)
    return student, values.to(dtype), indices


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tail", [True, False])
def test_kl_topk(dtype: torch.dtype, tail: bool) -> None:
    # The last row is longer than the marks that fit in shared memory at once.
    for batch, actions, k in ((257, 18, 4), (64, 5000, 64), (33, 50257, 300), (3, 300_000, 64)):
        student, values, indices = topk_rows(batch, actions, k, dtype)
        wide = student.cpu().double().requires_grad_()
        want = topk_reference(wide, values.cpu().double(), indices.cpu(), tail=tail)
        (want_grad,) = torch.autograd.grad(want, wide)
        student.requires_grad_()
        loss = fd.distill_kl_topk(student, values, indices, tail=tail)
        (grad,) = torch.autograd.grad(loss, student)
        assert_close(loss, want.detach(), loss.dtype, floor=1.0)
        assert_close(grad, want_grad, dtype, floor=1e-3 / batch)


def test_kl_topk_faults_spoil_only_their_rows() -> None:
    student, values, indices = topk_rows(100, 50, 4, torch.float32)
    indices[7, 1] = 50
    indices[8, 2] = -1
    indices[9, 0] = indices[9, 3]
    values[10, 0] = 1.0
    student.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = fd.distill_kl_topk(student, values, indices, reduction="none")
        (grad,) = torch.autograd.grad(loss, student, torch.ones_like(loss))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isnan().nonzero().flatten().tolist() == [7, 8, 9, 10]
    assert not grad[7:11].any()
    assert grad.isfinite().all()
