# SPDX-License-Identifier: MIT
"""The parts of pages that benchmarks write."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent


def write_part(page: str, benchmark: str, text: str) -> None:
    """Replace what a page has between a benchmark's two markers.

    Args:
        page: Its path from the repository's root.
        benchmark: File name of the benchmark that writes it.
        text: Markdown; its last line ends.
    """
    begin, end = (
        f"<!-- {word}: written by benchmarks/{benchmark} -->" for word in ("begin", "end")
    )
    path = ROOT / page
    before, rest = path.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    path.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
