# SPDX-License-Identifier: MIT
"""What files of networks of several games say: of each game, and of each head's input."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def give_each_head_its_own(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Before version 0.2 all heads of a network shared their input statistics."""
    for name in ("obs_mean", "obs_scale"):
        found, wanted = tensors.get(name), expected[name].shape
        if found is not None and found.shape == wanted[1:]:
            tensors[name] = found.expand(wanted).contiguous()


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
