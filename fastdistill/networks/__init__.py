# SPDX-License-Identifier: MIT
"""The paper's networks, their sizes, their files, and convolutions of small images on the CPU."""

from fastdistill.networks.architecture import (
    SIZES,
    Architecture,
    multitask_architecture,
    paper_architecture,
    size_name,
)
from fastdistill.networks.checkpoint import (
    CheckpointError,
    load_network,
    load_weights,
    save_network,
)
from fastdistill.networks.qnetwork import QNetwork, num_parameters

__all__ = [
    "SIZES",
    "Architecture",
    "CheckpointError",
    "QNetwork",
    "load_network",
    "load_weights",
    "multitask_architecture",
    "num_parameters",
    "paper_architecture",
    "save_network",
    "size_name",
]
