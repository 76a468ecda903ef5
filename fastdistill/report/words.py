# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001 (typographic apostrophes and signs: this text is read by people)
"""The report's sentences and numbers: what a figure found, and how much of what.

Plain text; the page escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastdistill.report.results import GOOD_PERCENT, Curve, Player, Results, headline_student

NOT_MEASURED = "not measured"


def episodes_of_each(games: Sequence[Results], each: str) -> str:
    """How many episodes were played; a teacher's record may have more of them."""
    asked = games[0].episodes
    teachers = sorted({len(game.teacher.episodes) for game in games if game.teacher_on_record})
    if all(count == asked for count in teachers):
        return f"{asked} full episodes {each}"
    counts = " or ".join(map(str, teachers))
    return f"{asked} full episodes {each}, {counts} of a teacher on record"


@dataclass(frozen=True)
class Unit:
    """Of training time or of agent steps: its name, how much one is, what an axis of it says."""

    name: str
    amount: float
    axis: str

    @classmethod
    def fitting(cls, longest: float, by: str) -> Unit:
        """The unit for what reaches that far, in what ``Results.by`` says."""
        if by == "steps":
            for least, name, amount in ((3e6, "millions", 1e6), (3e3, "thousands", 1e3)):
                if longest > least:
                    return cls(name, amount, f"agent steps, {name}")
            return cls("agent steps", 1.0, "agent steps")
        for least, name, amount in ((3 * 3600, "hours", 3600.0), (300, "minutes", 60.0)):
            if longest > least:
                return cls(name, amount, f"training time, {name}")
        return cls("seconds", 1.0, "training time, seconds")

    @classmethod
    def of(cls, curves: Iterable[Curve], by: str) -> Unit:
        """The unit for an axis of all these."""
        return cls.fitting(max((float(curve.at[-1]) for curve in curves), default=0.0), by)


def number(value: float) -> str:
    """A score: one decimal below 1,000, none above."""
    return _with_minus(f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}")


def _median(scores: Sequence[float]) -> str:
    return _with_minus(f"{float(np.median(scores)):,.1f}".removesuffix(".0"))


def _with_minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}") if text.strip("-0.,%") else text.lstrip("-")


def percent(value: float) -> str:
    """A share: one decimal below 10%, none above."""
    text = f"{value:.1f}%" if abs(value) < 9.95 and value != round(value) else f"{value:.0f}%"
    return _with_minus(text)


def duration(seconds: float) -> str:
    """A length of time in words, in the unit that an axis up to it would have."""
    unit = Unit.fitting(seconds, "seconds")
    amount = seconds / unit.amount
    return f"{amount:.{0 if amount >= 10 else 1}f} {unit.name}"


def game_title(game: str) -> str:
    """``ms_pacman`` as Ms Pacman; gymnasium ids as they are."""
    return game if "-v" in game else game.replace("_", " ").title()


def subject(results: Results, player: Player) -> str:
    """What a sentence calls a student: the only one needs no label."""
    return "the student" if len(results.students) == 1 else player.label


def headline(results: Results) -> str:
    """The finding of the run in one sentence."""
    game, student = game_title(results.game), headline_student(results)
    if student is None:
        return f"No student of the {game} teacher yet"
    who = "A student"
    if len(results.students) > 1:
        who = f"The {student.label} student"
    if student.parameters is not None:
        who += f" with {student.parameters:,.0f} parameters"
        if results.teacher.parameters:
            share = 100 * student.parameters / results.teacher.parameters
            who += f", {percent(share)} of the teacher’s,"
    if student.percent is None:
        return f"{who} learned {game}; its level was not measured"
    return f"{who} plays {game} at {percent(student.percent.value)} of its level"


def choice(results: Results) -> str:
    """Why the headline is about that student; empty where there is only one."""
    student = headline_student(results)
    if student is None or student.percent is None or len(results.students) < 2:
        return ""
    sizes = {player.parameters for player in results.students}
    if student.percent.value >= GOOD_PERCENT and len(sizes) > 1:
        return (
            f"It is the smallest of {len(results.students)} kinds of student to reach "
            f"{GOOD_PERCENT:.0f}% of the teacher’s level."
        )
    return f"It is the best of {len(results.students)} kinds of student."


def score_title(results: Results) -> str:
    """When students reach the teacher's interval."""
    level = results.teacher.score
    curves = {p.label: (p, p.curves["score"]) for p in results.students if "score" in p.curves}
    if not curves:
        return "The score while training was not measured"
    if level is None:
        return "The score while training; the teacher’s was not measured"
    reached = {
        label: float(curve.at[np.argmax(curve.mean >= level.low)])
        for label, (_, curve) in curves.items()
        if (curve.mean >= level.low).any()
    }
    if not reached:
        player, curve = max(curves.values(), key=lambda pair: float(pair[1].mean.max()))
        most = number(float(curve.mean.max()))
        return (
            f"While training, {subject(results, player)} scores at most {most}, "
            f"the teacher {number(level.value)}"
        )
    first = min(reached, key=lambda label: reached[label])
    at = reached[first]
    after = f"{at:,.0f} agent steps" if results.by == "steps" else duration(at)
    if len(curves) == 1:
        return f"The student comes within the teacher’s interval after {after}"
    return (
        f"{len(reached)} of {len(curves)} kinds of student come within the "
        f"teacher’s interval, {first} first, after {after}"
    )


def episodes_title(results: Results) -> str:
    """Medians of the players' episodes."""
    played = [player for player in results.students if player.episodes]
    if not played:
        return "No student has been evaluated"
    best = max(played, key=lambda player: float(np.median(player.episodes)))
    text = f"In the median episode {subject(results, best)} scores {_median(best.episodes)}"
    if results.teacher.episodes:
        text += f", the teacher {_median(results.teacher.episodes)}"
    return text


def learning_title(results: Results) -> str:
    """How close students come to the teacher's policy."""
    ends = {p.label: (p, p.curves["kl"].mean) for p in results.students if "kl" in p.curves}
    if not ends:
        return "What the student learned"
    player, values = min(ends.values(), key=lambda pair: float(pair[1][-1]))
    if len(results.students) == 1:
        text = f"The KL from the teacher goes from {values[0]:.2f} to {values[-1]:.2f} nats"
        if "agreement" in player.curves:
            agreement = 100 * player.curves["agreement"].mean
            text += f", agreement from {percent(agreement[0])} to {percent(agreement[-1])}"
        return text
    return f"The KL from the teacher ends lowest for {player.label}, at {values[-1]:.2f} nats"
