# SPDX-License-Identifier: MIT
"""A run: one directory, its configuration, clock and files; what is due, and where to continue.

A recipe's loop asks what is ``due``, and hands over what is to be kept; it opens no file.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from fastdistill._files import unwritable, write_atomically
from fastdistill.envs import EnvFault, engine_versions
from fastdistill.networks.checkpoint import CheckpointError, versions, write_checkpoint
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.configuration import Config, configuration_to_json, read_configuration
from fastdistill.training.counters import Counters
from fastdistill.training.metrics import Progress, RunWriter, summary_writer
from fastdistill.training.ranks import ALONE, Ranks, launched_rank

ConfigT = TypeVar("ConfigT", bound=Config)

# Of the training checkpoints; those of version 0.1.0 had another engine, the second had one task.
ENGINE = 4

# What a killed process left of a file that is written in one step (see ``write_atomically``).
_TORN = re.compile(
    r"\..+\.(json|html|safetensors|jsonl(\.damaged-\d+)?)\.\d+(\.[0-9a-f]{16})?\.tmp"
)


class TrainingDiverged(RuntimeError):  # noqa: N818 (it names what happened)
    """A loss that is not finite; the message says where its batch was saved."""


class Stop(Protocol):
    """Who may ask a run to stop: ``StopRequest``, or anything else that knows."""

    @property
    def requested(self) -> bool:
        """Whether to stop at the next good moment."""


class Run(Generic[ConfigT]):
    """One run of a recipe; use as a context manager around its training.

    Making it reads or checks, and writes nothing: what a recipe refuses before it enters leaves no
    directory behind.

    Attributes:
        config: To train with; of a resumed run, its own.
        at: How far it is.
        finished: Whether the recipe came to its end, which it sets.
        ranks: That train together.
    """

    def __init__(
        self,
        recipe: str,
        config: ConfigT,
        *,
        resume: bool,
        unit: str,
        stop: Stop | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Args:
        recipe: Its name.
        config: A frozen dataclass of plain fields; what differs from its defaults must be what
            the resumed run has.
        resume: Continue the run in ``config.run_dir``.
        unit: What its cadence counts, ``"steps"`` or ``"updates"``.
        stop: Asked between steps.
        ranks: That train together; only the first of them writes, and shows, anything.
        """  # noqa: D205
        self._directory = Path(config.run_dir)
        path = self._directory / "config.json"
        if resume:
            config = read_configuration(path, recipe, config)
        elif path.exists() and ranks.is_first:
            raise ValueError(
                f"open_run: run_dir must not hold a run, got {config.run_dir}; resume it or name "
                "another"
            )
        if config.tensorboard and ranks.is_first:
            summary_writer()  # whether it is there, before anything is written
        self.config = config
        self.at = Counters()
        self.finished = False
        self.ranks = ranks
        self._seconds = 0.0
        self._recipe = recipe
        self._resume = resume
        self._unit = unit
        self._stop = stop
        self._checkpoints = TrainingCheckpoints(self._directory / "checkpoints")
        self._asked: dict[str, int] = {}
        self._lock: int | None = None
        self._writer: RunWriter | None = None
        self._progress: Progress | None = None

    def __enter__(self) -> Run[ConfigT]:
        if not self.ranks.is_first:
            return self
        if not self._resume:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable("open_run", self._directory, error) from error
        self._lock = claim(self._directory)
        try:
            for folder in (self._directory, self._directory / "students"):
                _remove_torn(folder)
            if not self._resume:
                record = {
                    "recipe": self._recipe,
                    "config": configuration_to_json(self.config),
                    "versions": {**versions(), **engine_versions()},
                }
                payload = (json.dumps(record, indent=2) + "\n").encode()
                write_atomically(self.directory / "config.json", payload, function="open_run")
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in (self._progress, self._writer):
            if opened is not None:
                opened.close()
        if self._lock is not None:
            os.close(self._lock)  # and with it the claim
            self._lock = None

    @property
    def directory(self) -> Path:
        """Where everything is written.

        Raises:
            FileNotFoundError: Once it is gone, or another stands in its place: whoever took it
                away does not find it made anew.
        """
        try:
            there = os.stat(self._directory)
        except OSError:
            there = None
        ours = there if self._lock is None else os.fstat(self._lock)
        if there is None or ours is None or not os.path.samestat(there, ours):
            raise FileNotFoundError(
                "training: run_dir must stay while it is trained in, got "
                f"{'none' if there is None else 'another'} at {self._directory}"
            )
        return self._directory

    def restore(
        self,
        take: Callable[[dict[str, Tensor], dict[str, Any]], None],
        load_replay: Callable[[Path], None] | None = None,
    ) -> bool:
        """Begin, or continue from the newest checkpoint.

        Args:
            take: Called with what ``checkpoint`` was given.
            load_replay: Takes the snapshot that belongs to the checkpoint.

        Returns:
            Whether there was one; if not, all begins.

        Raises:
            CheckpointError: Every one is damaged, or the newest is not of this configuration.
        """
        loaded = self._checkpoints.latest(load_replay) if self._resume else None
        if loaded is not None:
            tensors, card = loaded
            if card.get("engine") != ENGINE:
                raise ValueError(
                    f"resume: checkpoints in {self.directory} must be of this version, got an "
                    "older one's; finish the run with the version that began it, or begin anew "
                    "(its students and teacher.json load as they are)"
                )
            try:
                take(tensors, card)
                self.at.restore(card["counters"])  # last: its clock goes on from here
                self._seconds = self.at.training_seconds
            except (CheckpointError, EnvFault, torch.OutOfMemoryError):
                raise
            except _MISFITS as error:
                path = self._checkpoints.description(card["step"])
                what = (
                    f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
                )
                raise CheckpointError(
                    f"resume: {path} must be of this run's configuration, got {what}"
                ) from error
            self._asked = dict.fromkeys(("log", "score", "checkpoint"), self._count)
        else:
            self.at.start_clock()
        if not self.ranks.is_first:
            return loaded is not None
        # A run that begins again, for want of a checkpoint, drops its records of before.
        self._writer = RunWriter(
            self.directory,
            tensorboard=self.config.tensorboard,
            resume_step=self.at.step if self._resume else None,
        )
        self._progress = Progress(
            getattr(self.config, f"total_{self._unit}"), start_step=self._count, unit=self._unit
        )
        return loaded is not None

    @property
    def _count(self) -> int:
        return self.at.step if self._unit == "steps" else self.at.updates

    @property
    def stopping(self) -> bool:
        """Whether it, or any other rank, was asked to stop; asked by all of them at once."""
        asked = self._stop is not None and self._stop.requested
        asked, self._seconds = self.ranks.agree(asked, self.at.training_seconds)
        return asked

    @property
    def training_seconds(self) -> float:
        """Those of play and learning; of several ranks as they were when all looked last."""
        return self.at.training_seconds if self.ranks.world == 1 else self._seconds

    def due(self, what: str) -> bool:
        """Whether a multiple of ``config.<what>_every_<unit>`` has gone by since last asked."""
        every = getattr(self.config, f"{what}_every_{self._unit}")
        before, self._asked[what] = self._asked.get(what, 0), self._count
        return bool(self._count // every > before // every)

    def show(self, note: Callable[[], str]) -> None:
        """How far it is, on the terminal."""
        if not self.ranks.is_first:
            return
        assert self._progress is not None
        self._progress.update(self._count, self.at.recent, note)

    def write(self, values: dict[str, float]) -> None:
        """Record metrics."""
        if not self.ranks.is_first:
            return
        assert self._writer is not None
        _ = self.directory  # still there
        self._writer.write(self.at.step, values)

    def checkpoint(
        self,
        tensors: dict[str, Tensor],
        card: dict[str, Any],
        save_replay: Callable[[Path], None] | None = None,
    ) -> None:
        """Write everything to continue from.

        Args:
            tensors: All state that is tensors.
            card: All other state, as plain JSON types.
            save_replay: Writes the replay's snapshot, which the checkpoint then names.
        """
        if not self.ranks.is_first:
            return
        _ = self.directory  # still there
        state = {"engine": ENGINE, "counters": self.at.state(), **card}
        self._checkpoints.write(self.at.step, tensors, state, save_replay)
        self.at.lap("checkpoint")

    def keep_diverged(self, name: str, loss: float, batch: dict[str, Tensor]) -> str:
        """Save the batch of a loss that is not finite; says what happened and where it is."""
        path = self._directory / f"{name}.json"
        if self.ranks.is_first:
            _ = self.directory  # still there
            write_checkpoint(path, batch, {"step": self.at.step, "loss": str(loss)})
        return (
            f"training: loss must be finite, got {loss} at step {self.at.step}; "
            f"{'the batch is in' if batch else 'see'} {path}"
        )

    def refuse_divergence(self, loss: float, batch: Callable[[], dict[str, Tensor]]) -> None:
        """Stop on a loss that is not finite, with its batch saved for the post-mortem.

        Args:
            loss: Looking at a GPU's is waiting for it: there, only at records.
            batch: Of the loss; called if it is to be saved.

        Raises:
            TrainingDiverged: If ``loss`` is infinite or NaN.
        """
        if not math.isfinite(loss):
            raise TrainingDiverged(self.keep_diverged("diverged", loss, batch()))


# What restoring raises where a checkpoint holds something else than this run wrote.
_MISFITS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def say(text: str) -> None:
    """Say something on the terminal, apart from results; of several ranks the first one does."""
    if launched_rank() == 0:
        print(text, file=sys.stderr)


def claim(directory: Path, what: str = "open_run: run_dir") -> int:
    """Lock a directory for this process; the lock ends with it, however it ends.

    Returns:
        What to close when it is no longer needed.

    Raises:
        ValueError: ``what`` belongs to another process.
    """
    number = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(number)
        raise ValueError(
            f"{what} must belong to one process at a time, got {directory}, in which another is "
            f"{'training' if what.startswith('open_run') else 'at work'}"
        ) from error
    return number


def _remove_torn(folder: Path) -> None:
    """Remove what killed processes left of files; whoever calls owns the directory."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _TORN.fullmatch(path.name):
                path.unlink(missing_ok=True)


def unused(path: Path) -> Path:
    """``path`` with the first number behind it that nothing has."""
    number = 1
    while (free := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return free
