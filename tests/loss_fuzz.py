# SPDX-License-Identifier: MIT
"""Random calls of the losses against the oracle; `python tests/loss_fuzz.py --calls 1000 --seed 7`.

A call draws everything at once: kind, shape, dtypes, strides, temperatures, masks, weights, -inf on
either side, the reduction, the number of threads. What single tests hold one by one may fail where
two things meet. It is a script, because FASTDISTILL_CPU, which picks the kernels, is read once per
process. Prints JSON: the instruction set and the faults, each with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
import torch
from loss_oracle import Truth, distill_truth, td_truth
from support import (
    DTYPES,
    KINDS,
    REDUCTIONS,
    assert_matches_truth,
    epsilon,
    temperature_options,
    tiny_of,
)
from torch import Tensor

import fastdistill as fd
from fastdistill import _core

ACTIONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 18, 19, 33, 63, 64, 65, 66, 129, 300)
BATCHES = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 70)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def random_layout(rng: np.random.Generator, values: Tensor) -> Tensor:
    """The same matrix in memory of another shape: dense, padded, offset, or by columns."""
    batch, actions = values.shape
    layout = rng.integers(4)
    if layout == 1:
        wide = torch.full((batch, actions + 3), torch.nan, dtype=values.dtype)
        return wide[:, 1 : actions + 1].copy_(values)
    if layout == 2:
        return torch.cat([values.new_full((1,), torch.nan), values.flatten()])[1:].view_as(values)
    return values.t().contiguous().t() if layout == 3 else values


def random_logits(rng: np.random.Generator, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    values = torch.from_numpy(rng.standard_normal(shape)) * log_uniform(rng, 0.01, 1e4)
    if rng.random() < 0.3:  # wide gaps within a row: small probabilities
        values = values * torch.from_numpy(rng.random(shape) < 0.3)
    if rng.random() < 0.4:
        values[torch.from_numpy(rng.random(shape) < rng.choice([0.02, 0.5]))] = -torch.inf
    return random_layout(rng, values.clamp(max=6e4).where(values > -6e4, values).to(dtype))


def random_options(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> dict[str, Any]:
    options: dict[str, Any] = {"reduction": str(rng.choice(REDUCTIONS))}
    options |= temperature_options(kind, log_uniform(rng, 1e-6, 10))
    if kind != "mse" and rng.random() < 0.5:
        options["student_temperature"] = log_uniform(rng, 0.01, 10)
    if kind == "jsd":
        options["beta"] = float(rng.choice([0.0, 1.0, 0.5, rng.uniform(0.05, 0.95)]))
    if rng.random() < 0.4:
        mask_shape = shape[1:] if rng.random() < 0.5 else shape
        options["action_mask"] = torch.from_numpy(rng.random(mask_shape) < 0.7)
    if rng.random() < 0.4:
        weight = torch.from_numpy(rng.standard_normal(shape[0]))
        weight[torch.from_numpy(rng.random(shape[0]) < 0.2)] = 0.0
        options["weight"] = weight.to(DTYPES[rng.integers(len(DTYPES))])
    return options


def is_settled(kind: str, truth: Truth, student: Tensor, teacher: Tensor, **options: Any) -> bool:
    """Whether no row's infinity hangs on a probability too small for the arithmetic."""
    if kind == "mse" or not np.isinf(truth.row_loss).any():
        return True
    floor = 4 * tiny_of(epsilon(student, teacher))
    student, teacher = student.double(), teacher.double()
    if (mask := options.get("action_mask")) is not None:
        closed = torch.tensor(-torch.inf, dtype=torch.float64)
        student, teacher = student.where(mask, closed), teacher.where(mask, closed)
    closed_s, closed_t = torch.isneginf(student), torch.isneginf(teacher)
    p = (teacher / options.get("temperature", 0.01)).softmax(1)
    q = (student / options.get("student_temperature", 1.0)).softmax(1)
    ruled_out = torch.cat([p[closed_s & ~closed_t], q[closed_t & ~closed_s]])
    # What is 0 here is 0 to the float64 oracle of 32 bits, but not to the long double one of 64.
    is_nothing = ruled_out == 0 if floor > 1e-300 else torch.zeros_like(ruled_out, dtype=torch.bool)
    return bool((is_nothing | (ruled_out >= floor)).all())


def check_distill_call(rng: np.random.Generator) -> None:
    """Raises AssertionError if a random call disagrees with the oracle."""
    kind = str(rng.choice(KINDS))
    shape = (int(rng.choice(BATCHES)), int(rng.choice(ACTIONS)))
    dtype, teacher_dtype = (DTYPES[i] for i in rng.choice(len(DTYPES), 2))
    student = random_logits(rng, shape, dtype)
    teacher = random_logits(rng, shape, teacher_dtype if rng.random() < 0.5 else dtype)
    options = random_options(rng, kind, shape)
    truth = distill_truth(kind, student, teacher, **options)
    torch.set_num_threads(int(rng.integers(1, 4)))
    out = torch.full((shape[0], shape[1] + 1), torch.nan, dtype=dtype)[:, : shape[1]]
    out_grad = out if rng.random() < 0.3 else None
    before = student.clone(), teacher.clone()
    loss, grad = fd.distill_loss_and_grad(kind, student, teacher, out_grad=out_grad, **options)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])
    if not is_settled(kind, truth, student, teacher, **options):
        return
    if np.isinf(truth.row_loss).any() and options["reduction"] != "none":
        # The sum is +inf, -inf or NaN by the weights' signs; the rows are checked elsewhere.
        assert not torch.isfinite(loss)
        loss = None
    reduction = options["reduction"]
    if loss is None:
        loss, _ = fd.distill_loss_and_grad(
            kind, student, teacher, **options | {"reduction": "none"}
        )
        reduction = "none"
    assert_matches_truth(loss, grad, student, truth, kind=kind, reduction=reduction)
    if kind != "mse":
        still = torch.isneginf(student)
        assert (grad[still] == 0).all(), f"{kind}: a masked action of the student has a gradient"


def check_td_call(rng: np.random.Generator) -> None:
    """The same for td_loss."""
    batch, actions = int(rng.choice(BATCHES)), int(rng.choice(ACTIONS))
    dtype = torch.float64 if rng.random() < 0.3 else torch.float32
    q = random_layout(rng, torch.from_numpy(rng.standard_normal((batch, actions))).to(dtype))
    target = torch.from_numpy(rng.standard_normal(batch) * log_uniform(rng, 0.1, 100)).to(dtype)
    action = torch.from_numpy(rng.integers(0, actions, batch))
    options: dict[str, Any] = {
        "kind": str(rng.choice(["huber", "mse"])),
        "reduction": str(rng.choice(["mean", "sum", "none"])),
    }
    if rng.random() < 0.5:
        options["weight"] = torch.from_numpy(rng.integers(-1, 3, batch)).to(dtype)
    leaf = q.detach().clone().requires_grad_()
    loss, size = fd.td_loss(leaf, action, target, **options)
    loss.sum().backward()
    rows, sizes, grad = td_truth(q, action, target, **options)
    eps = epsilon(q)
    divisor = max(batch, 1) if options["reduction"] == "mean" else 1
    expected = rows if options["reduction"] == "none" else rows.sum() / divisor
    scale = abs(rows) if options["reduction"] == "none" else abs(rows).sum() / divisor
    assert (abs(loss.detach().numpy() - expected) <= 8 * eps * scale).all()
    assert (abs(size.numpy() - sizes) <= eps * sizes).all()
    assert leaf.grad is not None
    assert (abs(leaf.grad.numpy() - grad) <= 4 * eps * abs(grad)).all()


def fuzz(calls: int, seed: int) -> list[str]:
    """The faults of so many calls."""
    faults = []
    for number in range(calls):
        rng = np.random.default_rng([seed, number])
        check = check_td_call if rng.random() < 0.15 else check_distill_call
        try:
            check(rng)
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            faults.append(f"seed {seed}, call {number}: {type(error).__name__} {error}")
    return faults


def main() -> None:
    """Runs the calls that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps({"isa": _core.cpu_isa(), "faults": fuzz(options.calls, options.seed)}))


if __name__ == "__main__":
    main()
