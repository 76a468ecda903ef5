# SPDX-License-Identifier: MIT
"""The CUDA kernels, compiled from csrc/losses/cuda_distill.cu; importing it needs no driver."""

kernels: object
"""Capsule with the functions that `_core` calls once it has checked its arguments."""
