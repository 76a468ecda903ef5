# SPDX-License-Identifier: MIT
"""Under memory pressure a call raises or is right: a worker's bad_alloc was once a loss of 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "memory_pressure.py"


@pytest.mark.parametrize("part", ["losses", "replays"])
def test_every_call_is_right_or_raises(part):
    # Freed memory goes back at once, else what the program used before would serve as spare.
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    run = subprocess.run(
        [sys.executable, PROGRAM, part], env=os.environ | exact, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert outcome["wrong"] == []
    # The limits reached from too little to enough.
    assert outcome["raised"] >= 10
    assert outcome["right"] >= 10
