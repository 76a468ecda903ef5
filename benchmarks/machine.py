# SPDX-License-Identifier: MIT
"""What a result must say about where it was measured."""

from __future__ import annotations

import subprocess

from fastdistill.evaluation.cost import describe_machine


def describe() -> dict[str, str | int]:
    """Returns the machine, the library versions and the commit, for a result file."""
    return {**describe_machine(), "commit": commit()}


def commit() -> str:
    """The short hash of HEAD, with + for uncommitted changes; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip()

    changed = git("status", "--porcelain", "--", "csrc", "fastdistill", "benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
