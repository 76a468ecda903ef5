# SPDX-License-Identifier: MIT
"""A network that still learns, as the teacher of others."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastdistill.envs import EnvSpec
from fastdistill.networks import QNetwork
from fastdistill.replay import PrioritizedReplay
from fastdistill.teachers import Teacher
from fastdistill.training.labelled_play import Lesson
from fastdistill.training.run import say
from fastdistill.training.state import check_state
from fastdistill.training.targets import auto_temperature
from fastdistill.training.task import Task

FOLLOW = ("best", "latest")

# States on which an automatic temperature is fitted.
FIT_ROWS = 1024


class Followed:
    """What a network was at its last publication; it labels states when they are learned from.

    Attributes:
        task: The game with this teacher, whose ``version`` counts publications; nothing is to be
            learned from version 0.
    """

    def __init__(
        self, network: QNetwork, spec: EnvSpec, replay: PrioritizedReplay, *, temperature: float
    ) -> None:
        """Args:
        network: Learns; copied at each publication.
        spec: Of its game.
        replay: Its second sampler, a uniform one, chooses the states.
        temperature: Of the sharpened teacher; 0 fits it, whenever ``fit`` is called.
        """  # noqa: D205
        self._copy = deepcopy(network).requires_grad_(False).eval()
        self._replay = replay
        self._fits = temperature == 0.0
        teacher = Teacher(self._copy, {"game": spec.name}, network.obs_mean.device)
        self.task = Task(spec, teacher, temperature)

    def publish(self, network: QNetwork) -> None:
        """What ``network`` is now is what others learn from now on."""
        self._copy.load_state_dict(network.state_dict())
        teacher = self.task.teacher
        self.task.teacher = replace(teacher, version=teacher.version + 1)

    def fit(self) -> None:
        """Fit an automatic temperature to the teacher as it is now."""
        if self._fits:
            self.task.temperature = auto_temperature(self.lesson(FIT_ROWS).labels[0].cpu())
            say(f"temperature {self.task.temperature:.3g}, fitted to the teacher's values")

    def lesson(self, batch_size: int) -> Lesson:
        """Observations from the replay, drawn uniformly, and what the teacher says of them."""
        batch = self._replay.sample(batch_size, sampler=1, next_obs=False)
        obs = batch.obs.to(self.task.teacher.device, non_blocking=True)
        return Lesson(obs, (self.task.teacher.values(obs),))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to continue from: tensors, and plain JSON types."""
        card = {"version": self.task.teacher.version, "temperature": self.task.temperature}
        return dict(self._copy.state_dict()), card

    def restore(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """The reverse of ``state``."""
        check_state(card, {"version": 0, "temperature": 0.0}, "followed")
        self._copy.load_state_dict(tensors)
        self.task.teacher = replace(self.task.teacher, version=card["version"])
        self.task.temperature = card["temperature"]
