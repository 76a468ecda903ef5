# SPDX-License-Identifier: MIT
"""The report's figures, drawn once with matplotlib: as SVG for the page and as PNG.

In the SVG every colour becomes a variable of the page's style sheet (so figures follow its dark
mode) and text stays text. Wide and narrow forms are drawn, the page shows the one that fits. The
only module that imports matplotlib.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fastdistill.report.results import Curve, Results
from fastdistill.report.words import TimeUnit, episodes_title, learning_title, number, score_title

# Okabe and Ito's colours, distinguishable by the colour-blind; reordered, yellow darkened.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0529b", "#3d9fd6", "#b58900")
INK, MUTED, GRID, TEACHER, GROUND = "#18181b", "#63636b", "#e4e4e7", "#52525b", "#ffffff"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    TEACHER: "--teacher",
    GROUND: "--ground",
    **{colour: f"--series{index}" for index, colour in enumerate(SERIES)},
}
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
WIDE, NARROW = 780, 360  # pixels
MAX_FINALS = 4  # more final scores and bands than these would cover one another


@dataclass(frozen=True)
class Drawing:
    """A figure as the page embeds it: its finding, and SVG in two widths."""

    title: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class LineStyle:
    """How a student's lines look: index into ``SERIES`` and a dash pattern in points."""

    series: int
    dashes: tuple[float, ...]


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
            drawings[name] = Drawing(
                title, *(_svg(draw, results, width, title, name) for width in (WIDE, NARROW))
            )
            _png(draw, results, title, folder / f"{name}.png")
    return drawings


def _draw_score(results: Results, figure: Any, width: int) -> None:
    """Mean score against training time, the teacher's level and random play."""
    lines = {p.label: p.curves["score"] for p in results.students if "score" in p.curves}
    unit = TimeUnit.fitting([curve.seconds for curve in lines.values()])
    axes = _axes(figure.subplots(), "Mean score per episode, points")
    styles = line_styles(results)
    end = max(float(curve.seconds[-1]) for curve in lines.values()) / unit.seconds
    _levels(results, axes)
    for label, curve in lines.items():
        _line(axes, curve, styles[label], unit, label, mark=True, spread=len(lines) <= MAX_FINALS)
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
    axes.set_xlabel(f"training time, {unit.name}")


def _levels(results: Results, axes: Any) -> None:
    score, text = results.teacher.score, {"fontsize": 11.5, "va": "bottom"}
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
    if results.random_score is not None:
        axes.axhline(results.random_score, color=MUTED, linewidth=1.2, dashes=(1.5, 2.5))
        axes.annotate(
            f"random play {number(results.random_score)}",
            (0.99, results.random_score),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=MUTED,
            **text,
        )
    axes.margins(y=0.09)


def _draw_learning(results: Results, figure: Any, width: int) -> None:
    """Loss, agreement and KL against training time, one panel each."""
    panels = {
        "loss": "Loss on the batches learned from",
        "agreement": "Agreement with the teacher, %",
        "kl": "KL from the teacher, nats",
    }
    seconds = [
        curve.seconds
        for player in results.students
        for measure, curve in player.curves.items()
        if measure in panels
    ]
    unit, styles = TimeUnit.fitting(seconds), line_styles(results)
    shape = (1, len(panels)) if width >= WIDE else (len(panels), 1)
    for axes, (measure, title) in zip(
        figure.subplots(*shape, squeeze=False).flat, panels.items(), strict=True
    ):
        _axes(axes, title)
        for player in results.students:
            if measure in player.curves:
                scale = 100.0 if measure == "agreement" else 1.0
                curve = player.curves[measure]
                _line(axes, curve, styles[player.label], unit, player.label, scale=scale)
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
        axes.set_xlim(0, max(float(one[-1]) for one in seconds) / unit.seconds * 1.02)
        axes.set_ylim(bottom=0)
        if shape[0] == 1 or measure == "kl":
            axes.set_xlabel(f"training time, {unit.name}")
    figure.get_layout_engine().set(h_pad=6 / 72, w_pad=8 / 72)


def _draw_episodes(results: Results, figure: Any, width: int) -> None:
    """Every episode's score as a dot, a row for each player, the mean with its interval above."""
    axes = _axes(figure.subplots(), "")
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


def _line(
    axes: Any,
    curve: Curve,
    style: LineStyle,
    unit: TimeUnit,
    label: str,
    *,
    scale: float = 1.0,
    mark: bool = False,
    spread: bool = False,
) -> None:
    time, colour = curve.seconds / unit.seconds, SERIES[style.series]
    if spread and (curve.high > curve.low).any():
        axes.fill_between(time, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        time,
        scale * curve.mean,
        color=colour,
        linewidth=1.8,
        dashes=style.dashes or (None, None),
        label=label,
        marker="o" if mark or len(time) == 1 else "",
        markersize=3.6,
    )


def _axes(axes: Any, title: str) -> Any:
    axes.set_title(title, loc="left", fontsize=12, color=MUTED, pad=8)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=3, labelsize=11.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=11.5)
    axes.locator_params(axis="x", nbins=6)
    return axes


def _height(name: str, results: Results, width: int) -> int:
    if name == "episodes":
        rows = sum(bool(player.episodes) for player in (results.teacher, *results.students))
        return 56 + (84 if rows <= 6 else 64) * rows
    if name == "score":
        return 340 if width >= WIDE else 300
    return 250 if width >= WIDE else 660


def _new_figure(name: str, results: Results, width: int) -> Any:
    from matplotlib.figure import Figure

    size = (width / 72, _height(name, results, width) / 72)  # a point becomes a pixel
    return Figure(figsize=size, dpi=72, layout="constrained", facecolor="none")


def _rc(salt: str = "") -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "fastdistill.report needs matplotlib: pip install 'matplotlib>=3.8'"
        ) from error
    return matplotlib.rc_context(
        {
            **matplotlib.rcParamsDefault,
            "svg.fonttype": "none",
            "svg.hashsalt": salt,  # clip paths get ids of their own: both widths are in one page
            "text.parse_math": False,
            "axes.facecolor": "none",
            "axes.unicode_minus": True,
        }
    )


def _svg(
    draw: Callable[[Results, Any, int], None],
    results: Results,
    width: int,
    title: str,
    name: str,
) -> str:
    with _rc(salt=f"{name}{width}"):
        figure = _new_figure(name, results, width)
        draw(results, figure, width)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """The SVG file as an element of the page, without metadata and the names of other places."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib|Path|Line)[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}">',
        svg,
        count=1,
    )
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _png(
    draw: Callable[[Results, Any, int], None], results: Results, title: str, path: Path
) -> None:
    with _rc():
        figure = _new_figure(path.stem, results, WIDE)
        lines = textwrap.wrap(title, 96)
        entries = len(results.students) if path.stem != "episodes" else 0
        legend_rows = -(-entries // 6) if entries > 1 else 0
        figure.set_figheight(figure.get_figheight() + (30 + 20 * (len(lines) + legend_rows)) / 72)
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=14, color=INK)
        draw(results, figure, WIDE)
        if legend_rows:
            handles = {
                handle.get_label(): handle
                for axes in figure.axes
                for handle in axes.get_legend_handles_labels()[0]
            }
            figure.legend(
                list(handles.values()),
                list(handles),
                loc="outside lower left",
                ncols=6,
                frameon=False,
                fontsize=11.5,
                labelcolor=INK,
            )
        figure.savefig(path, dpi=144, facecolor=GROUND)
