# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001 (typographic apostrophes and signs: this text is read by people)
"""The report's first page where a student plays several games: all of them in one table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastdistill.evaluation.statistics import Interval
from fastdistill.report.results import Results, _interval, _mapping, _number, _text
from fastdistill.report.words import NOT_MEASURED, game_title, number, percent

_MISSING = f'<span class="missing">{NOT_MEASURED}</span>'


def render_games(results: Sequence[Results], pages: Sequence[str], together: Any) -> str:
    """The page.

    Args:
        results: Of each game.
        pages: Each one's own page, a file beside this one.
        together: ``students`` of ``evaluation.json``: what they reach over all games.
    """
    entries = [_mapping(entry) for entry in together] if isinstance(together, list) else []
    titles = [game_title(game.game) for game in results]
    frame = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    head = frame[: frame.index("<body>")].replace("$title", escape(_headline(titles, entries)))
    links = "".join(
        f'<li><a href="{escape(page, quote=True)}">{escape(title)}</a></li>'
        for page, title in zip(pages, titles, strict=True)
    )
    commands = "\n".join(results[0].commands)
    return f"""{head}<body>
<main>
<header>
<p class="kicker">Policy distillation report</p>
<h1>{escape(_headline(titles, entries))}</h1>
<p class="lead">{escape(_lead(results))}</p>
</header>
<section>
<h2>All games together</h2>
<div class="scroll"><table>{_together_table(entries)}</table></div>
<p class="note">Small print: 95% bootstrap intervals, each game’s episodes resampled. Level is
(score − random play) / (teacher’s score − random play), its mean over the games. The geometric mean
is the paper’s measure: of student’s score / teacher’s score.</p>
</section>
<section>
<h2>Game by game</h2>
<div class="scroll"><table>{_games_table(results, titles)}</table></div>
<p class="note">Curves, episodes, cost and recordings of each game:</p>
<ul>{links}</ul>
</section>
<section><h2>How to reproduce</h2><pre><code>{escape(commands)}</code></pre></section>
</main>
</body>
</html>
"""


def _headline(titles: Sequence[str], entries: Sequence[dict[str, Any]]) -> str:
    names = f"{', '.join(titles[:-1])} and {titles[-1]}"
    known = [entry for entry in entries if _interval(entry.get("percent_of_teacher"))]
    if not known:
        return f"One network plays {names}"
    best = max(known, key=lambda entry: _share(entry).value)
    return f"One network plays {names} at {percent(_share(best).value)} of its teachers’ level"


def _share(entry: dict[str, Any]) -> Interval:
    found = _interval(entry.get("percent_of_teacher"))
    assert found is not None
    return found


def _lead(results: Sequence[Results]) -> str:
    parts = [f"{results[0].episodes} full episodes of each player and game"]
    if results[0].preset:
        parts.append(f"{results[0].preset} preset")
    return f"Measured over {', '.join(parts)}."


def _together_table(entries: Sequence[dict[str, Any]]) -> str:
    names = ("Of the teachers’ level", "Least", "Geometric mean", "Parameters")
    rows = []
    for entry in entries:
        least, size = (
            _number(entry.get("least_percent")),
            _number(entry.get("parameters_of_all_games")),
        )
        cells = (
            _cell(_interval(entry.get("percent_of_teacher")), percent),
            _MISSING if least is None else percent(least),
            _cell(_interval(entry.get("geometric_mean_percent")), percent),
            _MISSING if size is None else f"{size:,.0f}",
        )
        rows.append(_row(_text(entry.get("name")), names, cells))
    return _table("Student", names, rows)


def _games_table(results: Sequence[Results], titles: Sequence[str]) -> str:
    names = ("Score", "Teacher", "Of the teacher’s level")
    rows = []
    for game, title in zip(results, titles, strict=True):
        for student in game.students:
            cells = (
                _cell(student.score, number),
                _cell(game.teacher.score, number),
                _cell(student.percent, percent),
            )
            rows.append(_row(f"{title}, {student.label}", names, cells))
    return _table("Game, student", names, rows)


def _table(first: str, names: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in (first, *names))
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _row(title: str, names: Sequence[str], cells: Sequence[str]) -> str:
    body = "".join(
        f'<td data-label="{name}">{cell}</td>' for name, cell in zip(names, cells, strict=True)
    )
    return f'<tr><th scope="row">{escape(title)}</th>{body}</tr>'


def _cell(interval: Interval | None, show: Any) -> str:
    if interval is None:
        return _MISSING
    return (
        f'<data value="{interval.value!r}">{show(interval.value)}</data>'
        f'<span class="small">{show(interval.low)} to {show(interval.high)}</span>'
    )
