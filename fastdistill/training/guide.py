# SPDX-License-Identifier: MIT
"""A teacher beside the reward: how much a learner still listens to it.

Source: Agarwal et al. 2022, Reincarnating Reinforcement Learning (QDagger).
"""

from __future__ import annotations

from typing import NamedTuple

from fastdistill.teachers import Teacher

SCHEDULES = ("return", "linear")

# A network this far below the best one, as a share of the best's points above random play, has
# collapsed.
COLLAPSED = 0.5

# The kind, in an evaluation, of a network that had a guide, which measures it.
GUIDED = "guided"


class GuideTerm(NamedTuple):
    """What an update adds to the TD loss: ``weight * KL(guide || network)``.

    Attributes:
        weight: Lambda.
        guide_temperature: Divides the guide's values.
        temperature: Divides the network's.
    """

    weight: float
    guide_temperature: float
    temperature: float


class Guide:
    """A frozen teacher, what it scores, and the weight of its term.

    Attributes:
        teacher: Labels every state when it is played.
        levels: Mean returns of random play and of the teacher; set before the first update.
    """

    def __init__(
        self, teacher: Teacher, *, weight: float, temperature: float, schedule: str, steps: int
    ) -> None:
        """Args:
        teacher: Of any kind and size, checked against the game.
        weight: Lambda at first.
        temperature: Divides the network's values, and the teacher's where they are Q-values, too;
            logits and log-probabilities are a policy as they are.
        schedule: ``"return"``: lambda falls with the learner's share of the teacher's score above
            random play, to 0 where it is reached. ``"linear"``: over ``steps``.
        steps: Agent steps after the first update.
        """  # noqa: D205
        self.teacher = teacher
        self.levels = (0.0, 0.0)
        self._weight = weight
        self._temperature = temperature
        self._schedule = schedule
        self._steps = steps

    @property
    def is_measured(self) -> bool:
        """Whether the levels are known."""
        return self.levels[1] > self.levels[0]

    def set_levels(self, random: float, level: float) -> None:
        """Take mean returns of random play and of the teacher.

        Raises:
            ValueError: The teacher is no better than random play: nothing to be guided by.
        """
        if not level > random:
            raise ValueError(
                f"teacher_dqn: guide must score more than random play, got {level:.6g}, and "
                f"{random:.6g} for random play"
            )
        self.levels = (random, level)

    def term(self, recent_return: float | None, steps: int) -> GuideTerm:
        """Of the next update.

        Args:
            recent_return: Mean of the learner's last episodes; None with too few.
            steps: Agent steps since the first update.
        """
        random, level = self.levels
        if self._schedule == "linear":
            left = 1 - steps / self._steps
        else:
            reached = random if recent_return is None else recent_return
            left = 1 - (reached - random) / (level - random)
        q_values = self.teacher.kind == "q_values"
        return GuideTerm(
            self._weight * min(max(left, 0.0), 1.0),
            self._temperature if q_values else 1.0,
            self._temperature,
        )

    def collapsed(self, score: float, best: float) -> bool:
        """Whether a network that scores ``score`` lost most of what the best one could do."""
        random = self.levels[0]
        return best > random and score - random < COLLAPSED * (best - random)
