# SPDX-License-Identifier: MIT
"""The paper's two tables for a teacher of the zoo: same-size students by loss, and compression.

Each table is one distillation with all its students side by side. Run directories are kept, and
continued if interrupted. Results go to benchmarks/results/distill_GAME.json, from which the game's
section of docs/results.md is written, between its markers; the rest of the page is written by hand.

    python benchmarks/distill_tables.py --game pong --run-dir runs/tables
    python benchmarks/distill_tables.py --game pong,freeway --ray
    python benchmarks/distill_tables.py --game pong --render
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pages

from fastdistill.evaluation.statistics import seeds_percent, seeds_score
from fastdistill.networks.checkpoint import read_card
from fastdistill.recipes.distill import train
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.training.metrics import read_jsonl
from fastdistill.training.ray_cluster import spread

HERE = Path(__file__).parent
TABLES = {
    "losses": {"loss": "kl,nll,mse", "student": "100%"},
    "compression": {"loss": "kl", "student": "100%,25%,7%,4%"},
}
# Rusu et al. 2015, table 1 (human starts): DQN, then same-size students, whose scores are recalled
# (docs/deviations.md); and, over ten games, the geometric mean of the students' share of the
# teacher's score, by size.
PAPER_LOSSES = {
    "breakout": {"teacher": 303.9, "mse": 102.9, "nll": 235.9, "kl": 287.8},
    "freeway": {"teacher": 25.8, "mse": 25.7, "nll": 26.2, "kl": 26.7},
    "pong": {"teacher": 16.2, "mse": 15.3, "nll": 15.4, "kl": 16.3},
    "qbert": {"teacher": 4589.8, "mse": 5607.3, "nll": 6773.5, "kl": 7112.8},
}
PAPER_COMPRESSION = {"25%": 108.3, "7%": 101.7, "4%": 83.9}


def run_table(name: str, game: str, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Distil all students of a table and collect what was measured."""
    config = DistillConfig(
        run_dir=run_dir / f"{game}_{name}", teacher=f"zoo:{game}", **TABLES[name], **options
    )
    evaluation_file = config.run_dir / "evaluation.json"
    if not evaluation_file.exists():
        result = train(config, resume=(config.run_dir / "config.json").exists())
        if result.stopped:
            raise SystemExit("stopped; the same command continues")
    evaluation = json.loads(evaluation_file.read_text())
    del evaluation["commands"]  # it names the directory; `command`, below, does not
    records = read_jsonl(config.run_dir / "metrics.jsonl")
    for student in evaluation["students"]:
        start = f"students/{student['name']}/"
        saved = read_card(config.run_dir / "students" / student["name"])["trained_steps"]
        best = next(r for r in records if r["step"] == saved and f"{start}score" in r)
        student["agreement"], student["kl"] = best[f"{start}agreement"], best[f"{start}kl"]
        student["best_after_seconds"] = best["time/training_seconds"]
    flags = [f"--{key.replace('_', '-')} {value}" for key, value in options.items()]
    flags = [f"--{key} {value}" for key, value in TABLES[name].items()] + flags
    evaluation["command"] = f"fastdistill distill --teacher zoo:{game} {' '.join(flags)}"
    return evaluation


def groups_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per loss and size, over its seeds."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for student in table["students"]:
        rows.setdefault((student["kind"], student["size"]), []).append(student)
    random, teacher = table["random_score"], table["teacher"]["returns"]
    out = []
    for (loss, size), students in rows.items():
        returns = [student["returns"] for student in students]
        means = [float(np.mean(one)) for one in returns]
        out.append(
            {
                "loss": loss,
                "size": size,
                "seeds": len(students),
                "parameters": students[0]["parameters"],
                "flops": students[0]["flops"],
                "mean": seeds_score(returns),
                "share": seeds_percent(returns, teacher, random),
                "seed_means": sorted(means),
                "agreement": float(np.mean([student["agreement"] for student in students])),
                "kl": float(np.mean([student["kl"] for student in students])),
            }
        )
    return out


def render(game: str, result: dict[str, Any]) -> str:
    """The game's section of docs/results.md."""
    losses, compression = result["losses"], result["compression"]
    teacher = losses["teacher"]["summary"]["mean"]
    where = result["machine"]
    seeds = groups_of(losses)[0]["seeds"]
    lines = [
        f"## {game.capitalize()}",
        "",
        f"`benchmarks/results/distill_{game}.json`, made by `python benchmarks/distill_tables.py "
        f"--game {game}{_flags(seeds, losses['updates'])}` on {where['cores']} cores of "
        f"{where['cpu']}, torch {where['torch']}. "
        f"Preset {losses['preset']}, epsilon {losses['epsilon']}, {losses['episodes']} full "
        "episodes per student, none of which chose a checkpoint. The teacher scores "
        f"{teacher['value']:.2f} [{teacher['low']:.2f}, {teacher['high']:.2f}]. "
        f"Brackets are 95% bootstrap intervals over episodes{_about_seeds(seeds)}. "
        + result["note"],
        "",
        f"### Same-size students by loss ({losses['updates']:,} updates, "
        f"{losses['training_seconds'] / 60:.0f} minutes for all {len(losses['students'])})",
        "",
        "| loss | mean score | seeds' means | share of the teacher above random | agreement | KL | "
        "paper, recalled: score (DQN " + f"{PAPER_LOSSES.get(game, {}).get('teacher', '-')}) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in groups_of(losses):
        paper = PAPER_LOSSES.get(game, {}).get(row["loss"], "-")
        lines.append(f"| {row['loss']} | {_cells(row)} | {paper} |")
    lines += [
        "",
        f"### Compression with kl ({compression['updates']:,} updates, "
        f"{compression['training_seconds'] / 60:.0f} minutes for all "
        f"{len(compression['students'])})",
        "",
        "| student | parameters | MFLOP | mean score | seeds' means | share of the teacher above "
        "random | agreement | KL | paper: share of DQN, ten games |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in groups_of(compression):
        paper = PAPER_COMPRESSION.get(row["size"])
        lines.append(
            f"| {row['size']} | {row['parameters']:,} | {row['flops'] / 1e6:.1f} | {_cells(row)} | "
            f"{f'{paper}%' if paper else '-'} |"
        )
    return "\n".join([*lines, ""])


def _flags(seeds: int, updates: int) -> str:
    return (f" --seeds {seeds}" if seeds != 3 else "") + (
        f" --updates {updates}" if updates != DistillConfig.total_updates else ""
    )


def _about_seeds(seeds: int) -> str:
    if seeds == 1:
        return " of the one seed: how much seeds differ was not measured"
    return (
        f" and seeds, both resampled; {seeds} seeds are few, so their means stand beside them. "
        "Seeds differ in their first weights; they share the stream of play and the batches"
    )


def _cells(row: dict[str, Any]) -> str:
    mean, share = row["mean"], row["share"]
    seeds = ", ".join(f"{value:.1f}" for value in row["seed_means"])
    return (
        f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}] | {seeds} | "
        f"{share.value:.1f}% [{share.low:.1f}, {share.high:.1f}] | {row['agreement']:.2f} | "
        f"{row['kl']:.3f}"
    )


def write_page() -> None:
    """Write every game's results between the markers of docs/results.md."""
    sections = [
        render(path.stem.removeprefix("distill_"), json.loads(path.read_text()))
        for path in sorted((HERE / "results").glob("distill_*.json"))
        if "losses" in json.loads(path.read_text())
    ]
    pages.write_part("docs/results.md", "distill_tables.py", "\n".join(sections))


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--game", default="pong", help="one or several, with commas between")
    parser.add_argument("--ray", action="store_true", help="each table of each game a task of Ray")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/tables"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=DistillConfig.total_updates)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--render", action="store_true", help="only write docs/results.md anew")
    arguments = parser.parse_args()
    if not arguments.render:
        games = arguments.game.split(",")
        calls = [
            {
                "name": name, "game": game, "run_dir": arguments.run_dir.absolute(),
                "seeds": arguments.seeds, "total_updates": arguments.updates,
            }
            for game in games
            for name in TABLES
        ]  # fmt: skip
        # A task of Ray's is a whole run: its students share their play.
        tables = spread(run_table, calls) if arguments.ray else [run_table(**c) for c in calls]
        for game in games:
            result: dict[str, Any] = {
                "benchmark": "distill_tables",
                "note": arguments.note,
                "machine": machine.describe(),
            }
            for call, table in zip(calls, tables, strict=True):
                if call["game"] == game:
                    result[call["name"]] = table
            path = HERE / "results" / f"distill_{game}.json"
            path.write_text(json.dumps(result, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
