# SPDX-License-Identifier: MIT
"""Same bits on any number of threads, in any thread, in forked workers; no large temporaries."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import DTYPES, KINDS, random_logits, temperature_options

import fastdistill as fd
from fastdistill import _native

# (4096, 18) and (300, 1000) are cut into many chunks, (3, 50000) into rows.
SHAPES = ((4096, 18), (300, 1000), (3, 50000))


def run(kind, student, teacher, reduction="batchmean"):
    options = {**temperature_options(kind, 0.5), "reduction": reduction}
    return fd.distill_loss_and_grad(kind, student, teacher, **options)


def test_uses_torchs_threads():
    assert _native.uses_torch_threads is True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads(kind, dtype):
    for shape in SHAPES:
        student, teacher = random_logits(*shape, dtype=dtype)
        torch.set_num_threads(1)
        loss, grad = run(kind, student, teacher)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            again, again_grad = run(kind, student, teacher)
            assert torch.equal(again, loss)
            assert torch.equal(again_grad, grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_runs(kind):
    torch.use_deterministic_algorithms(True)
    student, teacher = random_logits(1500, 18)
    loss, grad = run(kind, student, teacher)
    for _ in range(100):
        again, again_grad = run(kind, student, teacher)
        assert torch.equal(again, loss)
        assert torch.equal(again_grad, grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_neighbours(kind):
    for actions in (6, 18, 100):
        student, teacher = random_logits(67, actions)
        loss, grad = run(kind, student, teacher, "none")
        for begin, end in ((0, 1), (5, 22), (66, 67)):
            part, part_grad = run(kind, student[begin:end], teacher[begin:end], "none")
            assert torch.equal(part, loss[begin:end])
            assert torch.equal(part_grad, grad[begin:end])


def test_calls_from_many_python_threads():
    # Large enough to give the interpreter away, so that calls really overlap.
    student, teacher = random_logits(4096, 18)
    wide_student, wide_teacher = random_logits(40, 3000, dtype=torch.bfloat16)
    expected = {kind: run(kind, student, teacher) for kind in KINDS}
    expected_wide = {kind: run(kind, wide_student, wide_teacher) for kind in KINDS}

    def work(i):
        kind = KINDS[i % len(KINDS)]
        results = run(kind, student, teacher), run(kind, wide_student, wide_teacher)
        for (loss, grad), (want, want_grad) in zip(
            results, (expected[kind], expected_wide[kind]), strict=True
        ):
            assert torch.equal(loss, want)
            assert torch.equal(grad, want_grad)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(80)))


def digest(loss, grad):
    data = loss.detach().numpy().tobytes() + grad.numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


class Losses(torch.utils.data.Dataset):
    """Each item is a loss computed in the worker."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return digest(*run(KINDS[i % 5], *random_logits(3000, 18, seed=i)))


# Python warns of a fork with threads alive, which is the very thing under test.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_data_loader_workers():
    expected = [Losses()[i] for i in range(10)]  # the parent's pool has run before the fork
    loader = torch.utils.data.DataLoader(
        Losses(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    assert list(loader) == expected


MEASURE = """
import resource, sys, torch, fastdistill as fd
dtype = getattr(torch, sys.argv[1])
student = torch.empty(64, 200_000, dtype=dtype).uniform_(-1, 1)
teacher, out = student.flip(1), torch.zeros_like(student)
fd.distill_loss_and_grad("kl", student[:1], teacher[:1], out_grad=out[:1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind in ("kl", "reverse_kl", "jsd", "nll", "mse"):
    for reduction in ("batchmean", "none"):
        fd.distill_loss_and_grad(kind, student, teacher, out_grad=out, reduction=reduction)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / (student.numel() * student.element_size()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_temporary_of_the_batch(dtype):
    # Beyond inputs and gradient a loss may take a few rows per thread. A float32 copy of one
    # bfloat16 side would be 2 on this scale, one more float32 matrix 1.
    paths = [str(Path(fd.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, dtype],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.6


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    # Offsets of 32 bits would wrap; one teacher row stands for all, the gradient is bfloat16.
    rows = 2**31 // 1000 + 100
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 14e9:
        pytest.skip("needs 14 GB of memory")
    student = torch.zeros(rows, 1000, dtype=torch.bfloat16)
    student[-1] = torch.linspace(-1, 1, 1000)
    teacher = torch.zeros(1, 1000).expand(rows, 1000)
    loss, grad = fd.distill_loss_and_grad("kl", student, teacher, temperature=1.0, reduction="none")
    last, last_grad = fd.distill_loss_and_grad(
        "kl", student[-1:].clone(), teacher[-1:].contiguous(), temperature=1.0, reduction="none"
    )
    assert torch.equal(loss[-1:], last)
    assert torch.equal(grad[-1:], last_grad)
    assert loss[:-1].max() < 1e-6
