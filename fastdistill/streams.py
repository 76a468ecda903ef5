# SPDX-License-Identifier: MIT
"""Every stream of random numbers of a run, in one place, so that no two of them are the same.

A stream is a run's seed and a number of its own; NumPy's seed sequences keep them apart.
"""

from __future__ import annotations

import numpy as np

# Second words of a seed's entropy. A third one, where there is one, is the task's place, further
# ones are of the part: which shard, rank or actor plays, and how often it has begun anew.
EVALUATION, TRAINING, STATISTICS, ACTING, LEARNING, STUDENTS, UPDATES = 1, 2, 3, 4, 5, 6, 7

# Added to a run's seed, once per round, for the games that choose a network: its evaluation, and
# the other rounds, play others.
SCORING = 1_000_000


# Which part of a game is played: one that is played as a whole, and its first part, are ``()``.
Part = tuple[int, ...]


def words(seed: int, stream: int, task: int = 0, part: Part = ()) -> tuple[int, ...]:
    """A stream's entropy; the first task's is that of a run of one task."""
    if any(part):
        return (seed, stream, task, *part)
    return (seed, stream, task) if task else (seed, stream)


def generator(seed: int, stream: int, task: int = 0, part: Part = ()) -> np.random.Generator:
    """A generator at the start of a stream."""
    return np.random.default_rng(words(seed, stream, task, part))


def native_seed(seed: int, stream: int, part: Part = ()) -> int:
    """A stream as the one number that native code takes."""
    return int(np.random.SeedSequence(words(seed, stream, part=part)).generate_state(1)[0])
