# SPDX-License-Identifier: MIT
"""The experiments of hours: their commands are valid, and what they conclude from curves is so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro

from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.online import OnlineConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIGS = {"distill": DistillConfig, "online": OnlineConfig, "teacher dqn": DqnConfig}


@pytest.fixture
def experiment(monkeypatch):
    """Imports a benchmark by its name, and forgets all of them at the end."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name", ["distill_tables", "options_scores", "several_games", "online_scores", "guided_scores"]
)
def test_every_run_of_an_experiment_has_a_configuration(experiment, name):
    commands = experiment(name).commands()
    assert len(commands) > 3
    for words in commands.values():
        first = " ".join(words[: 1 + (words[0] == "teacher")])
        config = tyro.cli(CONFIGS[first], args=words[len(first.split()) :])
        assert first == config.COMMAND


def curve(*means):
    at = 15_000.0 * np.arange(1, len(means) + 1)
    return SimpleNamespace(curves={"score": SimpleNamespace(at=at, mean=np.array(means, float))})


def test_one_lucky_checkpoint_is_not_better_than_the_guide(experiment):
    steps_to = experiment("guided_scores").steps_to
    assert steps_to(curve(0, 9, 0, 0, 4, 6, 6, 9), 5.0) == "105,000"  # 4, 6, 6
    assert steps_to(curve(0, 9, 0, 0, 4, 6, 5, 0), 5.0) == "more than 120,000"
    assert steps_to(curve(9, 9), 5.0) == "more than 30,000"


def test_a_guide_ends_with_the_first_network_that_reaches_its_goal(experiment, tmp_path):
    teacher = tmp_path / "teacher.json"
    stop = experiment("guided_scores").GoalReached(teacher, -2.0)
    assert not stop.requested
    for mean, enough in ((None, False), (-20.5, False), (-2.5, False), (-2.0, True)):
        teacher.unlink(missing_ok=True)
        teacher.write_text(json.dumps({"scoring": {"mean": mean}}))
        assert stop.requested == enough


def test_what_the_runs_of_a_table_were_told_differently_is_said(experiment):
    records = experiment("distill_tables").records
    same = {"teacher": "zoo:pong", "learning_rate": 0.002}
    assert records.differences({"a": same, "b": {**same, "teacher": "zoo:qbert"}}) == []
    other = {**same, "learning_rate": 0.004}
    (text, _) = records.differences({"a": same, "b": other, "c": {"teacher": "zoo:pong"}})
    assert text == (
        "The runs differ in `learning_rate`: 0.002 (`a`); 0.004 (`b`). Not all options are on "
        "record of `c`."
    )
