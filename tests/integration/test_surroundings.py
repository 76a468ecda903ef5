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
    # They may read everything, for the interpreter may lie in root's home; and write nothing.
    prefix = (
        "setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    )  # fmt: skip
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("capabilities cannot be handed on here")
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    calls(folder, prefix=prefix, HOME=str(home), USER="nobody", LOGNAME="nobody")
    assert list(home.iterdir()) == []


LITTLE_MEMORY = """
import hashlib, os, resource, sys, tempfile
from pathlib import Path
import torch
import fastdistill as fd

folder, steps = Path(sys.argv[1]), int(sys.argv[2])

def digest(name):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    result = fd.distill(
        module, "CartPole-v1", run_dir=folder / name, total_updates=30, num_lanes=4,
        batch_size=4096, learning_starts_steps=400, replay_capacity=50_000, score_episodes=1,
        evaluation_episodes=0, tensorboard=False, bfloat16=False, device="cpu",
    )
    weights = [tensor.numpy().tobytes() for tensor in result.student.state_dict().values()]
    return hashlib.sha256(b"".join(weights)).hexdigest()

def kilobytes(what):
    (line,) = [x for x in open("/proc/self/status") if x.startswith(what + ":")]
    return int(line.split()[1])

def child(name, limit_kilobytes):
    read, write = os.pipe()
    if not (pid := os.fork()):
        begun = kilobytes("VmSize")
        if limit_kilobytes is not None:
            limit = (begun + limit_kilobytes) << 10
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            said = f"right {digest(name)} {kilobytes('VmPeak') - begun}"
        except Exception as error:
            said = f"refused {type(error).__name__}: {error}"
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    said = os.fdopen(read, "rb").read().decode()
    status = os.waitpid(pid, 0)[1]
    return said or f"died {status}"

whole = child("whole", None).split()
assert whole[0] == "right", whole
for step in range(steps):
    limit = int(1.1 * int(whole[2]) * (step + 1) / steps)  # the last one is enough
    said = child(f"step{step}", limit)
    right = said.split()[:2] == whole[:2]
    print(limit, "right" if right else " ".join(said.split()), flush=True)
"""


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_with_too_little_memory_the_answer_is_right_or_an_error(tmp_path):
    steps = int(os.environ.get("FASTDISTILL_STEPS", "20"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LITTLE_MEMORY, str(tmp_path), str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    assert len(said) == steps
    assert [words for words in said if not words.startswith(("right", "refused"))] == []
    assert said[-1] == "right"
