# SPDX-License-Identifier: MIT
"""Teachers that Stable-Baselines3 saved: DQN, QR-DQN, PPO and A2C, without that library.

The archive's ``data`` member is JSON whose values are plain or pickled; a pickled value has its
type and the text of its attributes beside it. Only the plain part is read. Weights come from
``policy.pth``. What neither says is refused rather than guessed.

Source: Stable-Baselines3 2.9 and sb3-contrib 2.9 as documented and as they behave (``model.save``,
``MlpPolicy``, ``CnnPolicy``); files of 1.x have the same layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill.teachers.archives import Source, checked_tensors, read_members, read_tensors
from fastdistill.teachers.foreign import (
    MeanOfQuantiles,
    Observations,
    check_actions,
    finished,
    layer_indices,
    linear,
    linear_layers,
    nature_convolutions,
)

# Member -> the most bytes it may have, unpacked.
LIMITS = {
    "data": 16 << 20,
    "policy.pth": 256 << 20,
    "_stable_baselines3_version": 256,
}

# Module of the policy's class -> algorithm. PPO and A2C share their policies.
_POLICY_MODULES = {
    "stable_baselines3.common.policies": "actor-critic",
    "stable_baselines3.dqn.policies": "DQN",
    "sb3_contrib.qrdqn.policies": "QR-DQN",
}
_REFUSED_MODULES = {
    "sb3_contrib.common.recurrent.policies": "is recurrent: it needs more than one observation",
    "sb3_contrib.common.maskable.policies": "needs an action mask beside each observation",
}
_POLICIES = {
    "ActorCriticPolicy": "MlpPolicy",
    "ActorCriticCnnPolicy": "CnnPolicy",
    "DQNPolicy": "MlpPolicy",
    "QRDQNPolicy": "MlpPolicy",
    "CnnPolicy": "CnnPolicy",
}
# Without parameters, and the same with the defaults that SB3 makes them with.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    f"<class 'torch.nn.modules.activation.{activation.__name__}'>": activation
    for activation in (
        *(nn.Tanh, nn.ReLU, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.ReLU6),
    )
}
_EXTRACTORS = {"NatureCNN": True, "FlattenExtractor": False}
# Do not change what the network computes, or are read below.
_KNOWN_KWARGS = {
    *("net_arch", "activation_fn", "features_extractor_class", "features_extractor_kwargs"),
    *("share_features_extractor", "normalize_images", "n_quantiles", "ortho_init"),
    *("optimizer_class", "optimizer_kwargs", "log_std_init", "full_std", "use_expln"),
    *("squash_output", "use_sde", ":type:", ":serialized:"),
}
_ASK_YOURSELF = (
    "load it with Stable-Baselines3 and pass a module that maps observations to values or logits"
)


@dataclass(frozen=True)
class _Space:
    """Observations, as far as the network's first layer cares."""

    shape: tuple[int, ...]
    is_image: bool
    one_hot: bool


def load_sb3(
    path: str | Path, *, vec_normalize: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The policy in a zip archive that ``model.save`` wrote, as a plain module.

    DQN, QR-DQN (the mean over quantiles), PPO and A2C with MlpPolicy or CnnPolicy. Neither
    Stable-Baselines3 nor any pickled object is loaded.

    Args:
        path: Of the archive.
        vec_normalize: For a model that was trained under ``VecNormalize``, whose statistics are
            not in the archive (nor, for DQN and QR-DQN, whether there were any: see
            ``verify_teacher``): ``{"mean": env.obs_rms.mean, "var": env.obs_rms.var}`` and, where
            they differ from that class's defaults, ``"epsilon"`` and ``"clip_obs"``. ``{}`` where
            it normalised rewards alone.

    Returns:
        A module in evaluation mode, ``[batch, *obs_shape]`` observations (uint8 images with planes
        first; vectors of any dtype; one-hot vectors where the model was trained on Discrete
        observations) to ``[batch, num_actions]`` float32, Q-values or logits. And its card:
        ``kind`` ("q_values" or "logits"), ``obs_shape``, ``num_actions``, ``algorithm``,
        ``policy_class``, ``sb3_version``, ``source``.

    Raises:
        ValueError: Not such an archive, damaged, hostile, or a model that cannot be known from
            it (custom policies and extractors, MultiInputPolicy, continuous actions, recurrent
            policies, VecNormalize without ``vec_normalize``); the text says what to do.
    """
    source = Source("load_sb3", Path(path))
    with source.open() as file:
        members = read_members(source, file, LIMITS)
    for name in ("data", "policy.pth"):
        if name not in members:
            raise source.refuse(
                "be an archive that model.save of Stable-Baselines3 wrote", f"no member {name!r}"
            )
    data = _read_json(source, members["data"])
    algorithm, policy_class = _policy(source, data)
    kwargs = _policy_kwargs(source, data)
    space = _observation_space(source, data)
    num_actions = _num_actions(source, data)
    if algorithm in ("PPO", "A2C") and vec_normalize is None:
        _check_vec_normalize(source, data)
    everything = read_tensors(source, members["policy.pth"], "policy.pth")
    tensors = _acting_tensors(source, everything, algorithm)
    checked_tensors(source, tensors, len(members["policy.pth"]))

    scales = space.is_image and kwargs.get("normalize_images", True) is not False
    layers: list[nn.Module] = [
        Observations(
            space.shape,
            divisor=255.0 if scales else 1.0,
            statistics=_statistics(source, vec_normalize, space),
        )
    ]
    layers += _network(source, tensors, algorithm, kwargs, space, num_actions, policy_class)
    version = members.get("_stable_baselines3_version", b"").decode("ascii", "replace").strip()
    return finished(layers), {
        "kind": "logits" if algorithm in ("PPO", "A2C") else "q_values",
        "obs_shape": list(space.shape),
        "obs_dtype": "uint8" if len(space.shape) == 3 else "float32",
        "observations": "one-hot" if space.one_hot else "as they are",
        "num_actions": num_actions,
        "algorithm": algorithm,
        "policy_class": policy_class,
        "sb3_version": version,
        "source": f"sb3:{path}",
    }


def _network(
    source: Source,
    tensors: Mapping[str, Tensor],
    algorithm: str,
    kwargs: Mapping[str, Any],
    space: _Space,
    num_actions: int,
    policy_class: str,
) -> list[nn.Module]:
    """Features, hidden layers, outputs; sizes from the weights, compared with what is said."""
    is_actor = algorithm in ("PPO", "A2C")
    activation = _activation(source, kwargs, nn.Tanh if is_actor else nn.ReLU)
    layers: list[nn.Module]
    if _is_nature(source, kwargs, policy_class):
        if len(space.shape) != 3:
            raise source.refuse("see images, as its NatureCNN needs", f"shape {list(space.shape)}")
        layers, size = nature_convolutions(source, tensors, "features.cnn", space.shape)
        last = linear(source, tensors, "features.linear.0", size)
        layers, size = [*layers, last, nn.ReLU()], last.out_features
    else:
        layers, size = [nn.Flatten()], int(torch.Size(space.shape).numel())
        if any(name.startswith("features.") for name in tensors):
            raise source.cannot("has a features extractor of its own", _ASK_YOURSELF)
    hidden, size = linear_layers(source, tensors, "net", size, activation, ends_active=is_actor)
    sizes = [layer.out_features for layer in hidden if isinstance(layer, nn.Linear)]
    if is_actor:
        hidden.append(linear(source, tensors, "action_net", size))
        outputs = int(hidden[-1].out_features)  # type: ignore[arg-type]
    else:
        outputs = sizes.pop() if sizes else 0
    _check_net_arch(source, kwargs.get("net_arch"), sizes)
    heads = 1
    if algorithm == "QR-DQN":
        heads = outputs // num_actions
        hidden.append(MeanOfQuantiles(heads))
    if outputs != heads * num_actions or not outputs:
        raise source.refuse(f"have outputs for its {num_actions} actions", outputs)
    return [*layers, *hidden]


def _acting_tensors(source: Source, tensors: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """The tensors that choose actions, under ``features.``, ``net.`` and ``action_net.``.

    A PPO file holds its extractor under three names, and the value function beside the policy.
    """
    if algorithm in ("PPO", "A2C"):
        if layer_indices(tensors, "mlp_extractor.shared_net"):
            raise source.cannot(
                "shares layers of its mlp_extractor (Stable-Baselines3 before 1.8)", _ASK_YOURSELF
            )
        separate = any(name.startswith("pi_features_extractor.") for name in tensors)
        renamed = {
            "pi_features_extractor." if separate else "features_extractor.": "features.",
            "mlp_extractor.policy_net.": "net.",
            "action_net.": "action_net.",
        }
    else:
        name = "q_net" if algorithm == "DQN" else "quantile_net"
        renamed = {f"{name}.features_extractor.": "features.", f"{name}.{name}.": "net."}
    return {
        new + name.removeprefix(old): tensor
        for name, tensor in tensors.items()
        for old, new in renamed.items()
        if name.startswith(old)
    }


def _read_json(source: Source, payload: bytes) -> dict[str, Any]:
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise source.refuse("hold readable JSON in 'data'", error) from error
    if not isinstance(data, dict):
        raise source.refuse("hold a JSON object in 'data'", type(data).__name__)
    return data


def _described(source: Source, data: Mapping[str, Any], name: str) -> dict[str, Any]:
    entry = data.get(name)
    if not isinstance(entry, dict):
        raise source.refuse(f"describe its {name} in 'data'", type(entry).__name__)
    return entry


def _policy(source: Source, data: Mapping[str, Any]) -> tuple[str, str]:
    """Algorithm and MlpPolicy or CnnPolicy; anything else is refused."""
    entry = _described(source, data, "policy_class")
    module = str(entry.get("__module__"))
    found = re.match(r"<function (\w+)\.__init__ at", str(entry.get("__init__")))
    name = found[1] if found else "?"
    if module in _REFUSED_MODULES:
        raise source.cannot(f"{_REFUSED_MODULES[module]} ({module})", "it is not served")
    if "MultiInput" in name:
        raise source.cannot("has a MultiInputPolicy (Dict observations)", _ASK_YOURSELF)
    if module not in _POLICY_MODULES or name not in _POLICIES:
        raise source.cannot(f"has a policy of its own ({module}, {name})", _ASK_YOURSELF)
    algorithm = _POLICY_MODULES[module]
    if algorithm == "actor-critic":
        if "cg_max_steps" in data or "gae_lambda" not in data:
            raise source.cannot("is neither PPO nor A2C, nor DQN or QR-DQN", _ASK_YOURSELF)
        algorithm = "PPO" if "clip_range" in data else "A2C"
    return algorithm, _POLICIES[name]


def _policy_kwargs(source: Source, data: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = _described(source, data, "policy_kwargs")
    unknown = sorted(set(kwargs) - _KNOWN_KWARGS)
    if unknown:
        raise source.cannot(f"has policy_kwargs that are not known: {unknown}", _ASK_YOURSELF)
    return kwargs


def _activation(
    source: Source, kwargs: Mapping[str, Any], default: type[nn.Module]
) -> type[nn.Module]:
    name = kwargs.get("activation_fn")
    if name is None:
        return default
    if name not in _ACTIVATIONS:
        raise source.cannot(f"has an activation_fn of its own ({name})", _ASK_YOURSELF)
    return _ACTIVATIONS[name]


def _is_nature(source: Source, kwargs: Mapping[str, Any], policy_class: str) -> bool:
    """Whether features are the Nature network's; else observations are flattened."""
    entry = kwargs.get("features_extractor_class")
    if entry is None:
        return policy_class == "CnnPolicy"
    found = re.fullmatch(r"<class 'stable_baselines3\.common\.torch_layers\.(\w+)'>", str(entry))
    if found is None or found[1] not in _EXTRACTORS:
        raise source.cannot(f"has a features extractor of its own ({entry})", _ASK_YOURSELF)
    return _EXTRACTORS[found[1]]


def _check_net_arch(source: Source, net_arch: Any, sizes: list[int]) -> None:
    """Where the archive says the hidden sizes, the weights must have them."""
    if isinstance(net_arch, list) and net_arch and isinstance(net_arch[-1], dict):
        net_arch = net_arch[-1]  # before 1.8
    if isinstance(net_arch, dict):
        net_arch = net_arch.get("pi", [])
    if isinstance(net_arch, list) and net_arch != sizes:
        raise source.refuse(f"have the hidden layers of its net_arch {net_arch}", sizes)


def _observation_space(source: Source, data: Mapping[str, Any]) -> _Space:
    entry = _described(source, data, "observation_space")
    kind = str(entry.get(":type:")).rstrip("'>").rpartition(".")[2]
    if kind == "Discrete":
        return _Space((_integer(source, entry.get("n"), "observation_space.n"),), False, True)
    if kind != "Box":
        raise source.cannot(f"has {kind} observations", _ASK_YOURSELF)
    sizes = entry.get("_shape", entry.get("shape"))
    shape = tuple(sizes) if isinstance(sizes, list) else ()
    if len(shape) not in (1, 3) or not all(type(n) is int and 0 < n < 1 << 20 for n in shape):
        raise source.cannot(f"has observations of shape {sizes}", _ASK_YOURSELF)
    if len(shape) == 3 and entry.get("dtype") != "uint8":
        raise source.cannot(
            f"sees images of {entry.get('dtype')}, and fastdistill's environments give uint8",
            _ASK_YOURSELF,
        )
    # SB3 scales images of 0..255 alone. Where numpy shortened the text of the bounds, what it
    # left shows them as well.
    bounds = [set(re.findall(r"\d+", str(entry.get(side)))) for side in ("low", "high")]
    return _Space(shape, len(shape) == 3 and bounds == [{"0"}, {"255"}], False)


def _num_actions(source: Source, data: Mapping[str, Any]) -> int:
    entry = _described(source, data, "action_space")
    kind = str(entry.get(":type:")).rstrip("'>").rpartition(".")[2]
    if kind != "Discrete":
        raise source.cannot(
            f"has {kind} actions", "only Discrete ones can be distilled; continuous ones cannot"
        )
    if _integer(source, entry.get("start", 0), "action_space.start") != 0:
        raise source.refuse("count its actions from 0", entry.get("start"))
    num_actions = _integer(source, entry.get("n"), "action_space.n")
    check_actions(source, num_actions)
    return num_actions


def _integer(source: Source, value: Any, name: str) -> int:
    # numpy's integers are written as text.
    if not re.fullmatch(r"\d{1,9}", str(value)):
        raise source.refuse(f"say {name} as an integer", repr(value))
    return int(value)


def _check_vec_normalize(source: Source, data: Mapping[str, Any]) -> None:
    # PPO and A2C keep an observation from before normalisation under VecNormalize alone. DQN
    # keeps one always, so there the file does not tell.
    if data.get("_last_original_obs") is not None:
        raise source.cannot(
            "was trained under VecNormalize, whose statistics are in a file of their own",
            "load that with VecNormalize.load and pass vec_normalize={'mean': env.obs_rms.mean, "
            "'var': env.obs_rms.var}, or {} where it normalised rewards alone",
        )


def _statistics(
    source: Source, vec_normalize: Mapping[str, Any] | None, space: _Space
) -> tuple[Tensor, Tensor, float] | None:
    if not vec_normalize:
        return None
    if not {"mean", "var"} <= set(vec_normalize) <= {"mean", "var", "epsilon", "clip_obs"}:
        raise ValueError(
            f"{source.function}: vec_normalize must have 'mean' and 'var', and may have 'epsilon' "
            f"and 'clip_obs', got {sorted(vec_normalize)}"
        )
    # SB3 scales in float64; its observations are float32 only afterwards.
    mean, var = (torch.as_tensor(vec_normalize[key]).double() for key in ("mean", "var"))
    for name, value in (("mean", mean), ("var", var)):
        if tuple(value.shape) != space.shape or not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{source.function}: vec_normalize[{name!r}] must be finite with shape "
                f"{list(space.shape)}, got shape {list(value.shape)}"
            )
    std = (var + float(vec_normalize.get("epsilon", 1e-8))).sqrt()
    return mean.float(), std.float(), float(vec_normalize.get("clip_obs", 10.0))
