# SPDX-License-Identifier: MIT
"""A prioritized replay without locks, usable alone in any agent; docs/replay.md has the guarantees.

``prioritized`` is the replay, ``arguments`` checks what comes in, ``batch`` holds what goes out.
"""

from fastdistill.replay.batch import ReplayBatch
from fastdistill.replay.prioritized import PrioritizedReplay, RowPriorities

__all__ = ["PrioritizedReplay", "ReplayBatch", "RowPriorities"]
