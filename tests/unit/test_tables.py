# SPDX-License-Identifier: MIT

"""The paper's tables say what the records say, of one game and of all."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from statistics import mean

import pytest
from run_directories import made_up_games_run, made_up_run

from fastdistill.report.results import read_results

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = ["100% kl", "100% nll", "100% mse", "25% kl", "7% kl", "4% kl"]


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Loads a benchmark, which writes into a directory of the test's."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def loaded(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
        monkeypatch.setattr(module.pages, "ROOT", tmp_path)
        for page in ("docs/results.md", "docs/options.md", "README.md"):
            (tmp_path / page).parent.mkdir(exist_ok=True)
            (tmp_path / page).write_text(
                "".join(
                    f"<!-- {w}: written by benchmarks/{name}.py -->\n" for w in ("begin", "end")
                )
            )
        return module

    yield loaded
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def tables(load):
    return load("distill_tables")


def row(text: str, start: str) -> list[str]:
    """The cells of the line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_of_each_game_and_of_all(tables, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    evaluations = {
        "pong_losses": made_up_run(
            runs / "pong_losses", kinds=("kl", "nll", "mse"), sizes=("100%",), seeds=3
        ),
        "pong_sizes": made_up_run(runs / "pong_sizes", sizes=("25%", "7%", "4%"), seeds=3),
        "qbert_losses": made_up_games_run(
            runs / "qbert_losses", ("qbert",), levels={"kl": 1.2, "nll": 0.9}, size="100%", seeds=3
        ),
    }
    monkeypatch.setattr(sys, "argv", ["distill_tables.py", str(runs)])
    tables.main()
    page = (tmp_path / "docs" / "results.md").read_text()
    summary = (tmp_path / "README.md").read_text()

    def scores(name, kind, size):
        return [
            mean(one["returns"])
            for one in evaluations[name]["students"]
            if (one["kind"], one["size"]) == (kind, size)
        ]

    # A line for each game, a cell for each loss and size, the same on both pages.
    for text in (page, summary):
        assert row(text, "game")[2:] == COLUMNS
        cells = dict(zip(COLUMNS, row(text, "Pong")[2:], strict=True))
        for column in COLUMNS:
            size, kind = column.split()
            name = "pong_losses" if size == "100%" else "pong_sizes"
            teacher = mean(evaluations[name]["teacher"]["returns"])
            share = 100 * (mean(scores(name, kind, size)) + 20.7) / (teacher + 20.7)
            assert cells[column].startswith(f"{share:.1f}% [")
        assert row(text, "Qbert")[4:] == ["-"] * 4  # mse, and the other sizes

    # All games: the geometric mean of score over teacher's score, as the paper has it.
    ratios = [
        mean(scores(name, "kl", "100%")) / mean(evaluations[name]["teacher"]["returns"])
        for name in ("pong_losses", "qbert_losses")
    ]
    cells = row(page, "100% kl")
    assert cells[1] == "2"
    assert cells[4].startswith(f"{100 * math.sqrt(ratios[0] * ratios[1]):.1f}% [")
    assert row(page, "7% kl")[1] == "1"
    assert row(page, "7% kl")[5] == "101.7%"

    # A game's own tables: the same-size kl students lead the sizes.
    section = page[page.index("### Pong: same-size") :]
    assert row(section[: section.index("### Pong: compression")], "nll")[-1] == "15.4"
    section = page[page.index("### Pong: compression") :]
    means = ", ".join(f"{value:,.1f}" for value in sorted(scores("pong_losses", "kl", "100%")))
    assert row(section, "100%")[4] == means
    assert row(section, "25%")[1] == "424,790"
    last = json.loads((runs / "pong_sizes" / "metrics.jsonl").read_text().splitlines()[-1])
    agreement = mean(value for key, value in last.items() if "25-" in key and "agreement" in key)
    assert row(section, "25%")[6] == f"{agreement:.2f}"

    for name in ("distill_pong", "distill_qbert", "distill_games"):
        assert f"images/{name}.png" in page
        assert (tmp_path / "docs" / "images" / f"{name}.png").stat().st_size > 10_000


def test_a_record_without_curves_has_no_figure(tables, tmp_path):
    run = tmp_path / "pong_losses"
    made_up_run(run, sizes=("100%",))
    (run / "metrics.jsonl").write_text("")
    found = {"pong_losses": read_results(run, by="steps")}
    assert tables.draw(found, tmp_path / "images") == []
    text = tables.render(found, [])
    assert "images/" not in text
    assert row(text, "kl")[4:6] == ["-", "-"]  # agreement and KL


def test_every_shipped_teacher_has_both(tables):
    commands = tables.commands()
    assert len(commands) == 2 * len(tables.zoo_names())
    for game in tables.zoo_names():
        for table in ("losses", "sizes"):
            words = commands[f"{game}_{table}"]
            assert words[:3] == ["distill", "--teacher", f"zoo:{game}"]


def test_options_are_compared_with_the_base(load, tmp_path, monkeypatch):
    options = load("options_scores")
    commands = options.commands()
    assert len(commands) == len(options.GAMES) * len(options.VARIANTS)
    base = commands["qbert_auto"]
    for name, words in commands.items():
        if name.startswith("qbert_") and words != base:
            old, new = (set(itertools.pairwise(one)) for one in (base, words))
            assert new - old, name
    runs = tmp_path / "runs"
    played = {
        name: made_up_run(runs / name, seeds=2, training_seconds=seconds)
        for name, seconds in (("pong_auto", 120.0), ("pong_gap", 150.0))
    }
    monkeypatch.setattr(sys, "argv", ["options_scores.py", str(runs)])
    options.main()
    page = (tmp_path / "docs" / "options.md").read_text()
    assert row(page, "what is changed")[1:] == ["pong", "mean"]
    for name, minutes in (("auto", "2.0"), ("gap", "2.5")):
        found = played[f"pong_{name}"]
        score = mean(mean(one["returns"]) for one in found["students"])
        share = 100 * (score + 20.7) / (mean(found["teacher"]["returns"]) + 20.7)
        cells = row(page, options.VARIANTS[name][0])
        assert cells[1].startswith(f"{share:.1f}% [")
        assert cells[1].endswith(f"{minutes} min")
