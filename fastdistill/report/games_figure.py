# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001 (typographic apostrophes and signs: this text is read by people)
"""The figure of several runs or games: score while training, a panel for each game."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastdistill.report.beside import Contender
from fastdistill.report.drawing import (
    DASHES,
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
from fastdistill.report.figures import draw_levels
from fastdistill.report.results import Results
from fastdistill.report.words import Unit, game_title


def contender_styles(contenders: Sequence[Contender]) -> dict[str, LineStyle]:
    """Label -> style: a colour each; dashes for the runs beside the report's own."""
    return {
        contender.label: LineStyle(
            place % len(SERIES), DASHES[(not contender.own) + 2 * (place // len(SERIES) % 2)]
        )
        for place, contender in enumerate(contenders)
    }


def draw_games(
    games: Sequence[Results], contenders: Sequence[Contender], folder: Path
) -> Drawing | None:
    """Draw it, ``folder/games.png``, too; None where no score was recorded while training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "games.png").unlink(missing_ok=True)  # an earlier report's
    if not any(contender.curves for contender in contenders):
        return None
    panels = [""] if len(games) > 1 and any("" in one.curves for one in contenders) else []
    panels += [game.game for game in games]
    plan = Plan(
        "games",
        _title(games, contenders),
        partial(_draw, games, contenders, panels),
        partial(_height, len(panels)),
        len(contenders),
    )
    return render(plan, folder)


def _title(games: Sequence[Results], contenders: Sequence[Contender]) -> str:
    """In how many games the run's networks come within the teacher's interval."""
    reached = played = 0
    for game in games:
        curves = [c for one in contenders if one.own for c in one.curves.get(game.game, ())]
        if game.teacher.score is not None and curves:
            low = game.teacher.score.low
            played += 1
            reached += any(bool((curve.mean >= low).any()) for curve in curves)
    if not played:
        return "The score while training, beside other runs"
    if len(games) == 1:
        found = "comes" if reached else "does not come"
        return f"While training, the student {found} within the teacher’s interval"
    return (
        f"While training, the network comes within the teacher’s interval in {reached} of "
        f"{played} games"
    )


def _shape(panels: int, width: int) -> tuple[int, int]:
    columns = min(2, panels) if width >= WIDE else 1
    return -(-panels // columns), columns


def _height(panels: int, width: int) -> int:
    rows, columns = _shape(panels, width)
    return rows * (340 if columns == 1 and width >= WIDE else 240) + 20


def _draw(
    games: Sequence[Results],
    contenders: Sequence[Contender],
    panels: Sequence[str],
    figure: Any,
    width: int,
) -> None:
    by_name = {game.game: game for game in games}
    styles = contender_styles(contenders)
    curves = [curve for one in contenders for some in one.curves.values() for curve in some]
    unit = Unit.of(curves, games[0].by)
    rows, columns = _shape(len(panels), width)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, name in zip(grid.flat, panels, strict=False):
        style_axes(axes, f"{game_title(name)}, points" if name else "All games, % of the teachers")
        if name:
            draw_levels(by_name[name].teacher, by_name[name].random_score, axes)
        else:
            axes.axhline(100, color=TEACHER, linewidth=1.4)
        for contender in contenders:
            style = styles[contender.label]
            for curve in contender.curves.get(name, ()):
                line(axes, curve, style, unit, contender.label, mark=True)
            final = contender.score(name) if name and name not in contender.curves else None
            if final is not None:  # a line at the level that it ends with
                axes.axhline(
                    final.value,
                    color=SERIES[style.series],
                    linewidth=1.6,
                    dashes=style.dashes or (None, None),
                    label=contender.label,
                )
        axes.set_xlim(left=0)
        axes.set_xlabel(unit.axis)
    figure.get_layout_engine().set(h_pad=6 / 72, w_pad=8 / 72)
