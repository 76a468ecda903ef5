# SPDX-License-Identifier: MIT
"""What the tests start with torchrun: updates of students, or a whole distillation on CartPole.

torchrun --standalone --nproc-per-node=2 tests/ranks_program.py updates OUT.pt
torchrun --standalone --nproc-per-node=2 tests/ranks_program.py distill RUN_DIR {"option": ...}
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from cartpole import Balancer
from torch import Tensor, nn

import fastdistill as fd
from fastdistill.networks import QNetwork, paper_architecture
from fastdistill.training.learners.student import Student
from fastdistill.training.ranks import Ranks, open_ranks
from fastdistill.training.targets import state_weight


def students(ranks: Ranks) -> dict[str, Student]:
    """One of one game, one of two; float64 throughout."""
    torch.manual_seed(ranks.rank)  # each its own weights, of which the first rank's must win
    single = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    several = QNetwork.seeded(paper_architecture("4%", [3, 2], obs_shape=(4,)), ranks.rank).double()
    options = {"optimizer": "adam", "learning_rate": 1e-2, "bfloat16": False, "ranks": ranks}
    return {
        name: Student(network, loss="kl", size=name, seed=0, **options)
        for name, network in (("single", single), ("several", several))
    }


def updates(ranks: Ranks, weighting: str = "gap") -> dict[str, Tensor]:
    """Three updates of each on this rank's part of the same batches; the weights afterwards."""
    both = students(ranks)
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        # Two games of 16 rows each, 8 of each on each of two ranks.
        obs = [torch.randn(16, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
        labels = [torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (3, 2)]
        part = slice(ranks.rank * 16 // ranks.world, (ranks.rank + 1) * 16 // ranks.world)
        obs, labels = [o[part] for o in obs], [one[part] for one in labels]
        weights = [state_weight(weighting, one, 1.0, ranks) for one in labels]
        both["single"].update(obs[0], labels[:1], weights[:1], [1.0], 1e-2)
        both["several"].update(torch.cat(obs), labels, weights, [1.0, 0.5], 1e-2)
    return {
        f"{name}.{key}": value.clone()
        for name, student in both.items()
        for key, value in student.network.state_dict().items()
    }


def main() -> None:
    what, path, *more = sys.argv[1:]
    torch.set_num_threads(1)
    if what == "updates":
        with open_ranks(torch.device("cpu")) as ranks:
            found = updates(ranks)
            if ranks.is_first:
                torch.save(found, path)
        return
    options = json.loads(more[0])
    die_after = options.pop("die_after", None)  # updates, then the last rank kills itself
    if die_after is not None:
        # torchrun ends the others at once; on a busy machine before they can say what they saw.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if die_after is not None and os.environ.get("RANK") == "1":
        from fastdistill.training.students import Students

        learn = Students.learn

        def dying(self: Students, *arguments: object) -> None:
            learn(self, *arguments)
            if self.updates == die_after:
                os.kill(os.getpid(), 9)

        Students.learn = dying
    result = fd.distill(Balancer(), "CartPole-v1", run_dir=Path(path), **options)
    print(f"rank {os.environ.get('RANK')} stopped {result.stopped} at {result.updates}")


if __name__ == "__main__":
    main()
