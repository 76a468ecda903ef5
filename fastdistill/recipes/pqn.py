# SPDX-License-Identifier: MIT
"""Parallel Q-learning (Gallici et al. 2024): a teacher without a replay.

Many lanes play a short rollout; lambda-returns are computed backwards through it; a few epochs of
minibatches regress the Q-values on them; the rollout is thrown away. Layer normalisation stands in
for the target network. Deterministic: one seed, one set of weights, bitwise on a CPU, interrupted
or not.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.envs import make_env, observation_statistics
from fastdistill.envs.lanes import LaneEnv
from fastdistill.networks import Architecture, QNetwork, paper_architecture
from fastdistill.recipes.common import (
    STATISTICS_STREAM,
    TRAINING_STREAM,
    StopRequest,
    TrainingState,
    clip_gradients,
    env_tensors,
    epsilon_greedy,
    keep_freed_memory,
    linear,
    network_tensors,
    open_run,
    optimizer_tensors,
    pick_device,
    refuse_divergence,
    restore_env,
    restore_network,
    restore_optimizer,
    seed_torch,
)
from fastdistill.recipes.teaching import (
    TeacherResult,
    evaluate_teacher,
    evaluation_metrics,
    save_best,
)
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.metrics import Progress, RunWriter


@dataclass(frozen=True)
class PqnConfig:
    """Parallel Q-learning; defaults are for Pong on two CPU cores."""

    run_dir: Path = Path("runs/teacher_pqn")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%."""
    total_steps: int = 1_500_000
    """Agent steps, all lanes together; the schedules end there."""
    stop_at_return: float | None = None
    """End early once the mean of the last 50 training episodes reaches this."""
    num_lanes: int = 32
    """Games played at once."""
    spread_steps: int = 2_000
    """Random steps of each lane before the first rollout, over which the lanes start one by one: no
    batch is of one moment of the game. Not counted in total_steps."""
    rollout_steps: int = 32
    """Steps of each lane between two learning phases."""
    epochs: int = 2
    """Passes over each rollout."""
    batch_size: int = 256
    """Transitions per update."""
    learning_rate: float = 5e-4
    """After the warm-up; it falls linearly to 0."""
    warm_up_updates: int = 500
    """Updates over which the learning rate rises."""
    max_gradient_norm: float = 10.0
    """Gradients are clipped to this norm."""
    discount: float = 0.99
    """Per agent step."""
    trace_decay: float = 0.65
    """Lambda of the returns: 0 is one-step Q-learning, 1 Monte Carlo."""
    clip_rewards: bool = True
    """Learn from the sign of the rewards (reports stay raw)."""
    epsilon_end: float = 0.01
    """Final share of random actions; it starts at 1."""
    epsilon_fraction: float = 0.1
    """Share of total_steps over which epsilon falls."""
    bfloat16: bool = True
    """Convolutions in bfloat16; the head is float32 always."""
    score_episodes: int = 10
    """Full episodes per checkpoint, and twice as many for one that wins, by which the best is
    chosen; 0 keeps the last."""
    evaluation_episodes: int = 30
    """Full episodes played with the chosen teacher, none of which chose it; 0 for none."""
    evaluation_epsilon: float = 0.01
    """Share of random actions in either."""
    checkpoint_every_steps: int = 150_000
    """Agent steps between checkpoints."""
    log_every_steps: int = 10_000
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
        for name in (
            "num_lanes",
            "rollout_steps",
            "epochs",
            "batch_size",
            "total_steps",
            "warm_up_updates",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"PqnConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.spread_steps < 0:
            raise ValueError(f"PqnConfig: spread_steps must be at least 0, got {self.spread_steps}")
        for name in ("discount", "trace_decay", "epsilon_end", "evaluation_epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"PqnConfig: {name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.epsilon_fraction <= 1:
            raise ValueError(
                f"PqnConfig: epsilon_fraction must be in (0, 1], got {self.epsilon_fraction}"
            )


def train(config: PqnConfig, *, resume: bool = False) -> TeacherResult:
    """Train a teacher; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
    """
    config = open_run(config.run_dir, "teacher_pqn", config, resume=resume)
    keep_freed_memory()
    seed_torch(config.seed, deterministic=config.deterministic)
    device = pick_device(config.device)
    env = make_env(config.game, config.num_lanes, preset=config.preset)
    network = QNetwork(_architecture(config, env)).to(device)
    # The authors' RAdam is Adam with a warm-up; fused Adam and a warm-up take 0.7 ms for its 5 ms.
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    at = TrainingState(config.seed)
    checkpoints = TrainingCheckpoints(config.run_dir / "checkpoints")

    loaded = checkpoints.latest() if resume else None
    if loaded is None:
        mean, std = observation_statistics(env, seed=(config.seed, STATISTICS_STREAM))
        network.set_obs_statistics(torch.from_numpy(mean), torch.from_numpy(std))
        env.reset((config.seed, TRAINING_STREAM))
        env.spread(config.spread_steps)
    else:
        tensors, card = loaded
        restore_network(network, tensors)
        restore_optimizer(optimizer, tensors)
        restore_env(env, tensors)
        at.restore(card)

    rollout = Rollout.allocate(config, env, device)
    writer = RunWriter(
        config.run_dir, tensorboard=config.tensorboard, resume_step=at.step if resume else None
    )
    progress = Progress(config.total_steps, start_step=at.step)
    phases: list[Learned] = []
    done = at.step >= config.total_steps or at.reached(config.stop_at_return)
    stopping = False
    with StopRequest() as stop, closing(env), closing(progress), closing(writer):
        while not (done or stopping):
            fraction = at.step / config.total_steps
            epsilon = linear(1.0, config.epsilon_end, fraction / config.epsilon_fraction)
            warm_up = min(1.0, (at.updates + 1) / config.warm_up_updates)
            learning_rate = warm_up * linear(config.learning_rate, 0.0, fraction)
            optimizer.param_groups[0]["lr"] = learning_rate

            play(config, env, network, rollout, epsilon, at)
            phases.append(learn(config, network, optimizer, rollout, at))
            at.lap("learn")
            previous, at.step = at.step, at.step + config.num_lanes * config.rollout_steps
            refuse_divergence(config.run_dir, at.step, phases[-1].loss, rollout.tensors())

            progress.update(at.step, at.recent, f"epsilon {epsilon:.3f}")
            if at.step // config.log_every_steps > previous // config.log_every_steps:
                means = np.mean([(phase.loss, phase.q_value) for phase in phases], axis=0)
                learning = {
                    "losses/td_loss": float(means[0]),
                    "losses/q_values": float(means[1]),
                    "losses/gradient_norm": phases[-1].gradient_norm,
                    "charts/epsilon": epsilon,
                    "charts/learning_rate": learning_rate,
                }
                writer.write(at.step, {**at.metrics(), **learning})
                phases = []
            done = at.step >= config.total_steps or at.reached(config.stop_at_return)
            stopping = stop.requested
            every = config.checkpoint_every_steps
            if done or stopping or at.step // every > previous // every:
                save_best(config, network, env, at, stopped=stopping and not done)
                at.lap("score")
                state = {**network_tensors(network), **optimizer_tensors(optimizer)}
                checkpoints.write(at.step, {**state, **env_tensors(env.state())}, at.card())
        summary: dict[str, Any] = {}
        if done and config.evaluation_episodes:
            summary = evaluate_teacher(config, device)
            writer.write(at.step, evaluation_metrics(summary))
    return TeacherResult(not done, at.step, at.recent_return, summary)


@dataclass(frozen=True, eq=False)
class Rollout:
    """What one playing phase leaves for the learning phase, ``[rollout_steps, lanes, ...]``.

    Attributes:
        obs: Observations, on the device.
        action: int64, on the device.
        returns: Lambda-returns, float32, on the device.
        value: Largest Q-value of each observation.
        reward: As learned from.
        terminated: The return ends at this row.
        boundary: Rows that are no transitions.
    """

    obs: Tensor
    action: Tensor
    returns: Tensor
    value: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    boundary: NDArray[np.bool_]

    @classmethod
    def allocate(cls, config: PqnConfig, env: LaneEnv, device: torch.device) -> Rollout:
        """Buffers to be filled by ``play``, again and again."""
        shape = (config.rollout_steps, config.num_lanes)
        dtype = torch.uint8 if env.obs.dtype == np.uint8 else torch.float32
        return cls(
            obs=torch.empty((*shape, *env.obs_shape), dtype=dtype, device=device),
            action=torch.zeros(shape, dtype=torch.int64, device=device),
            returns=torch.zeros(shape, device=device),
            value=np.zeros(shape, np.float32),
            reward=np.zeros(shape, np.float32),
            terminated=np.zeros(shape, np.bool_),
            boundary=np.zeros(shape, np.bool_),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a post-mortem."""
        return {
            name: value if isinstance(value, Tensor) else torch.from_numpy(value)
            for name, value in vars(self).items()
        }


def play(
    config: PqnConfig,
    env: LaneEnv,
    network: QNetwork,
    rollout: Rollout,
    epsilon: float,
    at: TrainingState,
) -> None:
    """Fill the rollout with epsilon-greedy play and its lambda-returns."""
    for time_step in range(config.rollout_steps):
        rollout.obs[time_step].copy_(torch.from_numpy(env.obs))
        q = _act(config, network, rollout.obs[time_step])
        rollout.value[time_step] = q.max(axis=1)
        action = epsilon_greedy(q.argmax(axis=1), epsilon, env.num_actions, at.rng)
        rollout.action[time_step].copy_(torch.from_numpy(action))
        at.lap("act")
        step = env.step(action)
        at.lap("env")
        rollout.reward[time_step] = np.sign(step.reward) if config.clip_rewards else step.reward
        rollout.terminated[time_step] = step.terminated
        rollout.boundary[time_step] = step.boundary
        at.add_episodes(step.episodes)
    last = _act(config, network, torch.from_numpy(env.obs).to(rollout.obs.device))
    returns = lambda_returns(
        rollout.reward,
        rollout.value,
        last.max(axis=1),
        rollout.terminated,
        rollout.boundary,
        discount=config.discount,
        trace_decay=config.trace_decay,
    )
    rollout.returns.copy_(torch.from_numpy(returns))
    at.lap("act")


def lambda_returns(
    reward: NDArray[np.float32],
    value: NDArray[np.float32],
    last_value: NDArray[np.float32],
    terminated: NDArray[np.bool_],
    boundary: NDArray[np.bool_],
    *,
    discount: float,
    trace_decay: float,
) -> NDArray[np.float32]:
    """Q(lambda) targets, computed backwards.

    ``G_t = r_t + discount * (1 - terminated_t) * (v_{t+1} + trace_decay * (G_{t+1} - v_{t+1}))``.
    A boundary row is worth its own value: an episode cut before it bootstraps from its final
    observation, and nothing leaks from the next episode.

    Args:
        reward: ``[steps, lanes]``.
        value: ``[steps, lanes]``, the largest Q-value of each row's observation.
        last_value: ``[lanes]``, that of the observation after the last row.
        terminated: ``[steps, lanes]``.
        boundary: ``[steps, lanes]``.
        discount: In [0, 1].
        trace_decay: In [0, 1].

    Source: Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning", section 4.
    """
    returns = np.empty_like(value)
    next_value, next_return = last_value, last_value
    for time_step in reversed(range(len(reward))):
        ahead = next_value + trace_decay * (next_return - next_value)
        target = reward[time_step] + discount * ahead * ~terminated[time_step]
        returns[time_step] = np.where(boundary[time_step], value[time_step], target)
        next_value, next_return = value[time_step], returns[time_step]
    return returns


@dataclass(frozen=True)
class Learned:
    """Means over one learning phase."""

    loss: float
    q_value: float
    gradient_norm: float


def learn(
    config: PqnConfig,
    network: QNetwork,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    at: TrainingState,
) -> Learned:
    """Regress the Q-values of the actions taken on their lambda-returns."""
    device = rollout.obs.device
    obs, action = rollout.obs.flatten(0, 1), rollout.action.flatten()
    returns = rollout.returns.flatten()
    rows = np.flatnonzero(~rollout.boundary.ravel())
    batch_size = min(config.batch_size, len(rows))
    sums = torch.zeros(2, device=device)
    norm = torch.zeros((), device=device)
    updates = 0
    for _ in range(config.epochs):
        order = torch.from_numpy(at.rng.permutation(rows)).to(device)
        for chosen in torch.split(order, batch_size):
            if len(chosen) < batch_size:
                continue  # the rest of an epoch: other rows at each, so none is left out for good
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
                q = network(obs[chosen])
            taken = q.gather(1, action[chosen, None]).squeeze(1)
            loss = 0.5 * (taken - returns[chosen]).square().mean()
            network.zero_grad()
            loss.backward()
            norm = clip_gradients(network, config.max_gradient_norm)
            optimizer.step()
            sums += torch.stack([loss.detach(), taken.detach().mean()])
            updates += 1
    at.updates += updates
    means = (sums / updates).tolist()  # waits for the device, once per phase
    return Learned(means[0], means[1], float(norm))


@torch.inference_mode()
def _act(config: PqnConfig, network: QNetwork, obs: Tensor) -> NDArray[np.float32]:
    with torch.autocast(obs.device.type, torch.bfloat16, enabled=config.bfloat16):
        q: NDArray[np.float32] = network(obs).cpu().numpy()
    return q


def _architecture(config: PqnConfig, env: LaneEnv) -> Architecture:
    if len(env.obs_shape) == 1:
        return Architecture(env.obs_shape, (env.num_actions,), hidden=(128, 128), layer_norm=True)
    return paper_architecture(
        config.size, env.num_actions, obs_shape=env.obs_shape, layer_norm=True
    )
