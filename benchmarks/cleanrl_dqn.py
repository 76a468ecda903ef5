# SPDX-License-Identifier: MIT
"""The DQN loop of fastdistill beside the field's plain one, steps per second in one run.

The plain one is the design of CleanRL's dqn_atari.py, written out: one environment, float32, a
NumPy replay of whole stacks with uniform sampling, one update of 32 rows every 4 steps, a target
network. Its environment is the engine that ours uses, with one lane: quicker than the Python
wrappers of CleanRL, so the comparison is to the plain loop's advantage. Ours runs with the same
network, batch size and replay ratio, Double DQN and prioritized replay included (the plain loop
has neither), and once more with its own batch size. The three take turns, each time in a fresh
process; a ratio is the median over the rounds of what was measured side by side.

    python benchmarks/cleanrl_dqn.py --rounds 5 --out benchmarks/results/dqn_steps.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastdistill.envs import make_atari
from fastdistill.recipes.dqn import train
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.training.metrics import read_jsonl

BATCH, TRAIN_EVERY, WARM_UP = 32, 4, 1000


def plain_network(actions: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, actions),
    )


def plain_steps_per_second(game: str, seconds: float, capacity: int = 20_000) -> float:
    """Steps per second of the plain loop once it learns."""
    env = make_atari(game, 1)
    network, target = plain_network(env.spec.num_actions), plain_network(env.spec.num_actions)
    target.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    obs_ring = np.zeros((capacity, 4, 84, 84), np.uint8)
    action_ring = np.zeros(capacity, np.int64)
    reward_ring, done_ring = np.zeros(capacity, np.float32), np.zeros(capacity, np.float32)
    obs = env.reset(0)[0]
    step, begun, begun_step = 0, 0.0, 0
    while True:
        if step == WARM_UP + 200:  # after the first updates, which set up the kernels
            begun, begun_step = time.perf_counter(), step
        elif begun and time.perf_counter() - begun > seconds:
            return (step - begun_step) / (time.perf_counter() - begun)
        if rng.random() < 0.1:
            action = int(rng.integers(env.spec.num_actions))
        else:
            with torch.no_grad():
                scaled = torch.tensor(obs[None], dtype=torch.float32) / 255
                action = int(network(scaled).argmax())
        played = env.step(np.array([action]))
        slot = step % capacity
        obs_ring[slot], action_ring[slot] = obs, action
        reward_ring[slot] = np.sign(played.reward[0])
        done_ring[slot] = played.terminated[0]
        obs = env.obs[0]
        step += 1
        if step > WARM_UP and step % TRAIN_EVERY == 0:
            rows = rng.integers(min(step, capacity) - 1, size=BATCH)
            batch = torch.tensor(obs_ring[rows], dtype=torch.float32) / 255
            ahead = torch.tensor(obs_ring[(rows + 1) % capacity], dtype=torch.float32) / 255
            with torch.no_grad():
                best = target(ahead).max(dim=1).values
                bootstrap = 0.99 * best * (1 - torch.tensor(done_ring[rows]))
            q = network(batch).gather(1, torch.tensor(action_ring[rows])[:, None]).squeeze(1)
            loss = F.mse_loss(q, torch.tensor(reward_ring[rows]) + bootstrap)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 1000 == 0:
            target.load_state_dict(network.state_dict())


def our_steps_per_second(game: str, seconds: float, **options: object) -> dict[str, float]:
    """Steps per second of the recipe once it learns, and where its time goes."""
    guess = int(seconds * 350) // 1000 * 1000
    with tempfile.TemporaryDirectory() as directory:
        train(
            DqnConfig(
                run_dir=Path(directory) / "run",
                game=game,
                total_steps=4000 + guess,
                learning_starts_steps=WARM_UP,
                samples_per_step=BATCH / TRAIN_EVERY,
                replay_capacity=20_000,
                epsilon_steps=1,
                epsilon_end=0.1,
                log_every_steps=1000,
                checkpoint_every_steps=1_000_000,
                evaluation_episodes=0,
                tensorboard=False,
                **options,  # type: ignore[arg-type]
            )
        )
        records = read_jsonl(Path(directory) / "run" / "metrics.jsonl")
    records = [record for record in records if record["step"] > 3000]
    result = {"steps_per_second": float(np.median([r["charts/SPS"] for r in records]))}
    total = sum(1000 / r["charts/SPS"] for r in records)
    for part in ("env", "act", "learn", "replay"):
        result[f"{part}_share"] = sum(r[f"time/{part}_seconds"] for r in records) / total
    return result


def alone(function: Callable[..., Any], *args: object, **options: object) -> Any:
    """The result of a call in a process of its own: the recipe changes the allocator for good."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args, **options).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="about, per loop and round")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    game, seconds = arguments.game, arguments.seconds
    rounds = []
    for _ in range(arguments.rounds):
        plain = alone(plain_steps_per_second, game, seconds)
        same = alone(our_steps_per_second, game, seconds, batch_size=BATCH)
        own = alone(our_steps_per_second, game, seconds)
        rounds.append({"plain": plain, "batch_32": same, "default": own})

    def median_of(loop: str) -> dict[str, float]:
        return {key: float(np.median([r[loop][key] for r in rounds])) for key in same}

    def ratio(loop: str) -> float:
        return float(np.median([r[loop]["steps_per_second"] / r["plain"] for r in rounds]))

    result = {
        "benchmark": "dqn_steps_per_second",
        "game": game,
        "plain": {"steps_per_second": float(np.median([r["plain"] for r in rounds]))},
        "fastdistill_batch_32": median_of("batch_32"),
        "fastdistill_default": median_of("default"),
        "ratio_batch_32": ratio("batch_32"),
        "ratio_default": ratio("default"),
        "rounds": rounds,
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
