# SPDX-License-Identifier: MIT
"""What a run writes down while it goes: JSON lines, TensorBoard, and a line on the terminal.

Every key is declared in ``METRICS`` with its unit and meaning (docs/metrics.md is that table, a
test compares them); an undeclared key is an error. Names are CleanRL's where it has one, so its
dashboards work. The only module that imports tensorboard.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from fastdistill._files import is_int, parse_json, read_bytes, shown, unwritable, write_atomically

# A larger metrics file is refused: this is a million records.
MAX_METRICS_BYTES = 1 << 30

METRICS: dict[str, str] = {
    "charts/episodic_return": "mean raw return of the training episodes since the last record",
    "charts/episodic_length": "their mean length, agent steps",
    "charts/episodes": "training episodes finished so far",
    "charts/SPS": "agent steps per second since the last record, all lanes together",
    "charts/epsilon": "probability of a random action",
    "charts/learning_rate": "the optimizer's learning rate",
    "losses/td_loss": "mean loss over the updates since the last record",
    "losses/q_values": "mean Q-value of the actions taken, over the same updates",
    "losses/gradient_norm": "mean gradient norm before clipping, over the same updates",
    "students/*/loss": "mean loss of that student since the last record",
    "students/*/score": "mean raw return of that student's scoring episodes",
    "students/*/score_error": "its standard error over these episodes",
    "students/*/agreement": "share of states it visited in them where its greedy action is the "
    "teacher's",
    "students/*/kl": "mean KL of the sharpened teacher to it on the same states, nats",
    "students/*/loss/*": "where there are several games: the same on this one's rows",
    "students/*/score/*": "the same of one of several games; then there is none of all together",
    "students/*/score_error/*": "the same of one of several games",
    "students/*/agreement/*": "the same of one of several games; then the one above is their mean",
    "students/*/kl/*": "the same of one of several games; then the one above is their mean",
    "students/*/share": "of several games: mean over them of the share of each; with agreement it "
    "chooses the best",
    "students/*/share_error": "its standard error over these episodes",
    "students/*/share/*": "percent of the teacher's score above random play, in the scoring "
    "episodes of one of several games",
    "students/*/share_error/*": "its standard error over these episodes",
    "teacher/score": "mean raw return of the scoring episodes of the network that learns to be a "
    "teacher, as it is at a checkpoint",
    "teacher/score_error": "its standard error over these episodes",
    "teacher/version": "of a distillation that follows: newer teachers taken up since it was begun "
    "or resumed",
    "teacher/score/*": "the same of one of several games; then there is none of all together",
    "teacher/score_error/*": "the same of one of several games",
    "losses/guide_loss": "mean KL of a guide's policy to the network's, over the same updates",
    "guide/weight": "of that term in the loss",
    "guide/undone": "collapses without the guide from which the network went back to its best",
    "eval/return_mean": "mean raw return of full evaluation episodes",
    "eval/return_std": "its standard deviation over episodes",
    "eval/episodes": "number of evaluation episodes",
    "replay/size": "transitions in the replay",
    "actors/restarts": "how often actors elsewhere have died so far, and were started again",
    "actors/weights_lag_mean": "updates between the weights that drove and those of the moment "
    "when the rows were taken, mean over blocks of rows since the last record",
    "actors/weights_lag_max": "the largest of them",
    "replay/importance_exponent": "exponent of the importance weights",
    "time/updates": "gradient updates so far",
    "time/students_updates": "of students that learn online: updates of each so far",
    "time/students_seconds": "seconds in their updates since the last record",
    "time/env_seconds": "seconds in environment steps since the last record",
    "time/act_seconds": "seconds choosing actions since the last record",
    "time/wait_seconds": "seconds waiting for actors elsewhere since the last record",
    "time/learn_seconds": "seconds in updates since the last record",
    "time/replay_seconds": "seconds in replay calls since the last record",
    "time/score_seconds": "seconds scoring students since the last record",
    "time/checkpoint_seconds": "seconds writing checkpoints since the last record",
    "time/training_seconds": "seconds of a distillation so far, over all resumes, scoring apart",
    "time/wall_seconds": "seconds of training so far, over all resumes",
}


class MetricsWriter(Protocol):
    """Where records go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at an agent step."""

    def close(self) -> None:
        """Finish; further writes are errors."""


class NullWriter:
    """Writes nothing, but checks the keys."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsWriter``."""
        check_keys(values)

    def close(self) -> None:
        """See ``MetricsWriter``."""


class JsonlWriter:
    """One JSON object per record and line, written at once: ``{"step": ..., key: ...}``.

    NaN and infinities, which JSON has not, are written as null and read as NaN.

    Args:
        path: Appended to.
        resume_step: When resuming: records after this step (and a torn last line) are dropped, so
            the file reads as if the run had never stopped. Damage does not keep a run from going
            on: everything from the first damaged line is kept aside as ``<path>.damaged-N``.

    Raises:
        OSError: The file cannot be written; with its name and the reason.
        ValueError: It is no regular file, or larger than ``MAX_METRICS_BYTES``.
    """

    def __init__(self, path: str | Path, *, resume_step: int | None = None) -> None:
        self._path = path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and path.exists():
            _drop_damage_and_later_records(path, resume_step)
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a reader.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise unwritable("JsonlWriter", path, error) from error
        # Unbuffered, so that nothing is left to fail once more when the file is closed.
        self._file = io.FileIO(descriptor, "ab")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._file.close()
            raise ValueError(f"JsonlWriter: {path} must be a regular file, got another kind")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsWriter``."""
        check_keys(values)
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = memoryview((json.dumps({"step": step, **finite}) + "\n").encode())
        try:
            while line:  # a disk that fills up takes a part first, and says why at the next call
                line = line[self._file.write(line) :]
        except OSError as error:
            raise unwritable("JsonlWriter", self._path, error) from error

    def close(self) -> None:
        """See ``MetricsWriter``."""
        self._file.close()


def _drop_damage_and_later_records(path: Path, last_step: int) -> None:
    try:
        records, damaged, problem = _read_records(path)
    except ValueError as error:
        raise ValueError(f"JsonlWriter: {error}") from error
    if damaged:
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        write_atomically(aside, damaged, function="JsonlWriter")
        print(f"{problem}; from there on it is kept as {aside.name}", file=sys.stderr)
    kept = [
        line
        for record, line in records
        if record["step"] <= last_step and "eval/episodes" not in record  # that of the end
    ]
    write_atomically(path, b"".join(line + b"\n" for line in kept), function="JsonlWriter")


class TensorBoardWriter:
    """Scalars for TensorBoard.

    Args:
        directory: Of the event files.
        resume_step: When resuming: later records are hidden.
    """

    def __init__(self, directory: str | Path, *, resume_step: int | None = None) -> None:
        purge_step = None if resume_step is None else resume_step + 1
        self._writer: Any = summary_writer()(str(directory), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsWriter``."""
        check_keys(values)
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """See ``MetricsWriter``."""
        self._writer.close()


def summary_writer() -> Any:
    """The optional library's class, or how to install it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "fastdistill.training.metrics needs tensorboard: pip install 'tensorboard>=2.16', or "
            "leave it out: --no-tensorboard, tensorboard=False"
        ) from error
    return SummaryWriter


class RunWriter:
    """The writers of a run directory: ``metrics.jsonl`` and, unless refused, ``tb/``."""

    def __init__(
        self, run_dir: str | Path, *, tensorboard: bool = True, resume_step: int | None = None
    ) -> None:
        run_dir = Path(run_dir)
        self._writers: list[MetricsWriter] = [
            JsonlWriter(run_dir / "metrics.jsonl", resume_step=resume_step)
        ]
        if tensorboard:
            self._writers.append(TensorBoardWriter(run_dir / "tb", resume_step=resume_step))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsWriter``."""
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        """See ``MetricsWriter``."""
        for writer in self._writers:
            writer.close()


class Progress:
    """How far a run is: one line that renews itself on a terminal, plain lines elsewhere.

    Args:
        total_steps: Agent steps of the whole run.
        start_step: Where this process begins.
        unit: What is counted, if not steps.
        stream: Standard error by default.
        plain_every_seconds: Pause between lines where there is no terminal.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        unit: str = "steps",
        stream: TextIO | None = None,
        plain_every_seconds: float = 15.0,
    ) -> None:
        self._total = total_steps
        self._unit = unit
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._every = 0.5 if self._live else plain_every_seconds
        self._shown = self._begun = time.monotonic()
        self._start = self._shown_step = start_step

    def update(self, step: int, returns: Sequence[float], note: Callable[[], str] = str) -> None:
        """Show steps done, steps per second, time left and the recent mean return, when due.

        ``note`` says what else there is to show; it is asked only then.
        """
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        rate = (step - self._shown_step) / (now - self._shown)
        overall = (step - self._start) / (now - self._begun)
        left = (self._total - step) / overall if overall > 0 else float("inf")
        self._shown, self._shown_step = now, step
        recent = f"{sum(returns) / len(returns):8.2f}" if returns else "       -"
        line = (
            f"{step:>10,}/{self._total:,} {self._unit}  {rate:8,.0f}/s  left {_clock(left)}"
            f"  return {recent}  {note()}"
        )
        self._stream.write(f"\r\x1b[K{line}" if self._live else line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the line."""
        if self._live:
            self._stream.write("\n")
            self._stream.flush()


def check_keys(values: Mapping[str, float]) -> None:
    """Refuse a key that ``METRICS`` does not declare."""
    for key in values:
        name = re.sub(r"^students/[^/]+/", "students/*/", key)
        if re.sub(r"^(students/\*/[^/]+|teacher/[^/]+)/.+", r"\1/*", name) not in METRICS:
            raise ValueError(f"metrics: key must be declared in METRICS, got {key!r}")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records of a metrics file; a torn last line is left out.

    Returns:
        Objects with an integer ``step`` and otherwise numbers.

    Raises:
        ValueError: With the file, the line, and what is wrong with it.
    """
    try:
        records, _, problem = _read_records(Path(path))
    except ValueError as error:
        raise ValueError(f"read_jsonl: {error}") from error
    if problem:
        raise ValueError(f"read_jsonl: {problem}")
    return [record for record, _ in records]


def _read_records(path: Path) -> tuple[list[tuple[dict[str, Any], bytes]], bytes, str]:
    """Records and their lines up to the first damage, what follows, and what is wrong with it."""
    lines = read_bytes(path, limit_bytes=MAX_METRICS_BYTES).split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append((_parse_record(line), line))
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the process died while writing
                break
            return records, b"\n".join(lines[number - 1 :]), f"{path} line {number} {error}"
    return records, b"", ""


def _parse_record(line: bytes) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise ValueError(f"must be JSON, got {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"must be an object, got {shown(record)}")
    step: Any = record.get("step")
    if not is_int(step) or step < 0:
        raise ValueError(f"must have an integer step of 0 or more, got {shown(step)}")
    for key, value in record.items():
        if value is None:
            record[key] = math.nan
        elif not is_int(value) and not isinstance(value, float):
            raise ValueError(f"must hold numbers, got {shown(value)} for {shown(key)}")
    return record


def metrics_table() -> str:
    """``METRICS`` as the Markdown table of docs/metrics.md."""
    rows = "".join(f"| `{key}` | {meaning} |\n" for key, meaning in METRICS.items())
    return f"| key | meaning |\n|---|---|\n{rows}"


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "   ?"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
