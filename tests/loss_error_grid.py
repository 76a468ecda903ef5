# SPDX-License-Identifier: MIT
"""Measures the largest errors of the distillation losses against the oracle, as one JSON object.

`python tests/loss_error_grid.py [--full]` prints {isa, errors: {kind: {dtype: {...}}}}, errors in
the units of the bounds in tests/support.py and shares as parts of these bounds. It is a script,
because FASTDISTILL_CPU, which forces an instruction set, is read once per process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from typing import Any

import torch
from loss_oracle import distill_truth
from support import (
    ACTIONS,
    DTYPES,
    KINDS,
    Q_SCALES,
    SMALL_ACTIONS,
    TEMPERATURES,
    bound_ulps,
    epsilon,
    grad_error_ulps,
    loss_error_ulps,
    random_logits,
    temperature_options,
)

import fastdistill as fd
from fastdistill import _core

PAIRS = [(dtype, dtype) for dtype in DTYPES]
PAIRS += [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]


def cases(full: bool) -> Any:
    """(actions, temperature, q_scale, noise) of the grid."""
    if full:
        yield from itertools.product(ACTIONS, TEMPERATURES, Q_SCALES, (None, 1e-2))
        return
    yield from itertools.product(SMALL_ACTIONS, (1e-6, 0.01, 1.0), (1.0, 1e4), (None,))
    yield from itertools.product((18, 257), (1e-3, 0.1, 10.0), (0.01, 1.0), (1e-2,))
    yield from ((50257, temperature, 1.0, None) for temperature in (0.01, 1.0))


def measure(full: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """The largest error of each kind and pair of dtypes, with the case where it occurred."""
    errors: dict[str, dict[str, dict[str, Any]]] = {}
    for (actions, temperature, q_scale, noise), (dtype, other), kind in itertools.product(
        cases(full), PAIRS, KINDS
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
        truth = distill_truth(kind, student, teacher, reduction="none", **options)
        loss, grad = fd.distill_loss_and_grad(kind, student, teacher, reduction="none", **options)
        eps = epsilon(student, teacher)
        found = {
            "loss": loss_error_ulps(loss, truth, eps),
            "grad": grad_error_ulps(grad, truth, eps),
        }
        most, most_grad = bound_ulps(kind, eps, actions)
        found["loss_share"] = found["loss"] / most
        found["grad_share"] = found["grad"] / most_grad
        name = str(dtype)[6:] if dtype == other else f"{str(dtype)[6:]}/{str(other)[6:]}"
        largest = errors.setdefault(kind, {}).setdefault(name, {})
        where = [actions, temperature, q_scale, noise]
        for key, value in found.items():
            if not value <= largest.get(key, -1.0):
                largest[key] = value
                largest[f"{key}_at"] = where
    return errors


def main() -> None:
    """Prints the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole grid; minutes")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    print(json.dumps({"isa": _core.cpu_isa(), "errors": measure(arguments.full)}))


if __name__ == "__main__":
    main()
