# SPDX-License-Identifier: MIT
"""What learns: each takes a batch, makes one gradient step and returns tensors, never numbers."""
