# SPDX-License-Identifier: MIT
"""Teachers and environments from elsewhere: MinAtar, MiniGrid, LunarLander, FrozenLake.

Each case has a teacher that is trained, planned or written down in minutes, and a student of it.
Results go to benchmarks/results/foreign_envs.json, case by case, and the table of
docs/your_teacher.md is written from there, between its markers.

    pip install minatar minigrid 'gymnasium[box2d]'
    python benchmarks/foreign_envs.py                  # every case; one thread, 6 minutes
    python benchmarks/foreign_envs.py frozen_lake      # one of them
    python benchmarks/foreign_envs.py --render
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import machine
import numpy as np
import pages
import torch
from torch import Tensor, nn

import fastdistill as fd
from fastdistill.recipes import pqn

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "foreign_envs.json"
EPISODES = 100


def frozen_lake(run_dir: Path) -> dict[str, Any]:
    """The optimal policy of the slippery lake by value iteration, given as a table."""
    model = gymnasium.make("FrozenLake-v1").unwrapped.P
    values = np.zeros(len(model))
    for _ in range(2_000):
        q = np.array(
            [
                [sum(p * (r + 0.999 * values[s] * (not end)) for p, s, r, end in model[at][action])
                 for action in range(4)]
                for at in range(len(model))
            ]
        )  # fmt: skip
        values = q.max(axis=1)
    table = nn.Linear(len(model), 4, bias=False)
    table.weight = nn.Parameter(torch.tensor(q.T, dtype=torch.float32))
    return distilled(run_dir, table, "FrozenLake-v1", total_updates=1_500)


class Planner(nn.Module):
    """Fewest actions to the goal of an empty MiniGrid, from the whole grid as ids [3, w, h]."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("actions", torch.from_numpy(_plan(side)))

    def forward(self, obs: Tensor) -> Tensor:
        """Logits of the next action on the way."""
        # Channel 0 holds object ids (the agent is 10), channel 2 the direction it looks in.
        at = (obs[:, 0] == 10).flatten(1).float().argmax(dim=1)
        looks = obs[:, 2].flatten(1).gather(1, at[:, None]).squeeze(1).long().clamp(max=3)
        best = self.actions[at, looks]
        return 10.0 * nn.functional.one_hot(best, 7).float()


def _plan(side: int) -> np.ndarray:
    """[cells, directions] of the best action: turn left 0, turn right 1, forward 2."""
    steps = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    goal = (side - 2, side - 2)

    def after(state: tuple[int, int, int], action: int) -> tuple[int, int, int]:
        x, y, looks = state
        if action < 2:
            return x, y, (looks + (1 if action else -1)) % 4
        dx, dy = steps[looks]
        inside = 1 <= x + dx <= side - 2 and 1 <= y + dy <= side - 2
        return (x + dx, y + dy, looks) if inside else state

    cells = range(1, side - 1)
    states = [(x, y, looks) for x in cells for y in cells for looks in range(4)]
    far = {(*goal, looks): 0 for looks in range(4)}
    queue = deque(far)
    while queue:
        reached = queue.popleft()
        for state in states:
            if state not in far and any(after(state, a) == reached for a in range(3)):
                far[state] = far[reached] + 1
                queue.append(state)
    best = np.zeros((side * side, 4), np.int64)
    for x, y, looks in states:
        distances = [far[after((x, y, looks), action)] for action in range(3)]
        best[x * side + y, looks] = int(np.argmin(distances))
    return best


def minigrid(run_dir: Path) -> dict[str, Any]:
    """A planner that sees the whole grid teaches a student that sees what is in front of it."""
    import minigrid.wrappers

    name, side = "MiniGrid-Empty-Random-6x6-v0", 6

    class WithGrid(gymnasium.ObservationWrapper):
        """The partial view `image`, and beside it the whole grid."""

        def __init__(self) -> None:
            env = gymnasium.make(name)
            super().__init__(env)
            self._full = minigrid.wrappers.FullyObsWrapper(env)
            parts = {"image": env.observation_space["image"]}
            parts["grid"] = self._full.observation_space["image"]
            self.observation_space = gymnasium.spaces.Dict(parts)

        def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
            grid = self._full.observation(observation)["image"]
            return {"image": observation["image"], "grid": grid}

    return distilled(
        run_dir, Planner(side), WithGrid, kind="logits", total_updates=1_500,
        teacher_view="grid", student_view="image",
    )  # fmt: skip


class Lander(nn.Module):
    """The hand-written controller of gymnasium's LunarLander (its `heuristic`), as logits."""

    def forward(self, obs: Tensor) -> Tensor:
        """Logits of its action."""
        x, y, vx, vy, angle, spin, left, right = obs.unbind(dim=1)
        wanted = (0.5 * x + vx).clamp(-0.4, 0.4)
        turn = 0.5 * (wanted - angle) - spin
        hover = 0.5 * (0.55 * x.abs() - y) - 0.5 * vy
        lands = (left + right) > 0
        turn = torch.where(lands, 0.0, turn)
        hover = torch.where(lands, -0.5 * vy, hover)
        action = torch.where(turn < -0.05, 3, torch.where(turn > 0.05, 1, 0))
        action = torch.where((hover > turn.abs()) & (hover > 0.05), 2, action)
        return 10.0 * nn.functional.one_hot(action, 4).float()


def lunar_lander(run_dir: Path) -> dict[str, Any]:
    """A controller that somebody wrote down."""
    return distilled(
        run_dir, Lander(), "LunarLander-v3", kind="logits", student="25%", total_updates=4_000
    )


def minatar_breakout(run_dir: Path) -> dict[str, Any]:
    """A PQN teacher of our own on 10 x 10 bool images."""
    import minatar.gym

    minatar.gym.register_envs()
    game = "MinAtar/Breakout-v1"
    pqn.train(
        pqn.PqnConfig(
            run_dir=run_dir / "teacher", game=game, size="25%", total_steps=400_000,
            num_lanes=32, epsilon_fraction=0.25, spread_steps=200, evaluation_episodes=0,
            checkpoint_every_steps=100_000, tensorboard=False, device="cpu",
        )
    )  # fmt: skip
    return distilled(run_dir, run_dir / "teacher" / "teacher", game, total_updates=4_000,
                     temperature="auto")  # fmt: skip


def pqn_cartpole(run_dir: Path) -> dict[str, Any]:
    """`teacher pqn --game CartPole-v1` with its defaults, until it balances the pole."""
    result = pqn.train(
        pqn.PqnConfig(run_dir=run_dir / "teacher", game="CartPole-v1", stop_at_return=490.0)
    )
    teacher = result.evaluation["teacher"]["summary"]["mean"]
    return {"game": "CartPole-v1", "steps": result.step, "teacher": teacher}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "frozen_lake": frozen_lake,
    "minigrid": minigrid,
    "lunar_lander": lunar_lander,
    "minatar_breakout": minatar_breakout,
    "pqn_cartpole": pqn_cartpole,
}


def distilled(
    run_dir: Path, teacher: Any, env: Any, *, kind: str | None = None, **options: Any
) -> dict[str, Any]:
    """Distil, and what the evaluation says."""
    view = options.pop("teacher_view", None)
    loaded = fd.load_teacher(teacher, env, kind=kind, view=view)
    options = {"student": "7%", "tensorboard": False, "device": "cpu", **options}
    result = fd.distill(
        loaded, env, run_dir=run_dir / "run", evaluation_episodes=EPISODES, score_every_updates=500,
        score_episodes=20, checkpoint_every_updates=100_000, **options,
    )  # fmt: skip
    record = result.evaluation
    (student,) = record["students"]
    return {
        "game": record["game"],
        "options": {key: value for key, value in options.items() if key != "device"}
        | ({"teacher_view": view} if view else {}),
        "episodes": EPISODES,
        "random": record["random_score"],
        "teacher": record["teacher"]["summary"]["mean"],
        "teacher_parameters": record["teacher"]["parameters"],
        "student": student["summary"]["mean"],
        "student_parameters": student["parameters"],
        "percent_of_teacher": student["percent_of_teacher"],
        "distill_seconds": record["training_seconds"],
    }


def measure(names: list[str]) -> None:
    """Run cases; the file keeps those that are not run."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    for name in names:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            case = CASES[name](Path(folder))
        about = (CASES[name].__doc__ or "").strip()
        found["cases"][name] = {
            "about": about,
            **case,
            "seconds": time.perf_counter() - begun,
            "machine": machine.describe(),
        }
        found["command"] = "python benchmarks/foreign_envs.py"
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        print(name, json.dumps(case))


def render() -> None:
    """The table in the page, from the result file."""
    cases = json.loads(RESULTS.read_text())["cases"]
    lines = [
        "| environment | teacher | its score | student's score | share of the teacher |",
        "|---|---|---|---|---|",
    ]
    for case in cases.values():
        if "student" not in case:
            continue
        share = case["percent_of_teacher"]
        views = "".join(
            f", {who} sees `{case['options'][key]}`"
            for who, key in (("teacher", "teacher_view"), ("student", "student_view"))
            if key in case["options"]
        )
        lines.append(
            f"| {case['game']}{views} | {case['about']} | {_interval(case['teacher'])} | "
            f"{_interval(case['student'])} ({case['options']['student']}) | "
            f"{'-' if share is None else _interval(share, '%')} |"
        )
    pages.write_part("docs/your_teacher.md", "foreign_envs.py", "\n".join([*lines, ""]))


def _interval(value: dict[str, float], unit: str = "") -> str:
    digits = 3 if abs(value["value"]) < 2 else 1
    low, high = (f"{value[end]:.{digits}f}" for end in ("low", "high"))
    return f"{value['value']:.{digits}f}{unit} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all of them by default")
    parser.add_argument("--render", action="store_true", help="write the page's table and no more")
    arguments = parser.parse_args()
    if not arguments.render:
        torch.set_num_threads(1)
        measure(arguments.cases or list(CASES))
    render()


if __name__ == "__main__":
    main()
