# SPDX-License-Identifier: MIT
"""Replays under one interface for the benchmarks: ours, cpprb, tianshou, and the floor.

All hold the same Atari-shaped steps: 84x84 uint8, stack 4, full stacks in and out.

- ours: each frame once, 3-step returns, obs and next_obs.
- cpprb: each frame once (``next_of="obs"``, ``stack_compress="obs"``), as its documentation says
  for Atari. It then has no n-step returns: 1-step, obs and next_obs, the same bytes out.
- cpprb n-step: 3-step returns, for which it keeps both stacks of every row: 8 times the memory.
- tianshou: each frame once (``save_only_last_obs``, ``ignore_obs_next``, ``stack_num``). Its
  ``sample`` gives obs and obs_next; n-step returns are computed elsewhere there.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdistill.replay import PrioritizedReplay

LANES, STACK, DISCOUNT = 8, 4, 0.99
FRAME = (84, 84)
FRAME_BYTES = 84 * 84
EPISODE_STEPS = 1000


def frames(count: int = 64) -> np.ndarray:
    """Random newest planes to append, ``[count, LANES, 84, 84]``."""
    return np.random.default_rng(0).integers(0, 255, (count, LANES, *FRAME), dtype=np.uint8)


def stream() -> np.ndarray:
    """Frames of one episode; consecutive STACKs of them are its observations."""
    shape = (EPISODE_STEPS + STACK + 1, *FRAME)
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


class Ours:
    """fastdistill, n_step from the constructor."""

    def __init__(self, capacity: int, n_step: int) -> None:
        self.replay = PrioritizedReplay(capacity, LANES, n_step=n_step, discount=DISCOUNT)
        self._frames = frames()
        self._flags = np.zeros(LANES, bool)
        self._action = np.zeros(LANES, np.int64)
        self._reward = np.ones(LANES, np.float32)
        self._step = 0
        self._batch: Any = None

    def add(self) -> None:
        """One step in each lane."""
        self._step += 1
        self.replay.append(
            self._frames[self._step % len(self._frames)],
            self._action,
            self._reward,
            self._flags,
            self._flags,
            boundary=self._flags,
        )

    def sample(self, batch_size: int) -> Any:
        """Like a training loop, holds the batch before while it gets the next."""
        self._batch = self.replay.sample(batch_size)
        return self._batch.obs

    def update(self, batch_size: int) -> tuple[Any, ...]:
        """Arguments for ``apply``."""
        rows = torch.randint(len(self._ids), (batch_size,))
        return self._ids[rows], torch.rand(batch_size) + 0.1

    def apply(self, ids: Any, priority: Any) -> None:
        """One priority update."""
        self.replay.update_priorities(ids, priority)

    def randomize_priorities(self) -> None:
        """A priority for every row."""
        self._ids = self.replay.priorities().id
        self.replay.update_priorities(self._ids, torch.rand(len(self._ids)) + 0.1)


class Cpprb:
    """cpprb with each frame stored once (next_of, stack_compress); one-step, as it then must be."""

    def __init__(self, capacity: int, n_step: int) -> None:
        import cpprb

        self.replay = cpprb.PrioritizedReplayBuffer(
            capacity,
            {
                "obs": {"shape": (*FRAME, STACK), "dtype": np.uint8},
                "act": {"dtype": np.int64},
                "rew": {"dtype": np.float32},
                "done": {"dtype": np.float32},
            },
            next_of=("obs",),
            stack_compress="obs",
            alpha=0.6,
        )
        self._stream = stream()
        self._step = 0
        self._batch: Any = None

    def observation(self, step: int) -> np.ndarray:
        """Stacks along the last axis: stack_compress asks for it."""
        return np.moveaxis(self._stream[step : step + STACK], 0, -1)

    def add(self) -> None:
        """One transition."""
        at = self._step % EPISODE_STEPS
        self._step += 1
        self.replay.add(
            obs=self.observation(at),
            next_obs=self.observation(at + 1),
            act=0,
            rew=1.0,
            done=float(at + 1 == EPISODE_STEPS),
        )
        if at + 1 == EPISODE_STEPS:
            self.replay.on_episode_end()

    def sample(self, batch_size: int) -> Any:
        """One batch."""
        self._batch = self.replay.sample(batch_size, beta=0.4)
        return self._batch["obs"]

    def update(self, batch_size: int) -> tuple[Any, ...]:
        """Arguments for ``apply``."""
        rows = torch.randint(self.replay.get_stored_size(), (batch_size,)).numpy()
        return rows, torch.rand(batch_size).numpy() + 0.1

    def apply(self, indexes: Any, priority: Any) -> None:
        """One priority update."""
        self.replay.update_priorities(indexes, priority)

    def randomize_priorities(self) -> None:
        """A priority for every row."""
        size = self.replay.get_stored_size()
        rng = np.random.default_rng(0)
        self.replay.update_priorities(np.arange(size), rng.random(size).astype(np.float32) + 0.1)


class CpprbNStep(Cpprb):
    """cpprb with n-step returns, for which it stores every stack twice."""

    def __init__(self, capacity: int, n_step: int) -> None:
        import cpprb

        shape = (STACK, *FRAME)
        self.replay = cpprb.PrioritizedReplayBuffer(
            capacity,
            {
                "obs": {"shape": shape, "dtype": np.uint8},
                "next_obs": {"shape": shape, "dtype": np.uint8},
                "act": {"dtype": np.int64},
                "rew": {"dtype": np.float32},
                "done": {"dtype": np.float32},
            },
            Nstep={"size": n_step, "gamma": DISCOUNT, "rew": "rew", "next": "next_obs"},
            alpha=0.6,
        )
        self._stream = stream()
        self._step = 0
        self._batch = None

    def observation(self, step: int) -> np.ndarray:
        """Stacks along the first axis, as torch wants them."""
        return self._stream[step : step + STACK]


class Tianshou:
    """tianshou with frame stacking on read; n-step returns are computed elsewhere there."""

    def __init__(self, capacity: int, n_step: int) -> None:
        from tianshou.data import Batch, PrioritizedReplayBuffer

        self._batch_type = Batch
        self.replay = PrioritizedReplayBuffer(
            capacity,
            alpha=0.6,
            beta=0.4,
            stack_num=STACK,
            ignore_obs_next=True,
            save_only_last_obs=True,
        )
        self._stream = stream()
        self._step = 0
        self._batch: Any = None

    def add(self) -> None:
        """One transition."""
        at = self._step % EPISODE_STEPS
        self._step += 1
        self.replay.add(
            self._batch_type(
                obs=self._stream[at : at + STACK],
                act=0,
                rew=1.0,
                terminated=at + 1 == EPISODE_STEPS,
                truncated=False,
                obs_next=self._stream[at + 1 : at + 1 + STACK],
                info={},
            )
        )

    def sample(self, batch_size: int) -> Any:
        """One batch."""
        self._batch = self.replay.sample(batch_size)
        return self._batch[0].obs

    def update(self, batch_size: int) -> tuple[Any, ...]:
        """Arguments for ``apply``."""
        rows = torch.randint(len(self.replay), (batch_size,)).numpy()
        return rows, torch.rand(batch_size).double().numpy() + 0.1

    def apply(self, indexes: Any, priority: Any) -> None:
        """One priority update."""
        self.replay.update_weight(indexes, priority)

    def randomize_priorities(self) -> None:
        """A priority for every row."""
        size = len(self.replay)
        rng = np.random.default_rng(0)
        self.replay.update_weight(np.arange(size), rng.random(size) + 0.1)


class Floor:
    """A C loop that copies the frames of random rows of our replay, at addresses known before."""

    def __init__(self, ours: Ours, n_step: int, batch_size: int, batches: int = 512) -> None:
        source = Path(__file__).with_name("gather_floor.c")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "gather_floor.so"
            command = ["cc", "-O3", "-shared", "-fPIC", str(source), "-o", str(library)]
            subprocess.run(command, check=True)
            self._copy = ctypes.CDLL(str(library)).gather_floor
        self._copy.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_void_p,
        ]
        base, slot_bytes, slots = ours.replay._core.memory_layout()
        rng = np.random.default_rng(0)
        rows = rng.integers(0, LANES, (batches, batch_size)) * slots
        rows += rng.integers(STACK, slots - n_step - STACK, (batches, batch_size))
        planes = np.arange(1 - STACK, 1)
        planes = np.concatenate([planes, planes + n_step])
        self._addresses = (base + slot_bytes * (rows[..., None] + planes)).astype(np.uint64)
        self._per_batch = batch_size * len(planes)
        # Two outputs in turn, as a loop has that holds the batch before.
        self._out = np.ones((2, self._per_batch, FRAME_BYTES), np.uint8)
        self._from = [a.ctypes.data for a in self._addresses]
        self._to = [out.ctypes.data for out in self._out]
        self._call = 0

    def sample(self) -> None:
        """Copies one batch."""
        self._call += 1
        source = self._from[self._call % len(self._from)]
        self._copy(source, self._per_batch, FRAME_BYTES, self._to[self._call % 2])
