# SPDX-License-Identifier: MIT
"""Policy distillation: distill teachers into students, train teachers, evaluate both.

The ``fastdistill`` command: one function per subcommand, its docstring is the help.

Exit status: 0 done; 2 a mistake, in one line; 75 stopped, with a checkpoint; 130 interrupted.

The only module that imports tyro. A subcommand prepares arguments and prints results; whatever
can be called from Python lives elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import torch

import fastdistill
from fastdistill._files import write_atomically
from fastdistill.commands import collect, export, relabel, verify_teacher, zoo
from fastdistill.envs import make_env, usable_device
from fastdistill.evaluation import evaluate_env, record_comparison_gif
from fastdistill.evaluation.statistics import summarize
from fastdistill.recipes import distill as distill_recipe
from fastdistill.recipes import dqn as dqn_recipe
from fastdistill.recipes import online as online_recipe
from fastdistill.recipes import pqn as pqn_recipe
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.quickstart import quickstart_config, set_aside
from fastdistill.recipes.teaching import TeacherResult
from fastdistill.report import write_report
from fastdistill.teachers import load_teacher, recorded_game
from fastdistill.training.labelled_actors import ActorsLost
from fastdistill.training.ranks import RankLost, launched_rank
from fastdistill.training.ray_cluster import evaluate_spread
from fastdistill.training.run import TrainingDiverged
from fastdistill.training.stop import STOPPED_STATUS, StopRequest


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
    workers: int = 0,
    gif: Path | None = None,
    out: Path | None = None,
    view: str | None = None,
) -> None:
    """Play full episodes with a checkpoint and print its score.

    Args:
        checkpoint: A checkpoint's path, zoo:NAME, or with a game sb3:FILE or cleanrl:FILE.
        game: Game or gymnasium id; the checkpoint's own by default, one of several otherwise.
        episodes: Full episodes to play, spread over the lanes beforehand.
        preset: classic (no sticky actions, no-op starts) or machado (sticky actions).
        epsilon: Share of random actions; by default 0.05 (classic) or 0.001 (machado).
        seed: Of resets and random actions.
        lanes: Games played at once.
        device: Where the network runs.
        workers: Ray workers, here or on other machines, that share the episodes; 0 plays here.
        gif: Also record one episode there.
        out: Also write the record there, as JSON.
        view: Key of what it sees of Dict observations; a checkpoint remembers its own.
    """
    usable_device(device)
    _check_least("evaluate", 1, episodes=episodes, lanes=lanes)
    _check_least("evaluate", 0, workers=workers)
    teacher = load_teacher(checkpoint, game, device=device, view=view)
    name = game or recorded_game(teacher.card)
    if not name:
        raise ValueError("evaluate: game must be given, the checkpoint does not name one")
    number = min(lanes, episodes)
    if workers:
        record = evaluate_spread(
            teacher, name, workers=workers, episodes=episodes, preset=preset, epsilon=epsilon,
            seed=seed, num_lanes=number, device=device,
        )  # fmt: skip
    else:
        env = make_env(name, number, preset=preset, training=False, view=teacher.view)
        with contextlib.closing(env):
            record = evaluate_env(
                teacher, env, episodes=episodes, epsilon=epsilon, seed=seed, device=device
            )
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
        payload = (json.dumps(result, indent=2) + "\n").encode()
        write_atomically(out, payload, function="evaluate")
    if gif is not None:
        (score,) = record_comparison_gif(
            {name: teacher}, name, gif, preset=preset, epsilon=epsilon, seed=seed, max_seconds=60,
            device=device,
        ).values()  # fmt: skip
        print(f"  {gif}: {score:.0f} points in at most a minute")


def teacher_pqn(config: pqn_recipe.PqnConfig, resume: bool = False) -> int:
    """Train a teacher by parallel Q-learning: many lanes, lambda-returns, no replay.

    Args:
        config: The recipe's configuration.
        resume: Continue the run in run_dir with the configuration stored there.
    """
    with StopRequest() as stop:
        return _report_teacher(config.run_dir, pqn_recipe.train(config, resume=resume, stop=stop))


def teacher_dqn(config: DqnConfig, resume: bool = False) -> int:
    """Train a teacher by Double DQN with prioritized replay: the paper's, brought up to date.

    Args:
        config: The recipe's configuration.
        resume: Continue the run in run_dir with the configuration stored there.
    """
    with StopRequest() as stop:
        return _report_teacher(config.run_dir, dqn_recipe.train(config, resume=resume, stop=stop))


def distill(config: DistillConfig, resume: bool = False) -> int:
    """Distill a teacher into one student, or into many side by side, and write a report.

    Args:
        config: The recipe's configuration.
        resume: Continue the run in run_dir with the configuration stored there.
    """
    with StopRequest() as stop:
        return _report_students(distill_recipe.train(config, resume=resume, stop=stop))


def online(config: online_recipe.OnlineConfig, resume: bool = False) -> int:
    """Train a DQN, and students that follow it while it learns.

    Args:
        config: The recipe's configuration.
        resume: Continue the run in run_dir with the configuration stored there.
    """
    with StopRequest() as stop:
        return _report_students(online_recipe.train(config, resume=resume, stop=stop))


def quickstart(run_dir: Path = Path("runs/quickstart"), seed: int = 1, games: str = "pong") -> int:
    """Distill the shipped Pong teacher into a student of 7% of its size, in minutes on two cores.

    Leaves student.json with its weights, evaluation.json and report.html. An unfinished quickstart
    is continued, a finished one is kept under another name. With --games pong,freeway,breakout
    one network learns several games: at most 4 minutes of training, then full games.

    Args:
        run_dir: Where everything is written.
        seed: Of everything.
        games: One or several that have a shipped teacher, with commas between.
    """
    config = quickstart_config(run_dir, seed, games)
    is_run = (run_dir / "config.json").exists()
    resume = is_run and not (run_dir / "evaluation.json").exists()
    if run_dir.exists() and not is_run and any(run_dir.iterdir()):
        raise ValueError(
            f"quickstart: run_dir must be a run's or an empty directory, got {run_dir}, which "
            "holds something else"
        )
    if is_run and not resume:
        print(f"the quickstart in {run_dir} is kept as {set_aside(run_dir)}")
    return distill(config, resume=resume)


def _check_least(command: str, least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{command}: {name} must be at least {least}, got {value}")


def _report_students(result: distill_recipe.DistillResult) -> int:
    if launched_rank() != 0:
        return STOPPED_STATUS if result.stopped else 0
    if result.stopped:
        print(f"stopped at update {result.updates:,} with a checkpoint; continue with --resume")
        return STOPPED_STATUS
    print(f"{result.updates:,} updates in {result.training_seconds:.0f} s of training")
    for record in result.evaluation.get("games", [result.evaluation]):
        if "games" in result.evaluation:
            print(f"{record['game']}:")
        _print_students(record)
    for entry in result.evaluation.get("students", ()) if "games" in result.evaluation else ():
        _print_over_games(entry)
    if result.report:
        print(f"report: {result.report}")
    return 0


def _print_students(record: dict[str, Any]) -> None:
    for entry in record.get("students", ()):
        mean, share = entry["summary"]["mean"], entry["percent_of_teacher"]
        line = f"{entry['name']}: {entry['parameters']:,} parameters, mean {mean['value']:.2f}"
        line += f", 95% [{mean['low']:.2f}, {mean['high']:.2f}]"
        if share:
            line += f", {share['value']:.1f}% of the teacher"
        print(line)


def _print_over_games(entry: dict[str, Any]) -> None:
    line = f"{entry['name']}, all games: {entry['parameters_of_all_games']:,} parameters"
    share, geometric = entry["percent_of_teacher"], entry["geometric_mean_percent"]
    if share:
        line += f", {share['value']:.1f}% of the teachers, the least {entry['least_percent']:.1f}%"
    if geometric:
        line += f", geometric mean of the scores {geometric['value']:.1f}%"
    print(line)


def report(run_dir: Path, /, beside: tuple[Path, ...] = ()) -> None:
    """Write the report of a finished distillation anew, also beside other runs.

    Args:
        run_dir: Of the distillation.
        beside: Run directories to compare with: students of single games, joint DQN.
    """
    print(write_report(run_dir, beside))


def _report_teacher(run_dir: Path, result: TeacherResult) -> int:
    if result.stopped:
        print(f"stopped at step {result.step:,} with a checkpoint; continue with --resume")
        return STOPPED_STATUS
    line = f"{run_dir}/teacher.json after {result.step:,} steps"
    for record in result.evaluation.get("games", [result.evaluation] if result.evaluation else []):
        # With a guide the network is the student of the record.
        mean = [*record["students"], record["teacher"]][0]["summary"]["mean"]
        line += f"; {record['game']}" if "games" in result.evaluation else ""
        line += f": mean {mean['value']:.2f}, 95% [{mean['low']:.2f}, {mean['high']:.2f}]"
        line += f" over {record['episodes']} episodes"
    print(line)
    return 0


Command = Callable[..., Any]
COMMANDS: dict[str, Any] = {  # a dictionary in here is a group of commands
    "quickstart": quickstart,
    "distill": distill,
    "collect": collect,
    "relabel": relabel,
    "online": online,
    "evaluate": evaluate,
    "report": report,
    "export": export,
    "verify-teacher": verify_teacher,
    "zoo": zoo,
    "teacher": {"dqn": teacher_dqn, "pqn": teacher_pqn},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; mistakes of the user's end in one line and exit status 2.

    A defect of this package still ends in a traceback.
    """
    try:
        import tyro
    except ImportError:
        print("fastdistill: the command line needs tyro: pip install 'tyro>=1.0'", file=sys.stderr)
        return 2
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"fastdistill {fastdistill.__version__}")
        return 0
    program, commands = "fastdistill", dict(COMMANDS)
    group = commands.get(words[0]) if words else None
    if isinstance(group, dict):  # a second word chooses within the group
        program, commands, words = f"fastdistill {words[0]}", dict(group), words[1:]
    table = {
        name: _group_help(name) if isinstance(command, dict) else _later(command)
        for name, command in commands.items()
    }
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command = tyro.extras.subcommand_cli_from_dict(
                table,
                prog=program,
                description=(__doc__ or "").split("\n", 1)[0],
                args=words,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit:
        if not exit.code:
            raise  # help was asked for
        print(f"fastdistill: {_unframed(said.getvalue())}; see {program} --help", file=sys.stderr)
        return 2
    try:
        return int(command() or 0)
    except KeyboardInterrupt:
        print("fastdistill: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_mistake(error):
            raise
        print(f"fastdistill: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        return 2


def _later(command: Command) -> Command:
    """A command that tyro only finds arguments for: what it captures must not be a run's words."""

    @functools.wraps(command)
    def found(*arguments: Any, **options: Any) -> Any:
        return functools.partial(command, *arguments, **options)

    return found


def _unframed(said: str) -> str:
    """What is wrong with the arguments, out of the frame that tyro draws around it.

    A title, perhaps a rule, what is wrong, a rule, advice; where lines cannot be drawn, blanks.
    """
    lines = [re.sub("^[─-]+$", "", line.strip("│ ")) for line in said.splitlines()[1:]]
    text = " ".join(takewhile(bool, dropwhile(lambda line: not line, lines)))
    return re.sub(r"^Error parsing \S*dummy\S*: ", "", text)  # a whole configuration has no name


def _is_mistake(error: Exception) -> bool:
    """Whether an error is of the user's or the machine's making, and its line says all."""
    memory = (MemoryError, torch.OutOfMemoryError)
    if isinstance(
        error, (ValueError, ImportError, OSError, TrainingDiverged, RankLost, ActorsLost, *memory)
    ):
        return True
    if "can't allocate memory" in str(error):
        return True
    # Ours begin with the name of a function; Python's own would be a defect.
    return isinstance(error, TypeError) and re.match(r"[\w.]+: ", str(error)) is not None


def _group_help(name: str) -> Command:
    def group() -> None:
        """Never called: a group's name alone is handled in ``main``."""

    group.__doc__ = f"One of {', '.join(COMMANDS[name])}."
    return group


if __name__ == "__main__":
    sys.exit(main())
