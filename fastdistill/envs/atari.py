# SPDX-License-Identifier: MIT
"""Atari games as lanes, every option of ``ale_py.AtariVectorEnv`` spelled out; and ``make_env``."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from fastdistill.envs.brought import EnvSource, make_brought, make_gymnasium, required
from fastdistill.envs.lanes import LaneEnv
from fastdistill.envs.spec import EnvSpec
from fastdistill.envs.views import ViewSource


@dataclass(frozen=True)
class AtariPreset:
    """How a game is started, what sticks and what ends an episode.

    Attributes:
        repeat_action_probability: Chance per emulator frame that the previous action repeats.
        noop_max: A reset plays 0 to ``noop_max - 1`` emulator frames of no-ops.
        fire_reset: Press FIRE once on reset where the game needs it.
        life_loss_terminates: While training, a lost life reads ``terminated`` (the game goes on).
        max_episode_frames: Emulator frames after which an episode is truncated (30 minutes).
        evaluation_epsilon: The customary share of random actions in evaluation.
    """

    repeat_action_probability: float
    noop_max: int
    fire_reset: bool
    life_loss_terminates: bool
    max_episode_frames: int
    evaluation_epsilon: float


PRESETS = {
    # Mnih et al. 2015 and Rusu et al. 2015, with no-op starts instead of human starts.
    "classic": AtariPreset(0.0, 30, True, True, 108_000, 0.05),
    # Machado et al. 2018, "Revisiting the Arcade Learning Environment".
    "machado": AtariPreset(0.25, 1, False, False, 108_000, 0.001),
}


# Options of the engine that no preset changes.
_RULES = {
    "continuous": False,
    "frameskip": 4,
    "maxpool": True,
    "episodic_life": False,  # it resets the whole game at each lost life
    "reward_clipping": False,
}
_NETWORK_SCREEN = {"img_height": 84, "img_width": 84, "grayscale": True, "stack_num": 4}


def atari_games() -> list[str]:
    """The names of the games whose ROMs ale-py ships."""
    return sorted(required("ale_py.roms").get_all_rom_ids())


def make_atari(
    game: str,
    num_lanes: int,
    *,
    preset: str = "classic",
    training: bool = True,
    full_action_space: bool = False,
    num_threads: int = 0,
    view: ViewSource | None = None,
    teacher_view: ViewSource | None = None,
) -> LaneEnv:
    """Lanes of one Atari game: grey 84 x 84, four planes (zeros before the episode), skip 4.

    Args:
        game: ROM name in snake case, such as ``"space_invaders"``.
        num_lanes: Number of emulators, at least 1.
        preset: A key of ``PRESETS``.
        training: Whether a lost life may read ``terminated`` (if the preset says so); without
            it only the end of the game does.
        full_action_space: All 18 actions instead of those the game uses.
        num_threads: Emulator threads; 0 takes one per core.
        view: See ``LaneEnv``.
        teacher_view: See ``LaneEnv``.
    """
    engine, rules = _checked_atari(game, num_lanes, preset)
    settings = {
        "repeat_action_probability": rules.repeat_action_probability,
        "noop_max": rules.noop_max,
        "use_fire_reset": rules.fire_reset,
        "life_loss_info": training and rules.life_loss_terminates,
        "max_num_frames_per_episode": rules.max_episode_frames,
        "full_action_space": full_action_space,
    }
    threads = num_threads or os.cpu_count() or 1
    env = engine(
        **_atari_options(game, num_lanes, min(threads, num_lanes)), **settings, **_NETWORK_SCREEN
    )
    return LaneEnv(
        env,
        name=game,
        preset=preset,
        stack=4,
        action_meanings=[action.name for action in env.ale.get_action_set()],
        settings=settings,
        seeding="array",
        view=view,
        teacher_view=teacher_view,
    )


def make_atari_screen(like: LaneEnv) -> LaneEnv:
    """A twin of an Atari environment that sees the full colour screen, for pictures.

    Given the same seeds and actions it plays the same game: the emulators' random numbers do not
    depend on the preprocessing. ``obs`` is ``[lanes, 3, 210, 160]`` uint8.
    """
    spec = like.spec
    settings = {key: value for key, value in spec.settings.items() if key not in ("env", "preset")}
    engine, _ = _checked_atari(spec.name, like.num_lanes, spec.preset)
    env = engine(
        **_atari_options(spec.name, like.num_lanes, 1),
        **settings,
        img_height=210,
        img_width=160,
        grayscale=False,
        stack_num=1,
    )
    return LaneEnv(env, name=spec.name, preset=spec.preset, settings=settings, seeding="array")


def engine_options(spec: EnvSpec) -> dict[str, Any]:
    """What ``ale_py.AtariVectorEnv`` takes, besides game and lanes, to show what the spec's shows.

    Empty for environments that are not Atari games.
    """
    if not spec.preset:
        return {}
    settings = {key: value for key, value in spec.settings.items() if key not in ("env", "preset")}
    return {**settings, **_RULES, **_NETWORK_SCREEN}


def make_env(
    source: EnvSource,
    num_lanes: int,
    *,
    preset: str = "classic",
    training: bool = True,
    num_threads: int = 0,
    view: ViewSource | None = None,
    teacher_view: ViewSource | None = None,
) -> LaneEnv:
    """Lanes of an Atari game, of a gymnasium id, or of an environment of the caller's.

    Args:
        source: ``"pong"``, or a game as others write it (``"Pong"``, ``"ALE/Pong-v5"``,
            ``"PongNoFrameskip-v4"``), which is played as ``"pong"`` under ``preset``, and standard
            error says so once; any other gymnasium id (``"CartPole-v1"``); or what
            ``make_brought`` takes.
        num_lanes: Number of environments, at least 1.
        preset: A key of ``PRESETS``, for Atari games.
        training: See ``make_atari``.
        num_threads: See ``make_atari``.
        view: What is seen of the observations, see ``LaneEnv``: a key, or a function.
        teacher_view: What the teacher sees of them.
    """
    views: dict[str, Any] = {"view": view, "teacher_view": teacher_view}
    if not isinstance(source, str):
        return make_brought(source, num_lanes, **views)
    game = source if re.fullmatch("[a-z0-9_]+", source) else _meant_game(source)
    if game is None:
        return make_gymnasium(source, num_lanes, **views)
    if game != source:
        _say_once(source, game, preset)
    return make_atari(
        game, num_lanes, preset=preset, training=training, num_threads=num_threads, **views
    )


_ATARI_ID = re.compile(r"(?:ALE/)?(\w+?)(NoFrameskip|Deterministic)?(-ram\w*)?-v(\d+)")
_said: set[str] = set()


def _meant_game(name: str) -> str | None:
    """The game that a name in someone else's spelling means; None for other environments.

    An id's registered options (frame skip, sticky actions, colour, size) are not what it then is
    played with: networks of this package see one kind of screen, whatever was imported before.
    """
    found = _ATARI_ID.fullmatch(name)
    if found is None:
        if "-v" in name or "/" in name:
            return None
        games = {game.replace("_", ""): game for game in atari_games()}
        return games.get(name.lower().replace("_", ""), name)  # make_atari refuses the rest
    # Blackjack-v1 is a game of cards, and not the cartridge.
    spec = required("gymnasium").registry.get(name)
    if spec is not None and "ale_py" not in str(spec.entry_point):
        return None
    if not name.startswith("ALE/") and spec is None and not _has_ale():
        return None
    game = {game.title().replace("_", ""): game for game in atari_games()}.get(found[1])
    if game is not None and found[3]:
        raise ValueError(
            f"make_env: name must be of a game's screen, got {name!r}; its memory is not served"
        )
    return game


def _has_ale() -> bool:
    try:
        required("ale_py")
    except ImportError:
        return False
    return True


def _say_once(name: str, game: str, preset: str) -> None:
    if name in _said:
        return
    _said.add(name)
    found = _ATARI_ID.fullmatch(name)
    line = f"{name!r} is played as {game!r} under preset {preset!r}"
    if found is not None and found[4] != "4" and preset != "machado":
        line += "; that id has sticky actions, as preset 'machado' has"
    print(f"fastdistill: {line}", file=sys.stderr)


def engine_versions() -> dict[str, str]:
    """Versions of the environment libraries that are installed, for run records."""
    versions = {}
    for name in ("ale_py", "gymnasium"):
        try:
            versions[name] = str(required(name).__version__)
        except ImportError:
            continue  # gymnasium's own environments do without ale-py
    return versions


def _all_cores(num_threads: int) -> bool:
    """Whether there is one thread for each core of the machine, and this process may use them."""
    allowed = getattr(os, "sched_getaffinity", lambda _: ())(0)
    return num_threads == os.cpu_count() == len(allowed)


def _atari_options(game: str, num_lanes: int, num_threads: int) -> dict[str, Any]:
    # Spelled out one by one: the registry and the class disagree about their defaults.
    return {
        "game": game,
        "num_envs": num_lanes,
        "batch_size": 0,
        "num_threads": num_threads,
        # One thread for each core is bound to it: two would often wake up on the same, and a step
        # of 16 lanes on two cores take 5 ms instead of 4.
        "thread_affinity_offset": 0 if _all_cores(num_threads) else -1,
        "autoreset_mode": required("gymnasium").vector.AutoresetMode.NEXT_STEP,
        **_RULES,
    }


def _checked_atari(game: str, num_lanes: int, preset: str) -> tuple[Any, AtariPreset]:
    if preset not in PRESETS:
        raise ValueError(f"make_atari: preset must be one of {sorted(PRESETS)}, got {preset!r}")
    if num_lanes < 1:
        raise ValueError(f"make_atari: num_lanes must be at least 1, got {num_lanes}")
    if game not in atari_games():
        raise ValueError(
            f"make_atari: game must be a ROM name in snake case such as 'pong', got {game!r}; "
            "fastdistill.envs.atari_games() lists them"
        )
    ale = required("ale_py")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    return ale.AtariVectorEnv, PRESETS[preset]
