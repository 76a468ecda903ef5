# SPDX-License-Identifier: MIT
"""Teachers: a checkpoint or any torch module, checked against the environment before use.

A teacher that sees other observations or counts its actions otherwise than the environment plays
badly without an error; here each mismatch is refused in words. Labels are always float32.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill.envs import make_env
from fastdistill.envs.lanes import LaneEnv
from fastdistill.networks.checkpoint import load_network

ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A module that labels observations with action values.

    Attributes:
        module: In evaluation mode, without gradients, on ``device``.
        card: The checkpoint's description; empty for a module of the caller's.
        device: Where it runs.
    """

    module: nn.Module
    card: dict[str, Any]
    device: torch.device

    def check(self, env: LaneEnv) -> None:
        """Refuse, in words, an environment that this teacher does not fit.

        Raises:
            ValueError: Observations, actions, their meanings or the game differ, or the outputs
                are not finite ``[batch, env.num_actions]`` values.
            TypeError: The module returns something else than a tensor.
        """
        if self.card:
            _check_card(self.card, env)
        _check_outputs(self, env)

    @torch.no_grad()
    def q_values(self, obs: Tensor) -> Tensor:
        """Action values of ``[batch, *obs_shape]`` observations, ``[batch, actions]`` float32.

        Autocast is switched off: bfloat16 rounds away the gap between the best two actions in
        one state of twelve.
        """
        with torch.autocast(self.device.type, enabled=False):
            values: Tensor = self.module(obs.to(self.device))
        return values.float()

    __call__ = q_values


def load_teacher(
    source: str | Path | nn.Module,
    env: LaneEnv | str | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A teacher, checked against an environment.

    Args:
        source: ``"zoo:NAME"`` for one that ships, the path of a checkpoint (description,
            directory), or any module that maps ``[batch, *env.obs_shape]`` observations (uint8
            for images) to ``[batch, env.num_actions]`` values. The module is put into evaluation
            mode, frozen and moved.
        env: What it will be asked about: lanes, or the name of a game or gymnasium id. By default
            a checkpoint is checked against its own game, and a module later, by whoever uses it.
        device: Where it will run.

    Raises:
        ValueError: In words, where observations, actions or outputs do not fit ``env``; or a
            damaged checkpoint, or one whose game would import a module.
        TypeError: ``source`` is none of the above, or the module returns something else.

    Example:
        >>> teacher = load_teacher("zoo:pong")
        >>> tuple(teacher.q_values(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape)
        (2, 6)
    """
    card: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        module = source
    elif isinstance(source, (str, Path)):
        module, card = load_network(checkpoint_path(source))
    else:
        raise TypeError(
            "load_teacher: source must be a checkpoint path, 'zoo:NAME' or a torch module, "
            f"got {type(source).__name__}"
        )
    module = module.to(device).eval().requires_grad_(False)
    teacher = Teacher(module, card, torch.device(device))
    target = env if env is not None else recorded_game(card)
    if isinstance(target, str):
        with closing(make_env(target, 1)) as lanes:
            teacher.check(lanes)
    elif target is not None:
        teacher.check(target)
    return teacher


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
    """The game that a card, or another file, names; None where it names none.

    Raises:
        ValueError: It is of the form ``module:id``, for which gymnasium imports ``module``: what
            is run is for the caller to say, not for a file.
    """
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


def _check_card(card: dict[str, Any], env: LaneEnv) -> None:
    architecture = card["architecture"]
    if tuple(architecture["obs_shape"]) != env.obs_shape:
        raise ValueError(
            f"load_teacher: teacher must see observations of shape {list(env.obs_shape)} "
            f"({env.name}), got one for {architecture['obs_shape']}"
        )
    if architecture["num_actions"][0] != env.num_actions:
        raise ValueError(
            f"load_teacher: teacher must have the {env.num_actions} actions of {env.name}, got "
            f"{architecture['num_actions'][0]}; is one of them using the full set of 18?"
        )
    meanings = card.get("action_meanings")
    if meanings and tuple(meanings) != env.action_meanings:
        raise ValueError(
            f"load_teacher: teacher's actions must mean {list(env.action_meanings)} "
            f"({env.name}), got {meanings}"
        )
    if card.get("game") not in (None, env.name):
        raise ValueError(
            f"load_teacher: teacher must have been trained on {env.name}, got {card['game']!r}"
        )


def _check_outputs(teacher: Teacher, env: LaneEnv) -> None:
    dtype = torch.uint8 if len(env.obs_shape) == 3 else torch.float32
    probe = torch.zeros((2, *env.obs_shape), dtype=dtype, device=teacher.device)
    wanted = f"[batch, {env.num_actions}] values for {str(dtype)[6:]} [batch, "
    wanted += ", ".join(map(str, env.obs_shape)) + "] observations"
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
    if values.shape != (2, env.num_actions) or not values.is_floating_point():
        raise ValueError(
            f"load_teacher: module must return {wanted}, got {values.dtype} {list(values.shape)}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"load_teacher: module must return finite {wanted}, got {values.tolist()}")
