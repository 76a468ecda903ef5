# SPDX-License-Identifier: MIT
"""Exported networks at play: the same games in torch, in onnxruntime and from a pt2 file.

Of each network and format: the largest difference and the equal actions on 1,000 played frames, in
this process and in one that has no fastdistill; and the score of the same full games. Results go
to benchmarks/results/export_scores.json, and the table of docs/export.md is written from there.

    fastdistill quickstart                             # the 7% student, runs/quickstart
    python benchmarks/export_scores.py                 # one thread; minutes
    python benchmarks/export_scores.py --render
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import pages
import torch
from torch import Tensor

import fastdistill as fd
from fastdistill.evaluation.statistics import summarize

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "export_scores.json"
FRAMES = 1_000

# A process that cannot import fastdistill answers with what the file says of frames.
ALONE = """
import sys
sys.modules["fastdistill"] = None
import torch
path, frames, answer = sys.argv[1:]
obs = torch.load(frames, weights_only=True)
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    run = lambda part: torch.from_numpy(session.run(None, {"obs": part.numpy()})[0])
else:
    run = torch.export.load(path).module()
with torch.inference_mode():
    torch.save(torch.cat([run(part) for part in torch.split(obs, 100)]), answer)
"""


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """Runs an exported file."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
        return lambda obs: torch.from_numpy(session.run(None, {"obs": obs.numpy()})[0])
    return torch.export.load(path).module()


class Seen:
    """A policy that keeps the frames it was shown, up to a number of them."""

    def __init__(self, policy: Callable[[Tensor], Tensor]) -> None:
        self._policy = policy
        self._parts: list[Tensor] = []

    def __call__(self, obs: Tensor) -> Tensor:
        """Its values."""
        if sum(map(len, self._parts)) < FRAMES:
            self._parts.append(obs.clone())
        return self._policy(obs)

    def frames(self) -> Tensor:
        """[FRAMES, *obs_shape]."""
        return torch.cat(self._parts)[:FRAMES]


def compared(network: Any, game: str, episodes: int, folder: Path) -> dict[str, Any]:
    """Plays and exports a checkpoint."""
    teacher = fd.load_teacher(network, game)
    seen = Seen(teacher)
    played = fd.evaluate(seen, game, episodes=episodes, num_lanes=episodes)
    torch.save(seen.frames(), folder / "frames.pt")
    expected = teacher.values(seen.frames())
    row: dict[str, Any] = {
        "game": game,
        "parameters": fd.export(network, folder / "a.pt2", "pt2", game=game, frames=1).metadata[
            "parameters"
        ],
        "episodes": episodes,
        "frames": FRAMES,
        "torch": asdict(summarize(played.returns, game).mean),
    }
    for format in ("onnx", "pt2"):
        path = folder / f"network.{format}"
        record = fd.export(network, path, format, game=game, frames=FRAMES)
        command = [sys.executable, "-W", "ignore", "-c", ALONE, str(path)]
        subprocess.run([*command, str(folder / "frames.pt"), str(folder / "values.pt")], check=True)
        alone = torch.load(folder / "values.pt", weights_only=True)
        score = fd.evaluate(opened(path), game, episodes=episodes, num_lanes=episodes)
        row[format] = {
            "score": asdict(summarize(score.returns, game).mean),
            "same_games": sum(a == b for a, b in zip(score.returns, played.returns, strict=True)),
            "max_difference": record.max_difference,
            "equal_actions": record.equal_actions,
            "alone_max_difference": float((alone - expected).abs().max()),
            "alone_equal_actions": int((alone.argmax(1) == expected.argmax(1)).sum()),
            "latency_seconds": record.latency_seconds,
            "size_bytes": record.size_bytes,
        }
    return row


def two_games(folder: Path, updates: int) -> Path:
    """A short multi-task student of Pong and Freeway: it need not be good to be the same."""
    result = fd.distill(
        {"pong": "zoo:pong", "freeway": "zoo:freeway"}, student="multi", run_dir=folder / "two",
        total_updates=updates, learning_starts_steps=1_000, num_lanes=8, score_episodes=0,
        evaluation_episodes=0, tensorboard=False, checkpoint_every_updates=100_000,
    )  # fmt: skip
    return next(iter(result.students.values()))


def measure(student: str, episodes: int, updates: int) -> None:
    found: dict[str, Any] = {"command": "python benchmarks/export_scores.py", "rows": {}}

    def add(label: str, network: Any, game: str) -> None:
        found["rows"][f"{label}, {game}"] = compared(network, game, episodes, folder)
        found["machine"] = machine.describe()
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        print(label, game, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add("7%, a student", student, "pong")
        add("100%, the shipped teacher", "zoo:pong", "pong")
        multi = two_games(folder, updates)
        for game in ("pong", "freeway"):
            add(f"multi-task, {updates} updates", multi, game)


def render() -> None:
    """The table in the page, from the result file."""
    found = json.loads(RESULTS.read_text())
    lines = [
        "| network | torch | onnxruntime | pt2 | games with the very same score | equal actions of "
        "1,000 (onnx, pt2) | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        onnx, pt2 = row["onnx"], row["pt2"]
        same = f"{onnx['same_games']} and {pt2['same_games']} of {row['episodes']}"
        equal = f"{onnx['alone_equal_actions']:,}, {pt2['alone_equal_actions']:,}"
        largest = max(part["alone_max_difference"] for part in (onnx, pt2))
        lines.append(
            f"| {name} | {_score(row['torch'])} | {_score(onnx['score'])} | "
            f"{_score(pt2['score'])} | {same} | {equal} | {largest:.1g} |"
        )
    pages.write_part("docs/export.md", "export_scores.py", "\n".join([*lines, ""]))


def _score(mean: dict[str, float]) -> str:
    return f"{mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", default="runs/quickstart/student", help="a 7%% Pong student")
    parser.add_argument("--episodes", type=int, default=10, help="full games of each")
    parser.add_argument("--updates", type=int, default=60, help="of the multi-task student")
    parser.add_argument("--render", action="store_true", help="write the page's table and no more")
    arguments = parser.parse_args()
    if not arguments.render:
        torch.set_num_threads(1)
        measure(arguments.student, arguments.episodes, arguments.updates)
    render()


if __name__ == "__main__":
    main()
