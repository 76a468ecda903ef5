# SPDX-License-Identifier: MIT
"""What every test runs under: restored random state, hypothesis profiles, the cuda marker."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

import fastdistill as fd

# `ci` repeats the same examples in every run; HYPOTHESIS_PROFILE=dev looks for new ones.
hypothesis.settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.register_profile("dev", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Programs that tests start import the package under test, wherever pytest was called from.
os.environ["PYTHONPATH"] = str(Path(fd.__file__).parent.parent)

# A shell's background job starts with interrupts ignored; the tests of interruption need them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_CUDA = os.environ.get("FASTDISTILL_REQUIRE_CUDA") == "1"


@pytest.fixture(autouse=True)
def _state() -> Iterator[None]:
    """Seeds the generators and undoes what a test changes process-wide."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # it imports a compiler
        torch.use_deterministic_algorithms(deterministic)


def pytest_collection_finish() -> None:
    """Leaves the source tree, which a test's `python -c` would import; paths are read by now."""
    os.chdir(Path(__file__).parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `cuda` tests where the kernels cannot run."""
    if any(item.get_closest_marker("cuda") for item in items) and not fd.has_cuda_kernels():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device or no CUDA kernels"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under FASTDISTILL_REQUIRE_CUDA=1 a `cuda` test that skips has failed, but for two."""
    report = yield
    needs_one = item.get_closest_marker("cuda") and not item.get_closest_marker("two_devices")
    if REQUIRE_CUDA and report.skipped and needs_one:
        report.outcome = "failed"
        report.longrepr = f"FASTDISTILL_REQUIRE_CUDA=1, but the test was skipped: {report.longrepr}"
    return report
