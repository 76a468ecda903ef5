# SPDX-License-Identifier: MIT
"""What files of networks of several games say: of each game, and of each head's input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Input statistics.
OF_EACH_HEAD = ("obs_mean", "obs_scale")


def give_each_head_its_own(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], *, limit_bytes: int
) -> None:
    """Before version 0.2 all heads of a network shared their input statistics.

    Args:
        tensors: Of a file, whose shapes are otherwise those expected; changed.
        expected: Of the network.
        limit_bytes: Most that the statistics of all heads may take.

    Raises:
        ValueError: They would take more.
    """
    for name in OF_EACH_HEAD:
        found, wanted = tensors[name], expected[name]
        if found.shape == wanted.shape[1:]:
            size = wanted.numel() * found.element_size()
            if size > limit_bytes:
                raise ValueError(f"have at most {limit_bytes} bytes of {name}, got {size}")
            tensors[name] = found.expand(wanted.shape).contiguous()


def game_card(card: dict[str, Any], game: str) -> dict[str, Any]:
    """The description that a network of several games has of one of them.

    Args:
        card: Of ``load_network``.
        game: One of its games.
    """
    (own,) = (entry for entry in card["games"] if entry["game"] == game)
    place = [entry["game"] for entry in card["games"]].index(game)
    architecture = card["architecture"]
    actions = [architecture["num_actions"][place]]
    shared = {name: value for name, value in card.items() if name != "games"}
    return {**shared, **own, "architecture": {**architecture, "num_actions": actions}}
