# SPDX-License-Identifier: MIT
"""The float32 convolutions against float64, on every instruction set that this CPU has.

Errors are stated in units of 2^-24 times the sum of the absolute terms, which is what rounding in
any order is proportional to. The most in 20 seeds of each case: output 7.0, gradient of images 7.9,
of weights 4.9, of biases 3.6.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastdistill import _core
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.networks import convolutions as frames

pytestmark = pytest.mark.skipif(
    not frames.is_available(), reason="this CPU has no AVX2 or was told not to use it"
)

BOUND_ULPS = 12.0

CASES = [
    # filters, channels, kernel, stride, extent; the networks' second and third layers
    (64, 32, 4, 2, 20),
    (64, 64, 3, 1, 9),
    (32, 16, 4, 2, 20),
    (32, 32, 3, 1, 9),
    (16, 16, 4, 2, 20),
    (16, 16, 3, 1, 9),
    # and others: a kernel that fills the image, 48 filters, an odd number of phases
    (48, 64, 2, 1, 5),
    (16, 48, 3, 3, 9),
    (64, 16, 4, 4, 4),
]
BATCHES = [0, 1, 3, 17, 64]


def convolution(images, weight, bias, mask, stride):
    """By torch, channels last; `mask` stands for the rectification."""
    output = F.conv2d(images.permute(0, 3, 1, 2), weight, bias, stride=stride)
    return output.permute(0, 2, 3, 1) * mask


def assert_within(ulps, actual, expected, scale):
    error = (actual.detach().double() - expected.detach()).abs()
    assert (error <= ulps * 2.0**-24 * scale.detach()).all(), float((error / scale).max() * 2**24)


def truth_of(tensors, mask, stride, gradient):
    """(output, gradients) in float64, and what their terms' absolute values sum up to."""
    results = []
    for of in (lambda t: t, torch.abs):
        given = [of(t.detach().double()).requires_grad_() for t in tensors]
        output = convolution(*given, mask.double(), stride)
        output.backward(of(gradient.double()))
        results.append([output, *(t.grad for t in given)])
    return zip(*results, strict=True)


@pytest.mark.parametrize(("filters", "channels", "kernel", "stride", "extent"), CASES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_convolution_and_gradients_equal_float64(
    filters, channels, kernel, stride, extent, relu, batch
):
    torch.manual_seed(filters + channels + batch)
    shape = (batch, extent, extent + stride, channels)
    weight = torch.randn(filters, channels, kernel, kernel)
    given = [t.requires_grad_() for t in (torch.randn(shape), weight, torch.randn(filters))]
    output = frames.convolve(*given, stride=stride, relu=relu, dtype=torch.float32)
    assert output.dtype == torch.float32
    gradient = torch.randn(output.shape)
    output.backward(gradient)
    # The mask of what was returned: a rounded sum may differ from 0 where the exact one is.
    mask = output.detach() > 0 if relu else torch.ones(output.shape)
    truth = truth_of(given, mask, stride, gradient)
    for actual, (expected, scale) in zip([output, *(t.grad for t in given)], truth, strict=True):
        assert_within(BOUND_ULPS, actual, expected, scale)


@pytest.mark.parametrize("filters", [16, 32, 64])
@pytest.mark.parametrize(("planes", "height", "width"), [(4, 84, 84), (1, 36, 44), (3, 40, 16)])
@pytest.mark.parametrize("batch", [0, 1, 5, 17])
def test_frames_are_standardised_and_convolved(filters, planes, height, width, batch):
    torch.manual_seed(filters + batch)
    obs = torch.randint(0, 256, (batch, planes, height, width), dtype=torch.uint8)
    mean, deviation = 100 * torch.rand(height, width), 5 + 40 * torch.rand(height, width)
    weight = torch.randn(filters, planes, 8, 8, requires_grad=True)
    bias = torch.randn(filters, requires_grad=True)
    statistics = (mean, 1 / deviation, 1.5)
    output = frames.convolve(
        obs, weight, bias, stride=4, relu=True, statistics=statistics, dtype=torch.float32
    )
    gradient = torch.randn(output.shape)
    output.backward(gradient)
    images = ((obs.double() - mean.double()) * (1 / deviation).double()).clamp(-1.5, 1.5)
    assert batch == 0 or (images.abs() == 1.5).any()
    mask = output.detach() > 0
    truth = truth_of((images.permute(0, 2, 3, 1), weight, bias), mask, 4, gradient)
    for actual, (expected, scale) in zip(
        [output, None, weight.grad, bias.grad], truth, strict=True
    ):
        if actual is not None:
            assert_within(BOUND_ULPS, actual, expected, scale)


def test_gradients_equal_finite_differences():
    """Exactly: without rectification each loss is linear, and of small integers nothing rounds."""
    torch.manual_seed(0)
    shapes = ((2, 4, 4, 16), (16, 16, 2, 2), (16,))
    given = [torch.randint(-4, 5, shape).float().requires_grad_() for shape in shapes]
    factors = torch.randint(-4, 5, (2, 2, 2, 16))

    def loss():
        return (frames.convolve(*given, stride=2, dtype=torch.float32) * factors).sum()

    loss().backward()
    with torch.no_grad():
        before = loss()
        for tensor in given:
            flat = tensor.view(-1)
            for index in range(0, len(flat), 3):
                flat[index] += 1
                assert loss() - before == tensor.grad.view(-1)[index]
                flat[index] -= 1


def test_inputs_and_gradients_of_any_strides():
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("7%", 6))
    obs = torch.randint(0, 256, (6, 4, 84, 84), dtype=torch.uint8)
    strided = torch.stack([obs, obs.flip(0)], dim=4)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(network(strided[::2]), network(obs[::2].clone()))
    weight, bias = torch.randn(16, 16, 3, 3, requires_grad=True), torch.zeros(16)
    images = torch.randn(3, 9, 9, 16)
    gradient = torch.randn(3, 16, 7, 7)
    gradients = []
    for given in (gradient.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1).contiguous()):
        output = frames.convolve(images, weight, bias, stride=1, dtype=torch.float32)
        gradients += torch.autograd.grad(output, weight, given)
    assert torch.equal(*gradients)


def test_gradients_are_given_once_and_where_they_are_wanted():
    images = torch.randn(2, 9, 9, 16, requires_grad=True)
    weight, bias = torch.randn(16, 16, 3, 3), torch.zeros(16)
    with torch.no_grad():
        output = frames.convolve(images, weight, bias, stride=1, dtype=torch.float32)
    assert not output.requires_grad
    output = frames.convolve(images, weight, bias, stride=1, dtype=torch.float32)
    (once,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
    assert weight.grad is None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


def test_the_result_does_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("25%", 6))
    obs = torch.randint(0, 256, (21, 4, 84, 84), dtype=torch.uint8)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3, 8, 1):
        torch.set_num_threads(count)
        convolutions = [layer for layer in network.trunk if isinstance(layer, torch.nn.Conv2d)]
        x, statistics = obs, (network.obs_mean, network.obs_scale, 5.0)
        for layer in convolutions:
            x = frames.convolve(
                x,
                layer.weight,
                layer.bias,
                stride=layer.stride[0],
                relu=True,
                statistics=statistics,
                dtype=torch.float32,
            )
            statistics = None
        network.zero_grad()
        x.backward(torch.linspace(-1, 1, x.numel()).reshape(x.shape))
        results.append([x.detach(), *(p.grad for m in convolutions for p in m.parameters())])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_nan():
    weight = torch.full((16, 16, 2, 2), float("nan"), requires_grad=True)
    images = torch.ones(1, 4, 4, 16, requires_grad=True)
    output = frames.convolve(
        images, weight, torch.zeros(16), stride=1, relu=True, dtype=torch.float32
    )
    assert output.isnan().all()
    output.sum().backward()
    assert images.grad.isnan().all()
    assert (weight.grad == 9).all()  # as torch: NaN is not below 0


@pytest.mark.parametrize("size", ["100%", "25%", "7%", "4%"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_network_is_as_near_to_float64_as_torch(size, layer_norm, batch):
    torch.manual_seed(1)
    network = QNetwork(paper_architecture(size, 6, layer_norm=layer_norm))
    network.set_obs_statistics(100 * torch.rand(84, 84), 5 + 40 * torch.rand(84, 84))
    assert network.uses_frames
    plain = copy.deepcopy(network)
    plain.uses_frames = False
    exact = copy.deepcopy(plain).double()
    obs = torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)
    wanted = torch.randn(batch, 6)
    errors = []
    for model in (network, plain, exact):
        values = exact.heads[0](exact.features(obs.double())) if model is exact else model(obs)
        with torch.inference_mode():
            assert model is exact or torch.equal(model(obs), values)
        (values - wanted).square().mean().backward()
        errors.append([values.detach().double(), *(p.grad.double() for p in model.parameters())])
    for ours, theirs, truth in zip(*errors, strict=True):
        error, usual = (ours - truth).norm(), (theirs - truth).norm()
        assert error <= 1.5 * usual + 1e-6 * truth.norm()


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_every_instruction_set(isa):
    """This file in a process of its own: the instruction set is chosen once in each."""
    if isa == _core.cpu_isa():
        pytest.skip("the other tests of this file run with it")
    environment = {**os.environ, "FASTDISTILL_CPU": isa}
    ask = [sys.executable, "-c", "from fastdistill import _core; _core.cpu_isa()"]
    asked = subprocess.run(ask, env=environment, capture_output=True)
    if asked.returncode != 0:
        pytest.skip(f"this CPU does not run {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "not instruction_set", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
