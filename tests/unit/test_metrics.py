# SPDX-License-Identifier: MIT
"""Metric records: files as they should read, also after a resume or a torn line."""

from __future__ import annotations

import io
import json
import math
import os
import re
import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastdistill.training import metrics
from fastdistill.training.metrics import (
    METRICS,
    JsonlWriter,
    NullWriter,
    Progress,
    RunWriter,
    TensorBoardWriter,
    metrics_table,
    read_jsonl,
)

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_records_come_back_line_by_line(tmp_path):
    writer = JsonlWriter(tmp_path / "run" / "metrics.jsonl")
    writer.write(10, {"charts/SPS": 123.5, "charts/epsilon": 0.1})
    # Readable at once: a dashboard follows the file while the run goes on.
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 10, "charts/SPS": 123.5, "charts/epsilon": 0.1}
    ]
    writer.close()


def test_resuming_drops_later_records_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (1, 2, 3, 4):
        writer.write(step, {"charts/SPS": float(step)})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 5, "cha')
    resumed = JsonlWriter(path, resume_step=2)
    resumed.write(3, {"charts/SPS": 30.0})
    resumed.close()
    assert [(r["step"], r["charts/SPS"]) for r in read_jsonl(path)] == [(1, 1), (2, 2), (3, 30)]


DAMAGE = [
    (b'{"st', "must be JSON, got Unterminated string"),
    (b"\xff\xfe", "must be JSON, got 'utf-8' codec can't decode byte 0xff"),
    (b"5", "must be an object, got 5"),
    (b"[1]", r"must be an object, got \[1\]"),
    (b'{"charts/SPS": 1}', "must have an integer step of 0 or more, got None"),
    (b'{"step": 2.0}', "must have an integer step of 0 or more, got 2.0"),
    (b'{"step": true}', "must have an integer step of 0 or more, got True"),
    (b'{"step": -1}', "must have an integer step of 0 or more, got -1"),
    (b'{"step": 2, "charts/SPS": NaN}', "must be JSON, got NaN, which JSON has not"),
    (b'{"step": 2, "charts/SPS": 1e999}', "must be JSON, got number '1e999', which no float64"),
    (b'{"step": 2, "charts/SPS": "7"}', "must hold numbers, got '7' for 'charts/SPS'"),
    (b'{"step": 2, "step": 3}', "must be JSON, got key 'step' twice"),
    (b'{"step": 2' + b"0" * 5000 + b"}", "must be JSON, got an integer of 5001 digits"),
    (b"[" * 100_000, "must be JSON, got more than 32 levels of nesting"),
    (b"[" * 40 + b"]" * 40, "must be JSON, got more than 32 levels of nesting"),
]


@pytest.mark.parametrize(("line", "message"), DAMAGE)
def test_damage_is_named_and_kept_aside_when_resuming(tmp_path, capsys, line, message):
    path = tmp_path / "metrics.jsonl"
    tail = line + b'\n{"step": 3}\n'
    path.write_bytes(b'{"step": 1}\n' + tail)
    with pytest.raises(ValueError, match=f"read_jsonl: .*metrics.jsonl line 2 {message}"):
        read_jsonl(path)
    for number in (1, 2):
        writer = JsonlWriter(path, resume_step=9)
        writer.write(5, {"charts/SPS": 1.0})
        writer.close()
        assert read_jsonl(path) == [{"step": 1}, {"step": 5, "charts/SPS": 1.0}]
        assert (tmp_path / f"metrics.jsonl.damaged-{number}").read_bytes() == tail
        expected = f"line 2 {message}.*; from there on it is kept as metrics.jsonl.damaged-{number}"
        assert re.search(expected, capsys.readouterr().err)
        path.write_bytes(b'{"step": 1}\n' + tail)


def test_what_json_has_not_is_null_and_read_as_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write(1, {"charts/SPS": float("nan"), "charts/epsilon": float("inf")})
    writer.close()
    assert path.read_text() == '{"step": 1, "charts/SPS": null, "charts/epsilon": null}\n'
    (record,) = read_jsonl(path)
    assert math.isnan(record["charts/SPS"])
    assert math.isnan(record["charts/epsilon"])


@pytest.mark.parametrize("resume_step", [None, 5])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, resume_step):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("directory", "pipe", "device"):
        with pytest.raises((OSError, ValueError), match=f"JsonlWriter: .*{name} must be "):
            JsonlWriter(tmp_path / name, resume_step=resume_step)
        with pytest.raises(ValueError, match=f"read_jsonl: .*{name} must be a regular file, got a"):
            read_jsonl(tmp_path / name)
    with pytest.raises(ValueError, match=r"read_jsonl: .*absent must exist, got none"):
        read_jsonl(tmp_path / "absent")


def test_a_file_beyond_any_run_is_refused_unread(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    os.truncate(path, 50 << 30)  # sparse
    with pytest.raises(ValueError, match=r"metrics.jsonl must have at most 1073741824 bytes, got"):
        read_jsonl(path)


def test_a_file_that_cannot_grow_is_named_with_the_reason(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write(1, {"charts/SPS": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"JsonlWriter: .*metrics.jsonl must be writable, got File too large"
        ):
            writer.write(2, {"charts/SPS": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    assert read_jsonl(path) == [{"step": 1, "charts/SPS": 1.0}]  # the torn line is left out


@pytest.mark.parametrize("kind", [NullWriter, JsonlWriter, TensorBoardWriter])
def test_an_undeclared_key_is_an_error(tmp_path, kind):
    writer = kind() if kind is NullWriter else kind(tmp_path / "out")
    with pytest.raises(ValueError, match="key must be declared in METRICS, got 'charts/fps'"):
        writer.write(1, {"charts/fps": 1.0})
    writer.close()


def test_tensorboard_reads_what_was_written(tmp_path):
    writer = RunWriter(tmp_path)
    for step in (1, 5):
        writer.write(step, {"losses/td_loss": step / 2})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("losses/td_loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (5, 2.5)]
    assert [record["losses/td_loss"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [
        0.5,
        2.5,
    ]


def test_tensorboard_can_be_left_out(tmp_path):
    RunWriter(tmp_path, tensorboard=False).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_documented_table_is_the_declared_one():
    text = DOCS.read_text()
    assert metrics_table() in text
    assert text.count("| `") == len(METRICS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_progress_on_a_terminal_renews_one_line(clock):
    stream = Terminal()
    progress = Progress(10_000, start_step=1_000, stream=stream)
    clock[0] += 0.1
    progress.update(1_100, [])
    assert stream.getvalue() == ""  # too soon
    clock[0] += 0.9
    progress.update(2_000, [1.0, 2.0], lambda: "eps 0.5")
    line = stream.getvalue()
    assert line.startswith("\r\x1b[K")
    assert "\n" not in line
    for part in ("2,000/10,000", "1,000/s", "left 0:08", "return     1.50", "eps 0.5"):
        assert part in line
    progress.close()
    assert stream.getvalue().endswith("\n")


def test_progress_elsewhere_writes_plain_lines_seldom(clock):
    stream = io.StringIO()
    progress = Progress(100_000, stream=stream)
    for _ in range(40):
        clock[0] += 1
        progress.update(int(clock[0] - 100) * 10, [])
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in stream.getvalue()
    assert "left 2:46:25" in lines[0]


def test_json_lines_are_json(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write(1, {"eval/return_mean": -20.5})
    writer.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "eval/return_mean": -20.5}


def test_the_evaluation_of_a_finished_run_is_recorded_once(tmp_path):
    """Resumed, it is made again, at the same step."""
    for _ in range(3):
        writer = JsonlWriter(tmp_path / "m.jsonl", resume_step=8)
        writer.write(8, {"eval/return_mean": 1.0, "eval/episodes": 30})
        writer.close()
    assert len(read_jsonl(tmp_path / "m.jsonl")) == 1
