# SPDX-License-Identifier: MIT
"""Where a distillation's labelled states come from: play here, or what was played before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from fastdistill.recipes.data_tasks import open_data
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.options import refuse_view
from fastdistill.recipes.tasks import Given, open_tasks
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_actors import LabelledActors
from fastdistill.training.labelled_play import LabelledPlay
from fastdistill.training.labelled_shards import LabelledShards
from fastdistill.training.learners.student import Student
from fastdistill.training.ranks import Ranks
from fastdistill.training.task import Task

# What is to be learned from, once it is known who learns and what counts.
Source = Callable[[Sequence[Student], Counters], LabelledPlay | LabelledShards | LabelledActors]


def open_source(
    config: DistillConfig, given: Given, ranks: Ranks, opened: ExitStack
) -> tuple[list[Task], Source]:
    """The tasks, and their states: from play, or from what was played before."""
    capacity = ranks.part_of("replay_capacity", config.replay_capacity)
    if config.directories:
        tasks, collections = open_data(config, given, ranks.device)

        def read(students: Sequence[Student], counters: Counters) -> LabelledShards:
            return LabelledShards(
                tasks,
                collections,
                counters,
                damaged=config.damaged,
                replay_capacity=capacity,
                seed=config.seed,
                ranks=ranks,
            )

        return tasks, read
    if config.engine == "ray":
        if ranks.world > 1:
            raise ValueError("distill: engine must be local with several ranks, got 'ray'")
        tasks, _ = open_tasks(config, given, ranks.device, 1, opened)
        for task in tasks:  # a teacher may have a view of its own, which no option says
            refuse_view("distill", task.teacher, " with engine ray")

        def ask(students: Sequence[Student], counters: Counters) -> LabelledActors:
            source = LabelledActors(
                tasks,
                students,
                counters,
                actors=config.actors,
                num_lanes=config.num_lanes // config.actors,
                replay_capacity=capacity,
                seed=config.seed,
                bfloat16=config.bfloat16,
            )
            opened.callback(source.close)
            return source

        return tasks, ask
    if config.follow and ranks.world > 1:
        raise ValueError(f"distill: follow must be off with several ranks, got {ranks.world}")
    lanes = ranks.part_of("num_lanes", config.num_lanes)
    tasks, envs = open_tasks(config, given, ranks.device, lanes, opened)
    for task in tasks if config.follow else ():
        refuse_view("distill", task.teacher, " with follow")

    def play(students: Sequence[Student], counters: Counters) -> LabelledPlay:
        return LabelledPlay(
            tasks, envs, students, counters, replay_capacity=capacity, seed=config.seed,
            bfloat16=config.bfloat16, ranks=ranks,
        )  # fmt: skip

    return tasks, play
