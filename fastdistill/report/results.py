# SPDX-License-Identifier: MIT
"""A distillation run's files as one record: the teacher, the students by loss and size, curves.

Students that differ in their seed alone are one line: mean over seeds, with an interval that
resamples seeds, then episodes. A single student's numbers are those of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdistill._files import parse_json, read_bytes
from fastdistill.evaluation.statistics import (
    Interval,
    seeds_percent,
    seeds_score,
    summarize,
)
from fastdistill.training.guide import GUIDED
from fastdistill.training.metrics import read_jsonl

CURVES = ("score", "loss", "agreement", "kl")
BATCHES = ("1", "1024")
# Share of the teacher's level, in percent, that the headline asks of a student.
GOOD_PERCENT = 95.0
# Of a run's evaluation and of its configuration.
MAX_FILE_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class Curve:
    """One measure while training; ``low`` and ``high`` are the extremes over seeds.

    Attributes:
        at: Seconds of training or agent steps, see ``Results.by``.
    """

    at: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Player:
    """The teacher, or the students of one loss and size.

    Attributes:
        label: As the report calls it.
        kind: Loss; empty for the teacher.
        size: Network size, as the run named it.
        names: Of its runs, one per seed.
        seeds: Of training, where recorded.
        parameters: Trainable scalars.
        flops: Two per multiply-add, of one observation's forward pass.
        returns: Raw score of each episode, one list per seed; finite.
        score: Mean with 95% interval, None if not measured.
        percent: Of the teacher, on the (score - random) scale, likewise.
        latency_seconds: Batch size -> median seconds of a forward pass, mean over seeds.
        curves: By name of ``CURVES``; those that have points.
        diverged: How many of the seeds ended early, their loss or weights not finite; what they
            were before that has played.
    """

    label: str
    kind: str
    size: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    parameters: float | None
    flops: float | None
    returns: tuple[tuple[float, ...], ...]
    score: Interval | None
    percent: Interval | None
    latency_seconds: dict[str, float | None]
    curves: dict[str, Curve]
    diverged: int = 0

    @property
    def episodes(self) -> list[float]:
        """The scores of all seeds' episodes."""
        return [score for one in self.returns for score in one]


@dataclass(frozen=True, eq=False)
class Results:
    """What a run directory says.

    Attributes:
        game: Game or environment id.
        preset: Of the evaluation; empty where the environment has none.
        epsilon: Share of random actions in the evaluation.
        seed: Of the evaluation.
        episodes: Per player.
        random_score: Of uniformly random play.
        training_seconds: Of the whole run.
        teacher: The teacher.
        students: One per loss and size, in the file's order.
        by: What the run is drawn against: ``"seconds"`` of training, or agent ``"steps"`` where
            a network learns from its environment.
        teacher_on_record: Whether the teacher's episodes are its card's, not of this run.
        machine: What it ran on.
        commands: That made it.
        config: Of the recipe; empty where the run has no ``config.json``.
        versions: Of the libraries, from the same file.
    """

    game: str
    preset: str
    epsilon: float | None
    seed: int
    episodes: int | None
    random_score: float | None
    training_seconds: float | None
    teacher: Player
    students: tuple[Player, ...]
    machine: dict[str, Any]
    commands: tuple[str, ...]
    config: dict[str, Any]
    versions: dict[str, Any]
    by: str = "seconds"
    teacher_on_record: bool = False


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """``evaluation.json``, whatever it says.

    Raises:
        ValueError: It is damaged, or there is none.
    """
    path = run_dir / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"write_report: run_dir must hold evaluation.json, got {run_dir}")
    return _read_object(path)


def read_games(run_dir: Path, by: str | None = None) -> list[Results]:
    """What a run says of each of its games; of one game just that.

    Args:
        run_dir: Of the run.
        by: What it is drawn against, see ``Results``; by default what suits its recipe.
    """
    evaluation = read_evaluation(run_dir)
    if "games" not in evaluation:
        return [read_results(run_dir, evaluation, by=by)]
    games = evaluation["games"]
    if not isinstance(games, list) or not games or not all(isinstance(one, dict) for one in games):
        raise ValueError(
            f"write_report: {run_dir / 'evaluation.json'} must hold games (a list of objects), "
            f"got {_shortened(games)}"
        )
    shared = {key: evaluation.get(key) for key in ("training_seconds", "updates", "commands")}
    return [
        read_results(run_dir, {**shared, **game}, f"/{_text(game.get('game'))}", by)
        for game in games
    ]


def read_results(
    run_dir: Path,
    evaluation: dict[str, Any] | None = None,
    suffix: str = "",
    by: str | None = None,
) -> Results:
    """Read ``evaluation.json`` and, where present, ``config.json`` and ``metrics.jsonl``.

    Args:
        run_dir: Of the run.
        evaluation: Instead of the content of the first.
        suffix: Of the metrics' keys, where they are one game's of several.
        by: As of ``read_games``.

    Raises:
        ValueError: A file is damaged, or there is no ``evaluation.json``.
    """
    path = run_dir / "evaluation.json"
    evaluation = read_evaluation(run_dir) if evaluation is None else evaluation
    kinds = {"game": str, "teacher": dict, "students": list}
    if evaluation.get("commands") is not None:
        kinds["commands"] = list
    for key, kind in kinds.items():
        if not isinstance(evaluation.get(key), kind):
            raise ValueError(
                f"write_report: {path} must hold {key} ({kind.__name__}), "
                f"got {_shortened(evaluation.get(key))}"
            )
    for entry in (evaluation["teacher"], *evaluation["students"]):
        _check_entry(path, entry)
    config_path, metrics_path = run_dir / "config.json", run_dir / "metrics.jsonl"
    run = _read_object(config_path) if config_path.is_file() else {}
    records = read_jsonl(metrics_path) if metrics_path.is_file() else []
    random_score = _number(evaluation.get("random_score"))
    by = by or ("seconds" if run.get("recipe") in (None, "distill") else "steps")
    teacher = _player("teacher", [evaluation["teacher"]], None, None, {})
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in evaluation["students"]:
        groups.setdefault((_text(entry.get("kind")), _text(entry.get("size"))), []).append(entry)
    students = tuple(
        _player(
            " ".join(key).strip() or "student",
            entries,
            teacher,
            random_score,
            _curves(records, entries, suffix, by),
        )
        for key, entries in groups.items()
    )
    own = read_curve(records, [f"teacher/score{suffix}"], by)
    if own is not None:  # of the network that learns from its environment
        guided = next((player for player in students if player.kind == GUIDED), teacher)
        guided.curves["score"] = own
    seed, episodes = _number(evaluation.get("seed")), _number(evaluation.get("episodes"))
    return Results(
        game=_text(evaluation["game"]),
        preset=_text(evaluation.get("preset")),
        epsilon=_number(evaluation.get("epsilon")),
        seed=1 if seed is None else int(seed),
        episodes=None if episodes is None else int(episodes),
        random_score=random_score,
        training_seconds=_number(evaluation.get("training_seconds")),
        teacher=teacher,
        students=students,
        machine=_mapping(evaluation.get("machine")),
        commands=tuple(str(line) for line in evaluation.get("commands") or ()),
        config=_mapping(run.get("config")),
        versions=_mapping(run.get("versions")),
        by=by,
        teacher_on_record=bool(_mapping(evaluation["teacher"].get("on_record"))),
    )


def headline_student(results: Results) -> Player | None:
    """The smallest student that reaches 95% of the teacher's level, else the best, else any."""
    measured = [player for player in results.students if player.percent is not None]
    if not measured:
        return results.students[0] if results.students else None
    good = [player for player in measured if _percent(player) >= GOOD_PERCENT]
    if not good:
        return max(measured, key=_percent)
    return min(good, key=lambda player: (player.parameters or math.inf, -_percent(player)))


def _percent(player: Player) -> float:
    return player.percent.value if player.percent else -math.inf


def _player(
    label: str,
    entries: list[dict[str, Any]],
    teacher: Player | None,
    random_score: float | None,
    curves: dict[str, Curve],
) -> Player:
    names = tuple(_text(entry.get("name")) for entry in entries)
    raw = [tuple(float(score) for score in entry.get("returns") or ()) for entry in entries]
    returns = tuple(tuple(filter(math.isfinite, one)) for one in raw)
    complete = all(raw) and returns == tuple(raw)
    if len(entries) == 1:
        summary = _mapping(entries[0].get("summary"))
        score = _interval(summary.get("mean"))
        if score is None and complete and "summary" not in entries[0]:
            score = summarize(returns[0]).mean
        percent = _interval(entries[0].get("percent_of_teacher"))
    else:
        score = seeds_score(returns) if complete else None
        percent = None
        if complete and teacher is not None and teacher.episodes and random_score is not None:
            percent = seeds_percent(returns, teacher.episodes, random_score)
    latencies = [_mapping(entry.get("latency_seconds")) for entry in entries]
    return Player(
        label=label,
        kind=_text(entries[0].get("kind")) if teacher else "",
        size=_text(entries[0].get("size")),
        names=names,
        seeds=tuple(
            int(seed) for entry in entries if (seed := _number(entry.get("seed"))) is not None
        ),
        parameters=_number(entries[0].get("parameters")),
        flops=_number(entries[0].get("flops")),
        returns=returns,
        score=score,
        percent=percent,
        latency_seconds={
            batch: _mean([_number(latency.get(batch)) for latency in latencies])
            for batch in BATCHES
        },
        curves=curves,
        diverged=sum(entry.get("diverged_updates") is not None for entry in entries),
    )


def _curves(
    records: list[dict[str, Any]], entries: list[dict[str, Any]], suffix: str, by: str
) -> dict[str, Curve]:
    names = [_text(entry.get("name")) for entry in entries]
    found = {
        measure: read_curve(records, [f"students/{name}/{measure}{suffix}" for name in names], by)
        for measure in CURVES
    }
    return {measure: curve for measure, curve in found.items() if curve is not None}


def read_curve(records: list[dict[str, Any]], keys: list[str], by: str) -> Curve | None:
    """The mean of some measures against training time or steps; None where none is on record."""
    points = []
    for record in records:
        at = _number(record.get("step" if by == "steps" else "time/training_seconds"))
        values = [value for key in keys if (value := _number(record.get(key))) is not None]
        if at is not None and values:
            points.append((at, sum(values) / len(values), min(values), max(values)))
    return Curve(*np.array(points, np.float64).T) if points else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_bytes(path, limit_bytes=MAX_FILE_BYTES), non_finite=True)
    except ValueError as error:
        raise ValueError(f"write_report: {path} must be readable JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"write_report: {path} must hold an object, got {_shortened(found)}")
    return found


def _check_entry(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(
            f"write_report: {path} must describe players by name, got {_shortened(entry)}"
        )
    returns = entry.get("returns")
    numbers = isinstance(returns, list) and all(
        isinstance(score, (int, float)) and not isinstance(score, bool) for score in returns
    )
    if returns is not None and not numbers:
        raise ValueError(
            f"write_report: {path} must list the returns of {_shortened(entry['name'])} "
            f"as numbers, got {_shortened(returns)}"
        )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: Any) -> str:
    """One line, whatever it was."""
    return "" if value is None else " ".join(str(value).split())


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _interval(value: Any) -> Interval | None:
    parts = [_number(_mapping(value).get(key)) for key in ("value", "low", "high")]
    if parts[0] is None or parts[1] is None or parts[2] is None:
        return None
    return Interval(parts[0], parts[1], parts[2])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
