"""Configurations: files to dataclasses (`load.py`), their nodes to objects (`nodes.py`), classes that can be saved.

May import: nothing. Must not import torch: `mmdiff config` does not wait for it.
"""

from .load import load_config, packaged, parsed, task_and_sampler, to_yaml
from .nodes import build, check_nodes, flatten, locate

__all__ = [
    "build",
    "check_nodes",
    "flatten",
    "load_config",
    "locate",
    "packaged",
    "parsed",
    "to_yaml",
    "task_and_sampler",
]
