# SPDX-License-Identifier: MIT
# What users of peers were hurt by, case by case, and every error message. The numbers are the
# rows of the table in docs/replay.md; what the state machine covers is not repeated here.
from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from fastdistill.replay import PrioritizedReplay, arguments


def make(capacity=64, num_lanes=1, **options):
    defaults = {"frame_shape": (2,), "frame_dtype": "float32", "stack": 1}
    return PrioritizedReplay(capacity, num_lanes, **(defaults | options))


def append(replay, step, *, lanes=1, reward=0.0, **flags):
    flag = {name: np.full(lanes, flags.get(name, False)) for name in ("terminated", "truncated")}
    replay.append(
        np.full((lanes, 2), step, np.float32),
        np.full(lanes, step),
        np.full(lanes, reward, np.float32),
        flag["terminated"],
        flag["truncated"],
        boundary=np.full(lanes, flags.get("boundary", False)),
        priority=flags.get("priority"),
    )


def filled(steps=40, **options):
    replay = make(**options)
    for step in range(steps):
        append(replay, step, lanes=options.get("num_lanes", 1))
    return replay


def contents(replay):
    live = replay.priorities()
    return live.id.tolist(), live.priority.tolist(), replay.read(live.id)[:5]


def assert_unchanged(replay, before):
    replay.check_valid()
    after = contents(replay)
    assert after[:2] == before[:2]
    for old, new in zip(before[2], after[2], strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_late_update_is_refused_with_batches_in_flight():  # case 1
    replay = filled(capacity=8)
    batches = [replay.sample(4) for _ in range(3)]
    for step in range(20):
        append(replay, step)
    before = contents(replay)
    for batch in batches:
        assert not replay.update_priorities(batch.id, torch.full((4,), 9.0)).any()
    assert_unchanged(replay, before)
    assert replay.statistics()["stale_updates"] == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0])
def test_bad_priorities_are_refused_and_change_nothing(value):  # case 5
    replay = filled()
    before = contents(replay)
    batch = replay.sample(4)
    bad = torch.tensor([1.0, 2.0, value, 3.0])
    with pytest.raises(ValueError, match=r"priority must be finite and >= 0, got .* at row 2"):
        replay.update_priorities(batch.id, bad)
    with pytest.raises(ValueError, match="append: priority must be finite and >= 0"):
        append(replay, 1, priority=[value])
    assert_unchanged(replay, before)


def test_weights_are_finite_beside_tiny_and_zero_priorities():  # case 6
    replay = filled(priority_exponent=1.0)
    ids = replay.priorities().id
    priority = torch.ones(len(ids))
    priority[0], priority[1] = 0.0, 1e-30
    replay.update_priorities(ids, priority)
    for normalization in ("batch", "global", "none"):
        batch = replay.sample(2000, 1.0, weight_normalization=normalization)
        assert torch.isfinite(batch.weight).all()
        assert (batch.weight > 0).all()
        assert int(ids[0]) not in batch.id.tolist()
    replay.update_priorities(ids[:1], torch.tensor([5.0]))
    assert int(ids[0]) in replay.sample(2000).id.tolist()


def test_all_zero_priorities_are_an_error_not_a_hang():  # cases 4, 16
    replay = filled()
    ids = replay.priorities().id
    replay.update_priorities(ids, torch.zeros(len(ids)))
    assert len(replay) == len(ids)  # they live, they are only not drawn
    with pytest.raises(RuntimeError, match="must hold a sampleable row of priority > 0, got none"):
        replay.sample(1)


@pytest.mark.parametrize(("policy", "expected"), [("max", 50.0), ("max_live", 2.0), (0.25, 0.25)])
def test_initial_priority_policy(policy, expected):  # case 7
    replay = make(capacity=8, initial_priority=policy, priority_exponent=1.0)
    for step in range(4):
        append(replay, step, priority=[50.0 if step == 0 else 2.0])
    for step in range(8):
        append(replay, step, priority=[2.0])
    for step in range(3):
        append(replay, step)
    newest = replay.priorities().priority[-1].item()
    assert expected <= newest <= expected * 1.25


@pytest.mark.parametrize("exponent", [0.3, 0.6, 1.0])
def test_priorities_come_back_as_given(exponent):  # cases 8, 22
    replay = filled(priority_exponent=exponent)
    ids = replay.priorities().id
    given = torch.linspace(0.5, 30.0, len(ids))
    replay.update_priorities(ids, given)
    torch.testing.assert_close(replay.priorities().priority.float(), given, rtol=1e-5, atol=0)


def test_importance_weights_follow_the_definition():  # case 9
    replay = filled(priority_exponent=0.6)
    ids = replay.priorities().id
    priority = torch.arange(1, len(ids) + 1, dtype=torch.float64)
    replay.update_priorities(ids, priority)
    probability = priority**0.6 / (priority**0.6).sum()
    raw = (len(ids) * probability) ** -0.4
    batch = replay.sample(16, 0.4, weight_normalization="none")
    rows = torch.searchsorted(ids, batch.id)
    torch.testing.assert_close(batch.weight.double(), raw[rows], rtol=1e-5, atol=0)
    batch = replay.sample(16, 0.4)
    rows = torch.searchsorted(ids, batch.id)
    expected = raw[rows] / raw[rows].max()
    torch.testing.assert_close(batch.weight.double(), expected, rtol=1e-5, atol=0)
    batch = replay.sample(16, 0.4, weight_normalization="global")
    rows = torch.searchsorted(ids, batch.id)
    ratio = batch.weight.double() / (raw[rows] / raw.max())
    assert ((ratio <= 1 + 1e-6) & (ratio >= 1.26**-0.4)).all()
    assert torch.equal(replay.sample(8, 0.0).weight, torch.ones(8))


def test_truncated_row_bootstraps_from_its_final_observation():  # case 10
    replay = make(n_step=3, discount=0.5)
    for step in range(5):
        append(replay, step, reward=1.0, truncated=step == 4)
    append(replay, 99, boundary=True)
    for step in range(100, 105):
        append(replay, step, reward=1.0)
    rows = replay.read(torch.tensor([3, 4]))
    assert rows.next_obs[:, 0].tolist() == [99.0, 99.0]
    assert rows.discount.tolist() == [0.25, 0.5]
    assert rows.reward.tolist() == [1.5, 1.0]
    assert 5 not in replay.priorities().id.tolist()


def test_life_loss_cuts_the_return_and_nothing_else():  # case 12
    replay = make(n_step=3, stack=3, discount=0.5)
    for step in range(8):
        append(replay, step, reward=1.0, terminated=step == 3)
    rows = replay.read(torch.tensor([2, 4]))
    assert rows.discount.tolist() == [0.0, 0.125]
    assert rows.reward.tolist() == [1.5, 1.75]
    assert rows.obs[1, :, 0].tolist() == [2.0, 3.0, 4.0]


def test_memory_is_one_frame_per_transition():  # case 13
    # A dry count; benchmarks/test_bench_replay_memory.py measures the process.
    atari = PrioritizedReplay(100_000, 4)
    assert atari.memory_bytes / 100_000 <= 7150
    logits = PrioritizedReplay(100_000, 4, columns={"teacher_logits": ((18,), "float16")})
    assert logits.memory_bytes / 100_000 <= 7200


def test_too_large_a_replay_says_what_it_needs(monkeypatch):  # case 13
    monkeypatch.setattr(arguments, "_available_memory_bytes", lambda: 1e6)
    with pytest.raises(MemoryError, match=r"got 7\.\d\d GB needed and 0\.00 GB available"):
        PrioritizedReplay(1_000_000, 8)


def test_episodes_of_one_step():  # case 14
    replay = make(capacity=16, stack=4, n_step=2)
    for step in range(40):
        append(replay, step, reward=1.0, terminated=True)
        append(replay, 1000 + step, boundary=True)
    live = replay.priorities().id
    assert len(live) == 8
    rows = replay.read(live)
    assert rows.obs[:, :3].eq(0).all()
    assert torch.equal(rows.next_obs[:, 3, 0], rows.obs[:, 3, 0] + 1000)
    assert rows.discount.eq(0).all()


def test_every_step_of_an_episode_is_reachable():  # case 11: the last row too
    replay = make(n_step=3)
    for step in range(6):
        append(replay, step, terminated=step == 5)
    append(replay, 6, boundary=True)
    assert replay.priorities().id.tolist() == [0, 1, 2, 3, 4, 5]


def test_threads_write_their_own_lanes_while_others_sample():  # cases 2, 3, 23
    replay = make(capacity=256, num_lanes=4, priority_exponent=1.0)
    append(replay, 0, lanes=4)
    append(replay, 1, lanes=4)
    stop, failures = threading.Event(), []

    def write(lanes):
        step = 2
        while not stop.is_set():
            value = np.full((2, 2), step, np.float32)
            flags = np.zeros(2, bool)
            replay.append(value, [step] * 2, [float(step)] * 2, flags, flags, lanes=lanes)
            step += 1

    def learn():
        try:
            for _ in range(300):
                batch = replay.sample(32)
                assert torch.equal(batch.obs[:, 0], batch.obs[:, 1])
                assert torch.equal(batch.next_obs[:, 0], batch.obs[:, 0] + 1)
                assert torch.equal(batch.obs[:, 0].long(), batch.action)
                assert torch.equal(PrioritizedReplay.decode_id(batch.id)[1], batch.action)
                replay.update_priorities(batch.id, batch.reward + 1)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(lanes,)) for lanes in ([0, 1], [3, 2])]
    learners = [threading.Thread(target=learn) for _ in range(2)]
    for thread in writers + learners:
        thread.start()
    for thread in learners:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert not failures
    replay.check_valid()


def test_same_seed_gives_the_same_batches():
    first, second, other = filled(seed=3), filled(seed=3), filled(seed=4)
    for _ in range(5):
        ids = first.sample(16).id
        assert torch.equal(ids, second.sample(16).id)
        assert not torch.equal(ids, other.sample(16).id)


def test_tasks_are_balanced_or_weighted():
    replay = make(capacity=300, num_lanes=3, lanes_per_task=[1, 2], priority_exponent=1.0)
    for step in range(50):
        append(replay, step, lanes=3, priority=[100.0, 1.0, 3.0])
    batch = replay.sample(64, 1.0, task_weights="balanced", weight_normalization="none")
    assert batch.task.bincount().tolist() == [32, 32]
    lane, _ = PrioritizedReplay.decode_id(batch.id)
    assert torch.equal(batch.task, (lane > 0).long())
    # Within a task the weights undo the priorities: 1/1, and 2/1 or 2/3.
    expected = torch.tensor([1.0, 2.0, 2.0 / 3.0])[lane]
    torch.testing.assert_close(batch.weight, expected, rtol=1e-3, atol=0)
    assert replay.sample(40, task_weights=[1.0, 3.0]).task.bincount().tolist() == [10, 30]
    assert replay.sample(40, task_weights=[0.0, 3.0]).task.eq(1).all()
    assert replay.sample(52).task.bincount().tolist() == [50, 2]


def test_a_held_batch_is_never_written_over():
    replay = filled()
    kept, copies = [], []
    for _ in range(12):
        batch = replay.sample(8)
        kept.append(batch.obs[2:5].view(-1))  # a view of a view, the batch itself is dropped
        copies.append(kept[-1].clone())
    weight = replay.sample(8).weight
    parameter = torch.ones(8, requires_grad=True)
    loss = (parameter * weight).sum()  # autograd holds the tensor, Python does not
    expected = weight.clone()
    del batch, weight
    for step in range(50):
        append(replay, 1000 + step)
        replay.sample(8)
    loss.backward()
    assert torch.equal(parameter.grad, expected)
    for view, copy in zip(kept, copies, strict=True):
        assert torch.equal(view, copy)


def test_dropped_batches_give_their_memory_back_to_the_next():
    replay = filled()
    addresses = set()
    batch = None
    for _ in range(20):
        batch = replay.sample(8)
        addresses.add(batch.obs.data_ptr())
    gc.collect()
    assert len(addresses) == 2


def test_clear_drops_rows_and_keeps_ids_unique():
    replay = filled()
    old = replay.sample(8).id
    replay.clear()
    assert len(replay) == 0
    assert not replay.update_priorities(old, torch.ones(8)).any()
    for step in range(5):
        append(replay, step)
    assert not set(replay.priorities().id.tolist()) & set(old.tolist())
    replay.check_valid()


def test_columns_of_any_shape_and_dtype():
    spec = {"logits": ((2, 3), "float16"), "flag": ((), "bool"), "big": ((5,), "int64")}
    replay = make(columns=spec, num_lanes=2)
    rng = np.random.default_rng(0)
    written = []
    for _ in range(6):
        values = {
            name: rng.integers(0, 100, (2, *shape)).astype(dtype)
            for name, (shape, dtype) in spec.items()
        }
        written.append(values)
        zeros = np.zeros(2, bool)
        replay.append(np.zeros((2, 2), np.float32), [0, 0], [0, 0], zeros, zeros, **values)
    batch = replay.sample(32)
    lane, step = PrioritizedReplay.decode_id(batch.id)
    for name, column in batch.columns.items():
        expected = np.stack([written[t][name][i] for i, t in zip(lane, step, strict=True)])
        assert column.numpy().dtype == spec[name][1]
        np.testing.assert_array_equal(column.numpy(), expected)


def test_tensors_and_strided_frames_are_accepted():
    replay = PrioritizedReplay(16, 2, frame_shape=(3, 3), stack=2)
    stacked = torch.arange(2 * 4 * 9, dtype=torch.uint8).reshape(2, 4, 3, 3)
    for _ in range(3):
        flags = torch.zeros(2, dtype=torch.bool)
        replay.append(stacked[:, -1], torch.tensor([1, 2]), torch.ones(2), flags, flags)
    batch = replay.sample(8)
    lane, _ = PrioritizedReplay.decode_id(batch.id)
    assert torch.equal(batch.obs[:, -1], stacked[lane, -1])


GOOD = {
    "frame": np.zeros((1, 2), np.float32),
    "action": [0],
    "reward": [0.0],
    "terminated": [False],
    "truncated": [False],
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"frame": np.zeros((2, 2), np.float32)}, ValueError, r"frame must have shape \(1, 2\)"),
        ({"frame": np.zeros((1, 3), np.float32)}, ValueError, r"shape \(1, 2\), got \(1, 3\)"),
        ({"frame": np.zeros((1, 2), complex)}, TypeError, "frame must have dtype float32"),
        ({"action": [0.5]}, TypeError, "action must have dtype int64, got float64"),
        ({"action": [0, 1]}, ValueError, r"action must have shape \(1,\), got \(2,\)"),
        ({"reward": 0.0}, ValueError, r"reward must have shape \(1,\), got \(\)"),
        ({"terminated": [1]}, TypeError, "terminated must have dtype bool, got int64"),
        ({"lanes": [1]}, IndexError, r"lanes must be in \[0, 1\), got 1"),
        ({"lanes": [-1]}, IndexError, r"lanes must be in \[0, 1\), got -1"),
        ({"logits": [0.0]}, ValueError, r"columns must be \[\], got \['logits'\]"),
    ],
)
def test_append_refuses_what_does_not_fit(change, error, text):
    replay = filled()
    before = contents(replay)
    with pytest.raises(error, match=f"append: .*{text}"):
        replay.append(**(GOOD | change))
    assert_unchanged(replay, before)


@pytest.mark.parametrize(
    ("ids", "priority", "error", "text"),
    [
        ([-1], [1.0], IndexError, r"id must come from this buffer's sample\(\), got -1 at row 0"),
        ([0, 40], [1.0, 1.0], IndexError, "got 40 at row 1"),
        ([1 << 48], [1.0], IndexError, "id must come from"),
        ([0, 1], [1.0], ValueError, r"priority must have the shape of id, \(2,\), got \(1,\)"),
        ([[0]], [[1.0]], ValueError, r"id must have shape \[B\], got \(1, 1\)"),
        ([0.0], [1.0], TypeError, "id must be torch.int64, got torch.float32"),
        ([0], [1], TypeError, "priority must be torch.float32, got torch.int64"),
    ],
)
def test_update_refuses_what_does_not_fit(ids, priority, error, text):
    replay = filled()
    before = contents(replay)
    with pytest.raises(error, match=f"update_priorities: .*{text}"):
        replay.update_priorities(torch.tensor(ids), torch.tensor(priority))
    assert_unchanged(replay, before)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got 2.0"),
        ({"batch_size": 1 << 21}, ValueError, "batch_size must be in"),
        ({"importance_exponent": -0.1}, ValueError, r"importance_exponent must be in \[0, 1\]"),
        ({"importance_exponent": float("nan")}, ValueError, "importance_exponent must be in"),
        ({"weight_normalization": "all"}, ValueError, "weight_normalization must be one of"),
        ({"sampler": 1}, IndexError, r"sampler must be in \[0, 1\), got 1"),
        ({"task_weights": []}, ValueError, "task_weights must"),
        ({"task_weights": [-1.0]}, ValueError, "task_weights must be finite and >= 0"),
        ({"task_weights": [1.0, 1.0]}, ValueError, "task_weights must hold 1 weights"),
        ({"task_weights": "some"}, ValueError, "task_weights must be 'balanced'"),
    ],
)
def test_sample_refuses_what_does_not_fit(arguments, error, text):
    replay = filled()
    with pytest.raises(error, match=f"sample: {text}"):
        replay.sample(**({"batch_size": 4} | arguments))


def test_empty_tasks_and_buffers_are_named():
    replay = make(num_lanes=2, lanes_per_task=[1, 1])
    with pytest.raises(RuntimeError, match="must hold a sampleable row of priority > 0, got none"):
        replay.sample(4)
    for _ in range(3):
        replay.append(**GOOD, lanes=[0])
    with pytest.raises(RuntimeError, match=r"a task without sampleable rows, got 1\.0.* task 1"):
        replay.sample(4, task_weights="balanced")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"capacity": 0}, ValueError, "capacity must be >= 1, got 0"),
        ({"capacity": 3.5}, TypeError, "capacity must be an integer, got 3.5"),
        (
            {"capacity": 4, "n_step": 4},
            ValueError,
            "capacity must give every lane more than n_step steps, got 4",
        ),
        ({"num_lanes": 40000, "capacity": 10**6}, ValueError, r"num_lanes must be in \[1, 32768\]"),
        ({"stack": 256}, ValueError, r"stack must be in \[1, 255\], got 256"),
        ({"discount": 1.5}, ValueError, r"discount must be in \[0, 1\], got 1.5"),
        ({"priority_exponent": -1.0}, ValueError, r"priority_exponent must be in \[0, 1\]"),
        ({"priority_exponent": []}, ValueError, "priority_exponent must name at least one"),
        ({"initial_priority": 0.0}, ValueError, "initial_priority must be finite and > 0, got 0"),
        ({"initial_priority": "mean"}, ValueError, "initial_priority must be 'max', 'max_live'"),
        ({"lanes_per_task": [2]}, ValueError, "lanes_per_task must add up to num_lanes, got 2"),
        ({"pad": "mirror"}, ValueError, "pad must be 'zero' or 'first', got 'mirror'"),
        ({"frame_dtype": "bfloat16"}, TypeError, "the dtype of frame_shape must be one of"),
        ({"frame_shape": (0,)}, ValueError, "frame_shape must be >= 1, got 0"),
        ({"columns": {"reward": ((), "int8")}}, ValueError, "columns must have names other than"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
    ],
)
def test_constructor_refuses_options_out_of_range(options, error, text):
    with pytest.raises(error, match=f"PrioritizedReplay: {text}"):
        make(**options)


def test_read_refuses_rows_that_are_gone():
    replay = filled(capacity=8)
    with pytest.raises(IndexError, match="read: id must name a live row, got 1 at row 0"):
        replay.read(torch.tensor([1]))


def test_without_next_obs_all_else_is_the_same():
    """Two equal replays draw the same rows, whether or not next_obs is gathered."""
    replays = [PrioritizedReplay(200, 2, frame_shape=(3, 5), stack=4, n_step=2) for _ in range(2)]
    rng = np.random.default_rng(0)
    for _ in range(150):
        frame = rng.integers(256, size=(2, 3, 5), dtype=np.uint8)
        reward, ends = rng.normal(size=2).astype(np.float32), rng.random(2) < 0.1
        for replay in replays:
            replay.append(frame, [0, 1], reward, ends, [False, False])
    for batch_size in (1, 17, 64, 17):
        whole = replays[0].sample(batch_size)
        part = replays[1].sample(batch_size, next_obs=False)
        assert part.next_obs.shape == (0, 4, 3, 5)
        assert whole.next_obs.shape == (batch_size, 4, 3, 5)
        for name in ("obs", "action", "reward", "discount", "weight", "id", "task"):
            assert torch.equal(getattr(whole, name), getattr(part, name)), name
    # Batches of both kinds share no memory.
    kept = replays[1].sample(17, next_obs=False)
    before = kept.obs.clone()
    replays[1].sample(17)
    assert torch.equal(kept.obs, before)
