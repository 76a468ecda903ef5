# SPDX-License-Identifier: MIT
"""Several games in one network: beside networks of one game each, and a DQN that learns them all.

Collects the finished runs in a directory, whatever they are called: runs that play the same games
become a table, equal networks of several runs its seeds, runs of single games a network per game.
With --run what is missing is run first, one after another, and continued where it was interrupted.
Results go to benchmarks/results/several_games.json, from which the tables of docs/several_games.md
are written.

    python benchmarks/several_games.py runs/several --run --updates 6000
    python benchmarks/several_games.py runs/several
    python benchmarks/several_games.py --render
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import torch

from fastdistill.envs import make_env
from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.networks import load_network
from fastdistill.networks.checkpoint import copy_checkpoint
from fastdistill.report.beside import Contender, paper_percent, read_contenders
from fastdistill.report.results import Results, read_games
from fastdistill.teachers.teacher import zoo_names

HERE = Path(__file__).parent
RESULT = HERE / "results" / "several_games.json"
PAGE = HERE.parent / "docs" / "several_games.md"
BEGIN = "<!-- tables: begin (written by benchmarks/several_games.py) -->"
END = "<!-- tables: end -->"
THREE = ("pong", "freeway", "qbert")
FOUR = (*THREE, "breakout")
PAPER_NOTE = (
    "The paper's column (Rusu et al. 2015) is of other teachers and human starts; its three games "
    "are not named in any source we have, these have the number of parameters that it states."
)


def commands(updates: int, joint_steps: int) -> dict[str, list[str]]:
    """Run directory -> what makes it; every game has 32 rows of a batch and 4 steps per update."""
    common = f"--temperature auto --total-updates {updates} --score-every-updates {updates // 2}"
    common += " --score-episodes 5 --log-every-updates 200 --no-tensorboard"

    def distill(games: tuple[str, ...], more: str) -> list[str]:
        words = f"distill --teacher {','.join(f'zoo:{game}' for game in games)} {common} {more}"
        words += f" --batch-size {32 * len(games)} --steps-per-update {4 * len(games)}"
        return f"{words} --learning-starts-steps {2000 * len(games)}".split()

    # Evaluated with the random actions that the students are evaluated with.
    joint = f"teacher dqn --game {','.join(THREE)} --size multi --total-steps {joint_steps}"
    joint += " --evaluation-epsilon 0.05 --score-episodes 5 --no-tensorboard"
    return {
        "multi": distill(THREE, "--student multi --loss kl,nll --seeds 3"),
        "multi_seed9": distill(THREE, "--student multi --loss kl --seed 9"),
        "four": distill(FOUR, "--student multi --loss kl"),
        "wide": distill(tuple(zoo_names()), "--student multi-wide --loss kl"),
        **{
            f"single_{game}": distill((game,), "--student 100% --loss kl,nll --seeds 3")
            for game in THREE
        },
        "joint_dqn": joint.split(),
    }


def run_missing(folder: Path, updates: int, joint_steps: int) -> None:
    """Run what has no evaluation.json yet."""
    for name, words in commands(updates, joint_steps).items():
        run_dir = folder / name
        if (run_dir / "evaluation.json").exists():
            continue
        resume = ["--resume"] if (run_dir / "config.json").exists() else []
        print(f"{name}: fastdistill {' '.join(words)}", file=sys.stderr)
        command = [sys.executable, "-m", "fastdistill", *words, "--run-dir", str(run_dir), *resume]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{name} did not end; the same command continues")


def collect(folder: Path) -> dict[str, Any]:
    """Everything that the finished runs in a directory say."""
    runs = sorted(path.parent for path in folder.glob("*/evaluation.json"))
    games = {run: read_games(run) for run in runs}
    mains: dict[frozenset[str], Path] = {}
    for run in runs:
        if len(games[run]) > 1 and games[run][0].students:
            mains.setdefault(frozenset(one.game for one in games[run]), run)
    if not mains:
        raise SystemExit(f"{folder} holds no finished distillation of several games")
    tables = []
    for names, main in sorted(mains.items(), key=lambda pair: len(pair[0])):
        beside = [
            at_epsilon(run, games[run], games[main][0])
            for run in runs
            if run != main and {one.game for one in games[run]} <= names and len(games[run]) != 0
        ]
        beside = [run for run in beside if run is not None]
        tables.append(table_of(games[main], read_contenders(main, games[main], beside)))
    return {
        "benchmark": "several_games",
        "machine": machine.describe(),
        "tables": tables,
        "runs": [facts_of(run, games[run]) for run in runs],
        "time": times(runs, games),
    }


def at_epsilon(run: Path, games: list[Results], like: Results) -> Path | None:
    """The run; of a teacher recipe, if evaluated otherwise, a copy with the students' epsilon."""
    if games[0].epsilon == like.epsilon and games[0].preset == like.preset:
        return run
    if games[0].students:
        return None
    copy = run.parent / f"{run.name}_epsilon_{like.epsilon}" / "run"
    if not (copy / "evaluation.json").exists():
        copy.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "metrics.jsonl"):
            shutil.copy(run / name, copy / name)
        copy_checkpoint(run / "teacher", copy / "teacher")
        network, _ = load_network(run / "teacher")
        records = []
        for game in games:
            player = network.for_task(game.game) if network.games else network
            with closing(make_env(game.game, 10, preset=like.preset, training=False)) as env:
                records.append(
                    compare(
                        Player("teacher", player, player, {}), (), env,
                        episodes=like.episodes or 30, seed=like.seed,
                        device=torch.device("cpu"), epsilon=like.epsilon,
                    )
                )  # fmt: skip
        old = json.loads((run / "evaluation.json").read_text())
        costs = {key: old.get(key) for key in ("training_seconds", "updates")}
        write_evaluation(copy, together(records) | costs)
    return copy


def table_of(games: list[Results], contenders: list[Contender]) -> dict[str, Any]:
    """Of one set of games."""
    return {
        "games": [game.game for game in games],
        "preset": games[0].preset,
        "epsilon": games[0].epsilon,
        "episodes": games[0].episodes,
        "teachers": {game.game: asdict(game.teacher)["score"] for game in games},
        "players": [row_of(one, games) for one in contenders],
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


def facts_of(run: Path, games: list[Results]) -> dict[str, Any]:
    """A run's costs, and what it was."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    config = json.loads((run / "config.json").read_text())
    chosen = {key: value for key, value in config["config"].items() if key != "run_dir"}
    return {
        "name": run.name,
        "recipe": config["recipe"],
        "games": [game.game for game in games],
        "students": sum(len(player.names) for player in games[0].students),
        "updates": evaluation["updates"],
        "training_seconds": evaluation["training_seconds"],
        "config": chosen,
    }


def times(runs: list[Path], games: dict[Path, list[Results]]) -> list[dict[str, Any]]:
    """Training time of a run of several games over that of a run of each, as many students."""
    facts = {run: facts_of(run, games[run]) for run in runs}
    found = []
    for run in runs:
        own = facts[run]
        if own["recipe"] != "distill" or len(own["games"]) < 2:
            continue
        singles: dict[str, dict[str, Any]] = {}
        for other in facts.values():
            same = all(other[key] == own[key] for key in ("recipe", "students", "updates"))
            if same and len(other["games"]) == 1 and other["games"][0] in own["games"]:
                singles.setdefault(other["games"][0], other)
        if len(singles) == len(own["games"]):
            seconds = sum(single["training_seconds"] for single in singles.values())
            found.append(
                {
                    "run": own["name"],
                    "singles": [single["name"] for single in singles.values()],
                    "students": own["students"],
                    "seconds": own["training_seconds"],
                    "seconds_of_singles": seconds,
                    "ratio": own["training_seconds"] / seconds,
                }
            )
    return found


def render(result: dict[str, Any]) -> str:
    """The tables of docs/several_games.md."""
    where = result["machine"]
    lines = [
        f"From `benchmarks/results/several_games.json`, made on {where['cores']} cores of "
        f"{where['cpu']}, torch {where['torch']}. Brackets are 95% bootstrap intervals: seeds are "
        f"resampled, then their episodes. {result['note']}".rstrip(),
        "",
    ]
    for table in result["tables"]:
        lines += render_table(table)
    for time in result["time"]:
        lines += [
            f"Training of `{time['run']}` took {time['seconds']:,.0f} s, of "
            f"{', '.join(f'`{name}`' for name in time['singles'])} together "
            f"{time['seconds_of_singles']:,.0f} s, each with {time['students']} students and as "
            f"many updates: {time['ratio']:.2f} of the time.",
            "",
        ]
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
        found = player["together"] or dict.fromkeys(
            ("percent", "least_percent", "geometric_mean_percent")
        )
        least = found["least_percent"]
        cells = [player["label"], str(max(player["seeds"].values(), default=0))]
        cells += [cell(found["percent"], "%"), "-" if least is None else f"{least:.1f}%"]
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


def write_page(text: str) -> None:
    """Write the tables between the markers of docs/several_games.md."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def main() -> None:
    """Runs what is missing if asked, collects, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/several"))
    parser.add_argument("--run", action="store_true", help="first run what is missing")
    parser.add_argument("--updates", type=int, default=6000, help="of every student, with --run")
    parser.add_argument("--joint-steps", type=int, default=400_000, help="of joint_dqn")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--render", action="store_true", help="only write the page anew")
    arguments = parser.parse_args()
    if arguments.run:
        run_missing(arguments.folder, arguments.updates, arguments.joint_steps)
    if not arguments.render:
        result = {**collect(arguments.folder), "note": arguments.note}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_page(render(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
