# SPDX-License-Identifier: MIT
"""Double DQN with n-step returns and prioritized replay: the paper's teacher, brought up to date.

Several lanes play epsilon-greedily into the replay; for every row played a fixed number of rows
is learned from. Synchronous and deterministic: one seed, one set of weights, bitwise on a CPU,
interrupted or not. Of several games it is the paper's Multi-DQN: one trunk, a head for each game,
batches that hold as much of each. With a guide it begins from another teacher's policy (QDagger).

Sources: Mnih et al. 2015 (DQN), van Hasselt et al. 2016 (double), Schaul et al. 2016
(prioritized replay), Hessel et al. 2018 (n-step among the rest), Agarwal et al. 2022 (QDagger).
"""

from __future__ import annotations

from contextlib import ExitStack, closing

from fastdistill.envs import make_env
from fastdistill.recipes.dqn_config import DqnConfig
from fastdistill.recipes.dqn_teaching import DqnTeaching
from fastdistill.recipes.guided_teaching import GuidedTeaching
from fastdistill.recipes.teaching import TeacherResult, finish, teach
from fastdistill.report import try_report
from fastdistill.training.process import deterministic_kernels, keep_freed_memory, pick_device
from fastdistill.training.run import Run, Stop
from fastdistill.training.task import check_games


def train(config: DqnConfig, *, resume: bool = False, stop: Stop | None = None) -> TeacherResult:
    """Train a teacher; see the module's description.

    Args:
        config: Everything that can be chosen.
        resume: Continue the run in ``config.run_dir`` with its own configuration.
        stop: Asked between steps whether to stop with a checkpoint.
    """
    run = Run("teacher_dqn", config, resume=resume, unit="steps", stop=stop)
    config = run.config
    keep_freed_memory()
    device = pick_device(config.device)
    with ExitStack() as opened:
        envs = [
            opened.enter_context(closing(make_env(game, config.num_lanes, preset=config.preset)))
            for game in config.games
        ]
        check_games("teacher_dqn", [env.spec for env in envs])
        kind = DqnTeaching if config.guide is None else GuidedTeaching
        parts = kind(config, run, envs, device)  # before the run has a directory
        if isinstance(parts, GuidedTeaching) and not resume:
            parts.measure_guide()  # which may be refused
        opened.enter_context(deterministic_kernels(config.deterministic))
        opened.enter_context(run)
        teach(config, run, parts)
        result = finish(config, run, device, guide=parts.guide)
    if parts.guide is not None and result.evaluation:
        try_report(config.run_dir)
    return result
