# SPDX-License-Identifier: MIT
"""Several games in one network: beside networks of one game each, and a DQN that learns them all.

Keeps a record of each finished run in a directory, whatever it is called, in
benchmarks/results/several_games: its configuration, evaluation and scores, no weights, so that runs
of several days and machines come together. Of the records the tables of docs/several_games.md are
written: runs that play the same games become a table, equal networks of several runs its seeds,
runs of single games a network per game, once all of its games are there. With --run what has no
record is run first, one after another, and continued where it was interrupted.

    python benchmarks/several_games.py runs/several --run
    python benchmarks/several_games.py runs/several --run single_pong single_freeway
    python benchmarks/several_games.py runs/several
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pages
import records
import torch

from fastdistill.envs import make_env
from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.networks import load_network
from fastdistill.networks.checkpoint import copy_checkpoint
from fastdistill.report.beside import Contender, paper_percent, read_contenders
from fastdistill.report.results import Results, read_games
from fastdistill.teachers.teacher import zoo_names

HERE = Path(__file__).parent
RECORDS = HERE / "results" / "several_games"
EPSILON = 0.05  # of the students' evaluation
THREE = ("pong", "freeway", "qbert")
FOUR = (*THREE, "breakout")
PAPER_NOTE = (
    "The paper's column (Rusu et al. 2015) is of other teachers and human starts; its three games "
    "are not named in any source we have; its 1,882,668 parameters are those of games with 12 "
    "actions together, where these have 15."
)


def commands() -> dict[str, list[str]]:
    """Run -> what makes it; 32 rows of a batch and 4 steps per update for each game."""

    def distill(games: tuple[str, ...], more: str, updates: int = 6000) -> list[str]:
        words = f"distill --teacher {','.join(f'zoo:{game}' for game in games)} {more}"
        words += f" --temperature auto --total-updates {updates}"
        words += f" --score-every-updates {min(updates // 2, 6000)} --score-episodes 5"
        words += " --log-every-updates 100 --no-tensorboard"
        words += f" --batch-size {32 * len(games)} --steps-per-update {4 * len(games)}"
        return f"{words} --learning-starts-steps {2000 * len(games)}".split()

    # For Breakout 6,000 updates of 32 rows are too few, see `four`.
    every = tuple(sorted(zoo_names()))
    shares = ",".join("3" if game == "breakout" else "1" for game in every)
    wide = f"--student multi-wide --loss kl --layer-norm --task-weights {shares}"
    # Evaluated with the random actions that the students are evaluated with.
    joint = f"teacher dqn --game {','.join(THREE)} --size multi --total-steps 240000"
    joint += " --evaluation-epsilon 0.05 --score-episodes 5 --no-tensorboard"
    return {
        "multi_kl": distill(THREE, "--student multi --loss kl --seeds 3"),
        "multi_nll": distill(THREE, "--student multi --loss nll --seeds 3"),
        "multi_kl_seed9": distill(THREE, "--student multi --loss kl --seed 9"),
        "four": distill(FOUR, "--student multi --loss kl"),
        "wide": distill(every, wide, updates=24_000),
        **{
            f"single_{game}": distill((game,), "--student 100% --loss kl --seeds 3")
            for game in THREE
        },
        "joint_dqn": joint.split(),
    }


def keep(run: Path) -> None:
    """Record a finished run; a teacher recipe's, played as the students were."""
    games = read_games(run)
    other = not games[0].students and games[0].epsilon != EPSILON
    records.keep(evaluated_like_students(run, games) if other else run, RECORDS / run.name)


def evaluated_like_students(run: Path, games: list[Results]) -> Path:
    """A copy of a teacher recipe's run, played with the students' share of random actions."""
    copy = run.parent / f"{run.name}_epsilon_{EPSILON}" / "run"
    if not (copy / "evaluation.json").exists():
        copy.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "metrics.jsonl"):
            shutil.copy(run / name, copy / name)
        copy_checkpoint(run / "teacher", copy / "teacher")
        network, _ = load_network(run / "teacher")
        played = []
        for game in games:
            player = network.for_task(game.game) if network.games else network
            with closing(make_env(game.game, 10, preset=game.preset, training=False)) as env:
                played.append(
                    compare(
                        Player("teacher", player, player, {}), (), env,
                        episodes=game.episodes or 30, seed=game.seed,
                        device=torch.device("cpu"), epsilon=EPSILON,
                    )
                )  # fmt: skip
        old = json.loads((run / "evaluation.json").read_text())
        costs = {key: old.get(key) for key in ("training_seconds", "updates")}
        write_evaluation(copy, together(played) | costs)
    return copy


def collect() -> dict[str, Any]:
    """Everything that the records say."""
    runs = sorted(path.parent for path in RECORDS.glob("*/evaluation.json"))
    games = {run: read_games(run) for run in runs}
    mains: dict[frozenset[str], Path] = {}
    for run in runs:
        if len(games[run]) > 1 and games[run][0].students:
            mains.setdefault(frozenset(one.game for one in games[run]), run)
    tables = []
    for names, main in sorted(mains.items(), key=lambda pair: len(pair[0])):
        beside = [run for run in runs if run != main and {one.game for one in games[run]} <= names]
        tables.append(table_of(games[main], read_contenders(main, games[main], beside)))
    machines = records.where({run.name: read for run, read in games.items()})
    return {"tables": tables, "machines": machines}


def table_of(games: list[Results], contenders: list[Contender]) -> dict[str, Any]:
    """Of one set of games; who does not play all of them is left out."""
    rows = [row_of(one, games) for one in contenders]
    return {
        "games": [game.game for game in games],
        "preset": games[0].preset,
        "epsilon": games[0].epsilon,
        "episodes": games[0].episodes,
        "teachers": {game.game: asdict(game.teacher)["score"] for game in games},
        "players": [row for row in rows if row["together"]],
    }


def row_of(contender: Contender, games: list[Results]) -> dict[str, Any]:
    """Of one player: every episode's score, and what they say."""
    found = contender.together(games)
    scores = {game.game: contender.score(game.game) for game in games}
    shares = {game.game: contender.percent(game) for game in games}
    return {
        "label": contender.label,
        "size": contender.size,
        "seeds": {name: len(returns) for name, returns in contender.returns.items()},
        "together": None if found is None else asdict(found),
        "paper_percent": paper_percent(contender, games),
        "parameters": contender.total(contender.parameters),
        "updates": contender.cost(contender.updates),
        "steps": contender.cost(contender.steps),
        "games": {
            name: {
                "score": None if score is None else asdict(score),
                "percent": None if (share := shares[name]) is None else asdict(share),
                "returns": contender.returns.get(name),
            }
            for name, score in scores.items()
        },
    }


def render(found: dict[str, Any]) -> str:
    """The tables of docs/several_games.md."""
    if not found["tables"]:
        return "Not measured yet.\n"
    lines = [
        f"From `benchmarks/results/several_games`, made on {found['machines']}. "
        "Brackets are 95% bootstrap intervals: seeds are resampled, then their episodes; seeds of "
        "one run differ in their first weights, and share its play.",
        "",
    ]
    for table in found["tables"]:
        lines += render_table(table)
    return "\n".join(lines)


def render_table(table: dict[str, Any]) -> list[str]:
    """Markdown of one set of games: together, then game by game."""
    games = table["games"]
    paper = any(player["paper_percent"] for player in table["players"])
    head = ["player", "seeds", "of the teachers' level", "least", "geometric mean"]
    head += ["paper's"] * paper + ["parameters", "updates", "environment steps"]
    lines = [
        f"## {', '.join(games)}",
        "",
        f"Preset {table['preset']}, epsilon {table['epsilon']}, {table['episodes']} full episodes "
        "of each network and game. Level is the share of the teacher's score above random play, "
        "its mean over the games; the geometric mean is of score over the teacher's score."
        + (f" {PAPER_NOTE}" if paper else ""),
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for player in table["players"]:
        found = player["together"]
        cells = [player["label"], str(max(player["seeds"].values(), default=0))]
        cells += [cell(found["percent"], "%"), f"{found['least_percent']:.1f}%"]
        cells.append(cell(found["geometric_mean_percent"], "%"))
        if paper:
            cells.append(f"{player['paper_percent']}%" if player["paper_percent"] else "-")
        for key in ("parameters", "updates", "steps"):
            cells.append("-" if player[key] is None else f"{player[key]:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    if any(player["size"] == "multi-wide" for player in table["players"]):
        lines += ["", "The paper's ten games in such a network: a geometric mean of 89.3%."]
    lines += ["", f"| player | {' | '.join(games)} |", "|---" * (len(games) + 1) + "|"]
    scores = " | ".join(cell(table["teachers"][game]) for game in games)
    lines.append(f"| teacher | {scores} |")
    for player in table["players"]:
        cells = []
        for game in games:
            own = player["games"][game]
            share = f", {cell(own['percent'], '%')}" if own["percent"] else ""
            cells.append(cell(own["score"]) + share)
        lines.append(f"| {player['label']} | {' | '.join(cells)} |")
    return [*lines, ""]


def cell(interval: dict[str, float] | None, unit: str = "") -> str:
    """A value and its interval."""
    if interval is None:
        return "-"
    value, low, high = (f"{interval[key]:,.1f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def main() -> None:
    """Runs what is missing if asked, keeps what is finished, writes the page."""
    arguments = records.parse(__doc__, Path("runs/several"), commands())
    if arguments.run is not None:
        records.run_missing(arguments.folder, RECORDS, commands(), arguments.run)
    for path in sorted(arguments.folder.glob("*/evaluation.json")):
        keep(path.parent)
    pages.write_part("docs/several_games.md", "several_games.py", render(collect()))


if __name__ == "__main__":
    main()
