# SPDX-License-Identifier: MIT
"""Recipes: each module is a configuration, the parts that it wires together, and a short loop."""
