# SPDX-License-Identifier: MIT
"""What the convolutions are asked for: when they are used, in which dtype, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch

from fastdistill import _core
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks import convolutions as frames

pytestmark = pytest.mark.skipif(
    not frames.is_available(), reason="this CPU has no AVX2 or was told not to use it"
)


def arguments(**changes):
    given = {
        "input": torch.zeros(2, 4, 4, 16),
        "statistics": None,
        "weight": torch.zeros(16, 16, 2, 2),
        "bias": torch.zeros(16),
        "stride": 1,
        "relu": False,
        "output": torch.zeros(2, 3, 3, 16),
        **changes,
    }
    return tuple(given.values())


FRAMES = torch.zeros(2, 4, 16, 16, dtype=torch.uint8)
PLANE = torch.zeros(16, 16)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": FRAMES}, TypeError, "input must be float32, got torch.uint8"),
        ({"weight": torch.zeros(16, 16, 2, 2).double()}, TypeError, "weight must be float32"),
        ({"bias": torch.zeros(15)}, ValueError, r"bias must have shape \[16\], got \[15\]"),
        ({"weight": torch.zeros(16, 8, 2, 2)}, ValueError, r"weight must have shape \[16, 16, 2"),
        ({"weight": torch.zeros(16, 16, 2, 3)}, ValueError, r"weight must have shape \[16, 16, 2"),
        ({"weight": torch.zeros(24, 16, 2, 2)}, ValueError, "input must be tiled by kernel and"),
        ({"weight": torch.zeros(80, 16, 2, 2)}, ValueError, "input must be tiled by kernel and"),
        ({"weight": torch.zeros(16, 16, 0, 0)}, ValueError, "input must be tiled by kernel and"),
        ({"weight": torch.zeros(16, 16, 5, 5)}, ValueError, "input must be tiled by kernel and"),
        ({"stride": 0}, ValueError, "input must be tiled by kernel and"),
        ({"stride": -1}, ValueError, "input must be tiled by kernel and"),
        ({"stride": 3}, ValueError, "input must be tiled by kernel and"),
        # The output's type is that of the products.
        ({"input": torch.zeros(2, 4, 4, 16, dtype=torch.bfloat16)}, TypeError, "input must be fl"),
        (
            {"output": torch.zeros(2, 3, 2, 16)},
            ValueError,
            r"output must have shape \[2, 3, 3, 16\], got \[2, 3, 2, 16\]",
        ),
        (
            {"input": torch.zeros(2, 4, 16, 4).mT},
            ValueError,
            "input must be contiguous with 4 dimensions",
        ),
        (
            {"input": FRAMES, "statistics": (PLANE, PLANE[:8], 5.0)},
            ValueError,
            r"scale must have shape \[16, 16\], got \[8, 16\]",
        ),
        (
            {
                "input": FRAMES,
                "statistics": (PLANE, PLANE, 5.0),
                "weight": torch.zeros(16, 4, 8, 8),
                "stride": 8,
            },
            ValueError,
            "input must be tiled",
        ),
        (
            {
                "input": FRAMES[..., :14].contiguous(),
                "statistics": (PLANE[:, :14].contiguous(), PLANE[:, :14].contiguous(), 5.0),
                "weight": torch.zeros(16, 4, 8, 8),
                "stride": 4,
            },
            ValueError,
            "input must be tiled",
        ),
    ],
)
def test_bad_arguments_never_reach_memory(changes, error, message):
    with pytest.raises(error, match="^convolve: " + message):
        _core.convolve(*arguments(**changes))


BACKWARD = {
    "input": torch.zeros(2, 4, 4, 16),
    "statistics": None,
    "weight": torch.zeros(16, 16, 2, 2),
    "stride": 1,
    "output": torch.zeros(2, 3, 3, 16),
    "grad_output": torch.zeros(2, 3, 3, 16),
    "grad_input": torch.zeros(2, 4, 4, 16),
    "grad_weight": torch.zeros(16, 16, 2, 2),
    "grad_bias": torch.zeros(16),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output": torch.zeros(2, 3, 3, 15)}, ValueError, r"output must have shape \[2, 3, 3, 16"),
        ({"grad_output": torch.zeros(2, 3, 3, 15)}, ValueError, "grad_output must have shape"),
        ({"grad_output": torch.zeros(2, 3, 16, 3).mT}, ValueError, "grad_output must be contig"),
        ({"grad_input": torch.zeros(1, 4, 4, 16)}, ValueError, "grad_input must have shape"),
        ({"grad_weight": torch.zeros(16, 16, 2, 1)}, ValueError, "grad_weight must have shape"),
        ({"grad_bias": torch.zeros(16).double()}, TypeError, "grad_bias must be float32"),
        (
            {
                "input": FRAMES,
                "statistics": (PLANE, PLANE, 5.0),
                "weight": torch.zeros(16, 4, 8, 8),
                "stride": 4,
                "grad_input": FRAMES,
            },
            ValueError,
            "grad_input must be None for frames, got a tensor",
        ),
    ],
)
def test_bad_gradients_never_reach_memory(changes, error, message):
    with pytest.raises(error, match="^convolve: " + message):
        _core.convolve_backward(*{**BACKWARD, **changes}.values())


@pytest.mark.skipif(frames.is_available(torch.bfloat16), reason="this CPU has AVX512-BF16")
def test_a_dtype_without_instructions_is_refused():
    images = torch.zeros(1, 4, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^convolve: dtype must be one that this CPU .*16$"):
        frames.convolve(images, torch.zeros(16, 16, 2, 2), torch.zeros(16), stride=1)


def test_which_dtype_is_quicker():
    assert frames.prefers_bfloat16(torch.device("cpu")) == frames.is_available(torch.bfloat16)
    assert not frames.prefers_bfloat16(torch.device("meta"))
    assert not frames.is_available(torch.float16)


def test_what_the_convolutions_are_computed_in():
    network = QNetwork(paper_architecture("4%", 4))
    frame, image = torch.zeros(1, 4, 84, 84, dtype=torch.uint8), torch.zeros(1, 4, 84, 84)
    assert network.uses_frames
    with torch.autocast("cpu", torch.bfloat16):
        native = torch.bfloat16 if frames.is_available(torch.bfloat16) else None
        assert network._frames_dtype(frame) == native
        assert network._frames_dtype(image) is None
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert network._frames_dtype(frame) == torch.float32
            assert network._frames_dtype(image) is None
            with torch.autocast("cpu", torch.float16):
                assert network._frames_dtype(frame) is None
            assert copy.deepcopy(network).double()._frames_dtype(frame) is None
    assert not QNetwork(paper_architecture("4%", 4, obs_shape=(3, 210, 160))).uses_frames


def test_network_is_traced_without_native_operations():
    network = QNetwork(paper_architecture("4%", 4)).eval()
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(network, (obs,))
        torch.testing.assert_close(program.module()(obs), network(obs))
    assert network._frames_dtype(obs) == torch.float32
    inside = torch.func.vmap(lambda x: torch.tensor(network._frames_dtype(x) is None))(obs)
    assert inside.all()
