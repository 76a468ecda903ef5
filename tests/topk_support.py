# SPDX-License-Identifier: MIT
"""What the tests of distill_kl_topk share: teachers' k best, and comparison with the oracle.

The bounds are those of tests/support.py. `python tests/topk_support.py --rows N` measures the
errors of random rows; FASTDISTILL_CPU chooses the instruction set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from loss_oracle import real_type, topk_truth
from support import (
    assert_matches_truth,
    epsilon,
    grad_error_ulps,
    loss_error_ulps,
    random_logits,
)
from torch import Tensor

import fastdistill as fd
from fastdistill import _core

Case = tuple[Tensor, Tensor, Tensor]


def topk_of(teacher_logits: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(log-probabilities, actions) of the k best."""
    values, indices = teacher_logits.double().log_softmax(1).topk(k)
    return values.to(dtype), indices


def random_topk(batch: int, actions: int, k: int, **options: Any) -> Case:
    """(student_logits, teacher_values, teacher_indices)."""
    student, teacher = random_logits(batch, actions, **options)
    return student, *topk_of(teacher, k, teacher.dtype)


def loss_and_grad(case: Case, **options: Any) -> tuple[Tensor, Tensor]:
    """The native call without autograd."""
    names = {"temperature": 1.0, "student_temperature": 1.0, "tail": True}
    values = [options.get(name, default) for name, default in names.items()]
    loss, grad = _core.distill_kl_topk(
        *case, options.get("action_mask"), options.get("weight"), *values,
        options.get("reduction", "batchmean"), True,
    )  # fmt: skip
    return loss, grad


def check_topk(case: Case, **options: Any) -> None:
    """Native loss and gradient, with autograd and without, against the oracle."""
    student, values, indices = case
    reduction = options.get("reduction", "batchmean")
    truth = topk_truth(*case, **options)
    loss, grad = loss_and_grad(case, **options)
    wide = real_type(student, values) != np.float64
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert_matches_truth(loss, grad, student, truth, kind="kl_topk", reduction=reduction)
    leaf = student.detach().clone().requires_grad_()
    result = fd.distill_kl_topk(leaf, values, indices, **options)
    result.sum().backward()
    assert torch.equal(result, loss)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, grad)
    with torch.no_grad():
        assert torch.equal(fd.distill_kl_topk(*case, **options), loss)


def random_cases(count: int, batch: int, seed: int) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Cases with their options: any temperature and scale, mostly with exponents of 1 to 100."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        actions = int(random.choice([2, 5, 17, 64, 100, 300, 1000]))
        k = int(random.integers(1, min(actions, 80) + 1))
        temperature = float(10 ** random.uniform(-3, 1))
        dtype = (torch.float32, torch.float64)[int(random.integers(2))]
        student, teacher = random_logits(
            batch, actions, dtype=dtype, q_scale=temperature * 10 ** random.uniform(0, 2),
            noise=1e-2 if random.random() < 0.3 else None, seed=int(random.integers(2**40)),
        )  # fmt: skip
        options = {
            "student_temperature": temperature,
            "tail": bool(random.random() < 0.8),
            "reduction": "none",
        }
        yield (student, *topk_of(teacher / temperature, k, dtype)), options


def main() -> None:
    """Prints the largest errors of random rows as JSON, in the units of the bounds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[str, dict[str, float]] = {}
    for case, options in random_cases(arguments.rows // 100, 100, arguments.seed):
        truth = topk_truth(*case, **options)
        loss, grad = loss_and_grad(case, **options)
        eps = epsilon(*case[:2])
        name = f"{str(case[0].dtype).removeprefix('torch.')}, tail {options['tail']}"
        largest = errors.setdefault(name, {"loss": 0.0, "grad": 0.0})
        largest["loss"] = max(largest["loss"], loss_error_ulps(loss, truth, eps))
        largest["grad"] = max(largest["grad"], grad_error_ulps(grad, truth, eps))
    print(json.dumps({"isa": _core.cpu_isa(), "errors": errors}))


if __name__ == "__main__":
    main()
