# SPDX-License-Identifier: MIT

"""Runs side by side in a report: who is put together, what they are measured by, who is refused."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from run_directories import GAMES, made_up_games_run

from fastdistill.cli import main
from fastdistill.evaluation.statistics import over_games
from fastdistill.networks import QNetwork, paper_architecture, save_network
from fastdistill.report import write_report
from fastdistill.report.beside import paper_percent, read_contenders
from fastdistill.report.results import read_games
from fastdistill.report.words import episodes_of_each


def lab(tmp_path):
    """Three games in one network, beside another seed of it, single games, and a joint DQN."""
    made_up_games_run(tmp_path / "multi", levels={"kl": 1.0, "nll": 0.9}, seeds=3)
    made_up_games_run(tmp_path / "multi9", levels={"kl": 0.98}, seeds=1, seed=7)
    for place, game in enumerate(GAMES):
        made_up_games_run(tmp_path / game, (game,), size="100%", seeds=2, seed=place + 1)
    made_up_games_run(tmp_path / "joint", recipe="teacher_dqn", seed=5)
    return tmp_path / "multi", [tmp_path / name for name in ("multi9", *GAMES, "joint")]


def test_equal_networks_of_several_runs_are_seeds_of_one(tmp_path):
    run_dir, beside = lab(tmp_path)
    games = read_games(run_dir)
    found = {one.label: one for one in read_contenders(run_dir, games, beside)}
    assert list(found) == [
        "kl multi", "nll multi", "kl 100%, a network per game", "joint dqn multi",
    ]  # fmt: skip
    assert [one.seeds for one in found.values()] == [4, 3, 2, 1]
    records = json.loads((run_dir / "evaluation.json").read_text())["games"]
    more = json.loads((tmp_path / "multi9" / "evaluation.json").read_text())["games"]
    for place, game in enumerate(GAMES):
        returns = [s["returns"] for s in records[place]["students"] if s["kind"] == "kl"]
        returns += [s["returns"] for s in more[place]["students"]]
        score = found["kl multi"].score(game)
        assert score.value == pytest.approx(np.mean(returns))
        random, teacher = GAMES[game][0], np.mean(records[place]["teacher"]["returns"])
        percent = found["kl multi"].percent(games[place])
        assert percent.value == pytest.approx(100 * (score.value - random) / (teacher - random))
    kl, single = found["kl multi"], found["kl 100%, a network per game"]
    assert (kl.total(kl.parameters), single.total(single.parameters)) == (1_882_668, 3 * 1_687_206)
    assert (kl.cost(kl.updates), single.cost(single.updates)) == (6000, 18_000)
    assert [paper_percent(one, games) for one in found.values()] == [116.9, 105.1, None, 83.5]
    assert paper_percent(kl, games[:2]) is None
    page = write_report(run_dir, beside).read_text()
    for text in ("117%", "105%", "84%", "One network plays Pong, Freeway and Qbert at "):
        assert text in page
    assert page.count("<svg viewBox") == 2, "wide and narrow"
    assert (run_dir / "figures" / "games.png").stat().st_size > 10_000
    alone = read_contenders(run_dir, games, [])
    assert [one.label for one in alone] == ["kl multi", "nll multi"]


def test_a_longer_run_of_the_same_stands_apart(tmp_path):
    made_up_games_run(tmp_path / "run")
    made_up_games_run(tmp_path / "long", seed=3)
    path = tmp_path / "long" / "evaluation.json"
    path.write_text(path.read_text().replace('"updates": 6000', '"updates": 9000'))
    found = read_contenders(tmp_path / "run", read_games(tmp_path / "run"), [tmp_path / "long"])
    assert [one.label for one in found] == ["kl multi, 6,000 updates", "kl multi, 9,000 updates"]


def test_a_single_game_has_other_runs_on_its_page(tmp_path):
    run_dir, beside = lab(tmp_path)
    page = write_report(beside[1], [run_dir, beside[-1]]).read_text()
    assert "Beside other runs" in page
    assert "one network for 3 games" in page
    assert "joint dqn multi" in page
    assert "Beside other runs" not in write_report(beside[1]).read_text()


def test_scores_over_games_against_a_plain_bootstrap():
    """8,000 and 10,000 resamples: a quantile's error is about 2% of the interval's width."""
    rng = np.random.default_rng(2)
    returns = [rng.normal((m + seeds)[:, None], 4, (3, 12)) for m, seeds in (
        (20, np.array([-4, 0, 4])), (50, np.array([-9, 1, 8])),
    )]  # fmt: skip
    teachers, random = [rng.normal(25, 2, 12), rng.normal(60, 3, 12)], [3.0, -5.0]
    for one_network in (True, False):
        found = over_games(returns, teachers, random, one_network=one_network)
        shares, geometric = [], []
        for _ in range(8000):
            means, levels = [], []
            seeds = rng.integers(3, size=3)
            for game, teacher in zip(returns, teachers, strict=True):
                if not one_network:
                    seeds = rng.integers(3, size=3)
                means.append(np.mean([rng.choice(game[k], 12).mean() for k in seeds]))
                levels.append(rng.choice(teacher, 12).mean())
            means, levels = np.array(means), np.array(levels)
            shares.append((100 * (means - random) / (levels - random)).mean())
            geometric.append(100 * np.sqrt((means / levels).prod()))
        for interval, naive in (
            (found.percent, shares), (found.geometric_mean_percent, geometric),
        ):  # fmt: skip
            low, high = np.quantile(naive, [0.025, 0.975])
            assert interval.low == pytest.approx(low, abs=0.12 * (high - low))
            assert interval.high == pytest.approx(high, abs=0.12 * (high - low))
        ratios = [np.mean(g) / np.mean(t) for g, t in zip(returns, teachers, strict=True)]
        assert found.geometric_mean_percent.value == pytest.approx(100 * np.sqrt(np.prod(ratios)))
        own = [
            100 * (np.mean(g) - r) / (np.mean(t) - r)
            for g, t, r in zip(returns, teachers, random, strict=True)
        ]
        assert found.percent.value == pytest.approx(np.mean(own))
        assert found.least_percent == pytest.approx(min(own))
    # A teacher that is no better than random play, a score below 0.
    found = over_games([[[1.0, 2.0]]], [[1.0, 9.0]], [5.0])
    assert found.percent is None
    assert found.least_percent is None
    assert over_games([[[-3.0, 2.0]]], [[8.0, 9.0]], [5.0]).geometric_mean_percent is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "evaluation.json").unlink(),
         r"a run beside must be finished, with evaluation.json, got .*other"),
        (lambda run: replace(run, '"preset": "classic"', '"preset": "machado"'),
         r"must be evaluated with preset classic, as the report's run, got machado in .*other"),
        (lambda run: replace(run, '"epsilon": 0.05', '"epsilon": 0.01'),
         r"must be evaluated with epsilon 0.05, as the report's run, got 0.01 in .*other"),
        (lambda run: replace(run, '"game": "pong"', '"game": "boxing"'),
         r"a run beside must play one of pong, freeway, qbert, got boxing in .*other"),
    ],
)  # fmt: skip
def test_a_run_that_does_not_fit_is_refused(tmp_path, capsys, change, message):
    made_up_games_run(tmp_path / "run")
    made_up_games_run(tmp_path / "other", ("pong",))
    change(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "run", [tmp_path / "other"])
    assert not (tmp_path / "run" / "report.html").exists()
    assert main(["report", str(tmp_path / "run"), "--beside", str(tmp_path / "other")]) == 2
    assert re.search(message, capsys.readouterr().err)


def replace(run, old, new):
    path = run / "evaluation.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_run_given_twice_is_refused(tmp_path):
    made_up_games_run(tmp_path / "run")
    made_up_games_run(tmp_path / "other", seed=3)
    for beside in ([tmp_path / "run"], [tmp_path / "other", tmp_path / "run" / ".." / "other"]):
        with pytest.raises(ValueError, match=r"beside must name each run once, got .* again"):
            write_report(tmp_path / "run", beside)


def test_one_network_plays_all_games_at_once(tmp_path):
    games = ("freeway", "pong")
    made_up_games_run(tmp_path, games, seeds=1, size="4%")
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("4%", (3, 6)))
    network.games = games
    save_network(
        tmp_path / "students" / "kl_4_seed1", network, {"games": [{"game": g} for g in games]}
    )
    (tmp_path / "config.json").unlink()  # without teachers there is no other recording
    page = write_report(tmp_path).read_text()
    gif = tmp_path / "figures" / "all_games.gif"
    with Image.open(gif) as picture:
        assert picture.size == (648, 460)
        assert picture.n_frames > 30
        first = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(first[60:, :320] - first[60:, 328:]).mean() > 10, "another game in each half"
    assert gif.stat().st_size <= 1_500_000
    assert 'alt="One network playing Freeway, Pong"' in page
    written = gif.stat().st_mtime_ns
    write_report(tmp_path)
    assert gif.stat().st_mtime_ns == written, "recorded once"


def test_a_joint_dqn_has_a_page_of_its_own(tmp_path):
    made_up_games_run(tmp_path, recipe="teacher_dqn")
    page = write_report(tmp_path).read_text()
    assert "One network plays Pong, Freeway and Qbert" in page
    assert "joint dqn multi" in page
    assert "A recording: not measured (the run has no student)" in page


def test_a_record_of_more_episodes_is_said():
    def game(recorded, count):
        teacher = SimpleNamespace(episodes=[0.0] * count)
        return SimpleNamespace(episodes=10, teacher=teacher, teacher_on_record=recorded)

    assert episodes_of_each([game(True, 10), game(False, 30)], "each") == "10 full episodes each"
    more = episodes_of_each([game(True, 30), game(True, 10)], "each")
    assert more == "10 full episodes each, 10 or 30 of a teacher on record"


def changed(run_dir, **options):
    path = run_dir / "config.json"
    record = json.loads(path.read_text())
    record["config"] |= options
    path.write_text(json.dumps(record))


def test_runs_of_other_options_are_no_seeds_of_each_other(tmp_path):
    for place, name in enumerate(("run", "plain", "norm")):
        made_up_games_run(tmp_path / name, seeds=1, seed=place + 1)
    changed(tmp_path / "run", layer_norm=False, seed=1, learning_rate=0.002)
    changed(tmp_path / "plain", layer_norm=False, seed=2)  # its rate is not on record
    changed(tmp_path / "norm", layer_norm=True, seed=3, learning_rate=0.002)
    games = read_games(tmp_path / "run")
    found = read_contenders(tmp_path / "run", games, [tmp_path / "plain", tmp_path / "norm"])
    assert {one.label: one.seeds for one in found} == {
        "kl multi, layer norm False": 2, "kl multi, layer norm True": 1,
    }  # fmt: skip


def test_a_seed_that_ended_early_is_named(tmp_path):
    made_up_games_run(tmp_path / "run", seeds=3)
    path = tmp_path / "run" / "evaluation.json"
    record = json.loads(path.read_text())
    for game in record["games"]:
        game["students"][1]["diverged_updates"] = 2600
    path.write_text(json.dumps(record))
    (contender,) = read_contenders(tmp_path / "run", read_games(tmp_path / "run"), [])
    assert (contender.seeds, contender.diverged) == (3, 1)
    page = write_report(tmp_path / "run").read_text()
    assert "3 seeds, 1 of them diverged" in page


def test_who_had_no_teacher_has_no_share_of_one(tmp_path):
    made_up_games_run(tmp_path / "joint", recipe="teacher_dqn")
    page = write_report(tmp_path / "joint").read_text()
    assert "One network plays Pong, Freeway and Qbert</h1>" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "must be readable JSON, got more than 32 levels"),
        ('{"game": "pong", "epsilon": ' + "9" * 400 + "}", "got an integer of 400 digits"),
        ('{"games": []}', r"must hold games \(a list of objects\), got \[\]"),
        ('{"game": "pong", "teacher": {}, "students": [], "commands": 5}', "must hold commands"),
    ],
)
def test_a_damaged_evaluation_is_refused_in_words(tmp_path, text, message):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=f"write_report: .*{message}"):
        write_report(tmp_path)
