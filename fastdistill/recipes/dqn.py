# SPDX-License-Identifier: MIT
"""Double DQN with n-step returns and prioritized replay: the paper's teacher, brought up to date.

Several lanes play epsilon-greedily into the replay; for every row played a fixed number of rows
is learned from. Synchronous and deterministic: one seed, one set of weights, bitwise on a CPU,
interrupted or not. Of several games it is the paper's Multi-DQN: one trunk, a head for each game,
batches that hold as much of each.

Sources: Mnih et al. 2015 (DQN), van Hasselt et al. 2016 (double), Schaul et al. 2016
(prioritized replay), Hessel et al. 2018 (n-step among the rest).
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill import streams
from fastdistill.envs import EnvFault, EnvSpec, LaneEnv, make_env
from fastdistill.networks import Architecture, QNetwork, paper_architecture
from fastdistill.recipes.options import at_least, names, positive, share, within_limits
from fastdistill.recipes.teaching import TeacherResult, finish, save_best
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.training.collector import Collector, into_replay, network_driver
from fastdistill.training.configuration import check_types
from fastdistill.training.counters import Means
from fastdistill.training.inputs import random_play_statistics
from fastdistill.training.learners.dqn import DqnLearner
from fastdistill.training.optimizing import linear
from fastdistill.training.process import (
    default_bfloat16,
    deterministic_kernels,
    keep_freed_memory,
    pick_device,
)
from fastdistill.training.run import Run, Stop
from fastdistill.training.selection import Best
from fastdistill.training.shares import Shares, lane_groups, sample_tasks
from fastdistill.training.state import check_state, select, under
from fastdistill.training.task import check_games


@dataclass(frozen=True)
class DqnConfig:
    """Double DQN with prioritized replay; defaults are for Pong on two CPU cores."""

    run_dir: Path = Path("runs/teacher_dqn")
    """Where everything is written."""
    game: str = "pong"
    """Atari game, or gymnasium id such as CartPole-v1; several with commas between are learned by
    one network with a head for each."""
    preset: str = "classic"
    """classic (no sticky actions) or machado (sticky actions)."""
    size: str = "100%"
    """Network, by its share of the paper's parameters: 100%, 25%, 7% or 4%; or its networks for
    several games, multi and multi-wide."""
    dueling: bool = False
    """Separate value and advantage in the head."""
    total_steps: int = 1_000_000
    """Agent steps, all lanes together."""
    stop_at_return: float | None = None
    """End early once the mean of the last 50 training episodes reaches this."""
    num_lanes: int = 8
    """Lanes of each game, played at once."""
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
            self, 1, "num_lanes", "batch_size", "total_steps", "n_step", "target_update_updates",
            "epsilon_steps", "replay_capacity", "checkpoint_every_steps", "log_every_steps",
        )  # fmt: skip
        at_least(self, 0, "score_episodes", "evaluation_episodes", "seed")
        within_limits(self, len(self.games))
        share(
            self, "discount", "epsilon_end", "evaluation_epsilon", "priority_exponent",
            "importance_exponent",
        )  # fmt: skip
        positive(self, "samples_per_step", "learning_rate", "adam_epsilon", "max_gradient_norm")
        several = f" * {len(self.games)} games" if len(self.games) > 1 else ""
        least = self.num_lanes * (self.n_step + 1) * len(self.games)
        if self.learning_starts_steps < least:
            raise ValueError(
                f"DqnConfig: learning_starts_steps must be at least num_lanes * (n_step + 1)"
                f"{several} = {least}, got {self.learning_starts_steps}"
            )
        if several and self.stop_at_return is not None:
            raise ValueError(
                "DqnConfig: stop_at_return must be left out where there are several games, whose "
                f"returns have no common scale, got {self.stop_at_return}"
            )

    @property
    def games(self) -> tuple[str, ...]:
        """``game``, taken apart."""
        return names(self.game)


def train(config: DqnConfig, *, resume: bool = False, stop: Stop | None = None) -> TeacherResult:
    """Train a teacher; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
        stop: Asked between steps whether to stop with a checkpoint.
    """
    run = Run("teacher_dqn", config, resume=resume, unit="steps", stop=stop)
    config = run.config
    keep_freed_memory()
    device = pick_device(config.device)
    with ExitStack() as opened:
        envs = [
            opened.enter_context(closing(make_env(game, config.num_lanes, preset=config.preset)))
            for game in config.games
        ]
        check_games("teacher_dqn", [env.spec for env in envs])
        parts = _Parts(config, run, envs, device)  # before the run has a directory
        opened.enter_context(deterministic_kernels(config.deterministic))
        opened.enter_context(run)
        parts.begin()
        while not (run.finished or run.stopping):
            try:
                parts.step()
            except EnvFault:
                parts.checkpoint()  # of before that step
                raise
            if run.due("log"):
                parts.log()
            run.finished = run.at.step >= config.total_steps or run.at.reached(
                config.stop_at_return
            )
            due = run.due("checkpoint")
            if run.finished or run.stopping or due:
                # Where it would have been judged anyway it is judged, stopped or not.
                stopped = not (run.finished or due)
                save_best(config, run, parts.best, parts.learner.network, envs, stopped=stopped)
                parts.checkpoint()
        return finish(config, run, device)


class _Parts:
    """The parts of a run: who plays, what is remembered, who learns."""

    def __init__(
        self, config: DqnConfig, run: Run[DqnConfig], envs: list[LaneEnv], device: torch.device
    ) -> None:
        self.config = config
        self.run = run
        self.envs = envs
        specs = [env.spec for env in envs]
        network = QNetwork.seeded(_architecture(config, specs), config.seed).to(device)
        network.games = tuple(spec.name for spec in specs) if len(specs) > 1 else ()
        self.learner = DqnLearner(
            network,
            learning_rate=config.learning_rate,
            adam_epsilon=config.adam_epsilon,
            max_gradient_norm=config.max_gradient_norm,
            bfloat16=config.bfloat16,
        )
        self.replay = PrioritizedReplay(
            config.replay_capacity,
            config.num_lanes * len(envs),
            frame_shape=specs[0].frame_shape,
            frame_dtype=envs[0].obs.dtype.name,
            stack=specs[0].stack,
            n_step=config.n_step,
            discount=config.discount,
            priority_exponent=config.priority_exponent,
            seed=streams.native_seed(config.seed, streams.LEARNING),
            lanes_per_task=[config.num_lanes] * len(envs),
        )
        groups = lane_groups(config.num_lanes, len(envs))
        self.collectors = [
            Collector(
                env,
                network_driver(network.for_task(place), device, bfloat16=config.bfloat16),
                into_replay(self.replay, clip_rewards=config.clip_rewards, lanes=lanes),
                run.at,
                seed=config.seed,
                task=place,
            )
            for place, (env, lanes) in enumerate(zip(envs, groups, strict=True))
        ]
        self.shares = Shares([1.0] * len(envs))
        self.best = Best()
        self.means = Means()

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        return linear(1.0, self.config.epsilon_end, self.run.at.step / self.config.epsilon_steps)

    @property
    def importance_exponent(self) -> float:
        """Of the importance weights now."""
        fraction = self.run.at.step / self.config.total_steps
        return linear(self.config.importance_exponent, 1.0, fraction)

    def begin(self) -> None:
        """Continue from a checkpoint, or take the input statistics and reset the lanes."""
        if self.run.restore(self._take, self.replay.load):
            return
        seed = self.config.seed
        for place, env in enumerate(self.envs):
            statistics = streams.words(seed, streams.STATISTICS, place)
            mean, std = random_play_statistics(env, seed=statistics)
            self.learner.network.set_obs_statistics(mean, std, place)
            env.reset(streams.words(seed, streams.TRAINING, place))
        self.learner.copy_target()

    def _take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        check_state(card, {"collectors": [{}], "shares": [0.0]}, "checkpoint")
        found = [len(card[name]) for name in ("collectors", "shares")]
        if found != [len(self.collectors)] * 2:
            raise ValueError(
                f"collectors and shares must be of {len(self.collectors)} games, got {found[0]} "
                f"and {found[1]}"
            )
        self.learner.load(select(tensors, "learner"))
        for place, collector in enumerate(self.collectors):
            collector.restore(select(tensors, f"env{place}"), card["collectors"][place])
        self.shares.restore(card["shares"])
        self.best.restore(card["best"])
        self.means.restore(card["means"])

    def step(self) -> None:
        """One step of every lane, and the updates that are then due."""
        config, at = self.config, self.run.at
        epsilon = self.epsilon
        random_play = at.step < config.learning_starts_steps
        for collector in self.collectors:
            collector.step(None if random_play else epsilon)
        at.step += config.num_lanes * len(self.collectors)
        rows_due = (at.step - config.learning_starts_steps) * config.samples_per_step
        while (at.updates + 1) * config.batch_size <= rows_due:
            self.learn()
        self.run.show(lambda: f"epsilon {epsilon:.3f}")

    def learn(self) -> None:
        """One update from one batch, whose priorities follow."""
        config, at = self.config, self.run.at
        counts = self.shares.take(config.batch_size)
        batch = sample_tasks(self.replay, counts, self.importance_exponent)
        at.lap("replay")
        learned = self.learner.update(batch)
        td_abs = learned.pop("td_abs")
        self.means.add(learned)
        at.lap("learn")
        if learned["td_loss"].device.type == "cpu":
            self.run.refuse_divergence(float(learned["td_loss"]), lambda: _tensors(batch))
        self.replay.update_priorities(batch.id, td_abs + 1e-6)
        at.lap("replay")
        at.updates += 1
        if at.updates % config.target_update_updates == 0:
            self.learner.copy_target()

    def log(self) -> None:
        """Record what happened since the last record."""
        means = self.means.take()
        self.run.refuse_divergence(means.get("td_loss", 0.0), dict)
        self.run.write(
            {
                **self.run.at.metrics(),
                **{f"losses/{name}": value for name, value in means.items()},
                "charts/epsilon": self.epsilon,
                "charts/learning_rate": self.config.learning_rate,
                "replay/size": len(self.replay),
                "replay/importance_exponent": self.importance_exponent,
            }
        )

    def checkpoint(self) -> None:
        """Write everything to continue from."""
        tensors, cards = under("learner", self.learner.state()), []
        for place, collector in enumerate(self.collectors):
            lanes, card = collector.state()
            tensors |= under(f"env{place}", lanes)
            cards.append(card)
        self.run.checkpoint(
            tensors,
            {
                "collectors": cards,
                "shares": self.shares.state(),
                "best": self.best.state(),
                "means": self.means.state(),
            },
            self.replay.save,
        )


def _tensors(batch: ReplayBatch) -> dict[str, Tensor]:
    return {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}


def _architecture(config: DqnConfig, specs: list[EnvSpec]) -> Architecture:
    return paper_architecture(
        config.size,
        [spec.num_actions for spec in specs],
        obs_shape=specs[0].obs_shape,
        dueling=config.dueling,
    )
