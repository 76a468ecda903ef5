# SPDX-License-Identifier: MIT
"""Double DQN: a network that learns n-step returns from a replay, and its slower target."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdistill.losses import distill_kl, td_loss
from fastdistill.networks import QNetwork
from fastdistill.replay import ReplayBatch
from fastdistill.training.guide import GuideTerm
from fastdistill.training.optimizing import Optimizer, clip_gradients
from fastdistill.training.shares import rows_of
from fastdistill.training.state import learner_tensors, restore_learner, select, under


class DqnLearner:
    """The network, its target and its optimizer: one ``update`` per batch.

    Attributes:
        network: Learns.
        target: A copy from a while ago; only evaluates. With ``bfloat16``, under autocast only:
            its hidden weights are stored as such.
        optimizer: Adam.
    """

    def __init__(
        self,
        network: QNetwork,
        *,
        learning_rate: float,
        adam_epsilon: float,
        max_gradient_norm: float,
        bfloat16: bool,
    ) -> None:
        self.network = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        if bfloat16:
            for layer in self.target.trunk:
                if isinstance(layer, torch.nn.Linear):
                    layer.bfloat16()  # what autocast would make of it at every update
        self.optimizer = Optimizer("adam", network, learning_rate, epsilon=adam_epsilon)
        self._max_gradient_norm = max_gradient_norm
        self._bfloat16 = bfloat16

    def copy_target(self) -> None:
        """Bring the target up to date."""
        self.target.load_state_dict(self.network.state_dict())

    def update(self, batch: ReplayBatch, guide: GuideTerm | None = None) -> dict[str, Tensor]:
        """One gradient step.

        Args:
            batch: Of one game, or of several: ordered by task, one for each of the heads.
            guide: A second term on the same values, for the column ``teacher_logits``; of one game.

        Returns:
            Scalars ``td_loss`` and ``q_values`` (of the actions taken, their mean), and ``td_abs``,
            ``[batch]`` absolute TD errors; with a guide ``guide_loss``, its KL.
        """
        device = self.network.obs_mean.device
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
        counts = rows_of(batch, len(self.network.heads))
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bfloat16):
            with torch.no_grad():
                target = double_q_target(
                    self.network, self.target, next_obs, reward, discount, counts
                )
            q = self.network.forward_games(obs, counts)
        losses, td_abs, taken = [], [], []
        rows = zip(
            q, *(torch.split(part, counts) for part in (action, target, weight)), strict=True
        )
        for values, chosen, wanted, weights in rows:
            if len(values):
                loss, difference = td_loss(values, chosen, wanted, weight=weights)
                # One divisor for all games: the whole batch.
                losses.append(loss * (len(values) / len(obs)) if len(q) > 1 else loss)
                td_abs.append(difference.detach())
                taken.append(values.detach().gather(1, chosen[:, None]))
        learned = {
            "td_loss": torch.stack(losses).detach().sum(),
            "q_values": torch.cat(taken).mean(),
            "td_abs": torch.cat(td_abs),
        }
        if guide is not None:
            divergence = distill_kl(
                q[0],
                batch.columns["teacher_logits"].to(device, non_blocking=True),
                temperature=guide.guide_temperature,
                student_temperature=guide.temperature,
            )
            losses.append(guide.weight * divergence)
            learned["guide_loss"] = divergence.detach()
        self.network.zero_grad()
        torch.autograd.backward(losses)
        clip_gradients(self.network, self._max_gradient_norm)
        self.optimizer.step()
        return learned

    def go_back(self, weights: dict[str, Tensor]) -> None:
        """Begin again from other weights, with nothing left of how these were reached."""
        self.network.load_state_dict(weights)
        self.copy_target()
        self.optimizer.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Everything that learns, and the target."""
        own = learner_tensors(self.network, self.optimizer)
        return {**own, **under("target", self.target.state_dict())}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``."""
        restore_learner(self.network, self.optimizer, tensors)
        self.target.load_state_dict(select(tensors, "target"))


def double_q_target(
    network: QNetwork,
    target: QNetwork,
    next_obs: Tensor,
    reward: Tensor,
    discount: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """``reward + discount * target(next_obs)[argmax network(next_obs)]``.

    Source: van Hasselt et al. 2016, equation 4; ``discount`` is 0 after a termination and
    ``discount**k`` after k steps. ``counts`` are the rows of each head's game, in their order.
    """
    best = [q.argmax(dim=1, keepdim=True) for q in network.forward_games(next_obs, counts)]
    values = zip(target.forward_games(next_obs, counts), best, strict=True)
    value = torch.cat([q.gather(1, chosen).squeeze(1) for q, chosen in values])
    return reward + discount * value
