# SPDX-License-Identifier: MIT
"""Every refusal of the losses, class and text: `<function>: <argument> must ..., got <value>`."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from support import KINDS, PassOn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdistill as fd

S = torch.zeros(4, 5)
T = torch.ones(4, 5)
DISTILL = {kind: getattr(fd, f"distill_{kind}") for kind in KINDS}


def refused(error, text, function, *args, **kwargs):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        function(*args, **kwargs)


def kl(student=S, teacher=T, **kwargs):
    return fd.distill_kl(student, teacher, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_each_function_names_itself(kind):
    name = f"distill_{kind}"
    refused(
        ValueError,
        f"{name}: teacher_logits must have the shape of student_logits [4, 5], got [5, 4]",
        DISTILL[kind], S, torch.ones(5, 4),
    )  # fmt: skip
    refused(
        ValueError,
        "distill_loss_and_grad: teacher_logits must have the shape of student_logits [4, 5], "
        "got [5, 4]",
        fd.distill_loss_and_grad, kind, S, torch.ones(5, 4),
    )  # fmt: skip
    refused(
        ValueError,
        "DistillLoss: teacher_logits must have the shape of student_logits [4, 5], got [5, 4]",
        fd.DistillLoss(kind), S, torch.ones(5, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        (torch.zeros(5), torch.zeros(5), "student_logits must be [batch, actions], got [5]"),
        (torch.zeros(1, 4, 5), T, "student_logits must be [batch, actions], got [1, 4, 5]"),
        (torch.zeros(()), T, "student_logits must be [batch, actions], got []"),
        (S, T[:1], "teacher_logits must have the shape of student_logits [4, 5], got [1, 5]"),
        (S, T[:, :1], "teacher_logits must have the shape of student_logits [4, 5], got [4, 1]"),
        (S, T[0], "teacher_logits must have the shape of student_logits [4, 5], got [5]"),
    ],
)
def test_shapes_and_no_broadcasting(student, teacher, text):
    refused(ValueError, f"distill_kl: {text}", kl, student, teacher)


FLOATS = "must be float64, float32, bfloat16 or float16"


@pytest.mark.parametrize(
    ("dtype", "got"),
    [
        (torch.int64, "torch.int64"), (torch.uint8, "torch.uint8"), (torch.bool, "torch.bool"),
        (torch.complex64, "torch.complex64"),
        (torch.float8_e4m3fn, "DLPack type code 10 with 8 bits"),
    ],
)  # fmt: skip
def test_dtypes(dtype, got):
    wrong = torch.zeros(4, 5).to(dtype)
    refused(TypeError, f"distill_kl: student_logits {FLOATS}, got {got}", kl, wrong)
    refused(TypeError, f"distill_kl: teacher_logits {FLOATS}, got {got}", kl, S, wrong)
    if dtype != torch.bool:  # which says what rows count
        refused(TypeError, f"distill_kl: weight {FLOATS}, got {got}", kl, weight=wrong[:, 0])


@pytest.mark.parametrize("value", [None, [[0.0] * 5] * 4, np.zeros((4, 5)), 1.0])
def test_not_a_tensor(value):
    for name in ("student_logits", "teacher_logits"):
        arguments = {"student_logits": S, "teacher_logits": T, name: value}
        got = "numpy.ndarray" if isinstance(value, np.ndarray) else type(value).__name__
        if name == "student_logits":
            got = type(value).__name__
        text = f"{name} must be a torch.Tensor, got {got}"
        refused(TypeError, f"distill_kl: {text}", fd.distill_kl, **arguments)
        refused(
            TypeError, f"distill_loss_and_grad: {text}",
            fd.distill_loss_and_grad, "kl", **arguments,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda x: x.to("meta"), "device(type='meta') with layout torch.strided"),
        (lambda x: x.to_sparse(), "device(type='cpu') with layout torch.sparse_coo"),
        (lambda x: x.to_mkldnn(), "device(type='cpu') with layout torch._mkldnn"),
    ],
)
def test_tensors_without_dense_memory(make, got):
    constraint = "must be a dense tensor on the CPU or a CUDA device"
    refused(TypeError, f"distill_kl: student_logits {constraint}, got {got}", kl, make(S))
    refused(TypeError, f"distill_kl: teacher_logits {constraint}, got {got}", kl, S, make(T))
    refused(
        TypeError, f"distill_kl: weight {constraint}, got {got}", kl, weight=make(torch.ones(4))
    )
    if "sparse" not in got and "mkldnn" not in got:
        mask = make(torch.ones(5, dtype=torch.bool))
        refused(TypeError, f"distill_kl: action_mask {constraint}, got {got}", kl, action_mask=mask)


def test_fake_tensors():
    # Memory that does not exist must not be read; a loss of fake tensors alone is a fake loss.
    with FakeTensorMode():
        fake = torch.empty(4, 5)
        loss = fd.distill_kl(fake, torch.empty(4, 5), reduction="none")
        assert loss.shape == (4,)
        assert type(loss).__name__ == "FakeTensor"
    refused(TypeError, "distill_kl: teacher_logits must hold data, got FakeTensor", kl, S, fake)


def test_gradients_are_never_dropped_silently():
    text = "must not require grad, got requires_grad=True; detach it"
    wanting = torch.ones(4, 5, requires_grad=True)
    for student in (S, S.clone().requires_grad_()):
        refused(ValueError, f"distill_kl: teacher_logits {text}", kl, student, wanting)
        refused(ValueError, f"distill_kl: weight {text}", kl, student, weight=wanting[:, 0])
        both = partial(fd.distill_loss_and_grad, "kl", student)
        refused(ValueError, f"distill_loss_and_grad: teacher_logits {text}", both, wanting)
        refused(ValueError, f"distill_loss_and_grad: weight {text}", both, T, weight=wanting[:, 0])
    with torch.no_grad():
        kl(S, wanting, weight=wanting[:, 0])
        fd.distill_loss_and_grad("kl", S, wanting, weight=wanting[:, 0])


@pytest.mark.parametrize(
    "value", [0, -1.0, float("nan"), float("inf"), -float("inf"), 9.9e-9, 1.1e8]
)
def test_temperatures(value):
    text = f"must be between 1e-8 and 1e8, got {value!r}"
    for name in ("temperature", "student_temperature"):
        refused(ValueError, f"distill_kl: {name} {text}", kl, **{name: value})
        refused(ValueError, f"DistillLoss: {name} {text}", fd.DistillLoss, "kl", **{name: value})
        refused(
            ValueError, f"distill_loss_and_grad: {name} {text}",
            fd.distill_loss_and_grad, "jsd", S, T, **{name: value},
        )  # fmt: skip


@pytest.mark.parametrize("value", [None, "0.01", [1.0], 1j])
def test_temperature_is_a_number(value):
    refused(
        TypeError, f"distill_kl: temperature must be a number, got {value!r}", kl, temperature=value
    )


def test_extreme_temperatures_are_accepted():
    for value in (1e-8, 1e8, torch.tensor(0.5), np.float32(0.5), 1, True):
        assert torch.isfinite(kl(temperature=value))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_beta(value):
    refused(
        ValueError, f"distill_jsd: beta must be between 0 and 1, got {value!r}",
        fd.distill_jsd, S, T, beta=value,
    )  # fmt: skip


@pytest.mark.parametrize("value", ["avg", "", None, 1, b"mean"])
def test_reduction(value):
    refused(
        ValueError,
        f"distill_kl: reduction must be 'none', 'sum', 'mean' or 'batchmean', got {value!r}",
        kl, reduction=value,
    )  # fmt: skip
    refused(
        ValueError, f"td_loss: reduction must be 'none', 'sum' or 'mean', got {value!r}",
        td, reduction=value,
    )  # fmt: skip


def test_masks_and_weights():
    refused(
        TypeError,
        "distill_kl: action_mask must be a bool tensor, True where an action is allowed, "
        "got torch.uint8",
        kl, action_mask=torch.ones(5, dtype=torch.uint8),
    )  # fmt: skip
    constraint = "must be [actions] or [batch, actions] for student_logits [4, 5]"
    for shape in ((4,), (1, 5), (5, 4), (4, 5, 1), ()):
        refused(
            ValueError, f"distill_kl: action_mask {constraint}, got {list(shape)}",
            kl, action_mask=torch.ones(shape, dtype=torch.bool),
        )  # fmt: skip
    for shape in ((5,), (4, 1), ()):
        refused(
            ValueError, f"distill_kl: weight must be [4], one per row, got {list(shape)}",
            kl, weight=torch.ones(shape),
        )  # fmt: skip
    refused(
        TypeError, "distill_kl: action_mask must be a torch.Tensor, got list",
        kl, action_mask=[True] * 5,
    )  # fmt: skip
    refused(TypeError, "distill_kl: weight must be a torch.Tensor, got list", kl, weight=[1.0] * 4)


def test_kinds_and_options_that_a_kind_ignores():
    kinds = "['kl', 'reverse_kl', 'jsd', 'nll', 'mse']"
    for function, name in ((fd.DistillLoss, "DistillLoss"), (
        lambda kind, **kw: fd.distill_loss_and_grad(kind, S, T, **kw), "distill_loss_and_grad"
    )):  # fmt: skip
        refused(ValueError, f"{name}: kind must be one of {kinds}, got 'kld'", function, "kld")
        for kind, option, value, default in (
            ("kl", "beta", 0.3, 0.5), ("nll", "beta", 0.3, 0.5),
            ("nll", "temperature", 1.0, 0.01), ("mse", "temperature", 1.0, 0.01),
            ("mse", "student_temperature", 2.0, 1.0),
        ):  # fmt: skip
            refused(
                ValueError,
                f"{name}: {option} must be left at {default} for kind {kind!r}, got {value}",
                function, kind, **{option: value},
            )  # fmt: skip


@pytest.mark.parametrize("context", [nullcontext, PassOn])
def test_out_grad(context):
    def run(out):
        with context():
            return fd.distill_loss_and_grad("kl", S, T, out_grad=out)

    name = "distill_loss_and_grad: out_grad must"
    for out, error, text in (
        ([], TypeError, "be a torch.Tensor, got list"),
        (torch.empty(5, 4), ValueError, "have the shape of student_logits [4, 5], got [5, 4]"),
        (torch.empty(20), ValueError, "have the shape of student_logits [4, 5], got [20]"),
        (
            torch.empty(2, 4, 5), ValueError,
            "have the shape of student_logits [4, 5], got [2, 4, 5]",
        ),
        (S.double(), TypeError, "have the dtype of student_logits, got torch.float64"),
        (
            torch.empty(5, 4).t(), ValueError,
            "have adjacent columns and separate rows, got strides (1, 4)",
        ),
        (
            torch.empty(1, 5).expand(4, 5), ValueError,
            "have adjacent columns and separate rows, got strides (0, 1)",
        ),
        (
            torch.empty(20).as_strided((4, 5), (3, 1)), ValueError,
            "have adjacent columns and separate rows, got strides (3, 1)",
        ),
    ):  # fmt: skip
        refused(error, f"{name} {text}", run, out)
    wide = torch.full((4, 9), 7.0)
    run(wide[:, 2:7])
    assert torch.equal(wide[:, 2:7], fd.distill_loss_and_grad("kl", S, T)[1])
    assert torch.equal(wide[:, [0, 1, 7, 8]], torch.full((4, 4), 7.0))


def test_out_grad_that_only_one_way_sees():
    name = "distill_loss_and_grad: out_grad"
    run = partial(fd.distill_loss_and_grad, "kl", S, T)
    refused(TypeError, f"{name} {FLOATS}, got torch.int64", run, out_grad=S.long())
    with PassOn():
        text = "must have the dtype of student_logits, got torch.int64"
        refused(TypeError, f"{name} {text}", run, out_grad=S.long())
        text = "must be on the device of student_logits (cpu), got meta"
        refused(ValueError, f"{name} {text}", run, out_grad=S.to("meta"))


ACTION = torch.tensor([0, 1, 2, 3])
TARGET = torch.zeros(4)


def td(q=S, action=ACTION, target=TARGET, **kwargs):
    return fd.td_loss(q, action, target, **kwargs)


@pytest.mark.parametrize("bad", [5, -1, 2**62, -(2**62)])
def test_action_out_of_range(bad):
    action = torch.tensor([0, 1, bad, 3])
    refused(IndexError, f"td_loss: action must be in [0, 5), got {bad} in row 2", td, S, action)
    leaf = S.clone().requires_grad_()
    refused(IndexError, f"td_loss: action must be in [0, 5), got {bad} in row 2", td, leaf, action)


def test_td_loss():
    for kwargs, error, text in (
        ({"q": None}, TypeError, "q must be a torch.Tensor, got NoneType"),
        ({"q": S[0]}, ValueError, "q must be [batch, actions], got [5]"),
        ({"q": S.bfloat16()}, TypeError, "q must be float64 or float32, got torch.bfloat16"),
        ({"q": S.long()}, TypeError, "q must be float64 or float32, got torch.int64"),
        ({"action": TARGET}, TypeError, "action must be int64, got torch.float32"),
        ({"action": ACTION.int()}, TypeError, "action must be int64, got torch.int32"),
        ({"action": ACTION[:3]}, ValueError, "action must be [4], one per row, got [3]"),
        ({"action": ACTION[:, None]}, ValueError, "action must be [4], one per row, got [4, 1]"),
        ({"action": 0}, TypeError, "action must be a torch.Tensor, got int"),
        ({"target": None}, TypeError, "target must be a torch.Tensor, got NoneType"),
        ({"target": ACTION}, TypeError, f"target {FLOATS}, got torch.int64"),
        ({"target": TARGET[:3]}, ValueError, "target must be [4], one per row, got [3]"),
        ({"weight": TARGET[:3]}, ValueError, "weight must be [4], one per row, got [3]"),
        ({"kind": "l1"}, ValueError, "kind must be one of ['huber', 'mse'], got 'l1'"),
        (
            {"target": TARGET.clone().requires_grad_()}, ValueError,
            "target must not require grad, got requires_grad=True; detach it",
        ),
        (
            {"weight": torch.ones(4, requires_grad=True)}, ValueError,
            "weight must not require grad, got requires_grad=True; detach it",
        ),
    ):  # fmt: skip
        refused(error, f"td_loss: {text}", td, **kwargs)
