# SPDX-License-Identifier: MIT
"""Which network of a training is kept: the one rule for teachers and students.

Training returns come from a policy that moved meanwhile, and a loss says little of a game: only
full games choose. A network that seems the best was often only lucky in a few of them, and would
then keep better ones out. So it must win again, in twice as many other games, and these are its
score. Where the games cannot tell two students apart, their teacher does: in how many states it
would act as they do hardly depends on luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv, Policy
from fastdistill.evaluation import evaluate_env
from fastdistill.losses import distill_kl
from fastdistill.teachers import Teacher
from fastdistill.training.state import check_state

# Every so many steps of a scored game the teacher is asked about the states, too.
PROBE_EVERY_STEPS = 8

# What the state of ``Best`` is like, see ``check_state``.
_STATE = {"score": (None, 0.0), "error": 0.0, "agreement": (None, 0.0), "episodes": 0}

# Two scores that differ by fewer standard errors of their difference tell of no difference.
LUCK_ERRORS = 2.0


class Round(NamedTuple):
    """What full games say of a network.

    Attributes:
        score: Mean return.
        error: Its standard error; NaN of one game.
        agreement: With its teacher, where it has one that does not learn any more; see ``Probe``.
    """

    score: float
    error: float = 0.0
    agreement: float | None = None


# (episodes, seed) -> what they say; none of the games is one of an evaluation's.
Play = Callable[[int, int], Round]


class Best:
    """The best score of a network so far.

    Attributes:
        score: Mean return of the games that the best one won by; None before the first.
        error: Its standard error.
        agreement: Of the best one with its teacher in these games, see ``Round``.
        episodes: How many they were.
        latest: Mean return of the first round of the newest network, best or not.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.error = 0.0
        self.agreement: float | None = None
        self.episodes = 0
        self.latest: float | None = None

    def wins(self, play: Play, *, episodes: int, seed: int) -> bool:
        """Whether a network is better than every one before; ties go to the later one.

        It is if it plays better, twice, or if it agrees with the teacher more and the games do not
        show that it plays worse.

        Args:
            play: Plays with it; called once, and once more if it wins by its score. The first
                network of all has nobody to win against, and plays the second round alone.
            episodes: Of the first round; the second has twice as many.
            seed: Of the run.
        """
        found, played = Round(0.0), 0
        for game_round in (1, 2) if self.score is not None else (2,):
            played = game_round * episodes
            found = play(played, game_round * streams.SCORING + seed)
            self.latest = found.score if game_round == 1 else self.latest
            if self.score is None or self._agrees_more(found):
                break
            if found.score < self.score:
                return False
        (self.score, self.error, self.agreement), self.episodes = found, played
        return True

    def _agrees_more(self, found: Round) -> bool:
        """Whether a network agrees with its teacher more, and plays no worse but by luck."""
        if self.score is None or found.agreement is None or self.agreement is None:
            return False
        if found.agreement <= self.agreement:
            return False
        luck = LUCK_ERRORS * math.hypot(found.error, self.error)
        return found.score >= self.score - luck  # not of one game, whose error is NaN

    def state(self) -> list[float | int | None]:
        """To continue from, as plain JSON types."""
        return [self.score, self.error, self.agreement, self.episodes]

    def restore(self, state: list[Any]) -> None:
        """The reverse of ``state``."""
        check_state(state, [], "best")
        check_state(dict(zip(_STATE, state, strict=False)), _STATE, "best")
        self.score, self.error, self.agreement, self.episodes = state


class Probe:
    """A student at play, and a teacher that is asked about the states it visits.

    Agreement and KL are measured there, where the student will have to act. The KL is that of the
    sharpened teacher to the student, whatever the student learned by.
    """

    def __init__(self, student: Policy, teacher: Teacher, temperature: float, env: LaneEnv) -> None:
        """Args:
        student: Plays.
        teacher: Is asked.
        temperature: Sharpens the teacher.
        env: Where they are.
        """  # noqa: D205
        self._student = student
        self._teacher = teacher
        self._env = env
        self._temperature = temperature
        self._steps = 0
        self._agreements: list[float] = []
        self._divergences: list[float] = []

    def __call__(self, obs: Tensor) -> Tensor:
        """The student's values."""
        logits = self._student(obs)
        if self._steps % PROBE_EVERY_STEPS == 0:
            labels = self._teacher.values(torch.from_numpy(self._env.teacher_obs))
            same = logits.argmax(1) == labels.argmax(1)
            self._agreements.append(float(same.float().mean()))
            kl = distill_kl(logits, labels, temperature=self._temperature)
            self._divergences.append(float(kl))
        self._steps += 1
        return logits

    @property
    def agreement(self) -> float:
        """Share of states where its greedy action is the teacher's."""
        return float(np.mean(self._agreements))

    @property
    def kl(self) -> float:
        """Mean KL of the sharpened teacher to it, nats."""
        return float(np.mean(self._divergences))


def mean_return(
    policy: Policy,
    env: LaneEnv,
    device: torch.device,
    *,
    episodes: int,
    seed: int,
    epsilon: float | None = None,
    as_teacher: bool = False,
) -> float:
    """Of full games in an environment made with ``training=False``."""
    return evaluate_env(
        policy,
        env,
        episodes=episodes,
        epsilon=epsilon,
        seed=seed,
        device=device,
        as_teacher=as_teacher,
    ).mean
