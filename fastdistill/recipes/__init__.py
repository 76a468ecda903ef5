# SPDX-License-Identifier: MIT
"""Recipes: each module is one linear program, its dataclass the configuration."""
