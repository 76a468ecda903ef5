# SPDX-License-Identifier: MIT
"""A distillation by Ray actors on two nodes of one machine; what happened, as JSON.

    python tests/ray_program.py RUN_DIR {"option": ...}

``kill_after``: updates after which an actor's process is killed. ``kill_idle_after``: updates after
which, and after that death, the processes of all are, once they have done all that they were
asked for. Teacher and game: a hand-made policy of CartPole unless ``teacher`` names another.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from cartpole import Balancer
from ray.cluster_utils import Cluster

import fastdistill as fd
from fastdistill.training.labelled_actors import LabelledActors
from fastdistill.training.ray_cluster import evaluate_spread

taken: list[tuple[int, int, int, int]] = []  # task, actor, life, number of each block that came
asked_at_most = 0
# Task, actor, life, and blocks that it was asked for in it, when all were killed.
ends: list[tuple[int, int, int, int]] = []


class Watched(LabelledActors):
    """Notes what is taken, and how much is asked for at once."""

    kill_idle_after: int | None = None
    restarts_before: int | None = None  # those of all at rest

    def _take(self, actor: Any) -> bool:
        global asked_at_most
        due = self.kill_idle_after is not None and self._restarts > 0
        if due and self._counters.updates >= self.kill_idle_after:
            self._kill_all_at_rest()
        asked_at_most = max(asked_at_most, len(actor.pending))
        order = actor.pending[0][1]
        place, number = next(
            (place, actors.index(actor))
            for place, actors in enumerate(self._actors)
            if actor in actors
        )
        was_taken = super()._take(actor)
        if was_taken:
            taken.append((place, number, order.life, order.number))
        return was_taken

    def _kill_all_at_rest(self) -> None:
        every = [
            (place, number, actor)
            for place, actors in enumerate(self._actors)
            for number, actor in enumerate(actors)
        ]
        Watched.kill_idle_after, Watched.restarts_before = None, self._restarts
        under_way = [pending[0] for *_, actor in every for pending in actor.pending]
        ray.wait(under_way, num_returns=len(under_way))
        while len(processes := actor_processes()) < len(every):  # one is being started again
            time.sleep(0.02)
        for process in processes:
            os.kill(process, 9)
        for *_, actor in every:  # it lives again before anybody asks
            wait_until_ready(actor.handle)
        ends.extend((place, number, actor.life, actor.asked) for place, number, actor in every)


def wait_until_ready(handle: Any) -> None:
    """Wait for the successor of an actor's process."""
    while True:
        try:
            ray.get(handle.__ray_ready__.remote())
            return
        except ray.exceptions.RayActorError:
            time.sleep(0.05)


def kill_an_actor(run_dir: Path, after_updates: int) -> None:
    """Kill the process of one actor once the run is so far."""
    metrics = run_dir / "metrics.jsonl"
    while True:
        text = metrics.read_text() if metrics.exists() else ""
        # A last line without its end is still being written.
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        if any(record.get("time/updates", 0) >= after_updates for record in records):
            break
        time.sleep(0.02)
    os.kill(actor_processes()[0], 9)


def actor_processes() -> list[int]:
    """Of this program's actors."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                title = (folder / "cmdline").read_bytes()
                mine = (folder / "environ").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"Actor" in title and MARK.encode() in mine:
                found.append(int(folder.name))
    return found


MARK = f"FASTDISTILL_RAY_TEST={os.getpid()}"


def main() -> None:
    run_dir, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    os.environ["FASTDISTILL_RAY_TEST"] = str(os.getpid())
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 200 << 20},
    )
    cluster.add_node(num_cpus=2, object_store_memory=200 << 20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    kill_after = options.pop("kill_after", None)
    Watched.kill_idle_after = options.pop("kill_idle_after", None)
    teacher = options.pop("teacher", None) or Balancer()
    env = options.pop("env", "CartPole-v1")
    import fastdistill.recipes.sources as sources

    sources.LabelledActors = Watched
    if kill_after is not None:
        threading.Thread(target=kill_an_actor, args=(run_dir, kill_after), daemon=True).start()
    result = fd.distill(teacher, env, engine="ray", run_dir=run_dir, **options)
    spread = evaluate_spread(Balancer(), "CartPole-v1", episodes=3, workers=2)
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    print(
        json.dumps(
            {
                "nodes": len(nodes),
                "spread": spread.returns,
                "taken": taken,
                "asked_at_most": asked_at_most,
                "ends": ends,
                "restarts_before": Watched.restarts_before,
                "updates": result.updates,
                "seconds": result.training_seconds,
                "mean": result.evaluation["students"][0]["summary"]["mean"]["value"]
                if result.evaluation
                else None,
            }
        )
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
