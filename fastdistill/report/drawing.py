# SPDX-License-Identifier: MIT
"""Drawing with matplotlib: as SVG for the page and as PNG. The only module that imports it.

In the SVG every colour becomes a variable of the page's style sheet (so figures follow its dark
mode) and text stays text. Wide and narrow forms are drawn, the page shows the one that fits.
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

from fastdistill.report.results import Curve
from fastdistill.report.words import Unit

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


@dataclass(frozen=True)
class Plan:
    """A figure to be drawn.

    Attributes:
        name: Of its PNG, and what ids of its SVG begin with.
        title: Its finding.
        draw: Draws it into a matplotlib figure of a width in pixels.
        height: Pixels at a width.
        legend_entries: Of the PNG; the page has a legend of its own.
    """

    name: str
    title: str
    draw: Callable[[Any, int], None]
    height: Callable[[int], int]
    legend_entries: int = 0


def render(plan: Plan, folder: Path) -> Drawing:
    """Draw it for the page, and as ``folder/NAME.png``."""
    drawing = Drawing(plan.title, *(_svg(plan, width) for width in (WIDE, NARROW)))
    _png(plan, folder / f"{plan.name}.png")
    return drawing


def line(
    axes: Any,
    curve: Curve,
    style: LineStyle,
    unit: Unit,
    label: str,
    *,
    scale: float = 1.0,
    mark: bool = False,
    spread: bool = False,
) -> None:
    """One measure while training."""
    at, colour = curve.at / unit.amount, SERIES[style.series]
    if spread and (curve.high > curve.low).any():
        axes.fill_between(at, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        at,
        scale * curve.mean,
        color=colour,
        linewidth=1.8,
        dashes=style.dashes or (None, None),
        label=label,
        marker="o" if mark or len(at) == 1 else "",
        markersize=3.6,
    )


def style_axes(axes: Any, title: str) -> Any:
    """The look that all axes have."""
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


def _new_figure(plan: Plan, width: int) -> Any:
    from matplotlib.figure import Figure

    size = (width / 72, plan.height(width) / 72)  # a point becomes a pixel
    return Figure(figsize=size, dpi=72, layout="constrained", facecolor="none")


def _svg(plan: Plan, width: int) -> str:
    with _rc(salt=f"{plan.name}{width}"):
        figure = _new_figure(plan, width)
        plan.draw(figure, width)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), plan.title)


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
        lambda _: f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}">',
        svg,
        count=1,
    )
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _png(plan: Plan, path: Path) -> None:
    with _rc():
        figure = _new_figure(plan, WIDE)
        lines = textwrap.wrap(plan.title, 96)
        legend_rows = -(-plan.legend_entries // 6) if plan.legend_entries > 1 else 0
        figure.set_figheight(figure.get_figheight() + (30 + 20 * (len(lines) + legend_rows)) / 72)
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=14, color=INK)
        plan.draw(figure, WIDE)
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
