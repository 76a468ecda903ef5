# SPDX-License-Identifier: MIT
"""Builds the pages of the API from the docstrings, with pdoc.

    python docs/build_api.py build/docs    # or: make docs

A warning of pdoc's is an error, and so is a public name that has no docstring or is not shown.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pdoc

import fastdistill as fd

# Packages show what their __all__ names; so those whose names users import are listed here.
MODULES = (
    "fastdistill",
    "fastdistill.losses",
    "fastdistill.replay",
    "fastdistill.envs",
    "fastdistill.networks",
    "fastdistill.teachers",
    "fastdistill.evaluation",
    "fastdistill.evaluation.statistics",
    "fastdistill.training",
    "fastdistill.recipes",
    "fastdistill.report",
)


def build(folder: Path) -> None:
    """Write the pages into a folder."""
    warnings.filterwarnings("error", module=r"pdoc\b")
    # pdoc reads the annotations of a NamedTuple elsewhere than in its module, and finds no names.
    warnings.filterwarnings("ignore", r"Error parsing type annotation ForwardRef\(")
    pdoc.render.configure(docformat="google", footer_text=f"fastdistill {fd.__version__}")
    pdoc.pdoc(*MODULES, output_directory=folder)


def missing(folder: Path) -> list[str]:
    """The public names that the pages do not show, or that have no docstring."""
    page = (folder / "fastdistill.html").read_text()
    return [
        name
        for name in fd.__all__
        if f'<section id="{name}">' not in page or not (getattr(fd, name).__doc__ or "").strip()
    ]


def main() -> None:
    """Build, and look whether every public name is there."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # away from the sources, which pdoc would take for another such package
    build(folder)
    if names := missing(folder):
        raise SystemExit(f"build_api: public names must be documented, got none for {names}")
    print(f"{folder / 'index.html'}")


if __name__ == "__main__":
    main()
