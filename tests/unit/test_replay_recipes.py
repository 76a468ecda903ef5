# SPDX-License-Identifier: MIT
"""The recipe of docs/replay.md for SAME_STEP autoreset, against the physics of the pole."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "replay.md"


def moved(state: np.ndarray, action: int) -> np.ndarray:
    """Barto, Sutton and Anderson 1983, with gymnasium's constants, in Euler steps of 0.02 s."""
    x, v, angle, spin = map(float, state)
    force = 10.0 if action else -10.0
    inner = (force + 0.05 * spin**2 * math.sin(angle)) / 1.1
    turn = (9.8 * math.sin(angle) - math.cos(angle) * inner) / (
        0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1)
    )
    push = inner - 0.05 * turn * math.cos(angle) / 1.1
    return np.array([x + 0.02 * v, v + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn])


def test_with_same_step_autoreset_every_row_leads_where_its_action_leads():
    (code,) = re.findall(r"### SAME_STEP.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    # Episodes that a time limit cuts: their last rows have a successor, the final observation.
    code = code.replace('"CartPole-v1", 4,', '"CartPole-v1", 4, max_episode_steps=9,')
    code = code.replace("range(200)", "range(300)")
    assert "max_episode_steps" in code
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    batch = names["replay"].sample(3_000)
    assert len(batch.id.unique()) > 600
    led = batch.discount > 0
    assert bool(led.any())
    expected = np.stack(
        [moved(obs, int(a)) for obs, a in zip(batch.obs.numpy(), batch.action, strict=True)]
    )
    np.testing.assert_allclose(batch.next_obs[led], expected[led.numpy()], atol=1e-5)
