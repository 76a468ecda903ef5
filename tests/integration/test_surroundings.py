# SPDX-License-Identifier: MIT
"""Other people's machines: few file descriptors, a home that is not theirs, odd paths, no memory.

One program imports the package and makes each public call; it runs in a process of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastdistill as fd

PROGRAM = """
import resource, sys
from pathlib import Path
if sys.argv[2] == "few files":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
import torch
import fastdistill as fd

folder = Path(sys.argv[1])
torch.manual_seed(0)
s, t = torch.randn(8, 5), torch.randn(8, 5)
for name in ("kl", "nll", "mse", "reverse_kl", "jsd"):
    assert torch.isfinite(getattr(fd, f"distill_{name}")(s, t))
    loss, grad = fd.distill_loss_and_grad(name, s, t)
    assert torch.isfinite(grad).all()
assert torch.isfinite(fd.DistillLoss("kl")(s, t))
fd.td_loss(s, torch.zeros(8, dtype=torch.int64), torch.zeros(8))
assert isinstance(fd.has_cuda_kernels(), bool)
replay = fd.PrioritizedReplay(64, 1, frame_shape=(3,), frame_dtype="float32", stack=1)
for step in range(10):
    replay.append(np.full((1, 3), step, np.float32), [1], [0.5], [False], [False])
replay.save(folder / "replay.bin")
replay.load(folder / "replay.bin")
assert isinstance(replay.sample(4), fd.ReplayBatch)
module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
result = fd.distill(
    module, "CartPole-v1", run_dir=folder / "run", total_updates=20, num_lanes=4, batch_size=16,
    learning_starts_steps=80, replay_capacity=500, score_episodes=1, evaluation_episodes=2,
    tensorboard=False, bfloat16=False, device="cpu",
)
assert isinstance(result, fd.DistillResult)
assert isinstance(fd.evaluate(folder / "run", "CartPole-v1", episodes=2), fd.Evaluation)
assert isinstance(fd.load_teacher(folder / "run"), fd.Teacher)
network, _ = fd.load_network(folder / "run")
fd.load_weights(folder / "run", network)
fd.verify_teacher(fd.load_teacher(folder / "run"), "CartPole-v1", episodes=2)
fd.export(folder / "run", folder / "student.pt2", "pt2", frames=8)
print("all is well")
"""


def calls(
    folder: Path, what: str = "", *, prefix: tuple[str, ...] = (), **environment: str
) -> None:
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), what],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all is well\n")


def test_few_file_descriptors(tmp_path):
    calls(tmp_path, "few files")


def test_a_path_with_blanks_and_quotes(tmp_path):
    folder = tmp_path / """it's a "path" of $HOME; ünïcode & [more] *"""
    folder.mkdir()
    calls(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become somebody else")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_another_user_without_a_home_that_can_be_written(tmp_path):
    nobody = pwd.getpwnam("nobody")
    package = Path(fd.__file__).parent
    reachable = subprocess.run(
        ["setpriv", f"--reuid={nobody.pw_uid}", "--clear-groups", sys.executable, "-c",
         f"import os, torch; assert os.access({str(package)!r}, os.R_OK | os.X_OK)"],
        capture_output=True, check=False,
    )  # fmt: skip
    if reachable.returncode:
        pytest.skip("this interpreter or this package lies where others may not read")
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    prefix = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    calls(folder, prefix=prefix, HOME=str(home), USER="nobody", LOGNAME="nobody")
    assert list(home.iterdir()) == []
