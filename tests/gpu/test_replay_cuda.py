# SPDX-License-Identifier: MIT
"""Batches on their way to a device: their memory must not be written over before they arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay

pytestmark = pytest.mark.cuda


def test_batches_are_not_written_over_while_they_are_copied():
    replay = PrioritizedReplay(4096, 1, frame_shape=(84, 84))
    for step in range(400):
        replay.append(
            np.full((1, 84, 84), step % 251, np.uint8), [step % 251], [0], [False], [False]
        )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # the copies wait behind it while more batches are drawn
        arrived = []
        for _ in range(12):
            batch = replay.sample(256)
            assert batch.obs.is_pinned()
            obs = batch.obs.to("cuda", non_blocking=True)
            action = batch.action.to("cuda", non_blocking=True)
            del batch
            arrived.append((obs, action))
    stream.synchronize()
    for obs, action in arrived:
        assert torch.equal(obs[:, -1, 0, 0].long(), action)
        assert torch.equal(obs[:, -1, 83, 83].long(), action)
