# SPDX-License-Identifier: MIT
"""What every training recipe needs and none should repeat: run directories, stopping, resuming.

Plain functions and small records; the training itself is written out in each recipe.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import random
import signal
import time
from collections import deque
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.envs import engine_versions
from fastdistill.envs.lanes import EnvState, Episode, LaneEnv
from fastdistill.networks import QNetwork
from fastdistill.networks.checkpoint import versions, write_checkpoint

Config = TypeVar("Config")

# Second words of the seeds' entropy; 1 belongs to evaluation.
TRAINING_STREAM, STATISTICS_STREAM, ACTING_STREAM, LEARNING_STREAM = 2, 3, 4, 5

# Added to a run's seed for the episodes that choose a network: its evaluation plays others.
SCORING_SEED = 1_000_000

# Exit status of a run that was told to stop and has left a checkpoint (EX_TEMPFAIL).
STOPPED_STATUS = 75


class TrainingDiverged(RuntimeError):  # noqa: N818 (it names what happened)
    """A loss that is not finite; the message says where its batch was saved."""


def open_run(run_dir: Path, recipe: str, config: Config, *, resume: bool) -> Config:
    """Make a run directory with its ``config.json``, or read the configuration of one.

    Args:
        run_dir: Must not hold a run, or hold one of the same recipe when resuming.
        recipe: Name of the recipe.
        config: A dataclass of plain fields.
        resume: Whether to continue; the stored configuration then wins.

    Returns:
        The configuration to train with.
    """
    path = run_dir / "config.json"
    if not resume:
        if path.exists():
            raise ValueError(
                f"open_run: run_dir must not hold a run, got {run_dir}; resume it or name another"
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        record = {
            "recipe": recipe,
            "config": _to_json(config),
            "versions": {**versions(), **engine_versions()},
        }
        path.write_text(json.dumps(record, indent=2) + "\n")
        return config
    if not path.exists():
        raise ValueError(f"open_run: run_dir must hold a run to resume, got {run_dir}")
    stored = json.loads(path.read_text())
    if stored["recipe"] != recipe:
        raise ValueError(f"open_run: run must be of {recipe}, got {stored['recipe']}")
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, value in stored["config"].items():
        fields[name] = Path(value) if isinstance(fields.get(name), Path) else value
    fields["run_dir"] = run_dir  # it may have been moved
    return type(config)(**fields)


class StopRequest:
    """SIGINT or SIGTERM ask for a stop at the next good moment; a second one ends at once.

    Use as a context manager around the training loop and look at ``requested``.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True


class TrainingState:
    """How far a training is: counters, recent returns, acting randomness, where the time goes.

    Attributes:
        step: Agent steps taken, all lanes together.
        updates: Gradient updates made.
        best_score: Best score that a teacher was saved at; None before the first.
        recent: Returns of the last 50 episodes.
        episodes: Episodes finished.
        rng: Random numbers of acting (and, in PQN, of minibatches).
        total_seconds: Time spent in each part so far, over all resumes.
    """

    def __init__(self, seed: int) -> None:
        self.step = 0
        self.updates = 0
        self.best_score: float | None = None
        self.recent: deque[float] = deque(maxlen=50)
        self.episodes = 0
        self.rng = np.random.default_rng((seed, ACTING_STREAM))
        self._fresh: list[Episode] = []
        self.total_seconds: dict[str, float] = {}
        self._recorded_seconds: dict[str, float] = {}
        self._begun = self._mark = self._recorded = time.perf_counter()
        self._recorded_step = 0

    def add_episodes(self, episodes: tuple[Episode, ...]) -> None:
        """Take the episodes that a step finished."""
        self.recent.extend(episode.episode_return for episode in episodes)
        self.episodes += len(episodes)
        self._fresh.extend(episodes)

    @property
    def recent_return(self) -> float | None:
        """Mean of the recent returns once there are 20."""
        return float(np.mean(self.recent)) if len(self.recent) >= 20 else None

    def reached(self, goal: float | None) -> bool:
        """Whether the last 50 episodes average at least ``goal``."""
        full = len(self.recent) == self.recent.maxlen
        return goal is not None and full and float(np.mean(self.recent)) >= goal

    def lap(self, part: str) -> None:
        """Count the time since the last lap as spent in ``part``."""
        now = time.perf_counter()
        self.total_seconds[part] = self.total_seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def metrics(self) -> dict[str, float]:
        """What every recipe records, over the time since the last call."""
        now = time.perf_counter()
        values: dict[str, float] = {
            "charts/episodes": self.episodes,
            "charts/SPS": (self.step - self._recorded_step) / (now - self._recorded),
            "time/updates": self.updates,
            "time/wall_seconds": now - self._begun,
            **{
                f"time/{part}_seconds": seconds - self._recorded_seconds.get(part, 0.0)
                for part, seconds in self.total_seconds.items()
            },
        }
        if self._fresh:
            returns = [episode.episode_return for episode in self._fresh]
            lengths = [episode.length_steps for episode in self._fresh]
            values["charts/episodic_return"] = float(np.mean(returns))
            values["charts/episodic_length"] = float(np.mean(lengths))
        self._fresh, self._recorded_seconds = [], dict(self.total_seconds)
        self._recorded, self._recorded_step = now, self.step
        return values

    def card(self) -> dict[str, Any]:
        """Everything to continue from, as plain JSON types."""
        return {
            "step": self.step,
            "updates": self.updates,
            "best_score": self.best_score,
            "recent_returns": list(self.recent),
            "episodes": self.episodes,
            "rng": self.rng.bit_generator.state,
            "wall_seconds": time.perf_counter() - self._begun,
            "total_seconds": dict(self.total_seconds),
        }

    def restore(self, card: dict[str, Any]) -> None:
        """The reverse of ``card``."""
        self.step = self._recorded_step = card["step"]
        self.updates = card["updates"]
        self.best_score = card["best_score"]
        self.recent.extend(card["recent_returns"])
        self.episodes = card["episodes"]
        self.rng.bit_generator.state = card["rng"]
        self._begun = time.perf_counter() - card["wall_seconds"]
        self.total_seconds = dict(card["total_seconds"])
        self._recorded_seconds = dict(card["total_seconds"])
        self._mark = time.perf_counter()


def keep_freed_memory() -> None:
    """Ask glibc to keep the memory of freed batches for the next one.

    By default it returns megabytes to the system at each free and takes a page fault per 4 KB at
    the next allocation: a DQN update of 64 rows took 34 ms that way and takes 20 ms without (2
    cores of an AMD EPYC, November 2026). Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the largest it accepts
    mallopt(trim_threshold, 1 << 30)


def seed_torch(seed: int, *, deterministic: bool) -> None:
    """Seed every global generator; refuse non-deterministic kernels if asked to."""
    random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # else 2 s of imports
        torch.use_deterministic_algorithms(deterministic)


def clip_gradients(network: QNetwork, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, which on a CPU spends a pass over all gradients on
    multiplying them by 1 where there is nothing to clip.

    Returns:
        The norm before.
    """
    parameters = list(network.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or not norm <= max_norm:  # elsewhere asking would be waiting
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def pick_device(device: str) -> torch.device:
    """``"auto"`` is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def linear(start: float, end: float, fraction: float) -> float:
    """``start`` at fraction 0 to ``end`` at 1 and beyond."""
    return start + (end - start) * min(max(fraction, 0.0), 1.0)


def env_tensors(state: EnvState) -> dict[str, Tensor]:
    """An environment's state as checkpoint tensors."""
    return {
        "env.seed": torch.tensor(state.seed, dtype=torch.int64),
        "env.reseeds": torch.from_numpy(state.reseeds),
        "env.lengths_steps": torch.from_numpy(state.lengths_steps),
        "env.actions": torch.from_numpy(state.actions.copy()),
    }


def restore_env(env: LaneEnv, tensors: dict[str, Tensor]) -> None:
    """The reverse of ``env_tensors``, played into ``env``."""
    env.restore(
        EnvState(
            tuple(tensors["env.seed"].tolist()),
            tensors["env.reseeds"].numpy(),
            tensors["env.lengths_steps"].numpy(),
            tensors["env.actions"].numpy(),
        )
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as checkpoint tensors."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of ``optimizer_tensors``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def network_tensors(network: QNetwork, prefix: str = "network") -> dict[str, Tensor]:
    """A network's state under a prefix, as checkpoint tensors."""
    return {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}


def restore_network(network: QNetwork, tensors: dict[str, Tensor], prefix: str = "network") -> None:
    """The reverse of ``network_tensors``."""
    start = f"{prefix}."
    network.load_state_dict(
        {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    )


def refuse_divergence(run_dir: Path, step: int, loss: float, batch: dict[str, Tensor]) -> None:
    """Stop on a loss that is not finite, with its batch saved for the post-mortem.

    Raises:
        TrainingDiverged: If ``loss`` is infinite or NaN.
    """
    if np.isfinite(loss):
        return
    path = write_checkpoint(run_dir / "diverged", batch, {"step": step, "loss": str(loss)})
    raise TrainingDiverged(
        f"training: loss must be finite, got {loss} at step {step}; the batch is in {path}"
    )


def epsilon_greedy(
    greedy: NDArray[np.int64], epsilon: float, num_actions: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Replace each greedy action by a random one with probability ``epsilon``."""
    explore = rng.random(len(greedy)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy)), greedy)


def _to_json(config: object) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()  # type: ignore[call-overload]
    }
