# SPDX-License-Identifier: MIT
"""The CUDA kernels, compiled from csrc/losses/cuda_distill.cu; importing it needs no driver."""

architectures: str
"""What they were compiled for, as CMAKE_CUDA_ARCHITECTURES spells it."""

kernels: object
"""Capsule with the functions that `_core` calls once it has checked its arguments."""
