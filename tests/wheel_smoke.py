# SPDX-License-Identifier: MIT
"""A program, not a test: tries an installed wheel as its user would, in a minute.

``python wheel_smoke.py`` tries the fastdistill of this interpreter. ``python wheel_smoke.py WHEEL``
first makes an empty environment in a new folder, installs the wheel there, and tries that one: by
another user where it may change to one, with nothing on the PATH but that environment and the
system's own programs, and without a compiler among them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "cmake", "ninja")
SHORT = {
    "total-updates": 40,
    "learning-starts-steps": 400,
    "num-lanes": 4,
    "batch-size": 32,
    "replay-capacity": 4000,
    "score-episodes": 1,
    "evaluation-episodes": 1,
}


def try_out() -> None:
    """Losses against plain torch, the replay, and a distillation with its report."""
    import numpy as np
    import torch

    import fastdistill as fd

    print(f"fastdistill {fd.__version__} of {Path(fd.__file__).parent}, torch {torch.__version__}")
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 6, generator=generator)
    targets = torch.softmax(teacher.double() / 0.5, 1)
    logs = targets.log() - torch.log_softmax(student.double(), 1)
    expected = (targets * logs).sum(1).mean()
    got = fd.distill_kl(student, teacher, temperature=0.5)
    assert abs(float(got) - float(expected)) < 1e-5, (float(got), float(expected))

    replay = fd.PrioritizedReplay(64, 1, frame_shape=(3,), frame_dtype="float32", stack=1)
    for step in range(10):
        replay.append(np.full((1, 3), step, np.float32), [1], [0.5], [False], [False])
    assert replay.sample(4).obs.shape == (4, 3)

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "fastdistill", "distill", f"--run-dir={run_dir}"]
        command += [f"--{name}={value}" for name, value in SHORT.items()]
        subprocess.run(command, check=True)
        left = {path.name for path in run_dir.iterdir()}
        wanted = {"student.json", "evaluation.json", "report.html", "metrics.jsonl"}
        assert wanted <= left, left
    print("wheel_smoke: passed")


def try_in_empty_environment(wheel: Path) -> None:
    """Install ``wheel`` where nothing else is, and try it there."""
    with tempfile.TemporaryDirectory(prefix="an empty place ") as folder:
        place = Path(folder)
        place.chmod(0o755)
        shutil.copy(__file__, place / "smoke.py")
        python = place / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(place / "env")], check=True)
        requirement = f"fastdistill[atari,cli,report] @ {wheel.resolve().as_uri()}"
        install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*install, "-c", str(CONSTRAINTS), requirement], check=True)
        home, path = place / "home", f"{python.parent}:{_tools(place)}"
        home.mkdir()
        seen = [name for name in COMPILERS if shutil.which(name, path=path)]
        assert not seen, f"a compiler is on the PATH: {seen}"
        options = _another_user(python)
        if options:
            os.chown(home, options["user"], options["group"])
        environment = {"PATH": path, "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8"}
        subprocess.run(
            [str(python), str(place / "smoke.py")], check=True, env=environment, cwd=home, **options
        )


def _another_user(python: Path) -> dict[str, Any]:
    """For subprocess: to be ``nobody``; empty, and said, where that is not possible."""
    if os.geteuid() != 0:
        print("wheel_smoke: by this user; only root may be another")
        return {}
    nobody = pwd.getpwnam("nobody")
    options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    try:
        subprocess.run([str(python), "-c", ""], check=True, cwd="/", **options)
    except (PermissionError, subprocess.CalledProcessError):
        print(f"wheel_smoke: by this user; no other may read {python.resolve()}")
        return {}
    return options


def _tools(place: Path) -> Path:
    """A folder of the system's programs but for compilers."""
    folder = place / "bin"
    folder.mkdir()
    for program in ("sh", "env", "uname", "ldconfig", "ldd"):
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    return folder


if __name__ == "__main__":
    if len(sys.argv) > 1:
        try_in_empty_environment(Path(sys.argv[1]))
    else:
        try_out()
