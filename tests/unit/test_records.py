# SPDX-License-Identifier: MIT

"""Records of finished runs say what the runs say, and nothing of the machine's paths."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from run_directories import GAMES, made_up_games_run

from fastdistill.report.beside import read_contenders
from fastdistill.report.results import read_games

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def several_games(monkeypatch, tmp_path):
    """The benchmark, which writes into a directory of the test's."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("several_games", BENCHMARKS / "several_games.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    yield module
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_table_of_records_is_that_of_the_runs(several_games, tmp_path):
    runs = [tmp_path / "runs" / name for name in ("multi", "multi9", *GAMES)]
    made_up_games_run(runs[0], levels={"kl": 1.0}, seeds=2)
    made_up_games_run(runs[1], levels={"kl": 0.98}, seeds=1, seed=7)
    for place, game in enumerate(GAMES):
        made_up_games_run(runs[2 + place], (game,), size="100%", seeds=2, seed=place + 1)
    for run in runs:
        several_games.keep(run)
    found = several_games.collect()
    (table,) = found["tables"]
    expected = read_contenders(runs[0], read_games(runs[0]), runs[1:])
    assert [row["label"] for row in table["players"]] == [one.label for one in expected]
    for row, one in zip(table["players"], expected, strict=True):
        assert row["steps"] == one.cost(one.steps)
        assert row["updates"] == one.cost(one.updates)
        for game in GAMES:
            assert row["games"][game]["returns"] == one.returns[game]
    text = several_games.render(found)
    assert "| kl multi | 3 |" in text
    for path in (tmp_path / "records").rglob("*.json*"):
        assert str(tmp_path) not in path.read_text()
    assert {path.suffix for path in (tmp_path / "records").rglob("*.*")} <= {".json", ".jsonl"}


def test_what_is_recorded_is_not_run_again(several_games, tmp_path, monkeypatch, capsys):
    records = several_games.records
    commands = {"one": ["--version"], "two": ["--version"], "three": ["no-such-command"]}
    (tmp_path / "records" / "one").mkdir(parents=True)
    records.run_missing(tmp_path / "runs", tmp_path / "records", commands, ["one"])
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit, match="three did not end; the same command continues"):
        records.run_missing(tmp_path / "runs", tmp_path / "records", commands, ["three"])
    assert "three: fastdistill no-such-command" in capsys.readouterr().err
