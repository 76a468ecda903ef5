# SPDX-License-Identifier: MIT
"""The bfloat16 convolutions against float64, through every size the networks use."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks import convolutions as frames

pytestmark = pytest.mark.skipif(
    not frames.is_available(torch.bfloat16),
    reason="this CPU has no AVX512-BF16 or was told not to use it",
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
