# SPDX-License-Identifier: MIT
"""Teachers that other programs are still training: each that is published is taken up."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from fastdistill.networks.checkpoint import CheckpointError, description_path
from fastdistill.teachers import Teacher, load_teacher
from fastdistill.training.following import FIT_ROWS
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.labelled_rows import Lesson
from fastdistill.training.run import say
from fastdistill.training.targets import auto_temperature

# Between two looks at the files.
LOOK_SECONDS = 2.0


class Publications:
    """The teachers of a labelled play, and the files that newer ones are expected in.

    Labels are made when they are learned from, by the newest teacher: those that were stored with
    the play may be of an older one.
    """

    def __init__(self, source: LabelledPlay, *, fits: bool) -> None:
        """Args:
        source: Whose tasks' teachers were loaded from checkpoints.
        fits: Whether each new teacher's temperature is fitted to its values.

        Raises:
            ValueError: A teacher is none that a newer one can be written over.
        """  # noqa: D205
        self._source = source
        self._fits = fits
        self._to_fit: set[int] = set()
        self._paths = [_followable(task.teacher) for task in source.tasks]
        # What is there now may be newer than what was loaded a moment ago.
        self._stamps: list[tuple[int, ...]] = [()] * len(self._paths)
        self._looked_seconds = -LOOK_SECONDS

    def look(self) -> None:
        """Take up what was published since the last look; a file in the middle of it is for later.

        What is no teacher of the task is named, once, and the last one goes on.
        """
        now = time.monotonic()
        if now - self._looked_seconds < LOOK_SECONDS:
            return
        self._looked_seconds = now
        for place, (path, stamp) in enumerate(zip(self._paths, self._stamps, strict=True)):
            found = _stamp(path)
            if found != stamp:
                self._stamps[place] = found
                self._take_up(place, path)

    def _take_up(self, place: int, path: Path) -> None:
        task = self._source.tasks[place]
        last = task.teacher
        try:
            teacher = load_teacher(path, task.spec, kind=last.kind, device=last.device)
        except (OSError, TypeError, ValueError) as error:
            say(f"{task.name}: the teacher stays what it was: {error}")
            return
        is_new = teacher.card.get("weights") != last.card.get("weights")
        teacher = replace(teacher, source=last.source, version=last.version + is_new)
        self._source.take_up(place, teacher)
        if not is_new:
            return
        self._forget(place)
        steps = teacher.card.get("trained_steps")
        of = f", trained for {steps:,} steps" if isinstance(steps, int) else ""
        say(f"{task.name}: teacher {teacher.version} is taken up{of}")

    def resume(self) -> None:
        """What a checkpoint knows of the teachers may be of older ones."""
        for place in range(len(self._paths)):
            self._forget(place)

    def _forget(self, place: int) -> None:
        self._source.tasks[place].levels = None
        if self._fits:
            self._to_fit.add(place)

    def label(self, lesson: Lesson) -> Lesson:
        """The same observations as the newest teachers see them."""
        self._fit()
        obs, labels = lesson
        parts = torch.split(obs, [len(part) for part in labels])
        tasks = self._source.tasks
        values = tuple(
            task.teacher.values(part) if len(part) else stored
            for task, part, stored in zip(tasks, parts, labels, strict=True)
        )
        return Lesson(obs, values)

    def _fit(self) -> None:
        for place in sorted(self._to_fit):
            task = self._source.tasks[place]
            labels = task.teacher.values(self._source.obs_of(place, FIT_ROWS))
            task.temperature = auto_temperature(labels.cpu())
            say(f"temperature of {task.name} {task.temperature:.3g}, fitted anew")
        self._to_fit.clear()

    def metrics(self) -> dict[str, float]:
        """How many teachers this process has taken up."""
        return {"teacher/version": sum(task.teacher.version for task in self._source.tasks)}


def _followable(teacher: Teacher) -> Path:
    if teacher.source is not None:
        with suppress(CheckpointError):
            return description_path(Path(teacher.source))
    raise ValueError(
        "distill: teacher must be the path of a checkpoint with follow, got "
        f"{'a module' if teacher.source is None else repr(teacher.source)}"
    )


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when the file does; empty while there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
