# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001 (typographic apostrophes and signs: this text is read by people)
"""The report's HTML: ``page.html`` filled with a run's results.

Whatever comes from a run's files is escaped; the figures are SVG from ``figures``. Numbers stand
in ``<data>`` elements that hold them unrounded.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fastdistill.evaluation.statistics import Interval
from fastdistill.report.drawing import Drawing, LineStyle
from fastdistill.report.figures import MAX_FINALS, line_styles
from fastdistill.report.results import BATCHES, Player, Results, headline_student
from fastdistill.report.words import (
    NOT_MEASURED,
    choice,
    duration,
    episodes_of_each,
    game_title,
    headline,
    number,
    percent,
)

_MISSING = f'<span class="missing">{NOT_MEASURED}</span>'
_LATENCY_NAMES = {"1": "1 observation", "1024": "1,024 observations"}


def render_page(
    results: Results,
    drawings: Mapping[str, Drawing],
    gif: bytes | None,
    why_no_gif: str,
    beside: str = "",
) -> str:
    """The page.

    Args:
        results: Of the run.
        drawings: Of ``figures.draw_all``.
        gif: Of the players side by side.
        why_no_gif: Said in its place.
        beside: HTML about other runs.
    """
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    legend = _legend(results)
    return template.substitute(
        title=escape(headline(results)),
        lead=escape(_lead(results)),
        facts=_facts(results),
        game=_game(results, gif, why_no_gif),
        score=_figure(drawings.get("score"), "Score", legend, _score_note(results)),
        table=_table(results),
        table_note=_table_note(results),
        beside=f"<section>{beside}</section>" if beside else "",
        episodes=_figure(
            drawings.get("episodes"),
            "Episodes",
            "",
            "A dot for each evaluation episode; diamonds and bars are means with 95% intervals.",
        ),
        learning=_figure(drawings.get("learning"), "Learning", legend, _learning_note(results)),
        commands=_commands(results),
        setting=_definitions(_setting(results)),
        machine=_definitions(results.machine),
        versions=_definitions(results.versions),
        config=escape(json.dumps(results.config, indent=2, default=str)),
    )


def _lead(results: Results) -> str:
    student, parts = headline_student(results), []
    if results.episodes is not None:
        parts.append(episodes_of_each([results], "each"))
    if results.preset:
        parts.append(f"{results.preset} preset")
    if results.epsilon is not None:
        parts.append(f"{percent(100 * results.epsilon)} random actions")
    text = f"Measured over {', '.join(parts)}." if parts else ""
    if student is not None and student.percent is not None:
        low, high = percent(student.percent.low), percent(student.percent.high)
        text += f" The 95% interval of that level is {low} to {high}."
    return f"{text} {choice(results)}".strip()


def _facts(results: Results) -> str:
    """The headline's student in four numbers."""
    student, teacher = headline_student(results), results.teacher
    facts: list[tuple[str, str]] = []
    if student is not None:
        if student.score is not None and teacher.score is not None:
            facts.append(
                (number(student.score.value), f"mean score; teacher {number(teacher.score.value)}")
            )
        if student.parameters and teacher.parameters:
            share = percent(100 * student.parameters / teacher.parameters)
            facts.append((share, "of the teacher’s parameters"))
        for batch in BATCHES:
            mine, its = student.latency_seconds[batch], teacher.latency_seconds[batch]
            if mine and its:
                facts.append(
                    (_ratio(its / mine), f"the teacher’s speed on {_LATENCY_NAMES[batch]}")
                )
    if results.training_seconds is not None:
        amount, unit = duration(results.training_seconds).split()
        facts.append((amount, f"{unit} of training"))
    items = (
        f"<li><strong>{escape(value)}</strong> <span>{escape(text)}</span></li>"
        for value, text in facts
    )
    return f'<ul class="facts">{"".join(items)}</ul>' if facts else ""


def _ratio(value: float) -> str:
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×"


def _game(results: Results, gif: bytes | None, why_not: str) -> str:
    if gif is None:
        reason = f" ({escape(why_not)})" if why_not else ""
        return f'<p class="missing">A recording of the game: not measured{reason}.</p>'
    student = headline_student(results)
    label = escape(student.label if student else "the student")
    name = escape(game_title(results.game))
    return (
        '<figure class="game"><img alt="'
        f'The teacher and {label} playing {name} side by side" src="data:image/gif;base64,'
        f'{base64.b64encode(gif).decode()}"><figcaption>The teacher and {label} from the same '
        f"start (seed {results.seed}, that of the evaluation’s first episode: not a chosen one), "
        "with the same random actions. Points so far are above each screen."
        "</figcaption></figure>"
    )


def _figure(drawing: Drawing | None, name: str, legend: str, note: str) -> str:
    if drawing is None:
        return f'<h2>{name}</h2><p class="missing">{NOT_MEASURED}</p>'
    return (
        f"<h2>{escape(drawing.title)}</h2><figure>{legend}"
        f'<div class="wide">{drawing.wide}</div><div class="narrow">{drawing.narrow}</div>'
        f"<figcaption>{escape(note)}</figcaption></figure>"
    )


def _score_note(results: Results) -> str:
    note = "Scores while training are means of few episodes. The teacher’s band is the 95% "
    note += "interval of its mean."
    few = len(results.students) <= MAX_FINALS
    if few and any(player.score for player in results.students):
        note += " Diamonds at the right: the final evaluation, with its 95% interval."
    if any(len(player.names) > 1 for player in results.students):
        note += " A line is the mean over seeds" + (", its band their extremes." if few else ".")
    return note


def _learning_note(results: Results) -> str:
    note = "Agreement of greedy actions and KL are measured in states that the student visits. "
    note += "Agreement understates a student where several actions do the same."
    if len({player.kind for player in results.students}) > 1:
        note += " Losses of different kinds have different units."
    return note


def _legend(results: Results) -> str:
    if len(results.students) < 2:
        return ""
    styles = line_styles(results)
    items = (
        f"<li>{_swatch(styles[player.label])}{escape(player.label)}</li>"
        for player in results.students
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _swatch(style: LineStyle) -> str:
    dashes = " ".join(f"{1.8 * dash:g}" for dash in style.dashes)
    pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><line x1="0" y1="4" x2="26" '
        f'y2="4" stroke="var(--series{style.series})" stroke-width="2.6"{pattern}></line></svg>'
    )


def _table(results: Results) -> str:
    styles = line_styles(results)
    rows = [_row(results, results.teacher, None)]
    rows += [_row(results, player, styles[player.label]) for player in results.students]
    if results.random_score is not None:
        score = _data(results.random_score, number(results.random_score))
        rows.append(
            '<tr class="random"><th scope="row">random play</th>'
            f'<td data-label="Score">{score}</td>' + 5 * '<td class="none"></td>' + "</tr>"
        )
    return "".join(rows)


def _row(results: Results, player: Player, style: LineStyle | None) -> str:
    swatch = _swatch(style) if style and len(results.students) > 1 else ""
    below = f"{len(player.names)} seeds" if len(player.names) > 1 else ""
    if player.diverged:
        below += f", {player.diverged} of them diverged" if below else "diverged"
    if style is None:
        below = "" if player.names[0] == player.label else player.names[0]
    relative = _interval(player.percent, percent)
    if style is None and player.percent is None:
        relative = '<data value="100">100%</data>'
    cells = {
        "Score": _interval(player.score, number),
        "Of the teacher’s level": relative,
        "Parameters": _parameters(results, player),
        "FLOPs": _flops(player.flops),
        "Latency, batch\u00a01": _latency(player.latency_seconds["1"]),
        "Latency, batch\u00a01,024": _latency(player.latency_seconds["1024"]),
    }
    body = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells.items())
    return (
        f'<tr><th scope="row">{swatch}{escape(player.label)}'
        f"{_small(escape(below)) if below else ''}</th>{body}</tr>"
    )


def _interval(interval: Interval | None, show: Any) -> str:
    if interval is None:
        return _MISSING
    low, high = _data(interval.low, show(interval.low)), _data(interval.high, show(interval.high))
    return _data(interval.value, show(interval.value)) + _small(f"{low} to {high}")


def _parameters(results: Results, player: Player) -> str:
    if player.parameters is None:
        return _MISSING
    share = ""
    if player is not results.teacher and results.teacher.parameters:
        share = _small(percent(100 * player.parameters / results.teacher.parameters))
    return _data(player.parameters, f"{player.parameters:,.0f}") + share


def _flops(value: float | None) -> str:
    if value is None:
        return _MISSING
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return _data(value, f"{_three(value / unit)} {name}")
    return _data(value, f"{value:,.0f}")


def _latency(seconds: float | None) -> str:
    if seconds is None:
        return _MISSING
    unit, name = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-4 else (1e-6, "µs")
    return _data(seconds, f"{_three(seconds / unit)} {name}")


def _three(value: float) -> str:
    """Three digits."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _data(value: float, text: str) -> str:
    return f'<data value="{value!r}">{text}</data>'


def _small(html: str) -> str:
    return f'<span class="small">{html}</span>'


def _table_note(results: Results) -> str:
    note = "Small print: 95% bootstrap intervals, and the share of the teacher’s parameters. Level "
    note += "is (score − random play) / (teacher’s score − random play). FLOPs and latency "
    note += "are of one forward pass, FLOPs for one observation (two per multiply-add)."
    if any(len(player.names) > 1 for player in results.students):
        note += " Intervals over several seeds resample the seeds, then their episodes."
    if results.teacher_on_record:
        note += " The teacher’s episodes were not played in this run: they are on record in its "
        note += "card, played with the same settings."
    return note


def _setting(results: Results) -> dict[str, Any]:
    seeds = sorted({seed for player in results.students for seed in player.seeds})
    return {
        "environment": results.game,
        "preset": results.preset,
        "epsilon": results.epsilon,
        "episodes": results.episodes,
        "teacher’s episodes": "on record in its card" if results.teacher_on_record else "",
        "evaluation seed": results.seed,
        "training seeds": ", ".join(map(str, seeds)),
    }


def _commands(results: Results) -> str:
    if not results.commands:
        return '<p class="missing">The run names no commands.</p>'
    return f"<pre><code>{escape(chr(10).join(results.commands))}</code></pre>"


def _definitions(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in values.items()
        if value not in ("", None)
    )
    return f"<dl>{items}</dl>" if items else '<p class="missing">not recorded</p>'
