# SPDX-License-Identifier: MIT
"""The paper's networks, their sizes, their files, and convolutions of small images on the CPU."""

from fastdistill.networks.architecture import (
    Architecture,
    multitask_architecture,
    paper_architecture,
)
from fastdistill.networks.checkpoint import CheckpointError, load_network, save_network
from fastdistill.networks.qnetwork import QNetwork

__all__ = [
    "Architecture",
    "CheckpointError",
    "QNetwork",
    "load_network",
    "multitask_architecture",
    "paper_architecture",
    "save_network",
]
