# SPDX-License-Identifier: MIT
"""Measures the largest errors of the distillation losses against the oracle, as one JSON object.

`python tests/loss_error_grid.py [--full | --search ROWS]` prints {isa, errors: {kind: {dtype:
{...}}}}, errors in the units of the bounds in tests/support.py.
The grid has every length and dtype; the search draws temperatures of both sides and Q-values at
random, most of them where an exponent's rounding shows. It is a script, because FASTDISTILL_CPU,
which forces an instruction set, is read once per process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loss_oracle import distill_truth
from support import (
    ACTIONS,
    DTYPES,
    KINDS,
    Q_SCALES,
    SMALL_ACTIONS,
    TEMPERATURES,
    epsilon,
    grad_error_ulps,
    loss_error_ulps,
    random_logits,
    temperature_options,
)
from torch import Tensor

import fastdistill as fd
from fastdistill import _core

PAIRS = [(dtype, dtype) for dtype in DTYPES]
PAIRS += [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]
SEARCHED_ACTIONS = (2, 3, 4, 6, 9, 17, 18, 18, 19, 33, 40, 63, 64, 65, 100, 129, 300, 1000)


@dataclass(frozen=True)
class Case:
    """Logits, the options of a loss, and what tells this case from others."""

    kind: str
    student: Tensor
    teacher: Tensor
    options: dict[str, float]
    where: dict[str, Any]


def grid_points(full: bool) -> Iterator[tuple[int, float, float, float | None]]:
    """(actions, temperature, q_scale, noise) of the grid."""
    if full:
        yield from itertools.product(ACTIONS, TEMPERATURES, Q_SCALES, (None, 1e-2))
        return
    yield from itertools.product(SMALL_ACTIONS, (1e-6, 0.01, 1.0), (1.0, 1e4), (None,))
    yield from itertools.product((18, 257), (1e-3, 0.1, 10.0), (0.01, 1.0), (1e-2,))
    yield from ((50257, temperature, 1.0, None) for temperature in (0.01, 1.0))


def grid(full: bool) -> Iterator[Case]:
    """Every kind and pair of dtypes at each point of the grid."""
    for (actions, temperature, q_scale, noise), (dtype, other), kind in itertools.product(
        grid_points(full), PAIRS, KINDS
    ):
        if kind in ("nll", "mse") and temperature != 1.0:
            continue
        if actions > 2049 and dtype != other:
            continue
        batch = 37 if actions <= 64 else 5 if actions <= 2049 else 2
        student, teacher = random_logits(
            batch, actions, dtype=dtype, teacher_dtype=other, q_scale=q_scale, noise=noise
        )
        options = temperature_options(kind, temperature)
        where = {"actions": actions, "q_scale": q_scale, "noise": noise, **options}
        yield Case(kind, student, teacher, options, where)


def search(rows: int) -> Iterator[Case]:
    """At least so many random rows of each kind with two temperatures and arithmetic."""
    random = np.random.default_rng(1)
    for kind, dtype in itertools.product(
        ("kl", "reverse_kl", "jsd"), (torch.float32, torch.float64)
    ):
        drawn = 0
        while drawn < rows:
            actions = int(random.choice(SEARCHED_ACTIONS))
            temperature = 10 ** random.uniform(-6, 1)
            student_temperature = random.choice([1.0, temperature, 10 ** random.uniform(-3, 1)])
            q_scale = 10 ** random.uniform(-2, 4)
            # Exponents of 1 to 100 on either side: small enough to count, large enough to be rough.
            if random.random() < 0.7:
                q_scale = temperature * 10 ** random.uniform(0, 2)
            if random.random() < 0.5:
                student_temperature = np.clip(q_scale / 10 ** random.uniform(0, 2), 1e-6, 1e4)
            batch = max(10, min(rows, 2000) // (1 if actions <= 64 else 4))
            student, teacher = random_logits(
                batch,
                actions,
                dtype=dtype,
                q_scale=q_scale,
                noise=1e-2 if random.random() < 0.3 else None,
                seed=int(random.integers(2**40)),
            )
            options = {
                "temperature": float(temperature),
                "student_temperature": float(student_temperature),
            }
            yield Case(kind, student, teacher, options, {"actions": actions, **options})
            drawn += batch


def measure(cases: Iterable[Case]) -> dict[str, dict[str, dict[str, Any]]]:
    """The largest error of each kind and pair of dtypes, with the case where it occurred."""
    errors: dict[str, dict[str, dict[str, Any]]] = {}
    for case in cases:
        logits = (case.student, case.teacher)
        truth = distill_truth(case.kind, *logits, reduction="none", **case.options)
        loss, grad = fd.distill_loss_and_grad(case.kind, *logits, reduction="none", **case.options)
        eps = epsilon(*logits)
        found: dict[str, float] = {
            "loss": loss_error_ulps(loss, truth, eps),
            "grad": grad_error_ulps(grad, truth, eps),
        }
        names = [str(tensor.dtype).removeprefix("torch.") for tensor in logits]
        name = names[0] if names[0] == names[1] else "/".join(names)
        largest = errors.setdefault(case.kind, {}).setdefault(name, {"rows": 0})
        largest["rows"] += len(case.student)
        for key, value in found.items():
            if not value <= largest.get(key, -1.0):
                largest[key] = value
                largest[f"{key}_at"] = case.where
    return errors


def main() -> None:
    """Prints the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="the whole grid; minutes")
    which.add_argument("--search", type=int, metavar="ROWS", help="random rows instead of the grid")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    cases = grid(arguments.full) if arguments.search is None else search(arguments.search)
    print(json.dumps({"isa": _core.cpu_isa(), "errors": measure(cases)}))


if __name__ == "__main__":
    main()
