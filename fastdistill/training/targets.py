# SPDX-License-Identifier: MIT
"""What a student is taught: how sharp its teacher is, and how much each state counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdistill.training.ranks import ALONE, Ranks

WEIGHTINGS = ("none", "gap", "entropy")


def state_weight(
    weighting: str, teacher_logits: Tensor, temperature: float, ranks: Ranks = ALONE
) -> Tensor | None:
    """How much each state of a batch counts, with a mean of 1.

    Args:
        weighting: ``"none"``; ``"gap"``, by the teacher's lead of the best action over the second;
            ``"entropy"``, by how far the sharpened teacher is from undecided.
        teacher_logits: ``[batch, actions]``.
        temperature: Of the sharpened teacher.
        ranks: Over whose rows together the mean is 1.

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
    mean = ranks.mean({"mean": weight.mean()})["mean"] if ranks.world > 1 else weight.mean()
    return weight / mean.to(weight.dtype).clamp_min(1e-12)


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
