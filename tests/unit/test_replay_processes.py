# SPDX-License-Identifier: MIT
"""A replay is of one process: children of fork, pickles and copies are refused in words."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay


def filled() -> PrioritizedReplay:
    replay = PrioritizedReplay(64, 1, frame_shape=(3,), frame_dtype="float32", stack=1)
    for step in range(10):
        replay.append(np.full((1, 3), step, np.float32), [1], [0.5], [False], [False])
    return replay


@pytest.mark.parametrize("move", [copy.copy, copy.deepcopy, pickle.dumps])
def test_pickles_and_copies_are_refused(move):
    with pytest.raises(TypeError, match="must stay in its process, got a pickle or a copy"):
        move(filled())


class Draws(torch.utils.data.Dataset):
    def __init__(self, replay):
        self.replay = replay

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.replay.sample(2).id


# Python warns of a fork with threads alive, which is the very thing under test.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_workers_are_refused_and_the_parent_goes_on():
    replay = filled()
    assert len(replay.sample(2).id) == 2
    loader = torch.utils.data.DataLoader(
        Draws(replay), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    with pytest.raises(RuntimeError, match="must be used by the process that made it, got a f"):
        list(loader)
    assert len(replay.sample(2).id) == 2
