# SPDX-License-Identifier: MIT
"""What the teacher recipes share: options, the best network by full games, its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from fastdistill.envs import LaneEnv, make_env
from fastdistill.evaluation import Evaluation, evaluate_env
from fastdistill.evaluation.compare import Player, compare, together, write_evaluation
from fastdistill.evaluation.statistics import HUMAN_SCORES
from fastdistill.networks import QNetwork, load_network, save_network
from fastdistill.recipes.options import at_least, names, positive, share, within_limits
from fastdistill.training.configuration import check_types, command_line
from fastdistill.training.guide import GUIDED, Guide
from fastdistill.training.process import default_bfloat16
from fastdistill.training.publishing import games_card
from fastdistill.training.run import Run
from fastdistill.training.selection import Best

_MAX_LANES = 10  # at once, in games that judge


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher recipe ends with.

    Attributes:
        stopped: Told to stop before its time; it has left a checkpoint.
        step: Agent steps taken.
        recent_return: Mean of the last training episodes, None with fewer than 20.
        evaluation: What ``evaluation.json`` holds; empty if there was none.
    """

    stopped: bool
    step: int
    recent_return: float | None
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class TeachingConfig:
    """What can be chosen in every teacher recipe."""

    COMMAND: ClassVar[str] = "teacher"

    run_dir: Path = Path("runs/teacher")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%."""
    total_steps: int = 1_000_000
    """Agent steps, all lanes together; the schedules end there."""
    stop_at_return: float | None = None
    """End early once the mean of the last 50 training episodes reaches this."""
    num_lanes: int = 8
    """Lanes of each game, played at once."""
    batch_size: int = 64
    """Rows per update."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    max_gradient_norm: float = 10.0
    """Gradients are clipped to this norm."""
    discount: float = 0.99
    """Per agent step."""
    clip_rewards: bool = True
    """Learn from the sign of the rewards (reports stay raw)."""
    epsilon_end: float = 0.01
    """Final share of random actions; it starts at 1."""
    bfloat16: bool = field(default_factory=default_bfloat16)
    """Convolutions in bfloat16; the head is float32 always; by default where
    the machine multiplies bfloat16 itself."""
    score_episodes: int = 10
    """Full episodes per checkpoint, and twice as many for one that wins, by which the best is
    chosen; 0 keeps the last."""
    evaluation_episodes: int = 30
    """Full episodes played with the chosen teacher, none of which chose it; 0 for none."""
    evaluation_epsilon: float = 0.01
    """Share of random actions in either."""
    checkpoint_every_steps: int = 250_000
    """Agent steps between checkpoints."""
    log_every_steps: int = 5_000
    """Agent steps between metric records."""
    seed: int = 1
    """Of everything."""
    device: str = "auto"
    """auto, cpu, cuda..."""
    deterministic: bool = False
    """Refuse kernels that are not deterministic (on a CPU there are none here)."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(
            self, 1, "total_steps", "num_lanes", "batch_size", "checkpoint_every_steps",
            "log_every_steps",
        )  # fmt: skip
        at_least(self, 0, "score_episodes", "evaluation_episodes", "seed")
        within_limits(self, len(self.games))
        share(self, "discount", "epsilon_end", "evaluation_epsilon")
        positive(self, "learning_rate", "max_gradient_norm")

    @property
    def games(self) -> tuple[str, ...]:
        """``game``, taken apart."""
        return names(self.game)


class Teaching(Protocol):
    """The parts of a teacher's training."""

    def begin(self) -> None:
        """Continue from a checkpoint, or from nothing."""

    def step(self) -> None:
        """Some play, and the updates that are then due."""

    def log(self) -> None:
        """Record what happened since the last record."""

    def judge(self, *, stopped: bool) -> bool:
        """Keep the network if it is the best so far; ``stopped``, there is no time to play."""

    def checkpoint(self) -> None:
        """Write everything to continue from."""


def teach(config: TeachingConfig, run: Run[Any], parts: Teaching) -> None:
    """The loop of every teacher recipe, to its end or to where it was told to stop."""

    def over() -> bool:
        return run.at.step >= config.total_steps or run.at.reached(config.stop_at_return)

    parts.begin()
    stopping, run.finished = False, over()  # a finished run may be resumed: not a step more
    while not (run.finished or stopping):
        parts.step()
        if run.due("log"):
            parts.log()
        run.finished = over()
        due, stopping = run.due("checkpoint"), run.stopping  # asked once: it can come at any moment
        if run.finished or stopping or due:
            # Where it would have been judged anyway it is judged, stopped or not.
            parts.judge(stopped=not (run.finished or due))
            parts.checkpoint()


def save_best(
    config: TeachingConfig,
    run: Run[Any],
    best: Best,
    network: QNetwork,
    envs: Sequence[LaneEnv],
    *,
    stopped: bool,
) -> bool:
    """Write the run's ``teacher.json`` if the network plays better than every one saved before.

    What it scores is recorded, best or not.

    Args:
        config: ``score_episodes`` full games judge (see ``Best``); with 0 the last is kept.
        run: Being trained.
        best: So far.
        network: To be judged and saved.
        envs: Of the training; the games are played in others. Of several, the mean over games of
            the human-normalised scores judges (of raw ones where no human's is on record).
        stopped: The run was told to stop: no time to play. The network is then saved only where
            none was ever judged, which is better than no teacher.

    Returns:
        Whether it was saved.
    """
    if stopped and best.score is not None:
        return False
    if config.score_episodes and not stopped:
        rounds: list[list[Evaluation]] = []
        with judging_games(config, config.score_episodes) as games:

            def play(episodes: int, seed: int) -> float:
                rounds.append(_play(config, network, games, episodes, seed))
                means = [played.mean for played in rounds[-1]]
                return means[0] if len(means) == 1 else _level(games, means)

            won = best.wins(play, episodes=config.score_episodes, seed=config.seed)
            seconds = {"time/training_seconds": run.at.training_seconds}
            run.write({**seconds, **_scores(games, rounds[0])})
        if not won:
            run.at.lap("score")
            return False
    save_network(
        run.directory / "teacher",
        network,
        {
            **games_card("q_values", [(env.spec, {}) for env in envs]),
            "trained_steps": run.at.step,
            "training_return": run.at.recent_return,
            "scoring": {"mean": best.score, "episodes": best.episodes},
        },
    )
    run.at.lap("score")
    return True


def _play(
    config: TeachingConfig, network: QNetwork, games: Sequence[LaneEnv], episodes: int, seed: int
) -> list[Evaluation]:
    device, epsilon = network.obs_mean.device, config.evaluation_epsilon
    return [
        evaluate_env(
            network.for_task(place), env, episodes=episodes, epsilon=epsilon, seed=seed,
            device=device,
        )
        for place, env in enumerate(games)
    ]  # fmt: skip


def _scores(games: Sequence[LaneEnv], played: Sequence[Evaluation]) -> dict[str, float]:
    """For the records: mean return and its standard error, of several games each one's."""
    values: dict[str, float] = {}
    for env, one in zip(games, played, strict=True):
        of = f"/{env.spec.name}" if len(games) > 1 else ""
        values |= {f"teacher/score{of}": one.mean, f"teacher/score_error{of}": one.mean_error}
    return values


def finish(
    config: TeachingConfig,
    run: Run[Any],
    device: torch.device,
    students: Callable[[int], Iterable[Player]] = lambda _: (),
    guide: Guide | None = None,
) -> TeacherResult:
    """Evaluate the teacher of a finished run; its score goes into its card, too.

    Args:
        config: ``evaluation_episodes`` full games of each.
        run: At its end, or where it was told to stop.
        device: Where they play.
        students: Those of each game, by its place, who play the same episodes.
        guide: Of the one game; the record then has it as the teacher, and the network beside it.
    """
    record: dict[str, Any] = {}
    if run.finished and config.evaluation_episodes:
        network, card = load_network(run.directory / "teacher")
        network = network.to(device)
        with judging_games(config, config.evaluation_episodes) as games:
            records = [
                compare(
                    *_sides(config, player, students(place), guide),
                    env,
                    episodes=config.evaluation_episodes,
                    seed=config.seed,
                    device=device,
                    epsilon=config.evaluation_epsilon,
                )
                for place, (env, player) in enumerate(
                    zip(games, map(network.for_task, range(len(games))), strict=True)
                )
            ]
        record = together(records)
        record |= {
            "training_seconds": run.at.training_seconds,
            "updates": run.at.updates,
            "commands": [command_line(config)],
        }
        kept = {key: value for key, value in card.items() if key not in ("format", "weights")}
        for own, played in zip(kept.get("games", [kept]), records, strict=True):
            own["scores"] = [_score(played, played["students"][0] if guide else played["teacher"])]
        save_network(run.directory / "teacher", network, kept)
        if len(records) == 1:  # returns of several games have no common scale
            summary = (record["students"][0] if guide else record["teacher"])["summary"]
            run.write(
                {
                    "eval/return_mean": summary["mean"]["value"],
                    "eval/return_std": summary["std"],
                    "eval/episodes": summary["episodes"],
                }
            )
        write_evaluation(run.directory, record)
    return TeacherResult(not run.finished, run.at.step, run.at.recent_return, record)


def _sides(
    config: TeachingConfig, network: nn.Module, students: Iterable[Player], guide: Guide | None
) -> tuple[Player, Iterable[Player]]:
    """Who is measured by whom."""
    if guide is None:
        return Player("teacher", network, network, {}), students
    teacher = guide.teacher
    facts = {"kind": GUIDED, "size": config.size, "seed": config.seed}
    return (
        Player("teacher", teacher, teacher.module, {}),
        [Player(GUIDED, network, network, facts)],
    )


def _score(record: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What a card says of an evaluation."""
    score = {key: record[key] for key in ("preset", "epsilon", "seed", "settings", "versions")}
    score["num_lanes"] = min(_MAX_LANES, record["episodes"])
    of_it = ("returns", "lengths_steps", "truncated", "summary")
    return score | {key: entry[key] for key in of_it}


def _level(games: Sequence[LaneEnv], scores: Sequence[float]) -> float:
    """One number for the scores of several games."""
    total = 0.0
    for env, score in zip(games, scores, strict=True):
        random, human = HUMAN_SCORES.get(env.spec.name, (0.0, 1.0))
        total += (score - random) / (human - random)
    return total / len(scores)


@contextmanager
def judging_games(config: TeachingConfig, num_lanes: int) -> Iterator[list[LaneEnv]]:
    """An environment for full games of each game, at most ten lanes, closed at the end."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(
                closing(
                    make_env(game, min(_MAX_LANES, num_lanes), preset=config.preset, training=False)
                )
            )
            for game in config.games
        ]
