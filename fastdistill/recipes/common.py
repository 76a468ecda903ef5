# SPDX-License-Identifier: MIT
"""What every training recipe needs and none should repeat: run directories, stopping, resuming.

Plain functions and small records; the training itself is written out in each recipe.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.checkpoints import save_network, versions, write_checkpoint
from fastdistill.envs import EnvState, Episode, LaneEnv, engine_versions
from fastdistill.networks import QNetwork

Config = TypeVar("Config")

# Second words of the seeds' entropy; 1 belongs to evaluation.
TRAINING_STREAM, STATISTICS_STREAM, ACTING_STREAM, LEARNING_STREAM = 2, 3, 4, 5

# Exit status of a run that was told to stop and has left a checkpoint (EX_TEMPFAIL).
STOPPED_STATUS = 75


class TrainingDiverged(RuntimeError):  # noqa: N818 (it names what happened)
    """A loss that is not finite; the message says where its batch was saved."""


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher recipe ends with.

    Attributes:
        stopped: Ended by a signal, with a checkpoint, before its time.
        step: Agent steps taken.
        recent_return: Mean of the last training episodes, None with fewer than 20.
        evaluation: Summary of the evaluation, empty if there was none.
    """

    stopped: bool
    step: int
    recent_return: float | None
    evaluation: dict[str, Any]


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


@dataclass
class EpisodeLog:
    """Returns of the training episodes, and those not yet written to the metrics.

    Attributes:
        recent: Returns of the last 50 episodes.
        count: Episodes so far.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    count: int = 0
    _fresh: list[Episode] = field(default_factory=list)

    def add(self, episodes: tuple[Episode, ...]) -> None:
        """Take the episodes of a step."""
        self.recent.extend(episode.episode_return for episode in episodes)
        self.count += len(episodes)
        self._fresh.extend(episodes)

    @property
    def recent_mean(self) -> float | None:
        """Mean of the recent returns once there are 20."""
        return float(np.mean(self.recent)) if len(self.recent) >= 20 else None

    def metrics(self) -> dict[str, float]:
        """Metrics of the episodes since the last call."""
        values: dict[str, float] = {"charts/episodes": self.count}
        if self._fresh:
            values["charts/episodic_return"] = float(
                np.mean([episode.episode_return for episode in self._fresh])
            )
            values["charts/episodic_length"] = float(
                np.mean([episode.length_steps for episode in self._fresh])
            )
        self._fresh = []
        return values


@dataclass
class Clock:
    """Where the time goes: seconds by part since the last ``take``."""

    _parts: dict[str, float] = field(default_factory=dict)
    _mark: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """Count the time since the last lap as ``part``."""
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        """The parts as metrics, and begin anew."""
        parts, self._parts = self._parts, {}
        return {f"time/{part}_seconds": seconds for part, seconds in parts.items()}


def seed_torch(seed: int, *, deterministic: bool) -> None:
    """Seed every global generator; refuse non-deterministic kernels if asked to."""
    random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


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


def save_teacher(run_dir: Path, network: QNetwork, env: LaneEnv, **card: Any) -> Path:
    """Write the teacher of a run, ``run_dir/teacher.json`` and its weights."""
    return save_network(
        run_dir / "teacher",
        network,
        {
            "kind": "q_values",
            "game": env.name,
            "action_meanings": list(env.action_meanings),
            "environment": env.settings,
            **card,
        },
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
