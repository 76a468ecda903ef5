# SPDX-License-Identifier: MIT
"""How steady a network's score is from checkpoint to checkpoint, the games' own luck taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdistill.report.results import Results
from fastdistill.report.words import number
from fastdistill.training.metrics import read_jsonl

# Of a training: before it a network is learning, not swinging.
FROM_SHARE = 1 / 3


@dataclass(frozen=True)
class Steadiness:
    """Of one network.

    Attributes:
        label: Its name.
        mean: Mean of its checkpoints' scores.
        spread: Standard deviation of what the checkpoints are worth, in points.
        low: Lower end of its 95% interval.
        high: Upper end.
        luck: Standard error of a single checkpoint's score: what the games alone would spread.
        checkpoints: How many there were.
    """

    label: str
    mean: float
    spread: float
    low: float
    high: float
    luck: float
    checkpoints: int


def steadiness(label: str, scores: Sequence[float], errors: Sequence[float]) -> Steadiness:
    """From scores in the order of the checkpoints, and their standard errors.

    Half the mean squared difference of neighbours is the variance of a checkpoint's score (von
    Neumann 1941), of which a trend of b points per checkpoint adds only b^2 / 2, and slow swings
    little; less the mean squared standard error, which is what repeated evaluations of one
    checkpoint would differ by, it is that of the networks themselves. The interval is one of the
    logarithm of the first variance, whose standard error is what the differences show, and at least
    that of normal scores: neighbouring differences share a checkpoint, so that the mean of their
    squares has 1.5 times the variance that independent ones would give it. Simulated, it holds 95
    to 97% of normal scores' spreads, and 86 to 93% where scores have heavy tails.

    Args:
        label: Of the network.
        scores: At least two.
        errors: As many.
    """
    squares = np.diff(scores) ** 2 / 2
    noise = (np.square(errors)[1:] + np.square(errors)[:-1]) / 2
    variance, number = squares.mean(), len(squares)
    normal = 2.0  # variance of a squared normal score, in units of its square
    own = squares.var(ddof=1) / variance**2 if variance > 0 and number > 1 else normal
    error = np.sqrt(1.5 * max(own, normal) / number)
    deviations = _student_t(number) * error * np.array([-1.0, 1.0])
    low, high = _root(variance * np.exp(deviations) - noise.mean())
    return Steadiness(
        label,
        float(np.mean(scores)),
        float(_root(np.asarray(variance - noise.mean()))),
        float(low),
        float(high),
        float(np.sqrt(np.square(errors).mean())),
        len(scores),
    )


def read_steadiness(run_dir: Path, results: Results) -> list[Steadiness]:
    """Of the network that learns to be a teacher, then of each student; empty without the former.

    Scores of a single episode each say nothing of the games' luck, and are left out.

    Args:
        run_dir: Of the run; its ``metrics.jsonl`` has the scores.
        results: Of it.
    """
    path = run_dir / "metrics.jsonl"
    records = read_jsonl(path) if path.is_file() else []
    if not any("teacher/score" in record for record in records):
        return []
    names = [name for player in results.students for name in player.names]
    begin = FROM_SHARE * max(float(record["step"]) for record in records)
    late = [record for record in records if record["step"] >= begin]
    found = []
    learner = "the PQN" if "rollout_steps" in results.config else "the DQN"
    keys = {learner: "teacher", **{name: f"students/{name}" for name in names}}
    for label, start in keys.items():
        points = [
            (float(record[f"{start}/score"]), float(record[f"{start}/score_error"]))
            for record in late
            if math.isfinite(record.get(f"{start}/score_error", math.nan))
        ]
        if len(points) >= 3:
            found.append(steadiness(label, *zip(*points, strict=True)))
    return found


def render_steadiness(rows: Sequence[Steadiness]) -> str:
    """A section of the page; empty where there is nothing to tell."""
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(row.label)}</th>'
        f'<td data-label="Mean score">{number(row.mean)}</td>'
        f'<td data-label="Spread">{number(row.spread)}'
        f'<span class="small">{number(row.low)} to {number(row.high)}</span></td>'
        f'<td data-label="Luck of the games">{number(row.luck)}</td>'
        f'<td data-label="Checkpoints">{row.checkpoints}</td></tr>'
        for row in rows
    )
    return (
        "<h2>How steady</h2><table><thead><tr><th>Network</th><th>Mean score</th><th>Spread</th>"
        "<th>Luck of the games</th><th>Checkpoints</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
        '<p class="note">From a third of the training on, at every checkpoint. The spread is the '
        "standard deviation of what the checkpoints are worth, in points, with a 95% interval: "
        "half the mean squared difference of neighbours, less the squared standard error of a "
        "score, which is the luck of its games.</p>"
    )


def _student_t(number: int) -> float:
    """The 97.5% quantile of number - 1 degrees of freedom, within 2% from 4 on: Fisher's series."""
    freedom = max(number - 1, 1)
    return 1.96 + 2.372 / freedom + 2.823 / freedom**2


def _root(variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(variance, 0.0))
