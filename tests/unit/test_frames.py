# SPDX-License-Identifier: MIT
"""The native convolutions against torch's in float64, through every size the networks use."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastdistill import _core
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks import convolutions as frames

pytestmark = pytest.mark.skipif(
    not frames.is_available(), reason="this CPU has no AVX512-BF16 or was told not to use it"
)

# One rounding to bfloat16: half a unit in the last of 8 bits.
ROUNDING = 2.0**-8


def half(tensor):
    return tensor.to(torch.bfloat16)


def standardised(obs, mean, scale, limit):
    return half(((obs - mean) * scale).clamp(-limit, limit)).double()


def assert_rounded(actual, expected):
    """Within one rounding, plus what float32 sums may lose where large terms cancel."""
    allowed = ROUNDING * expected.abs() + 1e-5 * expected.abs().max()
    assert ((actual.double() - expected).abs() <= allowed).all()


CASES = [
    # filters, channels, kernel, stride, extent; the networks' second and third layers
    (64, 32, 4, 2, 20),
    (64, 64, 3, 1, 9),
    (32, 16, 4, 2, 20),
    (32, 32, 3, 1, 9),
    (16, 16, 4, 2, 20),
    (16, 16, 3, 1, 9),
    (48, 64, 2, 1, 5),
]


@pytest.mark.parametrize(("filters", "channels", "kernel", "stride", "extent"), CASES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 11, 40])
def test_convolution_and_gradients_equal_float64(
    filters, channels, kernel, stride, extent, relu, batch
):
    torch.manual_seed(filters + channels + batch)
    images = half(torch.randn(batch, extent, extent + stride, channels)).requires_grad_()
    weight = (torch.randn(filters, channels, kernel, kernel) / 20).requires_grad_()
    bias = torch.randn(filters, requires_grad=True)
    output = frames.convolve(images, weight, bias, stride=stride, relu=relu)
    gradient = half(torch.randn(output.shape))
    output.backward(gradient)

    oracle = [t.detach().double().requires_grad_() for t in (images, half(weight), bias)]
    expected = F.conv2d(oracle[0].permute(0, 3, 1, 2), oracle[1], oracle[2], stride=stride)
    if relu:
        # The mask of what was returned: a rounded sum may differ from 0 where the exact one is.
        expected = expected * (output.detach().permute(0, 3, 1, 2) > 0)
    expected.backward(gradient.double().permute(0, 3, 1, 2))
    assert_rounded(output, expected.detach().permute(0, 2, 3, 1))
    assert_rounded(images.grad, oracle[0].grad)
    for actual, wanted in ((weight.grad, oracle[1].grad), (bias.grad, oracle[2].grad)):
        assert (actual.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("filters", [16, 32, 64])
@pytest.mark.parametrize(("planes", "height", "width"), [(4, 84, 84), (1, 36, 44), (3, 40, 16)])
def test_frames_are_standardised_and_convolved(filters, planes, height, width):
    torch.manual_seed(filters)
    obs = torch.randint(0, 256, (5, planes, height, width), dtype=torch.uint8)
    mean, scale = 100 * torch.rand(height, width), 1 / (5 + 40 * torch.rand(height, width))
    weight = (torch.randn(filters, planes, 8, 8) / 16).requires_grad_()
    bias = torch.randn(filters, requires_grad=True)
    output = frames.convolve(obs, weight, bias, stride=4, statistics=(mean, scale, 1.5))
    gradient = half(torch.randn(output.shape))
    output.backward(gradient)

    images = standardised(obs, mean, scale, 1.5)
    assert (images.abs() == 1.5).any()
    oracle = half(weight).detach().double().requires_grad_()
    expected = F.conv2d(images, oracle, bias.detach().double(), stride=4)
    expected.backward(gradient.double().permute(0, 3, 1, 2))
    assert_rounded(output, expected.detach().permute(0, 2, 3, 1))
    sums = gradient.double().sum((0, 1, 2))
    for actual, wanted in ((weight.grad, oracle.grad), (bias.grad, sums)):
        assert (actual.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_result_does_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    images = half(torch.randn(21, 20, 20, 32))
    weight, bias = torch.randn(64, 32, 4, 4), torch.randn(64)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        given = [t.clone().requires_grad_() for t in (images, weight, bias)]
        output = frames.convolve(*given, stride=2, relu=True)
        output.backward(torch.ones_like(output))
        results.append([output.detach(), *(t.grad for t in given)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_nan():
    weight = torch.full((16, 16, 2, 2), float("nan"))
    images = half(torch.ones(1, 4, 4, 16))
    assert frames.convolve(images, weight, torch.zeros(16), stride=1, relu=True).isnan().all()


def test_an_empty_batch():
    weight = torch.ones(16, 16, 2, 2, requires_grad=True)
    images = torch.empty(0, 4, 4, 16, dtype=torch.bfloat16)
    output = frames.convolve(images, weight, torch.zeros(16), stride=1)
    assert output.shape == (0, 3, 3, 16)
    output.sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("size", ["100%", "25%", "7%", "4%"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_network_is_as_near_to_float64_as_torch_under_autocast(size, layer_norm):
    torch.manual_seed(1)
    network = QNetwork(paper_architecture(size, 6, layer_norm=layer_norm))
    network.set_obs_statistics(100 * torch.rand(84, 84), 40 * torch.rand(84, 84))
    assert network.uses_frames
    plain = copy.deepcopy(network)
    plain.uses_frames = False
    exact = copy.deepcopy(plain).double()
    obs = torch.randint(0, 256, (16, 4, 84, 84), dtype=torch.uint8)
    wanted = torch.randn(16, 6)
    errors = {}
    for name, model in (("ours", network), ("torch", plain), ("exact", exact)):
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            # heads read float32; in the oracle everything is float64
            values = model(obs) if name != "exact" else exact_values(exact, obs)
        (values - wanted).square().mean().backward()
        gradients = [p.grad.double() for p in model.parameters()]
        errors[name] = [values.detach().double(), *gradients]
        if name != "exact":
            assert values.dtype == torch.float32
    for ours, theirs, truth in zip(*errors.values(), strict=True):
        error, usual = (ours - truth).norm(), (theirs - truth).norm()
        assert error <= 1.5 * usual + 1e-3 * truth.norm()


def exact_values(network, obs):
    features = network.features(obs.double())
    return network.heads[0](features)


def test_network_is_traced_without_native_operations():
    network = QNetwork(paper_architecture("4%", 4)).eval()
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(network, (obs,))
        torch.testing.assert_close(program.module()(obs), network(obs))
    with torch.autocast("cpu", torch.bfloat16):
        assert network._frames_dtype(obs) == torch.bfloat16
        inside = torch.func.vmap(lambda x: torch.tensor(network._frames_dtype(x) is None))(obs)
    assert inside.all()


def test_what_the_convolutions_are_computed_in():
    network = QNetwork(paper_architecture("4%", 4))
    frame, image = torch.zeros(1, 4, 84, 84, dtype=torch.uint8), torch.zeros(1, 4, 84, 84)
    with torch.autocast("cpu", torch.bfloat16):
        assert network._frames_dtype(frame) == torch.bfloat16
        assert network._frames_dtype(image) is None
    with torch.no_grad():
        assert network._frames_dtype(frame) == torch.float32
        assert network._frames_dtype(image) is None
        with torch.autocast("cpu", torch.float16):
            assert network._frames_dtype(frame) is None
        assert copy.deepcopy(network).double()._frames_dtype(frame) is None
    assert network._frames_dtype(frame) is None  # there would be no gradient
    assert not QNetwork(paper_architecture("4%", 4, obs_shape=(3, 210, 160))).uses_frames


@pytest.mark.parametrize(("filters", "channels", "kernel", "stride", "extent"), CASES)
@pytest.mark.parametrize("relu", [False, True])
def test_float32_convolution_equals_float64(filters, channels, kernel, stride, extent, relu):
    torch.manual_seed(filters + channels)
    images = torch.randn(11, extent, extent + stride, channels)
    weight, bias = torch.randn(filters, channels, kernel, kernel) / 20, torch.randn(filters)
    output = frames.convolve(images, weight, bias, stride=stride, relu=relu, dtype=torch.float32)
    oracle = [t.double() for t in (images.permute(0, 3, 1, 2), weight, bias)]
    expected = F.conv2d(*oracle, stride=stride).permute(0, 2, 3, 1)
    expected = expected.relu() if relu else expected
    # Sums of up to 576 products in another order: 1.7e-6 was the most in 20 seeds of each case.
    assert (output.double() - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert output.dtype == torch.float32


@pytest.mark.parametrize("size", ["100%", "7%"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_network_without_gradients_equals_float64(size, layer_norm):
    torch.manual_seed(1)
    network = QNetwork(paper_architecture(size, 6, layer_norm=layer_norm))
    network.set_obs_statistics(100 * torch.rand(84, 84), 5 + 40 * torch.rand(84, 84))
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    with torch.inference_mode():
        actual = network(obs)
        oracle = copy.deepcopy(network).double()
        expected = oracle.heads[0].output(oracle.features(obs))
    assert actual.dtype == torch.float32
    assert (actual.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def arguments(**changes):
    given = {
        "input": torch.zeros(2, 4, 4, 16, dtype=torch.bfloat16),
        "statistics": None,
        "weight": torch.zeros(16, 16, 2, 2),
        "bias": torch.zeros(16),
        "stride": 1,
        "relu": False,
        "output": torch.zeros(2, 3, 3, 16, dtype=torch.bfloat16),
        **changes,
    }
    return tuple(given.values())


FRAMES = torch.zeros(2, 4, 16, 16, dtype=torch.uint8)
PLANE = torch.zeros(16, 16)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": torch.zeros(2, 4, 4, 16)}, TypeError, "input must be bfloat16, got torch.fl"),
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
        ({"output": torch.zeros(2, 3, 3, 16).double()}, TypeError, "output must be bfloat16"),
        # The output's type is that of the products.
        ({"output": torch.zeros(2, 3, 3, 16)}, TypeError, "input must be float32"),
        (
            {"output": torch.zeros(2, 3, 2, 16, dtype=torch.bfloat16)},
            ValueError,
            r"output must have shape \[2, 3, 3, 16\], got \[2, 3, 2, 16\]",
        ),
        (
            {"input": torch.zeros(2, 4, 16, 4, dtype=torch.bfloat16).mT},
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
