# SPDX-License-Identifier: MIT
"""Policies at play side by side, as a GIF. The only module that imports Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdistill import streams
from fastdistill.envs import PRESETS, Policy, make_atari_screen, make_env
from fastdistill.evaluation.play import EpsilonGreedy, evaluation_mode, of_game
from fastdistill.networks import QNetwork


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
        label: _record_screens(of_game(policy, game), game, preset, epsilon, seed, pictures, device)
        for label, policy in policies.items()
    }
    _save_within(games, Path(path), max_bytes)
    return {label: scores[-1] for label, (_, scores) in games.items()}


def record_games_gif(
    network: QNetwork,
    games: Sequence[str],
    path: str | Path,
    *,
    preset: str = "classic",
    epsilon: float | None = None,
    seed: int = 1,
    max_seconds: float = 20.0,
    max_bytes: int = 1_500_000,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Play several games with one network and save their screens side by side as a GIF.

    See ``record_comparison_gif``. More than five games stand in two rows.

    Args:
        network: With a head for each of the games.
        games: Atari games, at least one.
        path: See there.
        preset: See there.
        epsilon: See there.
        seed: See there.
        max_seconds: See there.
        max_bytes: See there.
        device: See there.

    Returns:
        Game -> return of what was recorded.
    """
    if not games:
        raise ValueError("record_games_gif: games must name at least 1 game, got none")
    if not max_seconds > 0:
        raise ValueError(f"record_games_gif: max_seconds must be above 0, got {max_seconds}")
    _pillow()
    epsilon = PRESETS[preset].evaluation_epsilon if epsilon is None else epsilon
    pictures = max(1, round(max_seconds * _GIF_RATE))
    played = {
        game: _record_screens(of_game(network, game), game, preset, epsilon, seed, pictures, device)
        for game in games
    }
    labels = {game.replace("_", " "): played[game] for game in games}
    _save_within(labels, Path(path), max_bytes)
    return {game: scores[-1] for game, (_, scores) in played.items()}


def _save_within(games: Mapping[str, _Recording], path: Path, max_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for every in range(1, _GIF_RATE // 2 + 1):
        _save_gif(games, every, path)
        if path.stat().st_size <= max_bytes:
            break


# Pictures per second: the emulator's 60 frames with a frame skip of 4.
_GIF_RATE = 15
# Pixels: the strip above each doubled screen, and the gap between screens.
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
        actor = EpsilonGreedy(policy, epsilon, env.spec.num_actions, seed, device)
        start = streams.words(seed, streams.EVALUATION)
        env.reset(start)
        screen.reset(start)
        screens, scores = [screen.obs[0].transpose(1, 2, 0).copy()], [0.0]
        while len(screens) < pictures:
            with evaluation_mode(policy):
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

    across = len(games) if len(games) <= 5 else -(-len(games) // 2)
    scale = 2 if across <= 3 else 1
    height = max(len(screens[0]) for screens, _ in games.values())

    def column(label: str, number: int) -> NDArray[np.uint8]:
        screens, scores = games[label]
        time = shown[label][number]
        screen = len(_GIF_GREYS) + codes[_pack(screens[time])]
        screen = screen.astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
        below = np.zeros((scale * (height - len(screens[0])), screen.shape[1]), np.uint8)
        strip = _gif_strip(label, scores[time], screen.shape[1], scale)
        return np.concatenate([strip, screen, below])

    def picture(number: int) -> Any:
        columns = [column(label, number) for label in games]
        columns += [np.zeros_like(columns[0])] * (-len(columns) % across)
        rows = [
            np.concatenate(_with_gaps(columns[start : start + across], axis=1), axis=1)
            for start in range(0, len(columns), across)
        ]
        result = image.fromarray(np.concatenate(_with_gaps(rows, axis=0)))
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


def _with_gaps(parts: list[NDArray[np.uint8]], axis: int) -> list[NDArray[np.uint8]]:
    shape = list(parts[0].shape)
    shape[axis] = _GIF_GAP
    gap = np.zeros(shape, np.uint8)
    return [piece for part in parts for piece in (gap, part)][1:]


def _gif_strip(label: str, score: float, width: int, scale: int) -> NDArray[np.uint8]:
    """Label at the left, score at the right, as indices of grey, as wide as a screen."""
    image, draw, font = _pillow()
    height, margin = _GIF_STRIP * scale // 2, 5 * scale
    strip = image.new("L", (width, height))
    pen, face = draw.Draw(strip), font.load_default(20 if scale == 2 else 13)
    count = f"{score:g}"
    right = width - margin - pen.textlength(count, face)
    while label and margin + pen.textlength(label, face) > right - margin:
        label = label[:-1]
    pen.text((margin, height // 2), label, 255, face, anchor="lm")
    pen.text((right, height // 2), count, 255, face, anchor="lm")
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
