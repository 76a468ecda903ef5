# SPDX-License-Identifier: MIT
"""The report of a distillation run: one self-contained HTML page, its figures as PNG, a GIF.

``results`` reads the run directory, ``figures`` draws (the only module that imports matplotlib),
``page`` writes the HTML into ``page.html``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fastdistill._files import unwritable, write_atomically
from fastdistill.envs import make_env
from fastdistill.evaluation import record_comparison_gif
from fastdistill.report import figures
from fastdistill.report.games import render_games
from fastdistill.report.page import render_page
from fastdistill.report.results import Results, headline_student, read_evaluation, read_games
from fastdistill.teachers import load_teacher, recorded_game

__all__ = ["try_report", "write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` and ``figures/`` into a distillation run's directory.

    Of several games ``report.html`` compares them, and each has a page of its own beside it.
    What the run did not leave behind reads "not measured". The GIF of teacher and student is
    recorded anew unless ``figures/play.gif`` is newer than the evaluation.

    Args:
        run_dir: Holds ``evaluation.json``; ``config.json``, ``metrics.jsonl`` and ``students/``
            are used where present.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``evaluation.json`` is missing or damaged, or another file is damaged.
        ImportError: matplotlib is missing.
    """
    run_dir = Path(run_dir)
    games = read_games(run_dir)
    page = run_dir / "report.html"
    if len(games) == 1:
        return _write_game(run_dir, games[0], run_dir / "figures", page, 0)
    pages = [run_dir / f"report-{_plain(game.game)}-{n + 1}.html" for n, game in enumerate(games)]
    for place, (game, path) in enumerate(zip(games, pages, strict=True)):
        folder = run_dir / "figures" / path.stem.removeprefix("report-")
        _write_game(run_dir, game, folder, path, place)
    together = read_evaluation(run_dir).get("students")
    text = render_games(games, [path.name for path in pages], together)
    write_atomically(page, text.encode(), function="write_report")
    return page


def _write_game(run_dir: Path, results: Results, folder: Path, page: Path, place: int) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawings = figures.draw_all(results, folder)
    except OSError as error:
        raise unwritable("write_report", folder, error) from error
    gif, why_not = _play(run_dir, results, folder / "play.gif", place)
    text = render_page(results, drawings, gif, why_not)
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
    written = (run_dir / "evaluation.json").stat().st_mtime
    if path.is_file() and path.stat().st_mtime >= written:
        return path.read_bytes(), ""
    student = headline_student(results)
    source = results.config.get("teacher")
    if student is None:
        return None, "the run has no student"
    if not isinstance(source, str):
        return None, "the run's configuration names no teacher that could be loaded"
    source = source.split(",")[place].strip() if source.count(",") >= place else source
    name = Path(student.names[0]).name  # a name is never a way to another directory
    places = (run_dir / "students" / f"{name}.json", run_dir / "student.json")
    checkpoint = next((place for place in places if place.is_file()), None)
    if checkpoint is None:
        return None, f"the run holds no checkpoint of {name}"
    try:
        recorded_game({"game": results.game})  # refuses one that would import a module
        env = make_env(results.game, 1, preset=results.preset, training=False)
        try:
            policies = {
                "teacher": load_teacher(source, env),
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
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        return None, str(error)
    return path.read_bytes(), ""
