# SPDX-License-Identifier: MIT
"""A game to be mastered: its environment, its teacher, and what is its own in a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdistill.envs import EnvSource, EnvSpec, ViewSource
from fastdistill.evaluation.play import Evaluation
from fastdistill.evaluation.recorded import recorded_evaluation
from fastdistill.teachers import Teacher


@dataclass(eq=False)
class Task:
    """A game to be mastered.

    Attributes:
        spec: Its environment, as students see it.
        teacher: Labels what is seen in it.
        temperature: Sharpens the teacher; 0 until an automatic one is fitted.
        weight: Its share of a batch, relative to the other tasks'.
        levels: Mean returns of random play and of the teacher, once they are known; only asked for
            where there are several games, whose scores have to be put together.
        source: What its environments are made of; None for the name.
        student_view: What students see of their observations; None for all.
    """

    spec: EnvSpec
    teacher: Teacher
    temperature: float
    weight: float = 1.0
    levels: tuple[float, float] | None = None
    source: EnvSource | None = None
    student_view: ViewSource | None = None

    @property
    def name(self) -> str:
        """Unique among the tasks of a run."""
        return self.spec.name

    def recorded_level(self, episodes: int, epsilon: float | None = None) -> Evaluation | None:
        """The teacher's evaluation that its card has on record, see ``recorded_evaluation``.

        None where it sees the game through another view than it was recorded with.
        """
        teacher = self.teacher
        if teacher.view != teacher.card.get("view"):
            return None
        return recorded_evaluation(teacher.card, self.spec, episodes=episodes, epsilon=epsilon)

    def share_of_teacher(self, score: float) -> float:
        """Percent of the teacher's score above random play.

        Where the teacher is no better than that, the points above random play instead: there is
        nothing to be a share of.
        """
        assert self.levels is not None
        random, teacher = self.levels
        return 100 * (score - random) / (teacher - random) if teacher > random else score - random


def check_games(function: str, specs: Sequence[EnvSpec]) -> None:
    """Refuse, in words, games that no one network can learn together.

    Args:
        function: Named in the refusal.
        specs: Of the games.

    Raises:
        ValueError: Two of one name, or of different observation shapes.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"{function}: game must not repeat, got {', '.join(names)}")
    first = specs[0]
    for spec in specs[1:]:
        if (spec.obs_shape, spec.stack) != (first.obs_shape, first.stack):
            raise ValueError(
                f"{function}: games must have observations of one shape, got "
                f"{list(first.obs_shape)} of {first.name} and {list(spec.obs_shape)} of {spec.name}"
            )
