# SPDX-License-Identifier: MIT
"""The report of a distillation run: one self-contained HTML page, its figures as PNG, a GIF.

``results`` reads the run directory, ``beside`` the runs beside it; ``figures`` and ``games_figure``
draw; ``page`` writes the HTML of one game into ``page.html``, ``games`` that of several.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastdistill._files import unwritable, write_atomically
from fastdistill.envs import make_env
from fastdistill.evaluation import record_comparison_gif, record_games_gif
from fastdistill.networks import load_network
from fastdistill.report import figures
from fastdistill.report.beside import Contender, read_contenders
from fastdistill.report.games import best_contender, render_beside, render_games
from fastdistill.report.games_figure import draw_games
from fastdistill.report.page import render_page
from fastdistill.report.results import Results, headline_student, read_games
from fastdistill.report.steadiness import read_steadiness, render_steadiness
from fastdistill.teachers import load_teacher, recorded_game

__all__ = ["try_report", "write_report"]


def write_report(run_dir: str | Path, beside: Sequence[str | Path] = ()) -> Path:
    """Write ``report.html`` and ``figures/`` into a distillation run's directory.

    Of several games ``report.html`` compares them, and each has a page of its own beside it.
    What the run did not leave behind reads "not measured". The GIFs (of teacher and student; of one
    network at all its games, ``figures/all_games.gif``) are recorded anew unless they are newer
    than the evaluation.

    Args:
        run_dir: Holds ``evaluation.json``; ``config.json``, ``metrics.jsonl`` and ``students/``
            are used where present.
        beside: Directories of other runs to compare with, all measured by this run's teachers:
            students of one of its games or of several, and networks that learned without a teacher.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``evaluation.json`` is missing or damaged, or another file is damaged; a run
            beside is not finished, plays none of the games, or was evaluated in another way.
        ImportError: matplotlib is missing.
    """
    run_dir = Path(run_dir)
    games = read_games(run_dir)
    contenders = []
    if len(games) > 1 or beside:
        contenders = read_contenders(run_dir, games, [Path(path) for path in beside])
    page = run_dir / "report.html"
    if len(games) == 1:
        html = render_steadiness(read_steadiness(run_dir, games[0]))
        if beside:
            drawing = draw_games(games, contenders, run_dir / "figures")
            html += render_beside(games, contenders, drawing)
        return _write_game(run_dir, games[0], run_dir / "figures", page, 0, html)
    pages = [run_dir / f"report-{_plain(game.game)}-{n + 1}.html" for n, game in enumerate(games)]
    for place, (game, path) in enumerate(zip(games, pages, strict=True)):
        folder = run_dir / "figures" / path.stem.removeprefix("report-")
        _write_game(run_dir, game, folder, path, place)
    drawing = draw_games(games, contenders, run_dir / "figures")
    gif, why_not = _play_all(run_dir, games, contenders)
    text = render_games(games, contenders, [path.name for path in pages], drawing, gif, why_not)
    write_atomically(page, text.encode(), function="write_report")
    return page


def _write_game(
    run_dir: Path, results: Results, folder: Path, page: Path, place: int, beside: str = ""
) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawings = figures.draw_all(results, folder)
    except OSError as error:
        raise unwritable("write_report", folder, error) from error
    gif, why_not = _play(run_dir, results, folder / "play.gif", place)
    text = render_page(results, drawings, gif, why_not, beside)
    write_atomically(page, text.encode(), function="write_report")
    return page


def _plain(game: str) -> str:
    """A game's name as a part of a file name."""
    return re.sub(r"[^\w-]", "_", game)[:64]


def try_report(run_dir: str | Path) -> Path | None:
    """``write_report`` at the end of a run, where a missing matplotlib is a remark, no error."""
    try:
        return write_report(run_dir)
    except ImportError as error:
        print(f"no report: {error}", file=sys.stderr)
        return None


def _play(run_dir: Path, results: Results, path: Path, place: int) -> tuple[bytes | None, str]:
    """The GIF of the teacher beside the headline's student, or why there is none.

    Args:
        run_dir: Of the run.
        results: Of one game.
        path: Of the GIF.
        place: Of the game among the run's.
    """
    student = headline_student(results)
    own = run_dir / "teacher.json"  # of a run whose teacher learned in it
    guide = results.config.get("guide")
    source = guide or results.config.get("teacher", str(own) if own.is_file() else None)

    def record() -> None:
        if student is None:
            raise ValueError("the run has no student")
        if not isinstance(source, str):
            raise ValueError("the run's configuration names no teacher that could be loaded")
        own = source.split(",")[place].strip() if source.count(",") >= place else source
        checkpoint = run_dir / "teacher" if guide else _checkpoint(run_dir, student.names[0])
        if not results.preset:
            raise ValueError("only Atari games can be recorded")
        recorded_game({"game": results.game})  # refuses one that would import a module
        env = make_env(results.game, 1, preset=results.preset, training=False)
        try:
            policies = {
                "teacher": load_teacher(own, env),
                student.label: load_teacher(checkpoint, env),
            }
        finally:
            env.close()
        record_comparison_gif(
            policies,
            results.game,
            path,
            preset=results.preset,
            epsilon=results.epsilon,
            seed=results.seed,
        )

    return _recorded(run_dir, path, record)


def _play_all(
    run_dir: Path, games: Sequence[Results], contenders: Sequence[Contender]
) -> tuple[bytes | None, str]:
    """The GIF of the best network at all its games, or why there is none."""
    best = best_contender(games, contenders)
    path = run_dir / "figures" / "all_games.gif"

    def record() -> None:
        like = (best.kind, best.size)
        names = [one.names[0] for one in games[0].students if (one.kind, one.size) == like]
        if not names:
            raise ValueError("the run has no student")
        network, _ = load_network(_checkpoint(run_dir, names[0]))
        for game in games:
            recorded_game({"game": game.game})
        record_games_gif(
            network,
            [game.game for game in games],
            path,
            preset=games[0].preset,
            epsilon=games[0].epsilon,
            seed=games[0].seed,
        )

    return _recorded(run_dir, path, record)


def _checkpoint(run_dir: Path, student: str) -> Path:
    name = Path(student).name  # a name is never a way to another directory
    places = (run_dir / "students" / f"{name}.json", run_dir / "student.json")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"the run holds no checkpoint of {name}")
    return found


def _recorded(run_dir: Path, path: Path, record: Callable[[], None]) -> tuple[bytes | None, str]:
    """A GIF, recorded anew where the evaluation is newer; or why there is none."""
    written = (run_dir / "evaluation.json").stat().st_mtime
    if not path.is_file() or path.stat().st_mtime < written:
        try:
            record()
        except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            return None, str(error)
    return path.read_bytes(), ""
