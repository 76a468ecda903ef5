# SPDX-License-Identifier: MIT
"""The Python of README.md and of docs/ runs as it stands there; commands and links exist.

The blocks of a page are run in order, in one namespace, in an empty directory. What the text
presupposes (the caller's tensors, networks, teachers) is made up here, small; the long calls are
made short by ``short``, which lowers counts, and leaves out reports and latencies.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdistill as fd
from fastdistill import cli
from fastdistill.envs import PRESETS
from fastdistill.evaluation import compare
from fastdistill.recipes import distill as recipe
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.online import OnlineConfig
from fastdistill.recipes.pqn import PqnConfig

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXTS = [
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "docs", ROOT / "tests", ROOT / "benchmarks")
    for path in sorted(folder.glob("*.md"))
]


def page_text(page: str) -> str:
    return (ROOT / page).read_text()


# A page whose programs are run elsewhere, in processes of their own, says where.
PAGES = [
    page
    for page in TEXTS
    if BLOCK.search(page_text(page)) and "<!-- tested: tests/" not in page_text(page)
]

# What each command takes.
OPTIONS = {
    "quickstart": set(inspect.signature(cli.quickstart).parameters),
    "distill": {field.name for field in fields(DistillConfig)} | {"resume", "help"},
    "teacher dqn": {field.name for field in fields(DqnConfig)} | {"resume"},
    "online": {field.name for field in fields(OnlineConfig)} | {"resume"},
    "teacher pqn": {field.name for field in fields(PqnConfig)} | {"resume"},
    "evaluate": set(inspect.signature(cli.evaluate).parameters),
    "collect": set(inspect.signature(cli.collect).parameters),
    "zoo": set(),
    "relabel": set(inspect.signature(cli.relabel).parameters),
    "report": set(inspect.signature(cli.report).parameters),
    "export": set(inspect.signature(cli.export).parameters),
    "verify-teacher": set(inspect.signature(cli.verify_teacher).parameters),
}

# Counts of a distillation: the smaller of these and of what the text says.
COUNTS = {
    "total_updates": 2,
    "learning_starts_steps": 128,
    "num_lanes": 4,
    "seeds": 1,
    "score_episodes": 0,
    "evaluation_episodes": 1,
}


# Emulator frames of an Atari episode; a full game of Pong takes thousands.
EPISODE_FRAMES = 200


def blocks(text: str) -> list[str]:
    """The Python blocks, each with as many empty lines before it as it has lines above it."""
    return ["\n" * text[: m.start(1)].count("\n") + m[1] for m in BLOCK.finditer(text)]


def run(text: str, page: str, namespace: dict[str, Any]) -> None:
    for block in blocks(text):
        exec(compile(block, page, "exec"), namespace)


class ShortReplay(fd.PrioritizedReplay):
    """One of few rows, into which each step goes as often as it takes to draw from it."""

    def __init__(self, capacity: int, *args: Any, **options: Any) -> None:
        super().__init__(min(capacity, 1000), *args, **options)

    def append(self, *row: Any, **columns: Any) -> Any:
        for _ in range(8):
            ids = super().append(*row, **columns)
        return ids


@pytest.fixture
def short(monkeypatch, tmp_path):
    """The same calls with fewer updates, episodes and rows, and games cut short."""
    distill, evaluate = fd.distill, fd.evaluate

    def short_distill(*args: Any, **options: Any) -> fd.DistillResult:
        lowered = {name: min(count, options.get(name, count)) for name, count in COUNTS.items()}
        return distill(*args, **{**options, **lowered})

    def short_evaluate(*args: Any, **options: Any) -> fd.Evaluation:
        return evaluate(*args, **{**options, "episodes": 1})

    for preset, rules in PRESETS.items():
        monkeypatch.setitem(PRESETS, preset, replace(rules, max_episode_frames=EPISODE_FRAMES))
    # What other tests look at, and takes longer than all the rest.
    monkeypatch.setattr(compare, "latency_seconds", lambda *_, **__: 1e-3)
    monkeypatch.setattr(recipe, "try_report", lambda run_dir: run_dir / "report.html")
    monkeypatch.setattr(fd, "distill", short_distill)
    monkeypatch.setattr(fd, "evaluate", short_evaluate)
    monkeypatch.setattr(fd, "PrioritizedReplay", ShortReplay)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # conftest.py restores it; for such small work two wait for each other


def presupposed_by_readme() -> dict[str, Any]:
    logits = torch.randn(32, 6, requires_grad=True)
    flags = torch.zeros(8, dtype=torch.bool)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4 * 84 * 84, 6))

    def q(obs: Tensor) -> Tensor:
        return network(obs.float() / 255)

    def target_of(batch: fd.ReplayBatch) -> Tensor:
        return batch.reward + batch.discount * q(batch.next_obs).max(dim=1).values.detach()

    return {
        "student_logits": logits,
        "teacher_logits": torch.randn(32, 6),
        "buffer": torch.empty(32, 6),
        "frame": torch.zeros(8, 84, 84, dtype=torch.uint8),
        "action": torch.zeros(8, dtype=torch.int64),
        "reward": torch.zeros(8),
        "terminated": flags,
        "truncated": flags,
        "boundary": flags,
        "q": q,
        "target_of": target_of,
    }


class ActorCritic(nn.Module):
    """A policy as others write them: floats in, logits and a value out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4 * 84 * 84, 7))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        out = self.body(obs)
        return out[:, :6], out[:, 6]


PRESUPPOSED: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": presupposed_by_readme,
    "docs/your_teacher.md": lambda: {"actor_critic": ActorCritic()},
    "docs/your_student.md": lambda: {"teacher": nn.Linear(4, 2)},
    "docs/options.md": lambda: {
        "student_logits": torch.randn(32, 6),
        "teacher_logits": torch.randn(32, 6),
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, short):
    text = page_text(page)
    given = PRESUPPOSED.get(page, dict)()
    code = "".join(blocks(text))
    assert [name for name in given if not re.search(rf"\b{name}\b", code)] == []
    run(text, page, given)


def test_every_page_has_a_test():
    assert PRESUPPOSED.keys() <= set(PAGES)
    assert {"README.md", "docs/your_teacher.md", "docs/your_student.md"} <= set(PAGES)


@pytest.mark.parametrize("page", TEXTS)
def test_the_commands_of_a_page_exist(page):
    for line in re.findall(
        r"(?:^    |`)fastdistill (\w.*?)(?:#|`|$)", page_text(page), re.MULTILINE
    ):
        first, second, *_ = [*line.split(), ""]
        command = f"{first} {second}" if first == "teacher" else first
        if command == "teacher ":  # the two together
            continue
        assert command in OPTIONS, line
        flags = {
            flag.replace("-", "_") for flag in re.findall(r"--(?:no-)?([a-z][a-z0-9-]*)", line)
        }
        assert flags <= OPTIONS[command], line


@pytest.mark.parametrize("page", TEXTS)
def test_the_links_of_a_page_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page_text(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_name_that_does_not_exist_is_noticed():
    text = "Text.\n\n```python\nimport fastdistill as fd\n```\n\n```python\nfd.distil_kl\n```\n"
    with pytest.raises(AttributeError, match="distil_kl") as error:
        run(text, "page.md", {})
    lines = [entry.lineno + 1 for entry in error.traceback if Path(entry.path).name == "page.md"]
    assert lines == [8]
