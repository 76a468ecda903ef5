# SPDX-License-Identifier: MIT
"""Double DQN with n-step returns and prioritized replay: the paper's teacher, brought up to date.

Several lanes play epsilon-greedily into the replay; for every row played a fixed number of rows
is learned from. Synchronous and deterministic: one seed, one set of weights, bitwise on a CPU,
interrupted or not.

Sources: Mnih et al. 2015 (DQN), van Hasselt et al. 2016 (double), Schaul et al. 2016
(prioritized replay), Hessel et al. 2018 (n-step among the rest).
"""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdistill.envs import make_env, observation_statistics
from fastdistill.envs.lanes import LaneEnv
from fastdistill.losses import td_loss
from fastdistill.networks import Architecture, QNetwork, paper_architecture
from fastdistill.recipes.common import (
    LEARNING_STREAM,
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
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.metrics import Progress, RunWriter


@dataclass(frozen=True)
class DqnConfig:
    """Double DQN with prioritized replay; defaults are for Pong on two CPU cores."""

    run_dir: Path = Path("runs/teacher_dqn")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%."""
    dueling: bool = False
    """Separate value and advantage in the head."""
    total_steps: int = 1_000_000
    """Agent steps, all lanes together."""
    stop_at_return: float | None = None
    """End early once the mean of the last 50 training episodes reaches this."""
    num_lanes: int = 8
    """Games played at once."""
    learning_starts_steps: int = 10_000
    """Random steps before the first update."""
    samples_per_step: float = 4.0
    """Rows learned from per row played; CleanRL's and the paper's 32 every 4 steps are 8."""
    batch_size: int = 64
    """Rows per update."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    adam_epsilon: float = 1.5e-4
    """Of Adam; large, as in Rainbow."""
    max_gradient_norm: float = 10.0
    """Gradients are clipped to this norm."""
    discount: float = 0.99
    """Per agent step."""
    n_step: int = 3
    """Steps of reward before the bootstrap."""
    clip_rewards: bool = True
    """Learn from the sign of the rewards (reports stay raw)."""
    target_update_updates: int = 250
    """Updates between copies of the network into the target network."""
    replay_capacity: int = 250_000
    """Rows kept; an Atari row takes 7.2 KB."""
    priority_exponent: float = 0.5
    """0 is the paper's uniform replay."""
    importance_exponent: float = 0.4
    """At the start; it rises linearly to 1."""
    epsilon_end: float = 0.01
    """Final share of random actions; it starts at 1."""
    epsilon_steps: int = 100_000
    """Agent steps over which epsilon falls."""
    bfloat16: bool = True
    """Convolutions in bfloat16; the head is float32 always."""
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
        for name in (
            "num_lanes",
            "batch_size",
            "total_steps",
            "n_step",
            "target_update_updates",
            "epsilon_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"DqnConfig: {name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "discount",
            "epsilon_end",
            "evaluation_epsilon",
            "priority_exponent",
            "importance_exponent",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"DqnConfig: {name} must be in [0, 1], got {getattr(self, name)}")
        if self.samples_per_step <= 0:
            raise ValueError(
                f"DqnConfig: samples_per_step must be positive, got {self.samples_per_step}"
            )
        if self.learning_starts_steps < self.num_lanes * (self.n_step + 1):
            raise ValueError(
                "DqnConfig: learning_starts_steps must be at least num_lanes * (n_step + 1) = "
                f"{self.num_lanes * (self.n_step + 1)}, got {self.learning_starts_steps}"
            )


def train(config: DqnConfig, *, resume: bool = False) -> TeacherResult:
    """Train a teacher; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
    """
    config = open_run(config.run_dir, "teacher_dqn", config, resume=resume)
    keep_freed_memory()
    seed_torch(config.seed, deterministic=config.deterministic)
    device = pick_device(config.device)
    env = make_env(config.game, config.num_lanes, preset=config.preset)
    network = QNetwork(_architecture(config, env)).to(device)
    learner = Learner(config, network)
    replay = PrioritizedReplay(
        config.replay_capacity,
        config.num_lanes,
        frame_shape=env.frame_shape,
        frame_dtype=env.obs.dtype.name,
        stack=env.stack,
        n_step=config.n_step,
        discount=config.discount,
        priority_exponent=config.priority_exponent,
        seed=int(np.random.SeedSequence((config.seed, LEARNING_STREAM)).generate_state(1)[0]),
    )
    at = TrainingState(config.seed)
    checkpoints = TrainingCheckpoints(config.run_dir / "checkpoints")

    loaded = checkpoints.latest(replay.load) if resume else None
    if loaded is None:
        mean, std = observation_statistics(env, seed=(config.seed, STATISTICS_STREAM))
        network.set_obs_statistics(torch.from_numpy(mean), torch.from_numpy(std))
        learner.copy_target()
        env.reset((config.seed, TRAINING_STREAM))
    else:
        tensors, card = loaded
        restore_network(network, tensors)
        restore_network(learner.target, tensors, "target")
        restore_optimizer(learner.optimizer, tensors)
        restore_env(env, tensors)
        at.restore(card)

    writer = RunWriter(
        config.run_dir, tensorboard=config.tensorboard, resume_step=at.step if resume else None
    )
    progress = Progress(config.total_steps, start_step=at.step)
    learned: list[tuple[float, float]] = []
    done = at.step >= config.total_steps or at.reached(config.stop_at_return)
    stopping = False
    with StopRequest() as stop, closing(env), closing(progress), closing(writer):
        while not (done or stopping):
            epsilon = linear(1.0, config.epsilon_end, at.step / config.epsilon_steps)
            play(config, env, network, replay, epsilon, at)
            previous, at.step = at.step, at.step + config.num_lanes

            fraction = at.step / config.total_steps
            importance_exponent = linear(config.importance_exponent, 1.0, fraction)
            rows_due = (at.step - config.learning_starts_steps) * config.samples_per_step
            while (at.updates + 1) * config.batch_size <= rows_due:
                batch = replay.sample(config.batch_size, importance_exponent)
                at.lap("replay")
                loss, q_value, td_abs = learner.update(batch)
                learned.append((float(loss), float(q_value)))
                at.lap("learn")
                refuse_divergence(config.run_dir, at.step, learned[-1][0], _tensors(batch))
                replay.update_priorities(batch.id, td_abs + 1e-6)
                at.lap("replay")
                at.updates += 1
                if at.updates % config.target_update_updates == 0:
                    learner.copy_target()

            progress.update(at.step, at.recent, f"epsilon {epsilon:.3f}")
            if at.step // config.log_every_steps > previous // config.log_every_steps:
                learning: dict[str, float] = {
                    "charts/epsilon": epsilon,
                    "charts/learning_rate": config.learning_rate,
                    "replay/size": len(replay),
                    "replay/importance_exponent": importance_exponent,
                }
                if learned:
                    means = np.mean(learned, axis=0)
                    learning["losses/td_loss"] = float(means[0])
                    learning["losses/q_values"] = float(means[1])
                writer.write(at.step, {**at.metrics(), **learning})
                learned = []
            done = at.step >= config.total_steps or at.reached(config.stop_at_return)
            stopping = stop.requested
            every = config.checkpoint_every_steps
            if done or stopping or at.step // every > previous // every:
                save_best(config, network, env, at, stopped=stopping and not done)
                at.lap("score")
                _checkpoint(checkpoints, learner, env, replay, at)
        summary: dict[str, Any] = {}
        if done and config.evaluation_episodes:
            summary = evaluate_teacher(config, device)
            writer.write(at.step, evaluation_metrics(summary))
    return TeacherResult(not done, at.step, at.recent_return, summary)


def play(
    config: DqnConfig,
    env: LaneEnv,
    network: QNetwork,
    replay: PrioritizedReplay,
    epsilon: float,
    at: TrainingState,
) -> None:
    """One epsilon-greedy step of every lane, into the replay."""
    if at.step < config.learning_starts_steps:
        action = at.rng.integers(env.num_actions, size=env.num_lanes)
    else:
        device = network.obs_mean.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16),
        ):
            greedy = network(torch.from_numpy(env.obs).to(device)).argmax(dim=1).cpu().numpy()
        action = epsilon_greedy(greedy, epsilon, env.num_actions, at.rng)
    at.lap("act")
    step = env.step(action)
    at.add_episodes(step.episodes)
    at.lap("env")
    replay.append(
        step.frame,
        step.action,
        np.sign(step.reward) if config.clip_rewards else step.reward,
        step.terminated,
        step.truncated,
        boundary=step.boundary,
    )
    at.lap("replay")


class Learner:
    """The network, its target and its optimizer: one ``update`` per batch.

    Attributes:
        network: Learns.
        target: A copy from a while ago; only evaluates. With ``bfloat16``, under autocast only:
            its hidden weights are stored as such.
        optimizer: Adam.
    """

    def __init__(self, config: DqnConfig, network: QNetwork) -> None:
        self.network = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        if config.bfloat16:
            for layer in self.target.trunk:
                if isinstance(layer, torch.nn.Linear):
                    layer.bfloat16()  # what autocast would make of it at every update
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, eps=config.adam_epsilon, fused=True
        )
        self._config = config
        self._device = network.obs_mean.device

    def copy_target(self) -> None:
        """Bring the target up to date."""
        self.target.load_state_dict(self.network.state_dict())

    def update(self, batch: ReplayBatch) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient step.

        Returns:
            Loss, mean Q-value of the actions taken, and ``[batch]`` absolute TD errors.
        """
        device = self._device
        obs, next_obs, action, reward, discount, weight = (
            tensor.to(device, non_blocking=True)
            for tensor in (
                batch.obs,
                batch.next_obs,
                batch.action,
                batch.reward,
                batch.discount,
                batch.weight,
            )
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=self._config.bfloat16):
            with torch.no_grad():
                target = double_q_target(self.network, self.target, next_obs, reward, discount)
            q = self.network(obs)
        loss, td_abs = td_loss(q, action, target, weight=weight)
        self.network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(self.network, self._config.max_gradient_norm)
        self.optimizer.step()
        taken = q.detach().gather(1, action[:, None])
        return loss.detach(), taken.mean(), td_abs.detach()


def double_q_target(
    network: QNetwork, target: QNetwork, next_obs: Tensor, reward: Tensor, discount: Tensor
) -> Tensor:
    """``reward + discount * target(next_obs)[argmax network(next_obs)]``.

    Source: van Hasselt et al. 2016, equation 4; ``discount`` is 0 after a termination and
    ``discount**k`` after k steps.
    """
    best = network(next_obs).argmax(dim=1, keepdim=True)
    value: Tensor = target(next_obs).gather(1, best).squeeze(1)
    return reward + discount * value


def _checkpoint(
    checkpoints: TrainingCheckpoints,
    learner: Learner,
    env: LaneEnv,
    replay: PrioritizedReplay,
    at: TrainingState,
) -> None:
    checkpoints.write(
        at.step,
        {
            **network_tensors(learner.network),
            **network_tensors(learner.target, "target"),
            **optimizer_tensors(learner.optimizer),
            **env_tensors(env.state()),
        },
        at.card(),
        replay.save,
    )


def _tensors(batch: ReplayBatch) -> dict[str, Tensor]:
    return {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}


def _architecture(config: DqnConfig, env: LaneEnv) -> Architecture:
    if len(env.obs_shape) == 1:
        return Architecture(
            env.obs_shape, (env.num_actions,), hidden=(128, 128), dueling=config.dueling
        )
    return paper_architecture(
        config.size, env.num_actions, obs_shape=env.obs_shape, dueling=config.dueling
    )
