# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001 (typographic apostrophes and signs: this text is read by people)
"""The report's first page where a student plays several games, and the runs beside any run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastdistill.report.beside import Contender, paper_percent
from fastdistill.report.drawing import Drawing, LineStyle
from fastdistill.report.games_figure import contender_styles
from fastdistill.report.page import _MISSING, _figure, _interval, _small, _swatch
from fastdistill.report.results import Results
from fastdistill.report.words import duration, episodes_of_each, game_title, number, percent


def render_games(
    games: Sequence[Results],
    contenders: Sequence[Contender],
    pages: Sequence[str],
    drawing: Drawing | None,
    gif: bytes | None,
    why_no_gif: str,
) -> str:
    """The page.

    Args:
        games: Results of each.
        contenders: Of the run, and of the runs beside it.
        pages: Each game's own page, a file beside this one.
        drawing: Of ``draw_games``.
        gif: Of one network playing them all.
        why_no_gif: Said in its place.
    """
    titles = [game_title(game.game) for game in games]
    headline = escape(_headline(games, contenders))
    frame = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    head = frame[: frame.index("<body>")].replace("$title", headline)
    links = "".join(
        f'<li><a href="{escape(page, quote=True)}">{escape(title)}</a></li>'
        for page, title in zip(pages, titles, strict=True)
    )
    commands = "\n".join(games[0].commands)
    return f"""{head}<body>
<main>
<header>
<p class="kicker">Policy distillation report</p>
<h1>{headline}</h1>
<p class="lead">{escape(_lead(games))}</p>
</header>
{_gif(games, gif, why_no_gif)}
<section>
<h2>All games together</h2>
<div class="scroll"><table>{_together_table(games, contenders)}</table></div>
<p class="note">{_together_note(games, contenders)}</p>
</section>
<section>{render_beside(games, contenders, drawing)}
<p class="note">Each game’s own page, with episodes, cost and the teacher beside the student:</p>
<ul>{links}</ul>
</section>
<section><h2>How to reproduce</h2><pre><code>{escape(commands)}</code></pre></section>
</main>
</body>
</html>
"""


def render_beside(
    games: Sequence[Results], contenders: Sequence[Contender], drawing: Drawing | None
) -> str:
    """Score while training and the table of each game, as a part of a page."""
    title = "Game by game" if len(games) > 1 else "Beside other runs"
    return (
        _figure(drawing, "Score", _legend(contenders), _figure_note(contenders))
        + f'<h2>{title}</h2><div class="scroll"><table>'
        + _games_table(games, contenders)
        + '</table></div><p class="note">Small print: 95% bootstrap intervals; seeds are resampled,'
        " then their episodes. Level is (score − random play) / (teacher’s score − random play)."
        "</p>"
    )


def best_contender(games: Sequence[Results], contenders: Sequence[Contender]) -> Contender:
    """Of the run's own, by the mean over games of the share of the teachers' level."""

    def level(contender: Contender) -> float:
        found = contender.together(games)
        return -float("inf") if found is None or found.percent is None else found.percent.value

    return max((one for one in contenders if one.own), key=level)


def _headline(games: Sequence[Results], contenders: Sequence[Contender]) -> str:
    titles = [game_title(game.game) for game in games]
    text = f"One network plays {', '.join(titles[:-1])} and {titles[-1]}"
    best = best_contender(games, contenders)
    found = best.together(games)
    if not best.taught or found is None or found.percent is None:
        return text
    return f"{text} at {percent(found.percent.value)} of its teachers’ level"


def _lead(games: Sequence[Results]) -> str:
    parts = [episodes_of_each(games, "of each player and game")]
    if games[0].preset:
        parts.append(f"{games[0].preset} preset")
    if games[0].epsilon is not None:
        parts.append(f"{percent(100 * games[0].epsilon)} random actions")
    return f"Measured over {', '.join(parts)}."


def _gif(games: Sequence[Results], gif: bytes | None, why_not: str) -> str:
    if gif is None:
        return f'<p class="missing">A recording: not measured ({escape(why_not)}).</p>'
    names = ", ".join(game_title(game.game) for game in games)
    data = base64.b64encode(gif).decode()
    return (
        f'<figure class="game"><img alt="One network playing {escape(names)}" '
        f'src="data:image/gif;base64,{data}"><figcaption>One network, all games at once, each from '
        f"the start of the evaluation’s first episode (seed {games[0].seed}: not a chosen one). "
        "Points so far are above each screen; a game that is over stands still."
        "</figcaption></figure>"
    )


def _legend(contenders: Sequence[Contender]) -> str:
    styles = contender_styles(contenders)
    items = (f"<li>{_swatch(styles[one.label])}{escape(one.label)}</li>" for one in contenders)
    return f'<ul class="legend">{"".join(items)}</ul>' if len(contenders) > 1 else ""


def _figure_note(contenders: Sequence[Contender]) -> str:
    note = "Scores while training are means of few episodes and, of one run’s seeds, of these. The "
    note += "teacher’s band is the 95% interval of its mean."
    if any(one.returns.keys() - one.curves.keys() for one in contenders):
        note += " A network without scores of its training is a line at the score it ended with."
    return note


def _together_table(games: Sequence[Results], contenders: Sequence[Contender]) -> str:
    paper = {one.label: paper_percent(one, games) for one in contenders}
    known = any(value is not None for value in paper.values())
    names = ["Of the teachers’ level", "Least", "Geometric mean"]
    names += ["Paper’s"] * known + ["Parameters", "Training"]
    styles, rows = contender_styles(contenders), []
    for one in contenders:
        found, value = one.together(games), paper[one.label]
        least = found.least_percent if found else None
        cells = [
            _interval(found.percent if found else None, percent),
            _MISSING if least is None else percent(least),
            _interval(found.geometric_mean_percent if found else None, percent),
        ]
        if known:
            cells.append("–" if value is None else percent(value))
        size = one.total(one.parameters)
        cells += [_MISSING if size is None else f"{size:,.0f}", _training(one)]
        rows.append(_row(_title(one, styles[one.label], contenders), names, cells))
    return _table("Player", names, rows)


def _title(contender: Contender, style: LineStyle, contenders: Sequence[Contender]) -> str:
    """Of a row: the label, what is behind its comma in small letters."""
    name, _, more = contender.label.partition(", ")
    small = [more] if more else []
    small += [f"{contender.seeds} seeds"] if contender.seeds > 1 else []
    small += [f"{contender.diverged} of them diverged"] if contender.diverged else []
    swatch = _swatch(style) if len(contenders) > 1 else ""
    return swatch + escape(name) + (_small(escape(", ".join(small))) if small else "")


def _training(contender: Contender) -> str:
    seconds, updates = contender.cost(contender.seconds), contender.cost(contender.updates)
    steps = contender.cost(contender.steps)
    text = _MISSING if seconds is None else duration(seconds)
    small = [f"{updates:,.0f} updates"] if updates else []
    small += [f"{steps:,.0f} steps"] if steps else []
    return text + "".join(map(_small, small))


def _together_note(games: Sequence[Results], contenders: Sequence[Contender]) -> str:
    note = "Small print: 95% bootstrap intervals; seeds are resampled, then each game’s episodes; "
    note += "seeds of one run differ in their first weights, and share its play. "
    note += "Level is (score − random play) / (teacher’s score − random play), its mean over the "
    note += "games. The geometric mean is the paper’s measure, of student’s score / teacher’s "
    note += "score. Training is a run’s, however many students it had side by side; of networks "
    note += "per game all their runs together."
    if any(paper_percent(one, games) is not None for one in contenders):
        note += " The paper’s own (Rusu et al. 2015) are with other teachers and human starts; "
        note += "which three games it took is in no source known to us."
    if not all(one.together(games) for one in contenders):
        note += " Not measured: who did not play all of these games."
    return note


def _games_table(games: Sequence[Results], contenders: Sequence[Contender]) -> str:
    names, rows = ["Score", "Of the teacher’s level"], []
    styles = contender_styles(contenders)
    for game in games:
        if len(games) > 1:
            title = escape(game_title(game.game))
            rows.append(f'<tr class="group"><th scope="rowgroup" colspan="3">{title}</th></tr>')
        rows.append(_row("teacher", names, [_interval(game.teacher.score, number), "100%"]))
        for one in contenders:
            if game.game in one.returns:
                cells = [
                    _interval(one.score(game.game), number),
                    _interval(one.percent(game), percent),
                ]
                rows.append(_row(_title(one, styles[one.label], contenders), names, cells))
    return _table("Player", names, rows)


def _table(first: str, names: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in (first, *names))
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _row(title: str, names: Sequence[str], cells: Sequence[str]) -> str:
    body = "".join(
        f'<td data-label="{name}">{cell}</td>' for name, cell in zip(names, cells, strict=True)
    )
    return f'<tr><th scope="row">{title}</th>{body}</tr>'
