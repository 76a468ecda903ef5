# SPDX-License-Identifier: MIT
"""Playing full episodes to find out how good a policy is.

The quota of episodes per lane is fixed before the first step: counting the first episodes to
finish would favour short ones. Raw scores, epsilon, seed and preset go into the record. The only
module that imports Pillow (for the GIF of a game).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdistill.envs import PRESETS, engine_versions, make_atari_screen, make_env
from fastdistill.lanes import LaneEnv

# Observations [batch, ...] on the policy's device -> action values or logits [batch, actions].
Policy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Full episodes and everything that decided them.

    Attributes:
        env: Game or environment id.
        preset: Of ``fastdistill.envs.PRESETS``; empty for other environments.
        epsilon: Share of random actions.
        seed: Of resets and random actions.
        num_lanes: Lanes played at once (they share the random numbers).
        returns: Raw return of each episode, ordered by lane, then time.
        lengths_steps: Its agent steps.
        truncated: How many episodes the time limit cut.
        settings: The environment's options.
        versions: Of the environment libraries and torch.
    """

    env: str
    preset: str
    epsilon: float
    seed: int
    num_lanes: int
    returns: tuple[float, ...]
    lengths_steps: tuple[int, ...]
    truncated: int
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def evaluate(
    policy: Policy,
    env_name: str,
    *,
    episodes: int = 30,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    num_lanes: int = 10,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
) -> Evaluation:
    """Play full episodes with the epsilon-greedy policy.

    Args:
        policy: Observations to action values; a network in evaluation mode, say.
        env_name: Game (``"pong"``) or gymnasium id (``"CartPole-v1"``).
        episodes: How many, at least 1. Spread over the lanes beforehand.
        preset: Of ``fastdistill.envs.PRESETS``.
        epsilon: Share of random actions in [0, 1]; the preset's own by default, 0 for
            environments that are not Atari.
        seed: Non-negative. Training uses other streams of the same seed.
        num_lanes: Lanes played at once, at most ``episodes``.
        device: Where the policy runs.
        max_steps: Vector steps after which a RuntimeError is raised, for policies that never end
            an episode in an environment without a time limit.

    Returns:
        The record of exactly ``episodes`` episodes.
    """
    if episodes < 1:
        raise ValueError(f"evaluate: episodes must be at least 1, got {episodes}")
    if num_lanes < 1:
        raise ValueError(f"evaluate: num_lanes must be at least 1, got {num_lanes}")
    env = make_env(env_name, min(num_lanes, episodes), preset=preset, training=False)
    try:
        return evaluate_env(
            policy,
            env,
            episodes=episodes,
            epsilon=epsilon,
            seed=seed,
            device=device,
            max_steps=max_steps,
        )
    finally:
        env.close()


def evaluate_env(
    policy: Policy,
    env: LaneEnv,
    *,
    episodes: int,
    epsilon: float | None = None,
    seed: int = 1,
    device: torch.device | str = "cpu",
    max_steps: int | None = None,
) -> Evaluation:
    """``evaluate`` on an environment of the caller's, made with ``training=False``."""
    preset = str(env.settings.get("preset", ""))
    if epsilon is None:
        epsilon = PRESETS[preset].evaluation_epsilon if preset else 0.0
    if not 0 <= epsilon <= 1:
        raise ValueError(f"evaluate: epsilon must be in [0, 1], got {epsilon}")
    quota = episodes // env.num_lanes + (np.arange(env.num_lanes) < episodes % env.num_lanes)
    actor = _EpsilonGreedy(policy, epsilon, env.num_actions, seed, device)
    env.reset((seed, _EVALUATION_STREAM))
    played: list[list[tuple[float, int, bool]]] = [[] for _ in range(env.num_lanes)]
    remaining = episodes
    steps = 0
    while remaining:
        step = env.step(actor(env.obs))
        steps += 1
        for episode in step.episodes:
            if len(played[episode.lane]) < quota[episode.lane]:
                played[episode.lane].append(
                    (episode.episode_return, episode.length_steps, episode.truncated)
                )
                remaining -= 1
        if max_steps is not None and steps >= max_steps and remaining:
            raise RuntimeError(
                f"evaluate: episodes must end within {max_steps} vector steps, "
                f"got {episodes - remaining} of {episodes}"
            )
    flat = [episode for lane in played for episode in lane]
    return Evaluation(
        env=env.name,
        preset=preset,
        epsilon=epsilon,
        seed=seed,
        num_lanes=env.num_lanes,
        returns=tuple(episode[0] for episode in flat),
        lengths_steps=tuple(episode[1] for episode in flat),
        truncated=sum(episode[2] for episode in flat),
        settings=env.settings,
        versions={**engine_versions(), "torch": str(torch.__version__)},
    )


def record_comparison_gif(
    policies: Mapping[str, Policy],
    game: str,
    path: str | Path,
    *,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    max_seconds: float = 20.0,
    max_bytes: int = 4_000_000,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Play the same game with each policy and save their screens side by side as a GIF.

    Every policy meets the same start, that of the first episode of lane 0 in an evaluation with
    that seed, and the same random actions. A strip above each screen counts its score; a game that
    has ended stands still until the last one has.

    Args:
        policies: Label above the screen -> policy (see ``evaluate``); at least one.
        game: An Atari game.
        path: Of the GIF.
        preset: See ``evaluate``.
        epsilon: See ``evaluate``.
        seed: See ``evaluate``.
        max_seconds: Of play recorded, 15 pictures each; longer episodes are cut.
        max_bytes: A larger file is written again with fewer pictures per second (at least 2).
        device: See ``evaluate``.

    Returns:
        Label -> return of what was recorded.
    """
    if not policies:
        raise ValueError("record_comparison_gif: policies must hold at least 1 policy, got 0")
    if not max_seconds > 0:
        raise ValueError(f"record_comparison_gif: max_seconds must be above 0, got {max_seconds}")
    _pillow()  # before minutes are played for nothing
    epsilon = PRESETS[preset].evaluation_epsilon if epsilon is None else epsilon
    pictures = max(1, round(max_seconds * _GIF_RATE))
    games = {
        label: _record_screens(policy, game, preset, epsilon, seed, pictures, device)
        for label, policy in policies.items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for every in range(1, _GIF_RATE // 2 + 1):
        _save_gif(games, every, path)
        if path.stat().st_size <= max_bytes:
            break
    return {label: scores[-1] for label, (_, scores) in games.items()}


# Pictures per second: the emulator's 60 frames with a frame skip of 4.
_GIF_RATE = 15
# Pixels: the strip above each screen and the gap between the (doubled) screens.
_GIF_STRIP, _GIF_GAP = 40, 8
# The palette begins with the strips' greys, from their ground to the letters.
_GIF_GREYS = np.linspace((24, 24, 27), (240, 240, 240), 8).astype(np.uint8)

# What was recorded of one policy: colour screens [210, 160, 3] uint8 and the score at each.
_Recording = tuple[list[NDArray[np.uint8]], list[float]]


def _record_screens(
    policy: Policy,
    game: str,
    preset: str,
    epsilon: float,
    seed: int,
    pictures: int,
    device: torch.device | str,
) -> _Recording:
    env = make_env(game, 1, preset=preset, training=False)
    screen = make_atari_screen(env)
    try:
        actor = _EpsilonGreedy(policy, epsilon, env.num_actions, seed, device)
        env.reset((seed, _EVALUATION_STREAM))
        screen.reset((seed, _EVALUATION_STREAM))
        screens, scores = [screen.obs[0].transpose(1, 2, 0).copy()], [0.0]
        while len(screens) < pictures:
            action = actor(env.obs)
            step = env.step(action)
            screen.step(action)
            screens.append(screen.obs[0].transpose(1, 2, 0).copy())
            scores.append(scores[-1] + float(step.reward[0]))
            if step.terminated[0] or step.truncated[0]:
                break
    finally:
        env.close()
        screen.close()
    return screens, scores


def _save_gif(games: Mapping[str, _Recording], every: int, path: Path) -> None:
    """Every ``every``-th picture in real time, with one palette for all."""
    image, _, _ = _pillow()
    length = max(len(screens) for screens, _ in games.values())
    times = range(0, length, every)
    # A game that has ended stands still.
    shown = {
        label: [min(time, len(screens) - 1) for time in times]
        for label, (screens, _) in games.items()
    }
    codes, palette = _screen_palette([games[label][0][t] for label in games for t in shown[label]])
    colours = np.concatenate([_GIF_GREYS, palette]).tobytes()

    def picture(number: int) -> Any:
        columns: list[NDArray[np.uint8]] = []
        for label, (screens, scores) in games.items():
            time = shown[label][number]
            screen = len(_GIF_GREYS) + codes[_pack(screens[time])]
            screen = screen.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
            strip = _gif_strip(label, scores[time], screen.shape[1])
            column = np.concatenate([strip, screen])
            gap = np.zeros((len(column), _GIF_GAP if columns else 0), np.uint8)
            columns += [gap, column]
        result = image.fromarray(np.concatenate(columns, axis=1))
        result.putpalette(colours)
        return result

    # GIF counts in hundredths of a second; the rounding must not add up.
    ends = [round(100 * min(k * every, length) / _GIF_RATE) for k in range(len(times) + 1)]
    picture(0).save(
        path,
        save_all=True,
        append_images=(picture(number) for number in range(1, len(times))),
        duration=[10 * (end - start) for start, end in pairwise(ends)],
        loop=0,
        optimize=True,
    )


def _gif_strip(label: str, score: float, width: int) -> NDArray[np.uint8]:
    """Label at the left, score at the right, as indices of grey ``[_GIF_STRIP, width]``."""
    image, draw, font = _pillow()
    strip = image.new("L", (width, _GIF_STRIP))
    pen, face = draw.Draw(strip), font.load_default(20)
    count = f"{score:g}"
    right = width - 10 - pen.textlength(count, face)
    while label and 10 + pen.textlength(label, face) > right - 10:
        label = label[:-1]
    pen.text((10, _GIF_STRIP // 2), label, 255, face, anchor="lm")
    pen.text((right, _GIF_STRIP // 2), count, 255, face, anchor="lm")
    return np.asarray(strip) // (256 // len(_GIF_GREYS))


def _pack(screen: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Colours ``[..., 3]`` to one number each."""
    packed: NDArray[np.int64] = screen.astype(np.int64) @ np.array([65536, 256, 1])
    return packed


def _screen_palette(
    screens: Sequence[NDArray[np.uint8]],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A table from packed colours to palette entries, and the palette ``[entries, 3]``.

    Exact where the screens have few enough colours, as most games do.
    """
    image, _, _ = _pillow()
    seen = np.zeros(1 << 24, np.bool_)
    for screen in screens:
        seen[_pack(screen)] = True
    colours = np.flatnonzero(seen)
    palette = (colours[:, None] >> np.array([16, 8, 0]) & 255).astype(np.uint8)
    index = np.arange(len(colours))
    # One of the 256 entries is left for "as before", which keeps the file small.
    room = 255 - len(_GIF_GREYS)
    if len(colours) > room:
        quantized = image.fromarray(palette[None]).quantize(room, dither=image.Dither.NONE)
        index = np.asarray(quantized)[0]
        palette = np.array(quantized.getpalette(), np.uint8).reshape(-1, 3)
    codes = np.zeros(1 << 24, np.uint8)
    codes[colours] = index
    return codes, palette


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(
            "fastdistill.evaluation needs Pillow for a GIF: pip install 'pillow>=10.1'"
        ) from error
    return Image, ImageDraw, ImageFont


# Second word of the reset entropy; recipes use others, so no training lane plays these episodes.
_EVALUATION_STREAM = 1


class _EpsilonGreedy:
    """Observations to actions, with random numbers of its own."""

    def __init__(
        self,
        policy: Policy,
        epsilon: float,
        num_actions: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._policy = policy
        self._epsilon = epsilon
        self._num_actions = num_actions
        self._device = device
        self._rng = np.random.default_rng((seed, _EVALUATION_STREAM))

    @torch.inference_mode()
    def __call__(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        values = self._policy(torch.as_tensor(obs, device=self._device))
        if values.shape != (len(obs), self._num_actions):
            raise ValueError(
                f"evaluate: policy must return [{len(obs)}, {self._num_actions}] values, "
                f"got {list(values.shape)}"
            )
        greedy: NDArray[np.int64] = values.argmax(dim=1).cpu().numpy()
        random = self._rng.integers(self._num_actions, size=len(obs))
        explores = self._rng.random(len(obs)) < self._epsilon
        return np.where(explores, random, greedy)
