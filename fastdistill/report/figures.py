# SPDX-License-Identifier: MIT
"""The report's figures of one game: score, episodes, learning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastdistill.report.drawing import (
    DASHES,
    GROUND,
    MUTED,
    SERIES,
    TEACHER,
    WIDE,
    Drawing,
    LineStyle,
    Plan,
    line,
    render,
    style_axes,
)
from fastdistill.report.results import Player, Results
from fastdistill.report.words import Unit, episodes_title, learning_title, number, score_title

MAX_FINALS = 4  # more final scores and bands than these would cover one another


def line_styles(results: Results) -> dict[str, LineStyle]:
    """Label -> style: colour for the loss and dash for the size, or colour alone if one varies."""
    kinds = list(dict.fromkeys(player.kind for player in results.students))
    sizes = list(dict.fromkeys(player.size for player in results.students))
    both = len(kinds) > 1 and len(sizes) > 1
    styles = {}
    for index, player in enumerate(results.students):
        colour = kinds.index(player.kind) if both else index
        dash = sizes.index(player.size) if both else index // len(SERIES)
        styles[player.label] = LineStyle(colour % len(SERIES), DASHES[dash % len(DASHES)])
    return styles


def draw_all(results: Results, folder: Path) -> dict[str, Drawing]:
    """Draw ``score``, ``episodes`` and ``learning``, with PNGs in ``folder``.

    Returns:
        Name -> drawing; a figure without any data is left out.
    """
    curves = {measure for player in results.students for measure in player.curves}
    players = (results.teacher, *results.students)
    plans: dict[str, tuple[bool, str, Callable[[Results, Any, int], None]]] = {
        "score": ("score" in curves, score_title(results), _draw_score),
        "episodes": (
            any(player.episodes for player in players),
            episodes_title(results),
            _draw_episodes,
        ),
        "learning": (bool(curves - {"score"}), learning_title(results), _draw_learning),
    }
    drawings = {}
    for name, (has_data, title, draw) in plans.items():
        (folder / f"{name}.png").unlink(missing_ok=True)  # an earlier report's
        if has_data:
            entries = len(results.students) if name != "episodes" else 0
            plan = Plan(
                name, title, partial(draw, results), partial(_height, name, results), entries
            )
            drawings[name] = render(plan, folder)
    return drawings


def _draw_score(results: Results, figure: Any, width: int) -> None:
    """Mean score while training, the teacher's level and random play."""
    lines = {p.label: p.curves["score"] for p in results.students if "score" in p.curves}
    unit = Unit.of(lines.values(), results.by)
    axes = style_axes(figure.subplots(), "Mean score per episode, points")
    styles = line_styles(results)
    end = max(float(curve.at[-1]) for curve in lines.values()) / unit.amount
    draw_levels(results.teacher, results.random_score, axes)
    if (own := results.teacher.curves.get("score")) is not None:
        axes.plot(own.at / unit.amount, own.mean, color=TEACHER, linewidth=1.4, marker=".")
    for label, curve in lines.items():
        line(axes, curve, styles[label], unit, label, mark=True, spread=len(lines) <= MAX_FINALS)
    finals = [player for player in results.students if player.score]
    if len(finals) <= MAX_FINALS:
        for place, player in enumerate(finals, start=1):
            assert player.score is not None
            axes.errorbar(
                [end * (1 + 0.025 * place + 0.01)],
                [player.score.value],
                yerr=[
                    [player.score.value - player.score.low],
                    [player.score.high - player.score.value],
                ],
                color=SERIES[styles[player.label].series],
                marker="D",
                markersize=8,
                markeredgecolor=GROUND,
                markeredgewidth=1.4,
                elinewidth=1.8,
            )
    axes.set_xlim(0, end * (1.06 + 0.025 * min(len(finals), MAX_FINALS)))
    axes.set_xlabel(unit.axis)


def draw_levels(teacher: Player, random_score: float | None, axes: Any) -> None:
    """The teacher's level with its interval, and random play's."""
    score, text = teacher.score, {"fontsize": 11.5, "va": "bottom"}
    if score is not None:
        axes.axhspan(score.low, score.high, color=TEACHER, alpha=0.14, linewidth=0)
        axes.axhline(score.value, color=TEACHER, linewidth=1.4)
        axes.annotate(
            f"teacher {number(score.value)}",
            (0.01, score.high),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=TEACHER,
            **text,
        )
    if random_score is not None:
        axes.axhline(random_score, color=MUTED, linewidth=1.2, dashes=(1.5, 2.5))
        axes.annotate(
            f"random play {number(random_score)}",
            (0.99, random_score),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=MUTED,
            **text,
        )
    axes.margins(y=0.09)


def _draw_learning(results: Results, figure: Any, width: int) -> None:
    """Loss, agreement and KL while training, one panel each."""
    panels = {
        "loss": "Loss on the batches learned from",
        "agreement": "Agreement with the teacher, %",
        "kl": "KL from the teacher, nats",
    }
    drawn = [
        curve
        for player in results.students
        for measure, curve in player.curves.items()
        if measure in panels
    ]
    unit, styles = Unit.of(drawn, results.by), line_styles(results)
    shape = (1, len(panels)) if width >= WIDE else (len(panels), 1)
    for axes, (measure, title) in zip(
        figure.subplots(*shape, squeeze=False).flat, panels.items(), strict=True
    ):
        style_axes(axes, title)
        for player in results.students:
            if measure in player.curves:
                scale = 100.0 if measure == "agreement" else 1.0
                curve = player.curves[measure]
                line(axes, curve, styles[player.label], unit, player.label, scale=scale)
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
        axes.set_xlim(0, max(float(one.at[-1]) for one in drawn) / unit.amount * 1.02)
        axes.set_ylim(bottom=0)
        if shape[0] == 1 or measure == "kl":
            axes.set_xlabel(unit.axis)
    figure.get_layout_engine().set(h_pad=6 / 72, w_pad=8 / 72)


def _draw_episodes(results: Results, figure: Any, width: int) -> None:
    """Every episode's score as a dot, a row for each player, the mean with its interval above."""
    axes = style_axes(figure.subplots(), "")
    styles = line_styles(results)
    players = [p for p in (results.teacher, *results.students) if p.episodes]
    every = np.concatenate([player.episodes for player in players])
    # As wide as a dot: closer scores are set above and below one another.
    spacing = max(float(np.ptp(every)), 1e-9) * 7 / (width - 40)
    for row, player in enumerate(players):
        style = styles.get(player.label)
        colour = SERIES[style.series] if style else TEACHER
        scores, heights = _stacked(np.sort(player.episodes), spacing)
        axes.scatter(scores, row + heights, s=17, color=colour, alpha=0.55, linewidths=0)
        if player.score is not None:
            axes.plot([player.score.low, player.score.high], [row, row], color=colour, linewidth=2)
            axes.plot(
                [player.score.value],
                [row],
                marker="D",
                markersize=8,
                color=colour,
                markeredgecolor=GROUND,
                markeredgewidth=1.6,
            )
        axes.annotate(
            player.label,
            (0, row - 0.5),
            (0, -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="top",
            fontsize=11.5,
            color=colour,
        )
    axes.set_ylim(len(players) - 0.5, -0.5)
    axes.set_yticks(np.arange(len(players) + 1) - 0.5, [""] * (len(players) + 1))
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.03)
    axes.set_xlabel("score of an episode, points")


def _stacked(scores: Any, spacing: float) -> tuple[Any, Any]:
    """Sorted scores and heights in rows, so that dots at the same place do not cover each other."""
    heights = np.zeros(len(scores))
    start = 0
    for index in range(1, len(scores) + 1):
        if index == len(scores) or scores[index] - scores[start] > spacing:
            count = index - start
            step = min(0.13, 0.62 / max(count - 1, 1))
            heights[start:index] = (np.arange(count) - (count - 1) / 2) * step
            start = index
    return scores, heights


def _height(name: str, results: Results, width: int) -> int:
    if name == "episodes":
        rows = sum(bool(player.episodes) for player in (results.teacher, *results.students))
        return 56 + (84 if rows <= 6 else 64) * rows
    if name == "score":
        return 340 if width >= WIDE else 300
    return 250 if width >= WIDE else 660
