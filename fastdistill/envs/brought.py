# SPDX-License-Identifier: MIT
"""Environments by gymnasium id, and those that a caller brings: what makes one, or a vector."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from fastdistill.envs.lanes import LaneEnv
from fastdistill.envs.single import watched
from fastdistill.envs.views import ViewSource

# A name; what makes a gymnasium.Env, or a gymnasium VectorEnv; or a VectorEnv.
EnvSource = str | Callable[[], Any] | Any

# What records say of an environment that has no name to make it by.
BROUGHT = "an environment"


def make_gymnasium(
    env_id: str,
    num_lanes: int,
    *,
    view: ViewSource | None = None,
    teacher_view: ViewSource | None = None,
    **options: Any,
) -> LaneEnv:
    """Lanes of any registered gymnasium environment with discrete actions, stepped in turn.

    Args:
        env_id: As it is registered.
        num_lanes: Number of environments, at least 1.
        view: See ``LaneEnv``.
        teacher_view: See ``LaneEnv``.
        **options: Of ``gymnasium.make``.
    """
    gymnasium = required("gymnasium")
    next_step = gymnasium.vector.AutoresetMode.NEXT_STEP
    try:
        env = gymnasium.make_vec(
            env_id,
            num_envs=num_lanes,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": next_step},
            wrappers=[watched(gymnasium.Wrapper)],
            **options,
        )
    except gymnasium.error.Error as error:
        raise ValueError(
            f"make_gymnasium: env_id must be one that gymnasium can make, got {env_id!r}: {error}"
        ) from error
    return LaneEnv(env, name=env_id, settings=options, view=view, teacher_view=teacher_view)


def make_brought(
    source: Any,
    num_lanes: int,
    *,
    view: ViewSource | None = None,
    teacher_view: ViewSource | None = None,
) -> LaneEnv:
    """Lanes of an environment of the caller's.

    Args:
        source: Makes a ``gymnasium.Env`` each time it is called, or a ``VectorEnv``; or is one,
            which is lent: it stays open.
        num_lanes: How many are made; a ``VectorEnv`` has its own number.
        view: See ``LaneEnv``.
        teacher_view: See ``LaneEnv``.

    Raises:
        TypeError: It is, or makes, something else.
        ValueError: It makes the same environment again.
    """
    gymnasium = required("gymnasium")
    vector, single = gymnasium.vector.VectorEnv, gymnasium.Env
    is_lent = isinstance(source, vector)
    if not is_lent and (isinstance(source, single) or not callable(source)):
        raise TypeError(
            "make_env: env must be a name, a function that makes a gymnasium.Env, or a gymnasium "
            f"VectorEnv, got {source!r}; lambda: MyEnv() makes one for each lane"
        )
    made = source if is_lent else source()
    if not isinstance(made, (vector, single)):
        raise TypeError(
            f"make_env: env must make a gymnasium.Env or a VectorEnv, got {type(made).__name__}"
        )
    name = getattr(made.spec, "id", None) or type(made.unwrapped).__name__
    if isinstance(made, single):
        envs = [made, *(source() for _ in range(num_lanes - 1))]
        if len({id(env) for env in envs}) < num_lanes:
            raise ValueError("make_env: env must make a new environment each time, got one again")
        wrap = watched(gymnasium.Wrapper)
        made = gymnasium.vector.SyncVectorEnv(
            [functools.partial(wrap, env) for env in envs],
            autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP,
        )
    of_one_each = (gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv)
    return LaneEnv(
        made,
        name=name,
        settings={"made_by": BROUGHT},
        seeding="list" if isinstance(made.unwrapped, of_one_each) else "one",
        view=view,
        teacher_view=teacher_view,
        is_lent=is_lent,
    )


def required(module: str) -> Any:
    """An optional library.

    Raises:
        ImportError: It is missing, with what installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"fastdistill.envs needs {module}: pip install 'ale-py>=0.12.1' 'gymnasium>=1.2'"
        ) from error
