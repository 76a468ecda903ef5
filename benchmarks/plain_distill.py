# SPDX-License-Identifier: MIT
"""The distillation of ``fastdistill distill`` as a plain PyTorch loop, and where its time goes.

What most people would write in an afternoon: gymnasium's wrappers around one environment, the
teacher acting on one observation at a time in float32, a NumPy replay of whole stacks with the
teacher's Q-values, uniform sampling, eager torch losses, Adam. It has what is known to make a
small student learn (an input standardised pixel by pixel, orthogonal initialisation), so that the
comparison is about speed. Of this package it uses the file of the teacher's weights, nothing else.

    python benchmarks/plain_distill.py --updates 600
    python benchmarks/plain_distill.py --updates 5500 --out benchmarks/results/plain_distill.json

A program that also runs the package's own recipe must call ``plain_distill`` first: the recipe
changes the allocator for the whole process. Needs ale-py, gymnasium and opencv-python-headless
(gymnasium's ``AtariPreprocessing`` resizes with it).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import machine
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from torch import Tensor, nn

from fastdistill.networks.checkpoint import load_network
from fastdistill.teachers import checkpoint_path

TEMPERATURE, EPSILON, LEARNING_RATE = 0.01, 0.05, 5e-4
STUDENT = ((16, 16, 16), 128)  # the paper's 7% network
# Steps of play before the first update; their frames are the input's statistics.
WARM_UP_STEPS = 4_000


class Standardize(nn.Module):
    """``clip((obs - mean) * scale, -limit, limit)``, pixel by pixel."""

    def __init__(self, mean: Tensor, scale: Tensor, limit: float = 5.0) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.limit = limit

    def forward(self, obs: Tensor) -> Tensor:
        """``[batch, 4, 84, 84]`` uint8 to float32."""
        return ((obs.float() - self.mean) * self.scale).clamp(-self.limit, self.limit)


def build_network(
    channels: tuple[int, ...], hidden: int, actions: int, standardize: Standardize
) -> nn.Sequential:
    """A Nature DQN of the given sizes, initialised orthogonally."""
    network = nn.Sequential(
        standardize,
        nn.Conv2d(4, channels[0], 8, 4),
        nn.ReLU(),
        nn.Conv2d(channels[0], channels[1], 4, 2),
        nn.ReLU(),
        nn.Conv2d(channels[1], channels[2], 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels[2] * 49, hidden),
        nn.ReLU(),
        nn.Linear(hidden, actions),
    )
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            is_output = layer is network[-1]
            nn.init.orthogonal_(layer.weight, 0.1 if is_output else 2**0.5)
            nn.init.zeros_(layer.bias)
    return network


def load_plain_teacher(source: str, actions: int) -> nn.Sequential:
    """The weights of a checkpoint in a plain ``nn.Sequential``."""
    saved, card = load_network(checkpoint_path(source))
    architecture = saved.architecture
    if (
        architecture.num_actions != (actions,)
        or len(architecture.hidden) != 1
        or architecture.layer_norm
        or architecture.dueling
        or architecture.head_hidden
    ):
        raise ValueError(
            f"plain_distill: teacher must be a plain Nature DQN with {actions} actions, "
            f"got {card['architecture']}"
        )
    standardize = Standardize(saved.obs_mean.clone(), saved.obs_scale.clone())
    network = build_network(architecture.channels, architecture.hidden[0], actions, standardize)
    values = nn.utils.parameters_to_vector(saved.parameters())
    nn.utils.vector_to_parameters(values, network.parameters())
    return network.eval().requires_grad_(False)


def make_environment(game: str) -> gym.Env[Any, Any]:
    """One Atari game as gymnasium's documentation sets it up."""
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    env_id = "ALE/" + "".join(word.capitalize() for word in game.split("_")) + "-v5"
    env = gym.make(env_id, frameskip=1, repeat_action_probability=0.0)
    env = AtariPreprocessing(
        env, noop_max=30, frame_skip=4, screen_size=84, terminal_on_life_loss=False
    )
    return FrameStackObservation(env, 4, padding_type="zero")


class Replay:
    """The last ``capacity`` observations with the teacher's Q-values; uniform batches."""

    def __init__(self, capacity: int, actions: int, rng: np.random.Generator) -> None:
        self.obs = np.zeros((capacity, 4, 84, 84), np.uint8)
        self.teacher_q = np.zeros((capacity, actions), np.float32)
        self.added = 0
        self._rng = rng

    def __len__(self) -> int:
        return min(self.added, len(self.obs))

    def add(self, obs: np.ndarray, teacher_q: np.ndarray) -> None:
        """One observation ``[4, 84, 84]`` and its Q-values ``[actions]``."""
        slot = self.added % len(self.obs)
        self.obs[slot], self.teacher_q[slot] = obs, teacher_q
        self.added += 1

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """``batch_size`` rows with replacement: uint8 stacks and Q-values."""
        rows = self._rng.integers(len(self), size=batch_size)
        return torch.from_numpy(self.obs[rows]), torch.from_numpy(self.teacher_q[rows])

    def statistics(self) -> Standardize:
        """The standardisation that the newest planes of everything stored call for."""
        newest = self.obs[: len(self), -1].astype(np.float32)
        mean, std = torch.from_numpy(newest.mean(axis=0)), torch.from_numpy(newest.std(axis=0))
        return Standardize(mean, 1 / (std + 0.02 * 255))


class Laps:
    """Wall seconds by part of the loop."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = self._mark = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as spent in ``part``."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begun


class TeacherPlay:
    """The teacher playing epsilon-greedily, one step at a time."""

    def __init__(self, teacher: nn.Module, env: gym.Env[Any, Any], seed: int) -> None:
        self._teacher, self._env = teacher, env
        self._rng = np.random.default_rng((seed, 1))
        self._obs, _ = env.reset(seed=seed)

    def step(self, replay: Replay, laps: Laps) -> None:
        """One step, its observation and Q-values into the replay."""
        with torch.inference_mode():
            teacher_q = self._teacher(torch.from_numpy(self._obs)[None])[0].numpy()
        if self._rng.random() < EPSILON:
            action = int(self._rng.integers(len(teacher_q)))
        else:
            action = int(teacher_q.argmax())
        laps.lap("act")
        replay.add(self._obs, teacher_q)
        laps.lap("sample")
        self._obs, _, terminated, truncated, _ = self._env.step(action)
        if terminated or truncated:
            self._obs, _ = self._env.reset()
        laps.lap("env")


def plain_distill(
    game: str,
    updates: int,
    batch_size: int = 64,
    steps_per_update: int = 17,
    seed: int = 1,
    *,
    teacher: str = "",
    capacity: int = 100_000,
) -> dict[str, Any]:
    """Distil a teacher into the 7% student.

    Args:
        game: Such as ``"pong"``.
        updates: Gradient updates to make.
        batch_size: Rows per update.
        steps_per_update: Environment steps between updates. 17 is 93,000 steps for 5,500 updates.
        seed: Of everything.
        teacher: Checkpoint; by default the one of the zoo.
        capacity: Observations kept, 28 KB each.

    Returns:
        ``wall_seconds`` and of them ``act_seconds``, ``env_seconds``, ``sample_seconds`` (storing
        and sampling) and ``learn_seconds``; ``loss``, the mean of the last 100 updates;
        ``constant_loss``, that of the best student that ignores what it sees; ``steps``;
        ``parameters``; and ``network``.
    """
    torch.manual_seed(seed)
    env = make_environment(game)
    actions = int(env.action_space.n)  # type: ignore[attr-defined]
    teacher_network = load_plain_teacher(teacher or f"zoo:{game}", actions)
    laps = Laps()
    replay = Replay(
        min(capacity, WARM_UP_STEPS + updates * steps_per_update),
        actions,
        np.random.default_rng((seed, 2)),
    )
    play = TeacherPlay(teacher_network, env, seed)
    for _ in range(WARM_UP_STEPS):
        play.step(replay, laps)
    student = build_network(*STUDENT, actions, replay.statistics())
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(updates):
        for _ in range(steps_per_update):
            play.step(replay, laps)
        obs, teacher_q = replay.sample(batch_size)
        laps.lap("sample")
        target = F.softmax(teacher_q / TEMPERATURE, dim=1)
        loss = F.kl_div(F.log_softmax(student(obs), dim=1), target, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        laps.lap("learn")
    wall_seconds = laps.total()
    env.close()
    return {
        "wall_seconds": wall_seconds,
        **{f"{part}_seconds": seconds for part, seconds in laps.seconds.items()},
        "updates": updates,
        "batch_size": batch_size,
        "steps": replay.added,
        "loss": float(np.mean(losses[-100:])),
        "constant_loss": constant_loss(torch.from_numpy(replay.teacher_q[: len(replay)])),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "network": student.eval(),
    }


def constant_loss(teacher_q: Tensor) -> float:
    """The least KL of a student whose output is the same for every observation."""
    target = F.softmax(teacher_q.double() / TEMPERATURE, dim=1)
    constant = target.mean(dim=0).log().expand_as(target)
    return float(F.kl_div(constant, target, reduction="batchmean"))


def main() -> None:
    """Times the loop, prints the result and writes it where told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--game", default="pong")
    parser.add_argument("--updates", type=int, default=5_500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps-per-update", type=int, default=17)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    plain = plain_distill(
        arguments.game,
        arguments.updates,
        arguments.batch_size,
        arguments.steps_per_update,
        arguments.seed,
    )
    del plain["network"]
    result = {
        "benchmark": "plain_distill",
        "game": arguments.game,
        "seed": arguments.seed,
        "steps_per_update": arguments.steps_per_update,
        "plain": plain,
        "machine": machine.describe(),
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
