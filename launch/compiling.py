"""torch.compile of the networks inside a stage's module."""

from __future__ import annotations

import os
import shutil

from torch import nn

from mstl.models.resnet import ResNet
from shards.errors import MstlError


def compile_networks(module: nn.Module) -> list[ResNet]:
    """Compile every backbone of a module in place, at its first call; returns them.

    Raises MstlError where no compiler is installed.

    The backbones only: what stands around them exchanges keys with other ranks, which a graph cannot hold. In place,
    since a wrapper would add its name to every key of a checkpoint.
    """
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in compilers):
        raise MstlError(
            "engine.compile",
            why=f"torch.compile needs a C++ compiler, and there is no {' or '.join(compilers)} here",
            remedy="Install g++, name a compiler in CXX, or leave engine.compile off",
        )
    networks = [network for network in module.modules() if isinstance(network, ResNet)]
    for network in networks:
        network.compile()
    return networks
