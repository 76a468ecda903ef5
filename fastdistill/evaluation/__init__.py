# SPDX-License-Identifier: MIT
"""Finding out how good a policy is: full episodes, statistics, costs, pictures."""

from fastdistill.evaluation.gif import record_comparison_gif, record_games_gif
from fastdistill.evaluation.play import Evaluation, evaluate, evaluate_env
from fastdistill.evaluation.verify import Verification, verify_teacher

__all__ = [
    "Evaluation",
    "Verification",
    "evaluate",
    "evaluate_env",
    "record_comparison_gif",
    "record_games_gif",
    "verify_teacher",
]
