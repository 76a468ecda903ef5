# SPDX-License-Identifier: MIT
# The native replay against the naive oracle: random operations with tiny capacities, and after
# every one of them every live row, byte by byte.
from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from replay_reference import STEP_BITS, ReplayReference, Step

from fastdistill.replay import PrioritizedReplay

FRAME_SHAPE = (3,)
COLUMN_SHAPE = (2, 5)
# Powers the fixed point holds to 1e-6: a wrong priority shows, a rounded one does not.
PRIORITIES = st.floats(0.25, 64.0, width=32)
FLAGS = st.sampled_from(["none"] * 6 + ["life", "end", "limit", "both", "boundary"])


class ReplayMachine(RuleBasedStateMachine):
    @initialize(
        data=st.data(),
        num_lanes=st.integers(1, 4),
        stack=st.integers(1, 4),
        n_step=st.integers(1, 10),
        exponent=st.sampled_from([0.0, 0.5, 0.6, 1.0]),
        pad=st.sampled_from(["zero", "first"]),
        frame_dtype=st.sampled_from(["uint8", "float32", "float64"]),
    )
    def make(self, data, num_lanes, stack, n_step, exponent, pad, frame_dtype):
        lane_capacity = data.draw(st.integers(n_step + 1, max(n_step + 1, 32)))
        self.num_lanes, self.exponent, self.stack = num_lanes, exponent, stack
        self.dtype = np.dtype(frame_dtype)

        def build() -> PrioritizedReplay:
            return PrioritizedReplay(
                lane_capacity * num_lanes,
                num_lanes,
                frame_shape=FRAME_SHAPE,
                frame_dtype=frame_dtype,
                stack=stack,
                n_step=n_step,
                discount=0.9,
                priority_exponent=exponent,
                columns={"logits": (COLUMN_SHAPE, "float16")},
                lanes_per_task=[1] * num_lanes,
                pad=pad,
            )

        self.build, self.replay = build, build()
        self.oracle = ReplayReference(
            lane_capacity,
            num_lanes,
            stack=stack,
            n_step=n_step,
            discount=0.9,
            repeat_first_frame=pad == "first",
        )
        self.rng = np.random.default_rng(0)
        self.old_ids: list[int] = []

    @rule(data=st.data(), lanes=st.integers(1, 15), count=st.integers(1, 6))
    def append(self, data, lanes, count):
        chosen = [i for i in range(self.num_lanes) if lanes >> i & 1] or [0]
        for _ in range(count):
            self.append_once(
                chosen,
                [data.draw(FLAGS) for _ in chosen],
                data.draw(st.none() | st.lists(PRIORITIES, min_size=4, max_size=4)),
            )

    def append_once(self, lanes, flags, priority):
        size = len(lanes)
        frame = self.rng.integers(1, 255, (size, *FRAME_SHAPE)).astype(self.dtype)
        logits = self.rng.standard_normal((size, *COLUMN_SHAPE)).astype(np.float16)
        action = self.rng.integers(-5, 1 << 40, size)
        reward = self.rng.standard_normal(size).astype(np.float32)
        terminated = np.array([flag in ("life", "end", "both") for flag in flags])
        truncated = np.array([flag in ("limit", "both") for flag in flags])
        boundary = np.array([flag == "boundary" for flag in flags])
        self.replay.append(
            frame,
            action,
            reward,
            terminated,
            truncated,
            boundary=boundary,
            priority=None if priority is None else np.array(priority[:size], np.float32),
            lanes=lanes,
            logits=logits,
        )
        for i, lane in enumerate(lanes):
            self.oracle.append(
                lane,
                Step(
                    frame[i],
                    int(action[i]),
                    float(reward[i]),
                    bool(terminated[i]),
                    bool(truncated[i]),
                    bool(boundary[i]),
                    None if priority is None else priority[i],
                    {"logits": logits[i]},
                ),
            )
        self.old_ids = (self.old_ids + list(self.oracle.priority)[:3])[-50:]
        # An episode's end and its final observation usually come together.
        ended = [lane for lane, flag in zip(lanes, flags, strict=True) if flag in ("end", "limit")]
        if ended:
            self.append_once(ended, ["boundary"] * len(ended), None)

    @precondition(lambda self: self.oracle.priority)
    @rule(batch_size=st.integers(1, 9), stratified=st.booleans(), data=st.data())
    def sample(self, batch_size, stratified, data):
        batch = self.replay.sample(batch_size, stratified=stratified)
        for i, row_id in enumerate(batch.id.tolist()):
            assert row_id in self.oracle.priority
            self.compare_row(batch, i, row_id)
        assert self.replay.statistics()["redraws"] == 0
        new = data.draw(st.lists(PRIORITIES, min_size=batch_size, max_size=batch_size))
        self.update(batch.id.tolist(), new)

    @precondition(lambda self: self.old_ids)
    @rule(data=st.data())
    def update_ids_of_any_age(self, data):
        pairs = st.tuples(st.sampled_from(self.old_ids), PRIORITIES)
        ids, new = zip(*data.draw(st.lists(pairs, min_size=1, max_size=8)), strict=True)
        self.update(list(ids), list(new))

    def update(self, ids, priorities):
        accepted = self.replay.update_priorities(torch.tensor(ids), torch.tensor(priorities))
        assert accepted.tolist() == self.oracle.update_priorities(ids, priorities)

    @rule()
    def clear(self):
        self.replay.clear()
        self.oracle.clear()

    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            self.replay.save(Path(folder) / "snapshot")
            self.replay = self.build()
            self.replay.load(Path(folder) / "snapshot")

    @invariant()
    def every_live_row_is_right(self):
        if not hasattr(self, "oracle"):
            return
        self.replay.check_valid()
        live = self.replay.priorities()
        expected = dict(sorted(self.oracle.priority.items()))
        assert live.id.tolist() == list(expected)
        assert len(self.replay) == len(expected)
        if not expected:
            return
        wanted = np.array(list(expected.values())) if self.exponent else np.ones(len(expected))
        np.testing.assert_allclose(live.priority.numpy(), wanted, rtol=1e-5)
        batch = self.replay.read(live.id)
        for i, row_id in enumerate(expected):
            self.compare_row(batch, i, row_id)

    def compare_row(self, batch, i, row_id):
        row = self.oracle.transition(row_id)
        shape = batch.obs.shape[1:]
        np.testing.assert_array_equal(batch.obs[i].numpy(), row.obs.reshape(shape))
        np.testing.assert_array_equal(batch.next_obs[i].numpy(), row.next_obs.reshape(shape))
        assert batch.action[i] == row.action
        assert batch.discount[i].item() == row.discount
        assert batch.reward[i].item() == row.reward
        np.testing.assert_array_equal(batch.columns["logits"][i].numpy(), row.columns["logits"])
        assert batch.id[i] == row_id
        assert batch.task[i] == row_id >> STEP_BITS  # here every lane is a task


TestReplayAgainstOracle = ReplayMachine.TestCase
TestReplayAgainstOracle.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 253 seconds beside other work
class TestReplayAgainstOracleLong(ReplayMachine.TestCase):
    settings = settings(
        max_examples=2000,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
