# SPDX-License-Identifier: MIT
"""A network as one file that runs without this package: ONNX, or torch's pt2.

What belongs to the network (observation statistics, uint8 input) is inside the graph, what
belongs to the game is in the metadata. A file gets its name only after it was compared with the
network on frames that the network played. The only module that imports onnx, onnxscript and
onnxruntime.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdistill._files import replacing
from fastdistill.envs import engine_options, make_env
from fastdistill.envs.lanes import LaneEnv
from fastdistill.evaluation.cost import describe_machine
from fastdistill.evaluation.play import EpsilonGreedy
from fastdistill.networks.checkpoint import load_network
from fastdistill.networks.games import game_card
from fastdistill.networks.qnetwork import QNetwork, num_parameters
from fastdistill.teachers import checkpoint_path, recorded_game

FORMATS = ("onnx", "pt2")
# Largest difference in units of the largest value, or of 1: float32 added in another order.
MAX_DIFFERENCE = 1e-4
# Of frames: the best two actions may be closer than the rounding.
MIN_EQUAL_ACTIONS = 0.999

_EPSILON = 0.05  # of the play that gives the frames
_LANES = 4
_CHUNK = 128
_METADATA = "metadata.json"  # of a pt2 file

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportRecord:
    """What was written, and how it compares with the network.

    Attributes:
        path: Of the file.
        format: "onnx" or "pt2".
        size_bytes: Of the file.
        frames: Observations that both were asked about.
        max_difference: Largest difference of any value.
        equal_actions: Of ``frames``, how often both choose the same action.
        latency_seconds: Median of one observation, as ``{"torch": ..., "onnxruntime": ...}`` (or
            ``"pt2"``), on one thread.
        metadata: What the file says of itself.
        machine: That ``latency_seconds`` was measured on.
    """

    path: Path
    format: str
    size_bytes: int
    frames: int
    max_difference: float
    equal_actions: int
    latency_seconds: dict[str, float]
    metadata: dict[str, Any]
    machine: dict[str, str | int]

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {**asdict(self), "path": str(self.path)}


def export(
    network: nn.Module | str | Path,
    path: str | Path,
    format: str = "onnx",
    *,
    game: str | None = None,
    card: dict[str, Any] | None = None,
    head: int = 0,
    frames: int = 1000,
    preset: str | None = None,
    observations: Tensor | None = None,
    seed: int = 1,
) -> ExportRecord:
    """Write a network for other programs, checked against the network itself.

    The file has one input, ``obs``: ``[batch, *obs_shape]`` of any batch, uint8 images as the
    environment gives them or float32 vectors; and one output, ``values``: ``[batch, actions]``
    float32. See docs/export.md for its metadata.

    Args:
        network: A checkpoint (path, or ``"zoo:NAME"``), or any module that maps observations to
            values or logits. A copy is exported; the module stays as it is.
        path: Of the file. Directories are made; it replaces a file of that name only after all
            checks.
        format: "onnx" (opened by onnxruntime and others) or "pt2" (by ``torch.export.load``).
        game: Game or gymnasium id that the frames are played in; the checkpoint's own by default.
            Of a network of several games, the one that is exported.
        card: Of a module: what to say in the metadata (``kind``, ``name``), as in a checkpoint.
        head: Which game's head of a network with several.
        frames: Observations to compare on, at least 1.
        preset: Of ``fastdistill.envs.PRESETS``; the checkpoint's own by default, else "classic".
        observations: Compare on these, ``[n, *obs_shape]``, instead of playing.
        seed: Of the play.

    Raises:
        ValueError: Unknown format, no game, observations that do not fit; or a file that differs
            from the network, which is not kept.
        ImportError: ONNX without its libraries, with the command that installs them.
    """
    if format not in FORMATS:
        raise ValueError(f"export: format must be one of {list(FORMATS)}, got {format!r}")
    if frames < 1:
        raise ValueError(f"export: frames must be at least 1, got {frames}")
    if format == "onnx":
        _require_onnx()
    if not isinstance(network, nn.Module):
        network, card = load_network(checkpoint_path(network))
    card = card or {}
    if isinstance(network, QNetwork) and network.games and (game or not head):
        game = _one_of(network.games, game)
        network, card = network.for_task(game), game_card(card, game) if "games" in card else card
        head = 0
    module = _Exported(network, head).cpu().eval()
    game = game or recorded_game(card)
    preset = preset or (card.get("environment") or {}).get("preset") or "classic"
    metadata: dict[str, Any] = {
        "format": "fastdistill-export-1",
        **{key: card[key] for key in ("name", "kind", "license") if key in card},
        "parameters": num_parameters(module),
    }
    if game is not None:
        env = make_env(game, _LANES, preset=preset, training=False, view=card.get("view"))
        try:
            metadata |= _describe_game(env)
            if observations is None:
                observations = _played(module, env, frames, seed)
        finally:
            env.close()
    if observations is None:
        raise ValueError(
            "export: game must be given where there is no checkpoint that names one (or "
            "observations to compare on), got None"
        )
    _check_observations(observations)
    metadata["obs_shape"] = list(observations.shape[1:])
    metadata["obs_dtype"] = str(observations.dtype).removeprefix("torch.")
    return _write(module, observations, Path(path), format, metadata)


def _one_of(games: tuple[str, ...], game: str | None) -> str:
    if game not in games:
        raise ValueError(
            f"export: game must be one of the network's, {', '.join(games)}, got {game!r}"
        )
    return game


class _Exported(nn.Module):
    """Observations to float32 values of one head."""

    def __init__(self, network: nn.Module, head: int) -> None:
        super().__init__()
        if isinstance(network, QNetwork):
            heads = len(network.heads)
            if not 0 <= head < heads:
                raise ValueError(f"export: head must be in [0, {heads}), got {head}")
        elif head:
            raise ValueError(f"export: head must be 0 for a module, got {head}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.arguments = (head,) if isinstance(network, QNetwork) else ()

    def forward(self, obs: Tensor) -> Tensor:
        values: Tensor = self.network(obs, *self.arguments)
        return values.float()


def _describe_game(env: LaneEnv) -> dict[str, Any]:
    engine = engine_options(env.spec)
    return {
        "game": env.spec.name,
        "action_meanings": list(env.spec.action_meanings),
        "planes": "oldest first" if env.spec.stack > 1 else "as the environment gives them",
        "preprocessing": {"engine": "ale_py.AtariVectorEnv", "options": engine} if engine else {},
    }


def _played(module: nn.Module, env: LaneEnv, frames: int, seed: int) -> Tensor:
    """Observations of the network's own play, a little random so that games differ."""
    zeros = torch.zeros((1, *env.spec.obs_shape), dtype=env.spec.obs_dtype)
    try:
        values = module(zeros)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"export: network must see observations of {env.spec.name}, "
            f"{list(env.spec.obs_shape)}, got {type(error).__name__}: {error}"
        ) from error
    if values.shape != (1, env.spec.num_actions):
        raise ValueError(
            f"export: network must return [batch, {env.spec.num_actions}] values for "
            f"{env.spec.name}, got {list(values.shape)}"
        )
    act = EpsilonGreedy(module, _EPSILON, env.spec.num_actions, seed, "cpu")
    seen = [env.reset((seed, 1))]
    while len(seen) * env.num_lanes < frames:
        env.step(act(env.obs))
        seen.append(env.obs)
    return torch.as_tensor(np.concatenate(seen)[:frames])


def _check_observations(observations: Tensor) -> None:
    images = observations.dim() == 4 and observations.dtype == torch.uint8
    vectors = observations.dim() == 2 and observations.dtype == torch.float32
    if not (images or vectors) or not len(observations):
        raise ValueError(
            "export: observations must be uint8 [n, planes, height, width] or float32 "
            f"[n, features], got {observations.dtype} {list(observations.shape)}"
        )


def _write(
    module: nn.Module, observations: Tensor, path: Path, format: str, metadata: dict[str, Any]
) -> ExportRecord:
    write, open_file = {"onnx": (_write_onnx, _open_onnx), "pt2": (_write_pt2, _open_pt2)}[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # Before the other engine is there: its threads would wait for work on the same cores.
        latency = {"torch": _latency(module, observations)}
        with _quiet_exporter():
            write(
                module,
                torch.zeros_like(observations[:1]).repeat_interleave(2, 0),
                temporary,
                metadata,
            )
        run = open_file(temporary)
        difference, equal = _compare(module, run, observations)
        latency["onnxruntime" if format == "onnx" else format] = _latency(run, observations)
        del run  # its file is about to be renamed
        size_bytes = temporary.stat().st_size
    return ExportRecord(
        path=path,
        format=format,
        size_bytes=size_bytes,
        frames=len(observations),
        max_difference=difference,
        equal_actions=equal,
        latency_seconds=latency,
        metadata=metadata,
        machine={**describe_machine(), "threads": 1},
    )


@torch.inference_mode()
def _compare(module: nn.Module, run: Runner, observations: Tensor) -> tuple[float, int]:
    """Largest difference and number of equal actions; a file that differs is refused."""
    # One alone first: a graph that had fixed its batch would fail here or in the last chunk.
    chunks = [observations[:1], *torch.split(observations[1:], _CHUNK)]
    expected = torch.cat([module(chunk) for chunk in chunks])
    found = torch.cat([run(chunk) for chunk in chunks])
    if found.shape != expected.shape or not bool(torch.isfinite(expected).all()):
        raise ValueError(
            f"export: network must return finite values of shape {list(found.shape)}, "
            f"got {list(expected.shape)} with {int((~torch.isfinite(expected)).sum())} not finite"
        )
    difference = float((found - expected).abs().max())
    equal = int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
    bound = MAX_DIFFERENCE * max(1.0, float(expected.abs().max()))
    # Not `difference > bound`: NaN must not pass.
    if not difference <= bound or equal < MIN_EQUAL_ACTIONS * len(observations):
        raise ValueError(
            f"export: the file must differ from the network by at most {bound:.2g}, got "
            f"{difference:.2g} and {equal} equal actions of {len(observations)}; it is not kept"
        )
    return difference, equal


@torch.inference_mode()
def _latency(run: Runner | nn.Module, observations: Tensor, repeats: int = 50) -> float:
    """Median time of one observation on one thread."""
    obs = observations[:1].clone()
    threads = torch.get_num_threads()
    times = []
    torch.set_num_threads(1)
    try:
        for _ in range(repeats + 5):
            begun = time.perf_counter()
            run(obs)
            times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[5:])


def _write_onnx(module: nn.Module, sample: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    program = torch.onnx.export(
        module,
        (sample,),
        dynamo=True,
        input_names=["obs"],
        output_names=["values"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("export: torch.onnx.export must return a program, got None")
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        program.model.metadata_props[key] = text
    program.save(str(path))
    _import("onnx").checker.check_model(str(path))


def _open_onnx(path: Path) -> Runner:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # as _latency measures torch
    session = runtime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return lambda obs: torch.from_numpy(session.run(["values"], {"obs": obs.numpy()})[0])


def _write_pt2(module: nn.Module, sample: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    with torch.no_grad():
        program = torch.export.export(
            module, (sample,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_METADATA: json.dumps(metadata)})


def _open_pt2(path: Path) -> Runner:
    with path.open("rb") as file:
        return torch.export.load(file).module()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says of itself: deprecations, and torchvision missing."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logger.setLevel(level)


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _import(name)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"fastdistill.export needs {module}: pip install 'onnx>=1.17' 'onnxscript>=0.5' "
            "'onnxruntime>=1.20' (or format='pt2', which needs none)"
        ) from error
