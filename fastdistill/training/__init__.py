# SPDX-License-Identifier: MIT
"""The parts that training is made of; a recipe puts them together."""
