# SPDX-License-Identifier: MIT
"""Is this teacher asked about the observations that it was trained on? Play and see.

A teacher from elsewhere under another preset, frame order or wrapper does not fail: it plays
badly, and a student learns that. Its score beside the one reported for it, beside random play and
beside the other presets says which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdistill.envs import PRESETS, EnvSource, Policy, ViewSource
from fastdistill.evaluation.play import Evaluation, evaluate, of_game
from fastdistill.evaluation.statistics import Interval, bootstrap_interval
from fastdistill.teachers import Teacher

# Of the way from random play to the reported score; below it a teacher has not been understood.
_LIKE_RANDOM = 0.1
# Of all states; a policy that does one thing is seldom a trained one.
_ONE_ACTION = 0.98


@dataclass(frozen=True)
class Verification:
    """What playing a teacher showed.

    Attributes:
        env: Game or environment id.
        preset: That was asked about; empty for environments without presets.
        score: Mean return of the teacher with its 95% interval.
        random: Of random play in as many episodes.
        reported: Interval that was reported; None if none was.
        agrees: Whether score and report overlap; None without a report.
        scores: Of each preset that was played.
        action_shares: How often each action was the greedy one.
        verdict: All this in words, and what to do.
    """

    env: str
    preset: str
    score: Interval
    random: Interval
    reported: tuple[float, float] | None
    agrees: bool | None
    scores: dict[str, Interval]
    action_shares: tuple[float, ...]
    verdict: str


def verify_teacher(
    teacher: Policy,
    env: EnvSource,
    reported: float | Sequence[float] | None = None,
    *,
    episodes: int = 30,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    num_lanes: int = 10,
    device: torch.device | str = "cpu",
    view: ViewSource | None = None,
) -> Verification:
    """Play full episodes and say whether preset or wrappers are likely wrong.

    Where the score falls short of the report, the other presets are played too. That can take
    minutes: a teacher that waits for a FIRE that nobody presses plays until the time limit.

    Args:
        teacher: Observations to action values or logits: a ``Teacher``, or a module.
        env: Game, gymnasium id, or an environment of yours (see ``evaluate``).
        reported: The mean score that its author names, or ``(low, high)``; of raw rewards and
            whole games. A single number is taken to be 5% uncertain.
        episodes: How many, of the teacher under each preset and of random play.
        preset: Of ``fastdistill.envs.PRESETS``.
        epsilon: Share of random actions; the preset's own by default.
        seed: Of resets and random actions.
        num_lanes: Lanes played at once.
        device: Where the teacher runs.
        view: What it sees, see ``evaluate``.

    Raises:
        ValueError: ``reported`` is no finite number or interval, or the teacher's values are not
            finite or do not fit the environment.
    """
    interval = _reported_interval(reported)

    def play(policy: Policy, preset: str, epsilon: float | None) -> Evaluation:
        return evaluate(
            policy,
            env,
            episodes=episodes,
            preset=preset,
            epsilon=epsilon,
            seed=seed,
            num_lanes=num_lanes,
            device=device,
            view=view,
        )

    if view is None and isinstance(teacher, Teacher):
        view = teacher.view
    if isinstance(env, str):
        teacher = of_game(teacher, env)
    counted = _Counted(teacher)
    played = play(counted, preset, epsilon)
    shares = counted.shares()
    random = _mean(play(_indifferent(len(shares)), preset, 1.0))
    scores = {played.preset: _mean(played)}
    score = scores[played.preset]
    agrees = None if interval is None else _overlaps(score, interval)
    falls_short = interval is not None and not agrees and score.value < interval[0]
    if played.preset and falls_short:
        for other in sorted(set(PRESETS) - {preset}):
            scores[other] = _mean(play(teacher, other, epsilon))
    return Verification(
        env=played.env,
        preset=played.preset,
        score=score,
        random=random,
        reported=interval,
        agrees=agrees,
        scores=scores,
        action_shares=shares,
        verdict=_verdict(played, scores, random, interval, shares),
    )


class _Counted(nn.Module):
    """A policy that remembers how often each action was its best, and refuses NaN."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)

    def forward(self, obs: Tensor) -> Tensor:
        values = self._policy(obs)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"verify_teacher: teacher must return finite values, got {values.tolist()}"
            )
        best = values.argmax(dim=1).cpu().numpy()
        counts = np.bincount(best, minlength=values.shape[1])
        self._counts = counts + (self._counts if self._counts.size else 0)
        return values

    def shares(self) -> tuple[float, ...]:
        return tuple((self._counts / self._counts.sum()).tolist())


def _indifferent(num_actions: int) -> Policy:
    return lambda obs: torch.zeros(len(obs), num_actions, device=obs.device)


def _mean(played: Evaluation) -> Interval:
    return bootstrap_interval([played.returns])


def _reported_interval(reported: float | Sequence[float] | None) -> tuple[float, float] | None:
    if reported is None:
        return None
    ends = [float(end) for end in (reported if isinstance(reported, Sequence) else [reported])]
    if len(ends) not in (1, 2) or not np.isfinite(ends).all() or ends[0] > ends[-1]:
        raise ValueError(
            f"verify_teacher: reported must be a score or (low, high), got {reported!r}"
        )
    margin = 0.05 * abs(ends[0]) if len(ends) == 1 else 0.0
    return ends[0] - margin, ends[-1] + margin


def _overlaps(score: Interval, reported: tuple[float, float]) -> bool:
    return score.low <= reported[1] and reported[0] <= score.high


def _verdict(
    played: Evaluation,
    scores: dict[str, Interval],
    random: Interval,
    reported: tuple[float, float] | None,
    shares: tuple[float, ...],
) -> str:
    under = f" under preset {played.preset!r}" if played.preset else ""
    said = [
        f"{played.env}{under}: {_words(scores[played.preset])} in {len(played.returns)} episodes "
        f"at epsilon {played.epsilon}; random play {_words(random)}.",
        _unmeasured(scores[played.preset], random)
        if reported is None
        else _compared(played.preset, scores, random, reported),
    ]
    if max(shares) > _ONE_ACTION and len(shares) > 1:
        action = int(np.argmax(shares))
        said.append(
            f"Action {action} is the best in {100 * shares[action]:.0f}% of its states: it may be "
            "shown a constant, as float images cast to uint8 are."
        )
    return " ".join(said)


_LIKELY_WRONG = (
    "Likely wrong: the set or order of actions (minimal or all 18), the order or number of stacked "
    "planes, scaling by 255 twice or never, missing VecNormalize statistics, or another game."
)


def _unmeasured(score: Interval, random: Interval) -> str:
    if score.low <= random.high:
        return f"No better than random play: this teacher is not understood. {_LIKELY_WRONG}"
    return "Better than random play; give the reported score to know more."


def _compared(
    preset: str,
    scores: dict[str, Interval],
    random: Interval,
    reported: tuple[float, float],
) -> str:
    """The score beside the report, and what a difference is likely to come from."""
    score, report = scores[preset], f"the reported [{reported[0]:.2f}, {reported[1]:.2f}]"
    fitting = [name for name, other in scores.items() if _overlaps(other, reported)]
    if preset in fitting:
        return f"Agrees with {report}."
    if fitting:
        there = _words(scores[fitting[0]])
        return f"Preset {fitting[0]!r} is the right one: {there} there agrees with {report}."
    if score.value > reported[1]:
        return (
            f"More than {report}: that may count clipped rewards, single lives, sticky actions or "
            "more random actions. Nothing speaks against this teacher."
        )
    if score.value < random.value + _LIKE_RANDOM * (reported[0] - random.value):
        return f"Like random play, far from {report}. {_LIKELY_WRONG}"
    return (
        f"Less than {report}{_others(scores, preset)}: it knows the game; some setting differs: "
        "frame skip, sticky actions, how screens are made small, the order of stacked frames, or "
        "it needs sampled actions where the best is taken."
    )


def _others(scores: dict[str, Interval], preset: str) -> str:
    others = [f"{_words(score)} under {name!r}" for name, score in scores.items() if name != preset]
    return f" (and {', '.join(others)})" if others else ""


def _words(score: Interval) -> str:
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
