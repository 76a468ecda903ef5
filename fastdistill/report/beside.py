# SPDX-License-Identifier: MIT
"""Runs side by side: students of several games, students of one each, a network without a teacher.

All are measured by the teachers of one run, the one that the report is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdistill.evaluation.statistics import (
    Interval,
    OverGames,
    over_games,
    seeds_percent,
    seeds_score,
)
from fastdistill.networks.checkpoint import read_card
from fastdistill.report.results import (
    Curve,
    Player,
    Results,
    _number,
    _read_object,
    _text,
    read_curve,
    read_evaluation,
    read_games,
)
from fastdistill.training.metrics import read_jsonl

# Rusu et al. 2015: geometric mean of the score over the DQN's, percent (human starts). Nothing
# names its three games, whose parameters are those of 12 actions; these have 15.
PAPER_GAMES = (
    (frozenset({"pong", "freeway", "qbert"}), {"kl": 116.9, "nll": 105.1, "dqn": 83.5}),
    (
        frozenset({"beam_rider", "breakout", "enduro", "freeway", "ms_pacman", "pong", "qbert"})
        | {"seaquest", "space_invaders", "riverraid"},
        {"kl": 89.3},
    ),
)

# Options that decide nothing of what is learned, or that are told apart by other means.
_NO_SETTINGS = {
    "run_dir", "game", "loss", "student", "size", "seed", "seeds", "total_updates", "total_steps",
    "score_episodes", "score_every_updates", "evaluation_episodes", "evaluation_epsilon",
    "evaluate_teacher", "checkpoint_every_updates", "checkpoint_every_steps", "log_every_updates",
    "log_every_steps", "damaged", "engine", "actors", "device", "deterministic", "tensorboard",
}  # fmt: skip


@dataclass(eq=False)
class Contender:
    """Networks of one loss (or recipe) and size, of one or of several runs.

    Attributes:
        kind: Loss; of a network that learned by itself its recipe, dqn or pqn.
        size: Network size, as the run named it.
        taught: Whether it has teachers.
        one_network: Whether one network plays all games of its run.
        own: Whether the run that the report is about has it.
        label: Unique among the contenders of a report.
        returns: Of each game each seed's scores of its episodes.
        curves: Of each game the score while training, a curve for each run; "" is over all games
            the share of the teachers' level.
        parameters: Of each game, or of all in one network under "".
        updates: Of each game's runs, or under "" of runs of all; one number for each run.
        seconds: Of training, likewise.
        steps: Agent steps, likewise.
        settings: Of each game, or of all in one network under "", the options that decide what is
            learned.
        diverged: How many of its networks ended early, see ``Player``.
    """

    kind: str
    size: str
    taught: bool
    one_network: bool
    own: bool
    label: str
    returns: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)
    updates: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    diverged: int = 0

    def score(self, game: str) -> Interval | None:
        """Mean of a game over seeds, None where it was not played."""
        return seeds_score(self.returns[game]) if game in self.returns else None

    def percent(self, results: Results) -> Interval | None:
        """Share of the teacher's score above random play, None where it is not known."""
        teacher, random = results.teacher.episodes, results.random_score
        if results.game not in self.returns or not teacher or random is None:
            return None
        return seeds_percent(self.returns[results.game], teacher, random)

    def together(self, games: Sequence[Results]) -> OverGames | None:
        """Over all games, None unless all were played."""
        random = [game.random_score for game in games]
        teachers = [game.teacher.episodes for game in games]
        if not all(game.game in self.returns for game in games) or not all(teachers):
            return None
        if any(level is None for level in random):
            return None
        return over_games(
            [self.returns[game.game] for game in games],
            teachers,
            [level for level in random if level is not None],
            one_network=self.one_network,
        )

    def total(self, measure: dict[str, float]) -> float | None:
        """Over the networks of all games."""
        return sum(measure.values()) if measure else None

    def cost(self, measure: dict[str, list[float]]) -> float | None:
        """Of one run of all games, or of one run of each game together."""
        return sum(sum(one) / len(one) for one in measure.values()) if measure else None

    @property
    def seeds(self) -> int:
        """Most networks of any game."""
        return max(map(len, self.returns.values()), default=0)


def paper_percent(contender: Contender, games: Sequence[Results]) -> float | None:
    """The paper's geometric mean, where games and network are such as its own."""
    names = {game.game for game in games}
    fits = contender.one_network and contender.size in ("multi", "multi-wide")
    for paper, values in PAPER_GAMES:
        if fits and names == paper:
            return values.get(contender.kind)
    return None


def read_contenders(
    run_dir: Path, games: Sequence[Results], beside: Sequence[Path]
) -> list[Contender]:
    """Those of a run, then those of the runs beside it, equal ones put together as seeds.

    Args:
        run_dir: Of the run that the report is about.
        games: What it says of each of its games.
        beside: Directories of other runs.

    Raises:
        ValueError: In words, a run that cannot stand beside it.
    """
    known = {game.game: game for game in games}
    seen = {run_dir.resolve()}
    found: dict[tuple[Any, ...], list[Contender]] = {}
    _add(found, run_dir, games, known, own=True)
    for path in beside:
        if path.resolve() in seen:
            raise ValueError(f"write_report: beside must name each run once, got {path} again")
        seen.add(path.resolve())
        if not (path / "evaluation.json").is_file():
            raise ValueError(
                f"write_report: a run beside must be finished, with evaluation.json, got {path}"
            )
        theirs = read_games(path, games[0].by)
        _check(path, theirs, known)
        _add(found, path, theirs, known, own=False)
    _tell_apart(found)
    return [contender for alike in found.values() for contender in alike]


def _tell_apart(found: dict[tuple[Any, ...], list[Contender]]) -> None:
    """Add what they differ in to the labels that several have."""
    facts: dict[str, list[tuple[Contender, dict[str, str]]]] = {}
    for (*_, names, updates), alike in found.items():
        for one in alike:
            own = {"updates": f"{updates or 0:,.0f} updates", "games": ", ".join(names)}
            for place, settings in one.settings.items():
                of = f" ({place})" if place else ""
                for key, value in settings.items():
                    own[key + place] = f"{key.replace('_', ' ')} {value}{of}"
            facts.setdefault(one.label, []).append((one, own))
    for same in facts.values():
        every = [own for _, own in same]
        keys = [
            key
            for key in dict.fromkeys(key for own in every for key in own)
            if len({own[key] for own in every if key in own}) > 1
        ]
        for one, own in same:
            one.label += "".join(f", {own[key]}" for key in keys if key in own)


def _check(path: Path, theirs: Sequence[Results], known: dict[str, Results]) -> None:
    shared = [results for results in theirs if results.game in known]
    if not shared:
        raise ValueError(
            f"write_report: a run beside must play one of {', '.join(known)}, got "
            f"{', '.join(results.game for results in theirs)} in {path}"
        )
    for results in shared:
        own = known[results.game]
        for name in ("preset", "epsilon"):
            if getattr(results, name) != getattr(own, name):
                raise ValueError(
                    f"write_report: a run beside must be evaluated with {name} "
                    f"{getattr(own, name)}, as the report's run, got {getattr(results, name)} in "
                    f"{path}"
                )


def _add(
    found: dict[tuple[Any, ...], list[Contender]],
    run_dir: Path,
    games: Sequence[Results],
    known: dict[str, Results],
    *,
    own: bool,
) -> None:
    """The players of a run, each to those it is like."""
    players: dict[tuple[bool, str, str], dict[str, Player]] = {}
    for results in games:
        for player in results.students or (_untaught(run_dir, results),):
            like = (bool(results.students), player.kind, player.size)
            players.setdefault(like, {})[results.game] = player
    names = tuple(results.game for results in games) if len(games) > 1 else ()
    evaluation = read_evaluation(run_dir)
    metrics = run_dir / "metrics.jsonl"
    records = read_jsonl(metrics) if metrics.is_file() else []
    updates = _number(evaluation.get("updates"))
    place = "" if names else games[0].game
    options = games[0].config.items()
    settings = {key: value for key, value in options if key not in _NO_SETTINGS}
    for (taught, kind, size), by_game in players.items():
        # Longer runs of the same stand apart, and those with other options.
        alike = found.setdefault((taught, kind, size, names, updates), [])
        contender = next((one for one in alike if _fits(one.settings.get(place), settings)), None)
        if contender is None:
            label = _label(taught, kind, size, names, known)
            contender = Contender(kind, size, taught, bool(names), own, label)
            alike.append(contender)
        contender.settings.setdefault(place, settings)
        contender.diverged += max(player.diverged for player in by_game.values())
        # Measured, and finite; a network of several games in all of them.
        measured = [game for game, player in by_game.items() if player.score is not None]
        whole = not names or len(measured) == len(by_game)
        for game, player in by_game.items():
            if game in known and game in measured and whole:
                contender.returns.setdefault(game, []).extend(player.returns)
            if game in known and "score" in player.curves:
                contender.curves.setdefault(game, []).append(player.curves["score"])
        first = next(iter(by_game.values()))
        share = read_curve(records, [f"students/{name}/share" for name in first.names], games[0].by)
        if names and share is not None:
            contender.curves.setdefault("", []).append(share)
        parameters = _parameters(run_dir, evaluation, first) if names else first.parameters
        if parameters is not None:
            contender.parameters[place] = parameters
        for values, value in (
            (contender.updates, updates),
            (contender.seconds, _number(evaluation.get("training_seconds"))),
            (contender.steps, _number(records[-1].get("step")) if records else None),
        ):
            if value is not None:
                values.setdefault(place, []).append(value)


def _fits(known: dict[str, Any] | None, settings: dict[str, Any]) -> bool:
    """Whether two runs learned with the same options; one that is not on record differs in none."""
    if known is None:
        return True
    return all(known[key] == settings[key] for key in known.keys() & settings.keys())


def _label(
    taught: bool, kind: str, size: str, names: Sequence[str], known: dict[str, Results]
) -> str:
    label = f"{kind} {size}".strip() or "student"
    if names and not taught:
        label = f"joint {label}"
    if names and set(names) != set(known):
        return f"{label}, one network for {len(names)} games"
    return label if names or len(known) == 1 else f"{label}, a network per game"


def _untaught(run_dir: Path, results: Results) -> Player:
    """The network of a teacher recipe as a player."""
    path = run_dir / "config.json"
    run = _read_object(path) if path.is_file() else {}
    recipe = _text(run.get("recipe")).removeprefix("teacher_") or "teacher"
    size = _text(results.config.get("size"))
    player = results.teacher
    return Player(**{**vars(player), "kind": recipe, "size": size})


def _parameters(run_dir: Path, evaluation: dict[str, Any], player: Player) -> float | None:
    """Of a network of several games, heads and all."""
    entries = evaluation.get("students")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") in player.names:
            return _number(entry.get("parameters_of_all_games"))
    card = run_dir / "teacher.json"
    return _number(read_card(run_dir / "teacher").get("parameters")) if card.is_file() else None
