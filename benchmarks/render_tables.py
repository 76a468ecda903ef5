# SPDX-License-Identifier: MIT
"""The paper's tables as Markdown and figures, of the records that distill_tables.py keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import records

from fastdistill.evaluation.statistics import Interval, over_games
from fastdistill.report.drawing import MUTED, SERIES, LineStyle, Plan, line, style_axes
from fastdistill.report.drawing import render as draw_plan
from fastdistill.report.figures import draw_levels
from fastdistill.report.results import Player, Results
from fastdistill.report.words import Unit, game_title

# Rusu et al. 2015, table 1 (human starts): DQN, then same-size students, whose scores are recalled
# (docs/deviations.md); and, over ten games, the geometric mean of the students' share of the
# teacher's score, by size.
PAPER_LOSSES = {
    "breakout": {"teacher": 303.9, "mse": 102.9, "nll": 235.9, "kl": 287.8},
    "freeway": {"teacher": 25.8, "mse": 25.7, "nll": 26.2, "kl": 26.7},
    "pong": {"teacher": 16.2, "mse": 15.3, "nll": 15.4, "kl": 16.3},
    "qbert": {"teacher": 4589.8, "mse": 5607.3, "nll": 6773.5, "kl": 7112.8},
}
PAPER_SIZES = {"25%": 108.3, "7%": 101.7, "4%": 83.9}
# The columns of what is said of all games: loss and size.
COLUMNS = (
    ("kl", "100%"),
    ("nll", "100%"),
    ("mse", "100%"),
    ("kl", "25%"),
    ("kl", "7%"),
    ("kl", "4%"),
)


class Game(NamedTuple):
    """A game's tables, those that are there: name -> what its run says."""

    name: str
    tables: dict[str, Results]

    @property
    def players(self) -> dict[tuple[str, str], Player]:
        """Loss and size -> students; of those that both tables have, the losses'."""
        tables = [self.tables[name] for name in ("sizes", "losses") if name in self.tables]
        return {(one.kind, one.size): one for table in tables for one in table.students}

    @property
    def any(self) -> Results:
        """What both tables say."""
        return next(iter(self.tables.values()))


def games_of(found: dict[str, Results]) -> list[Game]:
    """Name of the record, GAME_TABLE -> what it says, as games in the order of their names."""
    games: dict[str, dict[str, Results]] = {}
    for name, results in sorted(found.items()):
        game, table = name.rsplit("_", 1)
        games.setdefault(game, {})[table] = results
    return [Game(name, tables) for name, tables in games.items()]


def render(found: dict[str, Results], images: Sequence[str]) -> str:
    """The part of docs/results.md: all games together, then each.

    Args:
        found: Of each record.
        images: Names of the figures that there are.
    """
    games = games_of(found)
    if not games:
        return "Not measured yet.\n"
    places = records.where({name: [results] for name, results in found.items()})
    lines = [
        f"From `benchmarks/results/distill`, made on {places}. Every student is played full "
        "episodes that did not choose its checkpoint, with the teacher's share of random actions. "
        "Brackets are 95% bootstrap intervals over seeds and episodes, both resampled; three seeds "
        "are few, so their means stand beside them. Seeds differ in their first weights; they "
        "share the stream of play and the batches. Agreement and KL are of the last scoring in "
        "training, scores of each student's best network.",
        "",
        *records.differences({name: results.config for name, results in found.items()}),
    ]
    if len(games) > 1:
        lines += ["## All games", "", *overview(games)]
        if "distill_games" in images:
            lines += [figure("distill_games", "Share of the teacher's level, game by game"), ""]
    for game in games:
        lines += [f"## {game_title(game.name)}", ""]
        if f"distill_{game.name}" in images:
            lines += [figure(f"distill_{game.name}", "Score against agent steps of play"), ""]
        lines += section(game)
    return "\n".join(lines)


def render_summary(found: dict[str, Results]) -> str:
    """The part of the README: a line for each game."""
    games = games_of(found)
    return "\n".join([*by_game(games), ""]) if games else "Not measured yet.\n"


def figure(name: str, about: str) -> str:
    """A figure in Markdown, as seen from docs."""
    return f"![{about}](images/{name}.png)"


def overview(games: Sequence[Game]) -> list[str]:
    """All games together: each loss and size over those games that have it."""
    lines = [
        "| student | games | mean share of the teachers' level | least | geometric mean of score "
        "over teacher's score | paper, ten games |",
        "|---|---|---|---|---|---|",
    ]
    for kind, size in COLUMNS:
        own = [game for game in games if (kind, size) in game.players]
        if not own:
            continue
        players = [game.players[kind, size] for game in own]
        together = over_games(
            [player.returns for player in players],
            [game.any.teacher.returns[0] for game in own],
            [game.any.random_score or 0.0 for game in own],
            one_network=False,
        )
        least = "-" if together.least_percent is None else f"{together.least_percent:.1f}%"
        paper = PAPER_SIZES.get(size)
        lines.append(
            f"| {size} {kind} | {len(own)} | {cell(together.percent, '%', 1)} | {least} | "
            f"{cell(together.geometric_mean_percent, '%', 1)} | {f'{paper}%' if paper else '-'} |"
        )
    return [*lines, "", *by_game(games), ""]


def by_game(games: Sequence[Game]) -> list[str]:
    """A line for each game: the teacher's score, and the students' shares of it."""
    heads = [f"{size} {kind}" for kind, size in COLUMNS]
    lines = [f"| game | teacher | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for game in games:
        players = game.players
        cells = [
            cell(players[column].percent, "%", 1) if column in players else "-"
            for column in COLUMNS
        ]
        teacher = cell(game.any.teacher.score)
        lines.append(f"| {game_title(game.name)} | {teacher} | {' | '.join(cells)} |")
    return lines


def section(game: Game) -> list[str]:
    """One game's tables."""
    first = game.any
    lines = [
        f"Preset {first.preset}, epsilon {first.epsilon}, {first.episodes} episodes of each "
        f"student. The teacher scores {cell(first.teacher.score)}.",
        "",
    ]
    heads = "mean score | seeds' means | share of the teacher above random | agreement | KL"
    if losses := game.tables.get("losses"):
        paper = PAPER_LOSSES.get(game.name, {})
        lines += [
            f"### {game_title(game.name)}: same-size students by loss ({cost(losses)})",
            "",
            f"| loss | {heads} | paper, recalled: score (DQN {paper.get('teacher', '-')}) |",
            "|---" * 7 + "|",
        ]
        for player in losses.students:
            lines.append(f"| {player.kind} | {cells(player)} | {paper.get(player.kind, '-')} |")
        lines.append("")
    if sizes := game.tables.get("sizes"):
        lines += [
            f"### {game_title(game.name)}: compression with kl ({cost(sizes)})",
            "",
            f"| student | parameters | MFLOP | {heads} |",
            "|---" * 8 + "|",
        ]
        own = list(sizes.students)
        same = game.players.get(("kl", "100%"))
        if same and not any(one.size == "100%" for one in own):
            own.insert(0, same)
        for player in own:
            lines.append(
                f"| {player.size} | {player.parameters or 0:,.0f} | "
                f"{(player.flops or 0) / 1e6:.1f} | {cells(player)} |"
            )
        lines.append("")
    return lines


def cost(results: Results) -> str:
    """What a table's training took."""
    updates = results.config.get("total_updates")
    minutes = (results.training_seconds or 0.0) / 60
    students = sum(len(player.names) for player in results.students)
    return f"{updates or 0:,} updates, {minutes:.0f} minutes for all {students}"


def cells(player: Player) -> str:
    """Score, seeds' means, share, agreement and KL at the end of training."""
    means = sorted(sum(one) / len(one) for one in player.returns if one)
    measures = [
        f"{player.curves[name].mean[-1]:.{digits}f}" if name in player.curves else "-"
        for name, digits in (("agreement", 2), ("kl", 3))
    ]
    parts = [cell(player.score), ", ".join(f"{mean:,.1f}" for mean in means)]
    return " | ".join([*parts, cell(player.percent, "%", 1), *measures])


def cell(interval: Interval | None, unit: str = "", digits: int = 2) -> str:
    """A value and its interval."""
    if interval is None:
        return "-"
    value, low, high = (f"{asdict(interval)[key]:,.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def draw(found: dict[str, Results], folder: Path) -> list[str]:
    """Draw a figure of each game that has curves, and one of all.

    Returns:
        The names of those that there are.
    """
    names = []
    games = games_of(found)
    folder.mkdir(parents=True, exist_ok=True)
    for game in games:
        tables = [
            table
            for table in game.tables.values()
            if any("score" in p.curves for p in table.students)
        ]
        if not tables:
            continue
        names.append(f"distill_{game.name}")
        plan = Plan(
            names[-1], f"{game_title(game.name)}: score while training, mean and extremes of seeds",
            partial(_draw_game, tables), lambda _: 320,
        )  # fmt: skip
        draw_plan(plan, folder)
    if len(games) > 1:
        names.append("distill_games")
        plan = Plan(
            names[-1], "Share of the teacher's score above random play, with 95% intervals",
            partial(_draw_shares, games), lambda _: 60 + 46 * len(games),
        )  # fmt: skip
        draw_plan(plan, folder)
    return names


def _draw_game(tables: Sequence[Results], figure: Any, width: int) -> None:
    """A panel for each table."""
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)
    for axes, table in zip(panels.flat, tables, strict=True):
        losses = len({player.kind for player in table.students}) > 1
        style_axes(axes, "100%, by loss" if losses else "kl, by size")
        draw_levels(table.teacher, table.random_score, axes)
        drawn = [player for player in table.students if "score" in player.curves]
        unit = Unit.of([player.curves["score"] for player in drawn], "steps")
        for place, player in enumerate(drawn):
            label = player.kind if losses else player.size
            style = LineStyle(place % len(SERIES), ())
            line(axes, player.curves["score"], style, unit, label, mark=True, spread=True)
        axes.set_xlabel(unit.axis)
        axes.legend(
            frameon=False, fontsize=11.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2)
        )


def _draw_shares(games: Sequence[Game], figure: Any, width: int) -> None:
    """A row for each game, a mark for each loss and size."""
    axes = style_axes(figure.subplots(), "")
    axes.grid(axis="x", color="#e4e4e7", linewidth=0.9)
    axes.axvline(100, color=MUTED, linewidth=1.2)
    for place, (kind, size) in enumerate(COLUMNS):
        offset = (place - (len(COLUMNS) - 1) / 2) * 0.12
        label: str | None = f"{size} {kind}"
        for row, game in enumerate(games):
            player = game.players.get((kind, size))
            if player is None or player.percent is None:
                continue
            share = player.percent
            axes.errorbar(
                share.value, row + offset, label=label, fmt="o", markersize=4.5, elinewidth=1.6,
                xerr=[[share.value - share.low], [share.high - share.value]],
                color=SERIES[place % len(SERIES)],
            )  # fmt: skip
            label = None
    axes.set_yticks(range(len(games)), [game_title(game.name) for game in games])
    axes.set_ylim(len(games) - 0.5, -0.5)
    axes.set_xlabel("% of the teacher's level")
    axes.legend(frameon=False, fontsize=11.5, loc="center left", bbox_to_anchor=(1, 0.5))
