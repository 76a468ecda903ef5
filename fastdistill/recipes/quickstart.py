# SPDX-License-Identifier: MIT
"""The demonstration: shipped teachers into a student of 7% of their size, in minutes."""

from __future__ import annotations

from pathlib import Path

from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.options import names
from fastdistill.teachers.teacher import zoo_names
from fastdistill.training.run import say

# Of one game: Pong has little to gain after them.
UPDATES = 6_000
# Of training, where there are several games; scoring and evaluation come on top.
MAX_SECONDS = 240.0


def quickstart_config(run_dir: Path, seed: int, games: str) -> DistillConfig:
    """What ``fastdistill quickstart`` does.

    Args:
        run_dir: Where everything is written.
        seed: Of everything.
        games: Of the zoo, with commas between. Several are learned by one network, for at most
            ``MAX_SECONDS``.

    Raises:
        ValueError: A game that has no shipped teacher, or is given twice.
    """
    asked = names(games)
    for game in asked:
        if game not in zoo_names():
            raise ValueError(
                f"quickstart: games must be of {', '.join(zoo_names())}, which have teachers "
                f"that ship, got {game!r}"
            )
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"quickstart: games must name each game once, got {games!r}")
    teacher = ",".join(f"zoo:{game}" for game in asked)
    if len(asked) == 1:
        return DistillConfig(
            run_dir=run_dir,
            seed=seed,
            teacher=teacher,
            total_updates=UPDATES,
            score_every_updates=UPDATES // 2,
        )
    number = len(asked)
    say(
        f"one network learns {', '.join(asked)} from {number} teachers: at most "
        f"{MAX_SECONDS / 60:.0f} minutes of training, then full games and a report"
    )
    return DistillConfig(
        run_dir=run_dir,
        seed=seed,
        teacher=teacher,
        temperature="auto",
        batch_size=32 * number,
        steps_per_update=4.0 * number,
        learning_starts_steps=2_000 * number,
        max_seconds=MAX_SECONDS,
        score_every_updates=5_000,
        score_episodes=3,
        evaluation_episodes=10,
    )


def set_aside(run_dir: Path) -> Path:
    """A finished run under another name."""
    number = 1
    while (kept := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    return run_dir.rename(kept)
