# SPDX-License-Identifier: MIT
"""Several samplers over the same rows: priorities and random streams of their own."""

from __future__ import annotations

import numpy as np
import torch

from fastdistill.replay import PrioritizedReplay

NO = np.zeros(1, np.bool_)


def filled(priority_exponent: list[float]) -> PrioritizedReplay:
    replay = PrioritizedReplay(
        64, 1, frame_shape=(2,), frame_dtype="float32", stack=1, priority_exponent=priority_exponent
    )
    for step in range(40):
        replay.append(np.full((1, 2), step, np.float32), [step], [0.0], NO, NO, boundary=NO)
    return replay


def test_samplers_keep_priorities_of_their_own():
    replay = filled([1.0, 0.0, 1.0])
    ids = replay.priorities().id
    only = torch.zeros(len(ids))
    only[7] = 1.0
    replay.update_priorities(ids, only)
    assert replay.sample(50).id.eq(ids[7]).all()
    assert len(set(replay.sample(500, sampler=1).id.tolist())) == len(ids)
    assert replay.priorities(sampler=2).priority.eq(1.0).all()
    replay.check_valid()


def test_a_samplers_draws_do_not_depend_on_the_others():
    def drawn(calls_of_the_other: int) -> list[list[int]]:
        replay = filled([0.5, 0.0])
        ids = []
        for _ in range(4):
            for _ in range(calls_of_the_other):
                replay.sample(8, sampler=1)
            ids.append(replay.sample(16, sampler=0).id.tolist())
        return ids

    assert drawn(0) == drawn(1) == drawn(3)
    replay = filled([0.0, 0.0])
    assert replay.sample(16, sampler=0).id.tolist() != replay.sample(16, sampler=1).id.tolist()
