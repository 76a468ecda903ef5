# SPDX-License-Identifier: MIT
"""Remembered play: a network that learns drives, and a prioritized replay of its transitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdistill import streams
from fastdistill.envs import LaneEnv
from fastdistill.networks import QNetwork
from fastdistill.replay import PrioritizedReplay, ReplayBatch
from fastdistill.teachers import Teacher
from fastdistill.training.collector import Collector, into_replay, network_driver
from fastdistill.training.counters import Counters
from fastdistill.training.drivers import TEACHER, Drivers
from fastdistill.training.inputs import random_play_statistics
from fastdistill.training.shares import Shares, lane_groups, sample_tasks
from fastdistill.training.state import check_state, select, under


class RememberedPlay:
    """Games under play by one network, and the transitions that it learns from.

    Attributes:
        envs: The games, the same number of lanes each.
        replay: Transitions of all of them, drawn by priority within a game.
    """

    def __init__(
        self,
        envs: Sequence[LaneEnv],
        network: QNetwork,
        counters: Counters,
        *,
        replay_capacity: int,
        n_step: int,
        discount: float,
        priority_exponent: float,
        clip_rewards: bool,
        seed: int,
        bfloat16: bool,
        uniform_sampler: bool = False,
        guide: Teacher | None = None,
    ) -> None:
        """Args:
        envs: The games, the same number of lanes each, observations of one shape.
        network: Drives; a head for each game.
        counters: Of the run.
        replay_capacity: Rows of all games.
        n_step: Steps of reward before the bootstrap.
        discount: Per step.
        priority_exponent: Of the draws.
        clip_rewards: Whether the sign of the rewards is remembered.
        seed: Of the run.
        bfloat16: Whether the network drives under bfloat16 autocast.
        uniform_sampler: Whether the replay has a second sampler, for others who learn from it.
        guide: Of the one game, who may drive as well and labels every state.
        """  # noqa: D205
        self.envs = list(envs)
        self._network = network
        self._counters = counters
        self._seed = seed
        spec, lanes = envs[0].spec, envs[0].num_lanes
        self._num_lanes = lanes * len(envs)
        self.replay = PrioritizedReplay(
            replay_capacity,
            self._num_lanes,
            frame_shape=spec.frame_shape,
            frame_dtype=envs[0].obs.dtype.name,
            stack=spec.stack,
            n_step=n_step,
            discount=discount,
            priority_exponent=([priority_exponent, 0.0] if uniform_sampler else priority_exponent),
            seed=streams.native_seed(seed, streams.LEARNING),
            lanes_per_task=[lanes] * len(envs),
            columns={"teacher_logits": ((spec.num_actions,), "float32")} if guide else None,
        )
        device = network.obs_mean.device
        self._guided = (
            Drivers(guide, [network.for_task(0)], lanes, bfloat16=bfloat16) if guide else None
        )
        groups = lane_groups(lanes, len(envs))
        self._collectors = [
            Collector(
                env,
                self._guided or network_driver(network.for_task(place), device, bfloat16=bfloat16),
                into_replay(
                    self.replay,
                    clip_rewards=clip_rewards,
                    lanes=group,
                    columns=("teacher_logits",) if guide else (),
                ),
                counters,
                seed=seed,
                task=place,
            )
            for place, (env, group) in enumerate(zip(envs, groups, strict=True))
        ]
        self._shares = Shares([1.0] * len(envs))

    def reset(self) -> list[tuple[Tensor, Tensor]]:
        """Take the network's input statistics from random play, and begin.

        Returns:
            Each game's mean and deviation.
        """
        found = []
        for place, env in enumerate(self.envs):
            statistics = streams.words(self._seed, streams.STATISTICS, place)
            mean, std = random_play_statistics(env, seed=statistics)
            self._network.set_obs_statistics(mean, std, place)
            env.reset(streams.words(self._seed, streams.TRAINING, place))
            found.append((mean, std))
        return found

    def step(self, epsilon: float | None, *, by_guide: bool = False) -> None:
        """One step of every lane, game after game.

        Args:
            epsilon: Share of random actions; None for random play.
            by_guide: Whether the guide drives, not the network.
        """
        if self._guided is not None:
            self._guided.students_ready = not by_guide
            self._guided.lanes.fill(TEACHER if by_guide else 0)
        for collector in self._collectors:
            collector.step(epsilon)
        self._counters.step += self._num_lanes

    def sample(self, batch_size: int, importance_exponent: float) -> ReplayBatch:
        """Transitions, as many of each game, ordered by game."""
        counts = self._shares.take(batch_size)
        batch = sample_tasks(self.replay, counts, importance_exponent)
        self._counters.lap("replay")
        return batch

    def set_errors(self, batch: ReplayBatch, td_abs: Tensor) -> None:
        """The priorities of a batch follow its absolute TD errors."""
        self.replay.update_priorities(batch.id, td_abs + 1e-6)
        self._counters.lap("replay")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from but the replay: tensors, and plain JSON types."""
        tensors: dict[str, Tensor] = {}
        cards = []
        for place, collector in enumerate(self._collectors):
            lanes, card = collector.state()
            tensors |= under(f"env{place}", lanes)
            cards.append(card)
        return tensors, {"collectors": cards, "shares": self._shares.state()}

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(card, {"collectors": [{}], "shares": [0.0]}, "play")
        found = [len(card[name]) for name in ("collectors", "shares")]
        if found != [len(self.envs)] * 2:
            raise ValueError(
                f"play.collectors and play.shares must be of {len(self.envs)} games, "
                f"got {found[0]} and {found[1]}"
            )
        for place, collector in enumerate(self._collectors):
            collector.restore(select(tensors, f"env{place}"), card["collectors"][place])
        self._shares.restore(card["shares"])


def batch_tensors(batch: ReplayBatch) -> dict[str, Tensor]:
    """Those of its fields that are tensors, for a post-mortem."""
    return {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
