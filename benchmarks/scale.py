# SPDX-License-Identifier: MIT
"""The parts that work beyond one machine is made of, measured, and what follows for 1 to 100.

Collectors that write shards, learners that read them, ranks that average gradients (torchrun, gloo)
and Ray actors on two nodes of this machine. Results go to benchmarks/results/scale.json, the
tables between the markers of docs/scale.md are written from it.

    python benchmarks/scale.py
    python benchmarks/scale.py --render
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pages
import torch
import torch.distributed as dist

from fastdistill.envs import EnvSpec
from fastdistill.recipes.collect import collect
from fastdistill.teachers import load_teacher
from fastdistill.training.counters import Counters
from fastdistill.training.labelled_shards import LabelledShards
from fastdistill.training.learners.student import Student, make_students
from fastdistill.training.ranks import ALONE, Ranks, open_ranks
from fastdistill.training.shards import Collection
from fastdistill.training.task import Task

HERE = Path(__file__).parent
RESULT = HERE / "results" / "scale.json"
SIZES = ("7%", "100%")
BATCH = 64
# In the environment of the processes that this one has started.
MARK = f"FASTDISTILL_SCALE={os.getpid()}"
STEPS_PER_UPDATE = 8  # the default of a distillation
MACHINES = (1, 2, 4, 10, 30, 100)
# A network between machines, for the model alone: 10 gigabit Ethernet, and a round trip in it.
NETWORK_BYTES_PER_SECOND, NETWORK_ROUND_SECONDS = 1.25e9, 50e-6


def cpu_seconds() -> float:
    """Of this process, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def one_thread() -> None:
    """What every part is measured with: ranks and actors share the cores."""
    torch.set_num_threads(1)


def measure_shards(folder: Path, steps: int) -> dict[str, float]:
    """Collect Pong, open the collection, read it into a replay."""
    teacher = load_teacher("zoo:pong")
    wall, cpu = time.perf_counter(), cpu_seconds()
    collect(teacher, folder / "data", steps=steps, game="pong")
    found = {"collect_wall_seconds": time.perf_counter() - wall}
    found["collect_cpu_seconds"] = cpu_seconds() - cpu
    found["rows"] = steps
    found["bytes"] = sum(path.stat().st_size for path in (folder / "data").rglob("*.*"))
    wall, cpu = time.perf_counter(), cpu_seconds()
    collection = Collection(folder / "data")
    found["open_cpu_seconds"] = cpu_seconds() - cpu
    task = Task(collection.spec, teacher, 0.01)
    source = LabelledShards(
        [task], [collection], Counters(), damaged="refuse", replay_capacity=steps, seed=1
    )
    cpu = cpu_seconds()
    for _ in range(steps // collection.num_lanes):
        source.step(0.0, None)
    found["read_cpu_seconds"] = cpu_seconds() - cpu
    return found


def pong() -> EnvSpec:
    """What the teacher that ships was trained on, without an emulator."""
    card = load_teacher("zoo:pong").card
    meanings = tuple(card["action_meanings"])
    return EnvSpec("pong", "classic", (4, 84, 84), 4, len(meanings), meanings, card["environment"])


def student_of(size: str, ranks: Ranks) -> Student:
    """One student of Pong."""
    (found,) = make_students(
        [pong()], losses=["kl"], sizes=[size], seeds=[1], optimizer="adam", learning_rate=1e-3,
        bfloat16=False, device=torch.device("cpu"), ranks=ranks,
    )  # fmt: skip
    return found


def time_updates(student: Student, rows: int, repeats: int) -> dict[str, float]:
    """Seconds of an update: of CPU time, the mean, and of wall-clock time."""
    rng = torch.Generator().manual_seed(0)
    obs = torch.randint(256, (rows, 4, 84, 84), generator=rng, dtype=torch.uint8)
    labels = torch.randn(rows, 6, generator=rng)
    seconds = []
    for repeat in range(repeats):
        if repeat == 2:
            cpu = cpu_seconds()
        start = time.perf_counter()
        student.update(obs, [labels], [None], [0.01], 1e-3)
        seconds.append(time.perf_counter() - start)
    return {"cpu": (cpu_seconds() - cpu) / (repeats - 2), **spread_of(seconds[2:])}


def measure_rank(out: Path) -> None:
    """What each of the ranks does that torchrun has started; the first writes what came out."""
    one_thread()
    found: dict[str, Any] = {}
    with open_ranks(torch.device("cpu")) as ranks:
        for size in SIZES:
            student = student_of(size, ranks)
            updates = time_updates(student, BATCH // ranks.world, 25)
            half = time_updates(student, BATCH // 2, 25) if ranks.world == 1 else None
            weights = torch.cat([p.detach().flatten() for p in student.network.parameters()])
            reductions, cpu = [], cpu_seconds()
            for _ in range(25 if ranks.world > 1 else 0):
                start = time.perf_counter()
                dist.all_reduce(weights)
                reductions.append(time.perf_counter() - start)
            cpu = (cpu_seconds() - cpu) / 25
            found[size] = {
                "parameters": len(weights),
                "update_seconds": updates,
                "half_batch_seconds": half,
                "all_reduce_seconds": {"cpu": cpu, **spread_of(reductions)} if reductions else None,
            }
        if ranks.is_first:
            out.write_text(json.dumps(found))


def spread_of(seconds: Sequence[float]) -> dict[str, float]:
    """The least and the median."""
    return {"min": float(np.min(seconds)), "median": float(np.median(seconds))}


def measure_ranks(folder: Path) -> dict[str, Any]:
    """One rank, then two on this machine, with the same joint batch."""
    found = {}
    for world in (1, 2):
        out = folder / f"ranks{world}.json"
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc-per-node={world}", __file__, "--rank-out", str(out)],
            check=True,
        )  # fmt: skip
        found[str(world)] = json.loads(out.read_text())
    return found


def actors_cpu_seconds() -> float:
    """CPU time of the processes that this one's Ray has started as actors."""
    total = 0
    for folder in Path("/proc").iterdir():
        try:
            is_actor = (folder / "cmdline").read_bytes().startswith(b"ray::Actor")
            if is_actor and MARK.encode() in (folder / "environ").read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])  # user and system
        except OSError:
            continue  # no process, or one that has ended
    return total / os.sysconf("SC_CLK_TCK")


def measure_actors(seconds: float) -> dict[str, Any]:
    """Rows per second that a learner takes from 1, 2 and 4 Ray actors on two nodes."""
    import ray
    from ray.cluster_utils import Cluster

    from fastdistill.training.labelled_actors import AHEAD, LabelledActors
    from fastdistill.training.ray_actors import BLOCK_STEPS

    os.environ.update([MARK.split("="), ("RAY_worker_niceness", "0")])  # as the learner's
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 300 << 20}
    )
    cluster.add_node(num_cpus=2, object_store_memory=300 << 20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    found: dict[str, Any] = {"ahead_blocks": AHEAD, "block_steps": BLOCK_STEPS, "actors": {}}
    for actors in (1, 2, 4):
        task = Task(pong(), load_teacher("zoo:pong"), 0.01)
        counters = Counters()
        source = LabelledActors(
            [task], [student_of("7%", ALONE)], counters,
            actors=actors, num_lanes=16 // actors, replay_capacity=50_000, seed=1, bfloat16=False,
        )  # fmt: skip
        for _ in range(2 * actors):  # until all of them have come up
            source.step(0.05, None)
        counters.total_seconds.clear()
        before, wall, cpu = counters.step, time.perf_counter(), cpu_seconds()
        played = actors_cpu_seconds()
        while time.perf_counter() - wall < seconds:
            source.step(0.05, None)
        rows = counters.step - before
        found["actors"][str(actors)] = {
            "rows_per_second": rows / (time.perf_counter() - wall),
            "actors_cpu_seconds_per_row": (actors_cpu_seconds() - played) / rows,
            "learner_cpu_seconds_per_row": (cpu_seconds() - cpu) / rows,
            "learner_take_seconds_per_row": counters.total_seconds["replay"] / rows,
            "waiting_share": counters.total_seconds["wait"] / (time.perf_counter() - wall),
        }
        source.close()
    ray.shutdown()
    cluster.shutdown()
    return found


def model(result: dict[str, Any]) -> dict[str, Any]:
    """What the measured parts say of more machines, each with this one's cores.

    Rows: collectors add up, until the one learner cannot take more. Updates: each rank computes on
    its part of the batch, then a ring passes the gradients on: 2 (n - 1) / n of their bytes, and
    2 (n - 1) rounds.
    """
    shards, actors = result["shards"], result["ray"]["actors"]
    per_core = shards["rows"] / shards["collect_cpu_seconds"]
    ray_per_core = 1 / actors["1"]["actors_cpu_seconds_per_row"]
    takes = 1 / actors["4"]["learner_cpu_seconds_per_row"]
    cores = result["machine"]["cores"]
    rows: dict[str, Any] = {}
    updates: dict[str, Any] = {size: {} for size in SIZES}
    for count in MACHINES:
        machines = count * cores
        rows[str(count)] = {
            "shards": machines * per_core,
            "ray": min(machines * ray_per_core, takes),
        }
        for size in SIZES:
            one = result["ranks"]["1"][size]
            gradients = 4 * one["parameters"]
            exchange = (
                2
                * (count - 1)
                * (gradients / count / NETWORK_BYTES_PER_SECOND + NETWORK_ROUND_SECONDS)
            )
            # Of a batch that each machine adds to: what it costs to learn from more at once.
            updates[size][str(count)] = one["update_seconds"]["cpu"] + exchange
    return {
        "rows_per_second": rows,
        "learner_takes_rows_per_second": takes,
        "rows_per_core_second": per_core,
        "update_seconds_with_batch_64_each": updates,
        "network_bytes_per_second": NETWORK_BYTES_PER_SECOND,
        "network_round_seconds": NETWORK_ROUND_SECONDS,
    }


def render(result: dict[str, Any]) -> str:
    """The tables of docs/scale.md."""
    where, shards, guess = result["machine"], result["shards"], result["model"]
    rows = shards["rows"]
    lines = [
        "`benchmarks/results/scale.json`, made by `python benchmarks/scale.py` on "
        f"{where['cores']} cores of {where['cpu']}, torch {where['torch']}, commit "
        f"{where['commit']}. {result['note']}",
        "",
        "| part | measured |",
        "|---|---|",
        "| collecting Pong, 16 lanes, written to disk | "
        f"{rows / shards['collect_cpu_seconds']:,.0f} rows per second of CPU time |",
        f"| a row on disk | {shards['bytes'] / rows:,.0f} bytes |",
        "| opening a collection, hashes compared | "
        f"{shards['bytes'] / shards['open_cpu_seconds'] / 1e9:.2f} GB per second of CPU time |",
        "| reading it into the replay | "
        f"{rows / shards['read_cpu_seconds']:,.0f} rows per second of CPU time |",
    ]
    for size in SIZES:
        one, two = (result["ranks"][world][size] for world in ("1", "2"))
        lines += [
            f"| an update of {size} ({one['parameters']:,} parameters), batch {BATCH}: one process "
            f"| {_ms(one['update_seconds'])} |",
            f"| the same by two ranks, {BATCH // 2} rows each | {_ms(two['update_seconds'])} |",
            "| of it the all-reduce, alone (gloo, one machine) | "
            f"{_ms(two['all_reduce_seconds'])} |",
        ]
    lines += [
        "",
        "| Ray actors (16 lanes in all, two nodes) | rows per second | the learner waits | "
        "CPU time of the actors, per row | of the learner |",
        "|---|---|---|---|---|",
    ]
    for actors, part in result["ray"]["actors"].items():
        lines.append(
            f"| {actors} | {part['rows_per_second']:,.0f} | {100 * part['waiting_share']:.0f}% | "
            f"{1e3 * part['actors_cpu_seconds_per_row']:.2f} ms | "
            f"{1e6 * part['learner_cpu_seconds_per_row']:.0f} us |"
        )
    lines += [
        "",
        f"The model, for machines with {where['cores']} such cores each and 10 gigabit Ethernet "
        "between them (on paper: no such network was measured):",
        "",
        "| machines | rows/s to shards | rows/s to one learner by Ray | "
        + " | ".join(f"update of {size}, {BATCH} rows on each machine" for size in SIZES)
        + " |",
        "|---|---|---|" + "---|" * len(SIZES),
    ]
    for count in map(str, MACHINES):
        cells = [
            f"{1e3 * guess['update_seconds_with_batch_64_each'][s][count]:.1f} ms" for s in SIZES
        ]
        both = guess["rows_per_second"][count]
        lines.append(
            f"| {count} | {both['shards']:,.0f} | {both['ray']:,.0f} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "The model against what two of them did here, on one machine whose cores they share:",
        "",
        "| two machines | model | measured |",
        "|---|---|---|",
    ]
    for size in SIZES:
        one, two = (result["ranks"][world][size] for world in ("1", "2"))
        wanted = one["half_batch_seconds"]["cpu"] + two["all_reduce_seconds"]["cpu"]
        lines.append(
            f"| CPU time of a rank's update of {size}, {BATCH} rows in all: half a batch and the "
            f"all-reduce | {1e3 * wanted:.1f} ms | {1e3 * two['update_seconds']['cpu']:.1f} ms |"
        )
    first, second = (
        result["ray"]["actors"][actors]["actors_cpu_seconds_per_row"] for actors in ("1", "2")
    )
    lines.append(
        "| CPU time of a row by Ray, an actor on each of two nodes: as by one | "
        f"{1e3 * first:.2f} ms | {1e3 * second:.2f} ms |"
    )
    return "\n".join([*lines, ""])


def _ms(seconds: dict[str, float]) -> str:
    return (
        f"{1e3 * seconds['cpu']:.1f} ms of CPU time; wall clock {1e3 * seconds['min']:.1f} / "
        f"{1e3 * seconds['median']:.1f} ms (least / median)"
    )


def main() -> None:
    """Measures, then writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16_000, help="of the collection")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each number of actors")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--render", action="store_true", help="only write docs/scale.md anew")
    parser.add_argument("--rank-out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_out is not None:
        measure_rank(arguments.rank_out)
        return
    if not arguments.render:
        one_thread()
        with tempfile.TemporaryDirectory() as folder:
            result: dict[str, Any] = {
                "benchmark": "scale",
                "note": arguments.note,
                "machine": machine.describe(),
                "shards": measure_shards(Path(folder), arguments.steps),
                "ranks": measure_ranks(Path(folder)),
                "ray": measure_actors(arguments.seconds),
            }
        result["model"] = model(result)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    text = render(json.loads(RESULT.read_text()))
    pages.write_part("docs/scale.md", "scale.py", f"\n{text}\n")


if __name__ == "__main__":
    main()
