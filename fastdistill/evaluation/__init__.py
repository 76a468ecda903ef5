# SPDX-License-Identifier: MIT
"""Finding out how good a policy is: full episodes, statistics, costs, pictures."""

from fastdistill.evaluation.gif import record_comparison_gif
from fastdistill.evaluation.play import Evaluation, evaluate, evaluate_env

__all__ = ["Evaluation", "evaluate", "evaluate_env", "record_comparison_gif"]
