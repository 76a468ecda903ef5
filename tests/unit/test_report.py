# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001 (the page has typographic signs)
"""The report: self-contained, true to the run's files, grouped over seeds, safe, never failing."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from run_directories import RANDOM_SCORE, made_up_run, player, write_evaluation

from fastdistill.evaluation.statistics import resampled_means
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks.checkpoint import save_network
from fastdistill.report import write_report
from fastdistill.report.figures import DASHES, line_styles
from fastdistill.report.results import headline_student, read_results
from fastdistill.report.words import duration, headline, number, percent


class Page(HTMLParser):
    """What a browser would see: tags with attributes, the numbers of each table row, the text."""

    def __init__(self, path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: dict[str, list[float]] = {}
        self.text = ""
        self._open: list[str] = []
        self._row: list[float] | None = None
        self._name = ""
        self.feed(self.source)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        if tag == "tr":
            self._row, self._name = [], ""
        if tag == "data" and self._row is not None:
            self._row.append(float(dict(attributes)["value"]))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "tr" and self._row is not None:
            self.rows[self._name] = self._row
            self._row = None

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            return
        self.text += data
        if self._row is not None and self._open[-1] == "th" and not self._name:
            self._name = data.strip()


def test_the_page_loads_nothing(tmp_path):
    made_up_run(tmp_path, kinds=("kl", "nll"), seeds=2)
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "figures" / "play.gif")
    page = Page(write_report(tmp_path))
    assert page.source == Page(write_report(tmp_path)).source  # nothing of the moment is in it
    assert re.findall(r"https?:|url\((?!#)|@import|file:", page.source) == []
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [source[:22] for source in images] == ["data:image/gif;base64,"]
    tags = {tag for tag, _ in page.tags}
    assert tags & {"script", "link", "iframe", "object", "embed", "base", "form"} == set()
    for _, attributes in page.tags:
        assert attributes.get("href", "#").startswith("#")
        assert not {name for name in attributes if name.startswith("on")}
    # What a figure points at is in that figure: ids of the wide and narrow forms differ.
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', page.source):
        assert reference in ids
    clips = [attributes["id"] for tag, attributes in page.tags if tag == "clippath"]
    assert clips
    assert len(clips) == len(set(clips))


def test_the_table_holds_the_numbers_of_the_file(tmp_path):
    evaluation = made_up_run(tmp_path, kinds=("kl", "mse"), sizes=("25%", "4%"))
    rows = Page(write_report(tmp_path)).rows
    assert list(rows) == [
        "Player",
        "teacher",
        "kl 25%",
        "kl 4%",
        "mse 25%",
        "mse 4%",
        "random play",
    ]

    def numbers(entry):
        mean, share = entry["summary"]["mean"], entry["percent_of_teacher"]
        return [
            *(mean[key] for key in ("value", "low", "high")),
            *([100.0] if share is None else (share[key] for key in ("value", "low", "high"))),
            entry["parameters"],
            entry["flops"],
            entry["latency_seconds"]["1"],
            entry["latency_seconds"]["1024"],
        ]

    assert rows["teacher"] == numbers(evaluation["teacher"])
    for entry in evaluation["students"]:
        assert rows[f"{entry['kind']} {entry['size']}"] == numbers(entry)
    assert rows["random play"] == [RANDOM_SCORE]


def test_rounded_numbers_are_the_unrounded_ones(tmp_path):
    made_up_run(tmp_path)
    source = write_report(tmp_path).read_text(encoding="utf-8")
    cells = re.findall(r'<data value="([^"]+)">([^<]+)</data>', source)
    assert len(cells) > 15
    units = {"G": 1e9, "M": 1e6, "k": 1e3, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "%": 1.0, "": 1.0}
    for value, text in cells:
        digits, unit = re.fullmatch(r"([−\d.,]+) ?(\D*)", text).groups()
        shown = float(digits.replace(",", "").replace("−", "-")) * units[unit]
        decimals = len(digits.partition(".")[2])
        assert abs(shown - float(value)) <= 0.5001 * 10.0**-decimals * units[unit], text


def test_seeds_are_one_line_with_the_interval_of_seeds_and_episodes(tmp_path):
    evaluation = made_up_run(tmp_path, kinds=("kl", "nll"), seeds=3, episodes=12)
    results = read_results(tmp_path)
    assert [student.label for student in results.students] == ["kl 7%", "nll 7%"]
    teacher = np.mean(evaluation["teacher"]["returns"])
    for student in results.students:
        returns = [e["returns"] for e in evaluation["students"] if e["kind"] == student.kind]
        assert student.seeds == (0, 1, 2)
        mean = sum(sum(one) / len(one) for one in returns) / 3
        assert student.score.value == pytest.approx(mean)
        expected = 100 * (mean - RANDOM_SCORE) / (teacher - RANDOM_SCORE)
        assert student.percent.value == pytest.approx(expected)
        # The naive two-level bootstrap, with a generator of its own.
        rng = np.random.default_rng(5)
        means, shares = [], []
        for _ in range(4000):
            seeds = [returns[k] for k in rng.integers(3, size=3)]
            means.append(np.mean([np.mean(rng.choice(one, len(one))) for one in seeds]))
            again = np.mean(rng.choice(evaluation["teacher"]["returns"], 12))
            shares.append(100 * (means[-1] - RANDOM_SCORE) / (again - RANDOM_SCORE))
        # 4,000 and 10,000 resamples: a quantile's error is about 3% of the interval's width.
        for interval, naive in ((student.score, means), (student.percent, shares)):
            low, high = np.quantile(naive, [0.025, 0.975])
            assert interval.low == pytest.approx(low, abs=0.12 * (high - low))
            assert interval.high == pytest.approx(high, abs=0.12 * (high - low))


def test_seeds_that_differ_widen_the_interval():
    # Each seed is certain of its score, the seeds are not: episodes alone would say +-0.
    means = resampled_means([[10.0] * 30, [12.0] * 30, [14.0] * 30])
    assert np.quantile(means, [0.025, 0.975]).tolist() == [
        pytest.approx(10, abs=0.7),
        pytest.approx(14, abs=0.7),
    ]
    # Seeds weigh the same, whatever their number of episodes.
    assert resampled_means([[0.0] * 99, [1.0]]).mean() == pytest.approx(0.5, abs=0.02)


def test_curves_are_means_over_seeds_with_their_extremes(tmp_path):
    made_up_run(tmp_path, seeds=3)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    del records[0]["students/kl-7-1/kl"]  # measured for two of three
    records[1]["students/kl-7-2/kl"] = None  # as the writer has what is not finite
    del records[2]["time/training_seconds"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    curve = read_results(tmp_path).students[0].curves["kl"]
    kept = [record for record in records if "time/training_seconds" in record]
    assert curve.at.tolist() == [record["time/training_seconds"] for record in kept]
    for index, record in enumerate(kept):
        values = [record.get(f"students/kl-7-{seed}/kl") for seed in range(3)]
        values = [value for value in values if value is not None]
        assert curve.mean[index] == pytest.approx(np.mean(values))
        assert (curve.low[index], curve.high[index]) == (min(values), max(values))


def test_names_are_text_never_markup(tmp_path):
    hostile = '<script>alert("1")</script>'
    evaluation = made_up_run(tmp_path, kinds=("kl", "nll"))
    evaluation["teacher"]["name"] = evaluation["preset"] = hostile
    evaluation["commands"] = [hostile, "a && b"]
    evaluation["machine"] = {hostile: hostile}
    for entry in evaluation["students"]:
        entry["kind"] += hostile
        entry["size"] = '"><img src=x onerror=alert(1)> $\\frac$'
        entry["name"] = "../../" + hostile
    evaluation["game"] = hostile
    write_evaluation(tmp_path, evaluation)
    (tmp_path / "config.json").write_text(
        json.dumps({"config": {hostile: "</code></pre>" + hostile, "teacher": hostile}})
    )
    page = Page(write_report(tmp_path))
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert "img" not in tags
    assert page.text.count(hostile) >= 8
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("several", [False, True])
def test_the_figures_are_pictures(tmp_path, several):
    made_up_run(tmp_path, kinds=("kl", "nll") if several else ("kl",), seeds=2 if several else 1)
    page = Page(write_report(tmp_path))
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "episodes.png", "learning.png", "score.png",
    ]  # fmt: skip
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width >= 1500
            colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colours) > 20
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and "role" in attributes]
    assert len(figures) == 6  # three, wide and narrow
    # No colour of matplotlib's is left: all follow the page's style sheet.
    drawn = "".join(re.findall(r"<svg viewBox.*?</svg>", page.source, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()


def test_many_students_have_styles_of_their_own(tmp_path):
    kinds, sizes = ("kl", "nll", "mse", "reverse_kl", "jsd"), ("100%", "25%", "7%", "4%")
    made_up_run(tmp_path, kinds=kinds, sizes=sizes, episodes=5, records=5)
    results = read_results(tmp_path)
    styles = line_styles(results)
    assert len(set(styles.values())) == 20
    for student in results.students:  # the colour is the loss, the dash the size
        assert styles[student.label].series == kinds.index(student.kind)
        assert styles[student.label].dashes == DASHES[sizes.index(student.size)]
    assert len(Page(write_report(tmp_path)).rows) == 23


def test_what_was_not_measured_says_so(tmp_path):
    evaluation = made_up_run(tmp_path)
    entry = evaluation["students"][0]
    for part in ("percent_of_teacher", "summary"):
        entry[part] = {"value": math.nan, "mean": {"value": math.nan, "low": 0, "high": 0}}
    entry["latency_seconds"] = {"1": None}
    del entry["flops"]
    write_evaluation(tmp_path, evaluation)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "config.json").unlink()
    page = Page(write_report(tmp_path))
    assert page.rows["kl 7%"] == [entry["parameters"]]
    assert page.text.count("not measured") >= 8
    assert "its level was not measured" in page.text
    assert "A recording of the game: not measured" in page.text
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["episodes.png"]


@pytest.mark.parametrize(
    "evaluation",
    [
        {"game": "pong", "teacher": {"name": "t"}, "students": []},
        {"game": "pong", "teacher": {"name": "t"}, "students": [{"name": "s"}, {"name": "s"}]},
        {"game": "CartPole-v1", "teacher": player("t", [1.0], 5, 5), "students": [{"name": "s"}],
         "random_score": 1.0},
        {"game": "pong", "teacher": player("t", [3.0, 3.0], 5, 5), "random_score": 3.0,
         "students": [{"name": f"s{k}", "returns": [2.0, math.inf]} for k in range(2)]},
    ],
)  # fmt: skip
def test_the_least_that_a_run_can_leave_makes_a_page(tmp_path, evaluation):
    write_evaluation(tmp_path, evaluation)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time/wall_sec')
    page = Page(write_report(tmp_path))
    assert "not measured" in page.text
    assert "nan" not in page.text.lower().split()


def test_an_earlier_reports_figures_do_not_stay(tmp_path):
    made_up_run(tmp_path)
    write_report(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    write_report(tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["episodes.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"write_report: run_dir must hold evaluation.json, got .*"),
        ("{", r"write_report: .*evaluation.json must be readable JSON, got .*"),
        ("[1]", r"write_report: .*evaluation.json must hold an object, got \[1\]"),
        ('{"game": 3}', r"write_report: .* must hold game \(str\), got 3"),
        ('{"game": "pong", "teacher": {"name": "t"}}', r"must hold students \(list\), got None"),
        ('{"game": "pong", "teacher": {}, "students": []}',
         "must describe players by name, got {}"),
        ('{"game": "pong", "teacher": {"name": "t"}, "students": [7]}',
         "must describe players by name, got 7"),
        ('{"game": "pong", "teacher": {"name": "t", "returns": [1, "2"]}, "students": []}',
         r"must list the returns of 't' as numbers, got \[1, '2'\]"),
    ],
)  # fmt: skip
def test_a_damaged_evaluation_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_headline_is_about_the_smallest_student_that_keeps_up(tmp_path):
    evaluation = made_up_run(tmp_path, sizes=("100%", "25%", "7%"), kinds=("kl",))
    for entry, value in zip(evaluation["students"], (103.0, 95.0, 94.9), strict=True):
        entry["percent_of_teacher"] = {"value": value, "low": value - 4, "high": value + 4}
    write_evaluation(tmp_path, evaluation)
    results = read_results(tmp_path)
    assert headline_student(results).label == "kl 25%"
    assert headline(results) == (
        "The kl 25% student with 424,790 parameters, 25% of the teacher’s, "
        "plays Pong at 95% of its level"
    )
    assert "smallest of 3 kinds of student to reach 95%" in Page(write_report(tmp_path)).text
    for entry in evaluation["students"]:
        entry["percent_of_teacher"]["value"] -= 50
    write_evaluation(tmp_path, evaluation)
    assert headline_student(read_results(tmp_path)).label == "kl 100%"
    assert "best of 3 kinds of student" in Page(write_report(tmp_path)).text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(16.25), "16.2"), (number(-20.7), "−20.7"), (number(-0.04), "0.0"),
        (number(1234.5), "1,234"), (number(-9650.2), "−9,650"), (number(14.0), "14.0"),
        (percent(6.63), "6.6%"), (percent(5.0), "5%"), (percent(99.4), "99%"),
        (percent(-3.21), "−3.2%"), (percent(0.0), "0%"), (percent(102.5), "102%"),
        (duration(9.94), "9.9 seconds"), (duration(174), "174 seconds"),
        (duration(301), "5.0 minutes"), (duration(5400), "90 minutes"),
        (duration(36000), "10 hours"),
    ],
)  # fmt: skip
def test_numbers_read_well(shown, expected):
    assert shown == expected


def test_teacher_and_student_play_side_by_side(tmp_path):
    evaluation = made_up_run(tmp_path)
    torch.manual_seed(0)
    save_network(
        tmp_path / "students" / "kl-7-0", QNetwork(paper_architecture("7%", 6)), {"game": "pong"}
    )
    page = Page(write_report(tmp_path))
    gif = tmp_path / "figures" / "play.gif"
    with Image.open(gif) as picture:
        assert picture.size == (648, 460)
        assert picture.n_frames > 100
    assert gif.stat().st_size < 4_000_000
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images[0]["alt"] == "The teacher and kl 7% playing Pong side by side"
    # Recorded once; again after another evaluation, whose checkpoint may be another.
    gif.write_bytes(gif.read_bytes()[:500])
    write_report(tmp_path)
    assert gif.stat().st_size == 500
    later = gif.stat().st_mtime + 5
    os.utime(tmp_path / "evaluation.json", (later, later))
    (tmp_path / "students" / "kl-7-0.json").write_text("damaged")
    page = Page(write_report(tmp_path))
    assert "A recording of the game: not measured (read_card:" in page.text
    assert [entry["name"] for entry in evaluation["students"]] == ["kl-7-0"]


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    made_up_run(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fastdistill.report needs matplotlib: pip install"):
        write_report(tmp_path)


def test_a_single_student_without_a_summary_is_summarised(tmp_path):
    evaluation = made_up_run(tmp_path)
    expected = evaluation["students"][0].pop("summary")["mean"]
    write_evaluation(tmp_path, evaluation)
    assert asdict(read_results(tmp_path).students[0].score) == expected
