# SPDX-License-Identifier: MIT
"""The paper's networks: parameter counts, input handling, initialisation, float32 heads."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from fastdistill.networks import (
    Architecture,
    QNetwork,
    multitask_architecture,
    num_parameters,
    paper_architecture,
)


@pytest.mark.parametrize(
    ("size", "count"), [("100%", 1_693_362), ("25%", 427_874), ("7%", 113_346), ("4%", 61_954)]
)
def test_parameter_counts_are_the_papers(size, count):
    assert num_parameters(QNetwork(paper_architecture(size, 18))) == count


def test_multitask_parameter_counts_are_the_papers():
    # Three games with 12 actions in total, ten games with 85.
    assert num_parameters(QNetwork(multitask_architecture([3, 3, 6]))) == 1_882_668
    ten = multitask_architecture([9, 4, 9, 3, 9, 3, 6, 18, 18, 6], wide=True)
    assert sum(ten.num_actions) == 85
    assert num_parameters(QNetwork(ten)) == 6_756_721


def test_forward_equals_the_formula_written_out():
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("7%", 6))
    mean, std = torch.rand(84, 84) * 100, torch.rand(84, 84) * 40
    network.set_obs_statistics(mean, std)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    weights = {name: value.double() for name, value in network.state_dict().items()}
    x = ((obs.double() - mean.double()) / (std.double() + 5.1)).clamp(-5, 5)
    for layer, stride in ((0, 4), (2, 2), (4, 1)):
        weight, bias = weights[f"trunk.{layer}.weight"], weights[f"trunk.{layer}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, stride=stride))
    x = F.relu(F.linear(x.flatten(1), weights["trunk.7.weight"], weights["trunk.7.bias"]))
    expected = F.linear(x, weights["heads.0.output.weight"], weights["heads.0.output.bias"])
    torch.testing.assert_close(network(obs).double(), expected, rtol=1e-4, atol=1e-5)


def test_uint8_input_is_scaled_to_one_until_statistics_are_set():
    network = QNetwork(paper_architecture("4%", 4))
    network.uses_frames = False  # which would not call the layers
    white = torch.full((1, 4, 84, 84), 255, dtype=torch.uint8)
    seen = []
    network.trunk[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network(white)
    torch.testing.assert_close(seen[0], torch.ones(1, 4, 84, 84))


def test_a_pixel_that_never_moved_is_clipped_when_it_does():
    network = QNetwork(paper_architecture("4%", 4))
    network.set_obs_statistics(torch.zeros(84, 84), torch.zeros(84, 84))
    network.uses_frames = False  # which would not call the layers
    seen = []
    network.trunk[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    network(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))
    assert seen[0].max() == 5


def test_statistics_travel_with_the_weights_and_are_no_parameters():
    first, second = (QNetwork(paper_architecture("4%", 4)) for _ in range(2))
    first.set_obs_statistics(torch.full((84, 84), 50.0), torch.full((84, 84), 10.0))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.obs_mean, torch.full((84, 84), 50.0))
    assert not any("obs" in name for name, _ in first.named_parameters())


@pytest.mark.parametrize("native", [False, True])
def test_heads_are_float32_under_autocast_while_hidden_layers_are_not(native):
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("25%", 6))
    network.uses_frames = network.uses_frames and native
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    dtypes = {}
    for name in ("trunk.7", "heads.0.output"):
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: dtypes.update({name: out.dtype})
        )
    with torch.autocast("cpu", torch.bfloat16):
        values = network(obs)
    assert dtypes == {"trunk.7": torch.bfloat16, "heads.0.output": torch.float32}
    assert values.dtype == torch.float32
    # Values a bfloat16 head could not have made: they need more than 8 bits of mantissa.
    assert (values != values.bfloat16().float()).any()


def test_dueling_head_separates_value_and_advantage():
    torch.manual_seed(0)
    network = QNetwork(paper_architecture("4%", 5, dueling=True))
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    head = network.heads[0]
    features = network.features(obs)
    value, advantage = head.value(features), head.output(features)
    torch.testing.assert_close(
        network(obs), value + advantage - advantage.mean(dim=1, keepdim=True)
    )
    torch.testing.assert_close(network(obs).mean(dim=1, keepdim=True), value)


def test_layer_norm_follows_every_hidden_layer():
    network = QNetwork(paper_architecture("4%", 4, layer_norm=True))
    kinds = [type(module).__name__ for module in network.trunk]
    assert kinds.count("GroupNorm") == 3
    assert kinds.count("LayerNorm") == 1


def test_weights_start_orthogonal_with_zero_biases():
    network = QNetwork(paper_architecture("100%", 6))
    weight = network.trunk[7].weight.detach()
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(512), atol=1e-4, rtol=0)
    outputs = network.heads[0].output
    torch.testing.assert_close(
        outputs.weight @ outputs.weight.T, 0.01 * torch.eye(6), atol=1e-5, rtol=0
    )
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_a_head_reads_the_shared_trunk_and_leaves_the_others_alone():
    network = QNetwork(multitask_architecture([3, 6]))
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert network(obs, head=0).shape == (2, 3)
    network(obs, head=1).sum().backward()
    assert all(p.grad is None for p in network.heads[0].parameters())
    assert network.trunk[0].weight.grad.abs().sum() > 0


def test_vector_observations_get_an_mlp():
    network = QNetwork(Architecture((4,), (2,), hidden=(64, 64)))
    assert num_parameters(network) == 4 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2
    assert network(torch.randn(5, 4)).shape == (5, 2)


def test_architecture_survives_json():
    architecture = multitask_architecture([3, 6, 18], wide=True)
    text = json.dumps(architecture.to_json())
    assert Architecture.from_json(json.loads(text)) == architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs_shape": (84, 84)}, "obs_shape must be"),
        ({"num_actions": ()}, "num_actions must name at least one action per head"),
        ({"hidden": ()}, "hidden must be positive sizes"),
        ({"channels": (16, 16)}, "channels must be three positive sizes"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    fields = {"obs_shape": (4, 84, 84), "num_actions": (6,), **change}
    with pytest.raises(ValueError, match=message):
        Architecture(**fields)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="size must be one of"):
        paper_architecture("50%", 6)
    with pytest.raises(
        ValueError,
        match=r"^convolutions: obs_shape must be at least 7 x 7 pixels, got \(3, 20, 6\)$",
    ):
        QNetwork(Architecture((3, 20, 6), (4,)))
    with pytest.raises(ValueError, match=r"from_json: .*colour"):
        Architecture.from_json({"obs_shape": [4], "num_actions": [2], "colour": 1})
    network = QNetwork(paper_architecture("4%", 4))
    with pytest.raises(ValueError, match=r"mean must be finite with shape \[84, 84\]"):
        network.set_obs_statistics(torch.zeros(3), torch.zeros(84, 84))
    with pytest.raises(ValueError, match="std must be finite"):
        network.set_obs_statistics(torch.zeros(84, 84), torch.full((84, 84), float("nan")))


@pytest.mark.parametrize("side", [7, 10, 13, 14, 19, 23, 24, 35, 36, 84])
def test_images_of_every_size_leave_something_to_be_read(side):
    """The count by hand, and nowhere more features than the paper's network has for 84 x 84."""
    extent = side
    strides = (1, 1, 1) if side < 14 else (2, 1, 1) if side < 24 else (2, 2, 1)
    kernels = (3, 3, 3) if side < 36 else (8, 4, 3)
    for kernel, stride in zip(kernels, strides if side < 36 else (4, 2, 1), strict=True):
        extent = len(range(0, extent - kernel + 1, stride))
    assert 1 <= extent <= 7
    filters, planes, actions = (16, 16, 16), 5, 4
    network = QNetwork(paper_architecture("7%", actions, obs_shape=(planes, side, side)))
    inputs = (planes, *filters)
    expected = sum(
        inputs[i] * filters[i] * kernels[i] ** 2 + filters[i] for i in range(3)
    ) + (filters[2] * extent**2 + 1) * 128 + 129 * actions  # fmt: skip
    assert num_parameters(network) == expected
    obs = torch.randint(0, 256, (2, planes, side, side), dtype=torch.uint8)
    assert network(obs).shape == (2, actions)


@pytest.mark.parametrize(("size", "share"), [("25%", 25), ("7%", 7), ("4%", 4)])
def test_sizes_are_shares_for_small_images_too(size, share):
    whole, part = (
        num_parameters(QNetwork(paper_architecture(name, 6, obs_shape=(4, 10, 10))))
        for name in ("100%", size)
    )
    assert 100 * part / whole == pytest.approx(share, abs=1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("obs_shape", [(4, 84, 84), (7,)])
def test_a_seeded_network_draws_from_a_generator_of_its_own(obs_shape, dueling, layer_norm):
    architecture = paper_architecture(
        "4%", 5, obs_shape=obs_shape, dueling=dueling, layer_norm=layer_norm
    )
    state = torch.get_rng_state()
    first = QNetwork.seeded(architecture, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second, other = QNetwork.seeded(architecture, 3), QNetwork.seeded(architecture, 4)
    for (name, a), b, c in zip(
        first.state_dict().items(),
        second.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b), name
        is_drawn = a.ndim > 1 and "obs_" not in name
        assert torch.equal(a, c) != is_drawn, name
    # All that is not drawn is as the ordinary constructor leaves it.
    plain = QNetwork(architecture).state_dict()
    for name, tensor in first.state_dict().items():
        if tensor.ndim == 1 or "obs_" in name:
            assert torch.equal(tensor, plain[name]), name
    # Orthogonal with the gain that is wanted.
    weight = first.heads[0].output.weight
    gram = weight @ weight.T
    torch.testing.assert_close(gram, 0.01 * torch.eye(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("uses_frames", [False, True])
def test_a_batch_of_several_games_is_each_games_own_network(bfloat16, uses_frames):
    """Each game's rows are standardised by its own statistics, under either convolution."""
    network = QNetwork.seeded(paper_architecture("multi", [3, 6, 4]), 1)
    network.uses_frames = network.uses_frames and uses_frames
    for head in range(3):
        mean = torch.full((84, 84), 40.0 * head)
        network.set_obs_statistics(mean, torch.full((84, 84), 10.0 + head), head)
    obs = torch.randint(0, 256, (9, 4, 84, 84), dtype=torch.uint8)
    counts = [4, 0, 5]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = network.forward_games(obs, counts)
        parts = torch.split(obs, counts)
        for head, (values, part) in enumerate(zip(outputs, parts, strict=True)):
            assert values.shape == (counts[head], (3, 6, 4)[head])
            alone = network.for_task(head)
            alone.uses_frames = network.uses_frames
            if len(part):
                expected = alone(part)
                torch.testing.assert_close(values, expected, rtol=1e-3, atol=2e-3)
                torch.testing.assert_close(network(part, head), expected, rtol=1e-3, atol=2e-3)
                other = network.for_task((head + 1) % 3)(part)
                assert other.shape[1] != values.shape[1]
    sum(values.sum() for values in outputs).backward()
    assert (
        network.heads[1].output.weight.grad is None or not network.heads[1].output.weight.grad.any()
    )


def test_the_network_of_one_game_follows_the_whole():
    network = QNetwork.seeded(paper_architecture("multi", [3, 6]), 1)
    network.games = ("pong", "qbert")
    alone = network.for_task("qbert")
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    before = alone(obs)
    with torch.no_grad():
        network.trunk[0].weight.mul_(1.5)
    network.set_obs_statistics(torch.full((84, 84), 9.0), torch.ones(84, 84), head=1)
    assert not torch.equal(alone(obs), before)
    assert torch.equal(alone(obs), network(obs, 1))
    assert num_parameters(alone) < num_parameters(network)
