# SPDX-License-Identifier: MIT
"""Students: networks that learn side by side from the same batches, and how they are judged.

A student is chosen by its game score, never by its loss; agreement and KL are measured on the
states that the student itself visits, where it will have to act.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.envs.lanes import LaneEnv
from fastdistill.evaluation import Evaluation, Policy, evaluate_env
from fastdistill.evaluation.cost import latency_seconds, multiply_adds, num_parameters
from fastdistill.evaluation.statistics import HUMAN_SCORES, Interval, bootstrap_interval, summarize
from fastdistill.losses import distill_kl, distill_loss_and_grad
from fastdistill.networks import Architecture, QNetwork, paper_architecture
from fastdistill.networks.checkpoint import copy_checkpoint, load_network, save_network
from fastdistill.recipes.common import (
    network_tensors,
    optimizer_tensors,
    restore_network,
    restore_optimizer,
)
from fastdistill.teachers import Teacher

LOSSES = ("kl", "nll", "mse", "reverse_kl", "jsd")
SHARPENED = ("kl", "reverse_kl", "jsd")  # these take the teacher's temperature
SIZES = ("100%", "25%", "7%", "4%")
OPTIMIZERS = ("adam", "rmsprop")
WEIGHTINGS = ("none", "gap", "entropy")

# Hidden units for vector observations, by the size's name.
_VECTOR_HIDDEN = {"100%": (128, 128), "25%": (64, 64), "7%": (32, 32), "4%": (24, 24)}

# Every so many steps of a scored game the teacher is asked about the states, too.
_PROBE_EVERY_STEPS = 8


def student_architecture(size: str, env: LaneEnv) -> Architecture:
    """A student's network by its share of the teacher's parameters: 100%, 25%, 7% or 4%."""
    if len(env.obs_shape) == 1:
        if size not in _VECTOR_HIDDEN:
            raise ValueError(f"student: size must be one of {list(_VECTOR_HIDDEN)}, got {size!r}")
        return Architecture(env.obs_shape, (env.num_actions,), hidden=_VECTOR_HIDDEN[size])
    return paper_architecture(size, env.num_actions, obs_shape=env.obs_shape)


@dataclass(frozen=True)
class Score:
    """One scoring of a student: game score, and agreement with the teacher where it went."""

    mean: float
    agreement: float
    kl: float


@dataclass(eq=False)
class Student:
    """A network, what it learns by, and the best score so far.

    Attributes:
        name: Unique within the run; also of its file.
        loss: One of ``LOSSES``.
        size: Share of the teacher's parameters.
        seed: Of the initialisation.
        network: Learns.
        optimizer: Of its parameters.
        best_score: The score that its file was saved at; None before the first.
        loss_sum: Sum of the losses since the last record, and
        loss_count: how many they were.
    """

    name: str
    loss: str
    size: str
    seed: int
    network: QNetwork
    optimizer: torch.optim.Optimizer
    best_score: float | None = None
    loss_sum: float = 0.0
    loss_count: int = 0
    _grad: Tensor | None = field(default=None, repr=False)

    def update(
        self,
        obs: Tensor,
        teacher_logits: Tensor,
        weight: Tensor | None,
        temperature: float,
        learning_rate: float,
        *,
        bfloat16: bool,
    ) -> float:
        """One gradient step; returns the loss."""
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=bfloat16):
            logits = self.network(obs)
        options: dict[str, Any] = {"temperature": temperature} if self.loss in SHARPENED else {}
        if self._grad is None or self._grad.shape != logits.shape:
            self._grad = torch.empty_like(logits)
        loss, grad = distill_loss_and_grad(
            self.loss, logits, teacher_logits, weight=weight, out_grad=self._grad, **options
        )
        self.optimizer.zero_grad(set_to_none=True)
        logits.backward(grad)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        value = float(loss)
        self.loss_sum += value
        self.loss_count += 1
        return value

    def take_mean_loss(self) -> float:
        """Mean loss since the last call; NaN without an update between."""
        mean = self.loss_sum / self.loss_count if self.loss_count else float("nan")
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learns, as checkpoint tensors."""
        own = {**network_tensors(self.network), **optimizer_tensors(self.optimizer)}
        return {f"students.{self.name}.{name}": tensor for name, tensor in own.items()}

    def restore(self, tensors: dict[str, Tensor], best_score: float | None) -> None:
        """The reverse of ``tensors``."""
        start = f"students.{self.name}."
        own = {
            key.removeprefix(start): tensor
            for key, tensor in tensors.items()
            if key.startswith(start)
        }
        restore_network(self.network, own)
        restore_optimizer(self.optimizer, own)
        self.best_score = best_score


def make_students(
    env: LaneEnv,
    *,
    losses: tuple[str, ...],
    sizes: tuple[str, ...],
    seeds: int,
    first_seed: int,
    optimizer: str,
    learning_rate: float,
    device: torch.device,
) -> list[Student]:
    """All combinations; two students of one size and seed begin with the same weights."""
    students = []
    for loss in losses:
        for size in sizes:
            for seed in range(first_seed, first_seed + seeds):
                torch.manual_seed(seed)
                network = QNetwork(student_architecture(size, env)).to(device)
                students.append(
                    Student(
                        name=f"{loss}_{size.rstrip('%')}_seed{seed}",
                        loss=loss,
                        size=size,
                        seed=seed,
                        network=network,
                        optimizer=_optimizer(optimizer, network, learning_rate),
                    )
                )
    return students


def _optimizer(name: str, network: QNetwork, learning_rate: float) -> torch.optim.Optimizer:
    if name == "rmsprop":  # the paper's; its decay and epsilon are not on record, these are DQN's
        return torch.optim.RMSprop(
            network.parameters(), lr=learning_rate, alpha=0.95, eps=0.01, centered=True
        )
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)


def state_weight(weighting: str, teacher_logits: Tensor, temperature: float) -> Tensor | None:
    """How much each state of a batch counts, with a mean of 1.

    Args:
        weighting: ``"none"``; ``"gap"``, by the teacher's lead of the best action over the second;
            ``"entropy"``, by how far the sharpened teacher is from undecided.
        teacher_logits: ``[batch, actions]``.
        temperature: Of the sharpened teacher.

    Sources: Rusu et al. 2015 discuss weights by action gap (CAPI, Farahmand et al. 2015); Qu et
    al. 2022 weight by the inverse of the entropy.
    """
    actions = teacher_logits.shape[1]
    if weighting == "none" or actions < 2:
        return None
    if weighting == "gap":
        best = teacher_logits.topk(2, dim=1).values
        weight = best[:, 0] - best[:, 1]
    else:
        weight = np.log(actions) - teacher_entropy(teacher_logits, temperature)
    return weight / weight.mean().clamp_min(1e-12)


def teacher_entropy(teacher_logits: Tensor, temperature: float) -> Tensor:
    """Entropy of each row's ``softmax(teacher_logits / temperature)``, nats."""
    log_p = torch.log_softmax(teacher_logits.double() / temperature, dim=1)
    return -(log_p.exp() * log_p).nan_to_num().sum(dim=1).to(teacher_logits.dtype)


def auto_temperature(teacher_logits: Tensor, share: float = 0.5) -> float:
    """The temperature at which the teacher is neither noise nor a single action.

    Gaps between action values differ by orders of magnitude from game to game, so one temperature
    means a different sharpness in each. This one gives the sharpened teacher, on average over the
    states, the given share of the entropy of a uniform policy.

    Args:
        teacher_logits: ``[states, actions]``, a few hundred states at least.
        share: Of ``log(actions)``, in (0, 1).
    """
    wanted = share * float(np.log(max(teacher_logits.shape[1], 2)))
    low, high = -8.0, 8.0  # decimal exponents
    for _ in range(40):
        middle = (low + high) / 2
        sharp = float(teacher_entropy(teacher_logits, 10.0**middle).mean()) < wanted
        low, high = (middle, high) if sharp else (low, middle)
    return float(10.0**high)


def score_student(
    network: QNetwork,
    teacher: Teacher,
    env: LaneEnv,
    *,
    episodes: int,
    seed: int,
    temperature: float,
) -> Score:
    """Play full episodes with a student and ask the teacher about the states it visits.

    ``kl`` is that of the sharpened teacher to the student, whatever the student was trained by.
    """
    agreements: list[float] = []
    divergences: list[float] = []
    steps = 0

    def policy(obs: Tensor) -> Tensor:
        nonlocal steps
        logits: Tensor = network(obs)
        if steps % _PROBE_EVERY_STEPS == 0:
            labels = teacher.q_values(obs)
            agreements.append(float((logits.argmax(1) == labels.argmax(1)).float().mean()))
            divergences.append(float(distill_kl(logits, labels, temperature=temperature)))
        steps += 1
        return logits

    device = network.obs_mean.device
    played = evaluate_env(policy, env, episodes=episodes, seed=seed, device=device)
    return Score(played.mean, float(np.mean(agreements)), float(np.mean(divergences)))


def save_student(run_dir: Path, student: Student, env: LaneEnv, card: dict[str, Any]) -> Path:
    """Write ``run_dir/students/NAME`` as it is now."""
    return save_network(
        run_dir / "students" / student.name,
        student.network,
        {
            "kind": "q_values" if student.loss == "mse" else "logits",
            "game": env.name,
            "action_meanings": list(env.action_meanings),
            "environment": env.settings,
            "loss": student.loss,
            "size": student.size,
            "seed": student.seed,
            **card,
        },
    )


def publish_student(run_dir: Path, student: Student) -> Path:
    """Copy a student to ``run_dir/student.json`` and ``student.safetensors``, plain names."""
    return copy_checkpoint(run_dir / "students" / f"{student.name}.json", run_dir / "student")


def judge(
    run_dir: Path,
    students: list[Student],
    teacher: Teacher,
    env: LaneEnv,
    *,
    episodes: int,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Evaluate the teacher, then each student's best, over episodes that chose none of them.

    Yields:
        ``(name, entry)``: every episode's return, their summary, the share of the teacher's score
        above random play with its bootstrap interval, parameters, multiply-adds, latency.
    """
    dtype = torch.uint8 if len(env.obs_shape) == 3 else torch.float32

    def entry(policy: Policy, module: torch.nn.Module, played: Evaluation) -> dict[str, Any]:
        return {
            "parameters": num_parameters(module),
            "flops": 2 * multiply_adds(module, env.obs_shape, dtype),
            "latency_seconds": {
                str(size): latency_seconds(module, env.obs_shape, dtype, size) for size in (1, 1024)
            },
            "returns": list(played.returns),
            "summary": asdict(summarize(played.returns, env.name)),
        }

    reference = evaluate_env(teacher, env, episodes=episodes, seed=seed, device=device)
    if env.name in HUMAN_SCORES:
        random = HUMAN_SCORES[env.name][0]
    else:
        random = evaluate_env(
            teacher, env, episodes=episodes, epsilon=1.0, seed=seed, device=device
        ).mean
    yield (
        "teacher",
        {
            **entry(teacher, teacher.module, reference),
            "name": "teacher",
            "random_score": random,
            "epsilon": reference.epsilon,
        },
    )
    for student in students:
        network, _ = load_network(run_dir / "students" / student.name)
        network = network.to(device)
        played = evaluate_env(network, env, episodes=episodes, seed=seed, device=device)
        share = share_of_teacher(played.returns, reference.returns, random)
        yield (
            student.name,
            {
                **entry(network, network, played),
                "name": student.name,
                "kind": student.loss,
                "size": student.size,
                "seed": student.seed,
                "percent_of_teacher": None if share is None else asdict(share),
            },
        )


def share_of_teacher(
    student: tuple[float, ...], teacher: tuple[float, ...], random: float
) -> Interval | None:
    """``100 (student - random) / (teacher - random)`` of the means, both sides resampled.

    None where the teacher is not clearly better than random play: the ratio would mean nothing.
    """
    split = len(student)

    def ratio(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        above = scores[:, split:].mean(axis=1) - random
        return np.asarray(100 * (scores[:, :split].mean(axis=1) - random) / above)

    if bootstrap_interval([teacher]).low <= random:
        return None
    return bootstrap_interval([student, teacher], ratio)
