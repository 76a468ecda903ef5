# SPDX-License-Identifier: MIT
"""Teachers: a checkpoint or any torch module, checked against the environment before use.

A teacher that sees other observations or counts its actions otherwise than the environment plays
badly without an error; here each mismatch is refused in words. Labels are always float32.
"""

from __future__ import annotations

import contextlib
import re
from contextlib import ExitStack, closing
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill.envs import (
    BROUGHT,
    FUNCTION,
    EnvSource,
    EnvSpec,
    LaneEnv,
    Policy,
    ViewSource,
    make_env,
    usable_device,
    view_name,
)
from fastdistill.networks.cards import KINDS
from fastdistill.networks.checkpoint import load_network
from fastdistill.networks.games import game_card
from fastdistill.networks.qnetwork import QNetwork, num_parameters
from fastdistill.teachers.cleanrl import load_cleanrl
from fastdistill.teachers.ensemble import DrawnEnsemble, Ensemble
from fastdistill.teachers.sb3 import load_sb3

# By what a teacher's values are. Q-values of a game with clipped rewards differ by hundredths from
# action to action (the paper's 0.01); logits and log-probabilities are a policy already.
DEFAULT_TEMPERATURES = {"q_values": 0.01, "logits": 1.0, "log_probs": 1.0}

ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A module that labels observations with action values.

    Attributes:
        module: In evaluation mode, without gradients, on ``device``.
        card: The checkpoint's description; empty for a module of the caller's.
        device: Where it runs.
        kind: What its values are: ``q_values``, ``logits`` or ``log_probs``.
        source: What it can be loaded from again, here or on a command line; None for a module.
        view: What it sees of an environment's observations: a key, a function of them, or None for
            all.
        version: Rises when its values change; a frozen teacher's stays 0.
    """

    module: nn.Module
    card: dict[str, Any]
    device: torch.device
    kind: str = "q_values"
    source: str | None = None
    view: ViewSource | None = None
    version: int = 0

    def check(self, env: LaneEnv | EnvSpec) -> None:
        """Refuse, in words, an environment that this teacher does not fit.

        Args:
            env: Made with this teacher's ``view`` as its ``teacher_view``; or its description.

        Raises:
            ValueError: Observations, actions, their meanings or the game differ, or the outputs
                are not finite ``[batch, env.num_actions]`` values.
            TypeError: The module returns something else than a tensor.
        """
        spec = env if isinstance(env, EnvSpec) else env.teacher_spec
        if self.card:
            _check_card(self.card, spec)
        _check_outputs(self, spec)

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """Values of ``[batch, *obs_shape]`` observations, ``[batch, actions]`` float32.

        Autocast is switched off: bfloat16 rounds away the gap between the best two actions in
        one state of twelve.
        """
        with torch.autocast(self.device.type, enabled=False):
            values: Tensor = self.module(obs.to(self.device))
        return values.float()

    __call__ = values

    def to(self, device: torch.device) -> Teacher:
        """Itself where it runs there already, else a copy that does."""
        if self.device == device:
            return self
        module = _frozen(deepcopy(self.module), device)
        return replace(self, module=module, device=device)

    def describe(self) -> dict[str, Any]:
        """For cards and records: where it is from, and what it is."""
        known = {key: self.card.get(key) for key in ("game", "parameters", "weights")}
        view = {} if self.view is None else {"view": view_name(self.view)}
        return {"source": self.source, "kind": self.kind, **view, **known}


def load_teacher(
    source: str | Path | nn.Module | Policy,
    env: LaneEnv | EnvSpec | EnvSource | None = None,
    *,
    kind: str | None = None,
    view: ViewSource | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A teacher, checked against an environment.

    Args:
        source: ``"zoo:NAME"`` for one that ships, the path of a checkpoint (description,
            directory), ``"sb3:FILE"`` or ``"cleanrl:FILE"`` for a model of those libraries (see
            ``load_sb3``, ``load_cleanrl``), several of these with ``+`` between them for the mean
            of their sharpened policies (see ``Ensemble``) or with ``|`` for one of them, drawn for
            each state (see ``DrawnEnsemble``), or any module that maps
            ``[batch, *env.obs_shape]`` observations (uint8 for images) to
            ``[batch, env.num_actions]`` values. A module is
            copied: the caller's own stays as it is, and what it learns later does not reach the
            teacher. Or any function that does the same to a tensor.
        env: What it will be asked about: lanes, their description, the name of a game or gymnasium
            id, or an environment of yours (see ``fastdistill.evaluate``). By default a checkpoint
            is checked against its own game, and a module later, by whoever uses it. Of a checkpoint
            of several games it says which one is to be taught.
        kind: What its values are: ``"q_values"``, ``"logits"`` or ``"log_probs"``; by default what
            a checkpoint says, and Q-values for a module.
        view: What it sees of an environment with several observations, or of any: a key, or a
            function of what all lanes show, ``[lanes, ...]`` each. A checkpoint remembers a key.
        device: Where it will run.

    Raises:
        ValueError: In words, where observations, actions or outputs do not fit ``env``; or a
            damaged checkpoint, or one whose game would import a module.
        TypeError: ``source`` is none of the above, or the module returns something else.

    Example:
        >>> teacher = load_teacher("zoo:pong")
        >>> tuple(teacher.values(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape)
        (2, 6)
    """
    card: dict[str, Any] = {}
    module: nn.Module
    if isinstance(source, nn.Module):
        module = _copy(source)
    elif isinstance(source, str) and (names := _members(source)):
        together = DrawnEnsemble if "|" in source else Ensemble
        teachers = [load_teacher(name, env, view=view) for name in names]
        module, card = _ensemble(together, teachers)
    elif isinstance(source, str) and source.startswith("sb3:"):
        module, card = load_sb3(source.removeprefix("sb3:"))
    elif isinstance(source, str) and source.startswith("cleanrl:"):
        module, card = load_cleanrl(source.removeprefix("cleanrl:"))
    elif isinstance(source, (str, Path)):
        module, card = load_network(checkpoint_path(source))
    elif _is_function(source):
        module = _Function(source)
    else:
        raise TypeError(
            "load_teacher: source must be a checkpoint path, 'zoo:NAME', 'sb3:FILE', "
            "'cleanrl:FILE', a torch module or a function, "
            f"got {type(source).__name__}"
            f"{'; give its .module()' if hasattr(source, 'graph_module') else ''}"
        )
    view = view or card.get("view")
    if view == FUNCTION:
        raise ValueError(
            f"load_teacher: view must be given again as the function that it was, got {view!r}"
        )
    with ExitStack() as opened:
        if env is None and not _games(module):
            env = recorded_game(card)
        if env is not None and not isinstance(env, (LaneEnv, EnvSpec)):
            env = opened.enter_context(closing(make_env(env, 1, view=view, teacher_view=view)))
        module, card = _one_game(module, card, env)
        kind = kind or card.get("kind", "q_values")
        if kind not in KINDS:
            raise ValueError(f"load_teacher: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        name = str(source) if isinstance(source, (str, Path)) else None
        device = usable_device(device)
        teacher = Teacher(_frozen(module, device), card, device, kind, name, view)
        if env is not None:
            teacher.check(env)
    return teacher


class _Function(nn.Module):
    """A function of the caller's."""

    def __init__(self, function: Policy) -> None:
        super().__init__()
        self._function = function

    def forward(self, obs: Tensor) -> Tensor:
        return self._function(obs)


def _is_function(source: object) -> bool:
    # An exported program refuses to be called; a class would make something of the observations.
    return callable(source) and not isinstance(source, type) and not hasattr(source, "graph_module")


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    module = module.to(device)
    for parameter in module.parameters():  # a ScriptModule has no requires_grad_ of its own
        parameter.requires_grad_(False)
    # An exported program has one mode, and refuses to be told.
    with contextlib.suppress(NotImplementedError):
        module = module.eval()
    return module


def _members(source: str) -> list[str]:
    """The teachers of ``A+B`` or ``A|B``; none where it is one, even with a plus in its name."""
    names = [name.strip() for name in re.split(r"[+|]", source)]
    if len(names) < 2 or Path(source).exists() or Path(f"{source}.json").exists():
        return []
    if not all(names):
        raise ValueError(
            f"load_teacher: source must name a teacher on each side of + or |, got {source!r}"
        )
    if "+" in source and "|" in source:
        raise ValueError(
            f"load_teacher: source must have + or | between its teachers, not both, got {source!r}"
        )
    return names


def _ensemble(
    together: type[Ensemble] | type[DrawnEnsemble], teachers: list[Teacher]
) -> tuple[nn.Module, dict[str, Any]]:
    games = {recorded_game(teacher.card) for teacher in teachers} - {None}
    if len(games) > 1:
        raise ValueError(
            f"load_teacher: teachers with + or | between them must be of one game, got "
            f"{', '.join(sorted(map(str, games)))}"
        )
    if len({teacher.view for teacher in teachers}) > 1:
        raise ValueError(
            "load_teacher: teachers with + or | between them must have one view, got "
            f"{', '.join(str(view_name(teacher.view)) for teacher in teachers)}"
        )
    temperatures = [DEFAULT_TEMPERATURES[teacher.kind] for teacher in teachers]
    module = together([teacher.module for teacher in teachers], temperatures)
    same = ("game", "action_meanings", "environment", "architecture", "obs_shape", "num_actions")
    first = teachers[0].card
    card = {key: first[key] for key in (*same, "view") if key in first}
    return module, {**card, "kind": "log_probs", "parameters": num_parameters(module)}


def _games(module: nn.Module) -> tuple[str, ...]:
    return module.games if isinstance(module, QNetwork) else ()


def _one_game(
    module: nn.Module, card: dict[str, Any], env: LaneEnv | EnvSpec | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Of a network of several games the one that is asked for; any other as it is."""
    games = _games(module)
    if not games:
        return module, card
    assert isinstance(module, QNetwork)
    spec = env.spec if isinstance(env, LaneEnv) else env
    if spec is None or spec.name not in games:
        raise ValueError(
            f"load_teacher: game must be one of the network's, {', '.join(games)}, got "
            f"{None if spec is None else spec.name!r}"
        )
    return module.for_task(spec.name), game_card(card, spec.name) if card else card


def _copy(module: nn.Module) -> nn.Module:
    try:
        with torch.no_grad():  # of a ScriptModule copies are results, and would keep its graph
            return deepcopy(module)
    except Exception as error:  # whatever a foreign module's copying raises
        raise TypeError(
            "load_teacher: module must be one that can be copied (the caller's own is never "
            f"frozen), got {type(module).__name__}: {error}"
        ) from error


def checkpoint_path(source: str | Path) -> Path:
    """The path that a checkpoint argument means; ``"zoo:pong"`` is in the package."""
    if isinstance(source, str) and source.startswith("zoo:"):
        path = ZOO / f"{source.removeprefix('zoo:')}.json"
        if not path.is_file():
            raise ValueError(
                f"load_teacher: zoo teacher must be one of {zoo_names()}, "
                f"got {source.removeprefix('zoo:')!r}"
            )
        return path
    return Path(source)


def recorded_game(record: dict[str, Any]) -> str | None:
    """The game that a card, or another file, names; None where it names none that can be made.

    Raises:
        ValueError: It is of the form ``module:id``, for which gymnasium imports ``module``: what
            is run is for the caller to say, not for a file.
    """
    if (record.get("environment") or {}).get("made_by") == BROUGHT:
        return None
    game: str | None = record.get("game")
    if game is not None and ":" in game:
        raise ValueError(
            f"load_teacher: game of a file must not name a module to import, got {game!r}; whoever "
            f"trusts that module names the game: load_teacher(..., {game!r}), --game {game}"
        )
    return game


def zoo_names() -> list[str]:
    """Teachers that ship with the package."""
    return sorted(path.stem for path in ZOO.glob("*.json"))


def _check_card(card: dict[str, Any], spec: EnvSpec) -> None:
    if "architecture" not in card and "obs_shape" not in card:
        return  # an ensemble of modules that say nothing of themselves
    if "architecture" in card:
        obs_shape = card["architecture"]["obs_shape"]
        num_actions = card["architecture"]["num_actions"][0]
    else:  # of another library
        obs_shape, num_actions = card["obs_shape"], card["num_actions"]
    if tuple(obs_shape) != spec.obs_shape:
        raise ValueError(
            f"load_teacher: teacher must see observations of shape {list(spec.obs_shape)} "
            f"({spec.name}), got one for {list(obs_shape)}"
        )
    if num_actions != spec.num_actions:
        raise ValueError(
            f"load_teacher: teacher must have the {spec.num_actions} actions of {spec.name}, got "
            f"{num_actions}; is one of them using the full set of 18?"
        )
    meanings = card.get("action_meanings")
    if meanings and tuple(meanings) != spec.action_meanings:
        raise ValueError(
            f"load_teacher: teacher's actions must mean {list(spec.action_meanings)} "
            f"({spec.name}), got {meanings}"
        )
    if card.get("game") not in (None, spec.name):
        raise ValueError(
            f"load_teacher: teacher must have been trained on {spec.name}, got {card['game']!r}"
        )


def _check_outputs(teacher: Teacher, spec: EnvSpec) -> None:
    dtype = spec.obs_dtype
    probe = torch.zeros((2, *spec.obs_shape), dtype=dtype, device=teacher.device)
    wanted = f"[batch, {spec.num_actions}] values for {str(dtype)[6:]} [batch, "
    wanted += ", ".join(map(str, spec.obs_shape)) + "] observations"
    try:
        with torch.no_grad():
            values = teacher.module(probe)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"load_teacher: module must return {wanted}, got {type(error).__name__}: {error}; "
            "wrap it in a module that converts the observations"
        ) from error
    if not isinstance(values, Tensor):
        raise TypeError(f"load_teacher: module must return {wanted}, got {type(values).__name__}")
    if values.shape != (2, spec.num_actions) or not values.is_floating_point():
        raise ValueError(
            f"load_teacher: module must return {wanted}, got {values.dtype} {list(values.shape)}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"load_teacher: module must return finite {wanted}, got {values.tolist()}")
