# SPDX-License-Identifier: MIT
"""The ``fastdistill`` command: one function per subcommand, its docstring is the help.

The only module that imports tyro. A subcommand prepares arguments and prints results; whatever
can be called from Python lives elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdistill.checkpoints import CheckpointError, read_card
from fastdistill.envs import make_env
from fastdistill.evaluation import evaluate_env, record_gif
from fastdistill.statistics import summarize
from fastdistill.teachers import checkpoint_path, load_teacher


def evaluate(
    checkpoint: str,
    /,
    game: str | None = None,
    episodes: int = 30,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    lanes: int = 10,
    device: str = "cpu",
    gif: Path | None = None,
    out: Path | None = None,
) -> None:
    """Play full episodes with a checkpoint and print its score.

    Args:
        checkpoint: Path of a checkpoint (description or directory), or zoo:NAME.
        game: Game or gymnasium id; the checkpoint's own by default.
        episodes: Full episodes to play, spread over the lanes beforehand.
        preset: classic (no sticky actions, no-op starts) or machado (sticky actions).
        epsilon: Share of random actions; by default 0.05 (classic) or 0.001 (machado).
        seed: Of resets and random actions.
        lanes: Games played at once.
        device: Where the network runs.
        gif: Also record one episode there.
        out: Also write the record there, as JSON.
    """
    name = game or read_card(checkpoint_path(checkpoint)).get("game")
    if not name:
        raise ValueError("evaluate: game must be given, the checkpoint does not name one")
    env = make_env(name, max(1, min(lanes, episodes)), preset=preset, training=False)
    try:
        teacher = load_teacher(checkpoint, env, device=device)
        record = evaluate_env(
            teacher, env, episodes=episodes, epsilon=epsilon, seed=seed, device=device
        )
    finally:
        env.close()
    summary = summarize(record.returns, name)
    print(f"{name}: {record.preset or 'as registered'}, epsilon {record.epsilon}, seed {seed}")
    print(f"  episodes  {summary.episodes} ({record.truncated} cut by the time limit)")
    for label, part in (("mean", summary.mean), ("IQM", summary.iqm)):
        print(f"  {label:9} {part.value:.2f}  95% [{part.low:.2f}, {part.high:.2f}]")
    print(
        f"  median    {summary.median:.2f}   range {summary.minimum:.2f} to {summary.maximum:.2f}"
    )
    if summary.human_normalized is not None:
        print(f"  human-normalised {summary.human_normalized:.3f} (0 random, 1 human)")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"checkpoint": checkpoint, **record.to_json(), "summary": asdict(summary)}
        out.write_text(json.dumps(result, indent=2) + "\n")
    if gif is not None:
        score = record_gif(
            teacher, name, gif, preset=preset, epsilon=epsilon, seed=seed, device=device
        )
        print(f"  {gif}: an episode of {score:.0f}")


COMMANDS: dict[str, Callable[..., None]] = {"evaluate": evaluate}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; mistakes of the user's end in one line and exit status 2."""
    try:
        import tyro
    except ImportError:
        print("fastdistill: the command line needs tyro: pip install 'tyro>=1.0'", file=sys.stderr)
        return 2
    commands: dict[str, Callable[..., Any]] = dict(COMMANDS)
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="fastdistill", description=__doc__, args=arguments
        )
    except (CheckpointError, ValueError, ImportError, FileNotFoundError) as error:
        print(f"fastdistill: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
