# SPDX-License-Identifier: MIT
"""``python -m fastdistill`` is ``fastdistill``."""

import sys

from fastdistill.cli import main

sys.exit(main())
