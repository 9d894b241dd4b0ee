"""Configurations: files to dataclasses (`load.py`), their nodes to objects (`nodes.py`), what saved
folders may name (`parts.py`), classes that can be saved (`saveable.py`).

May import: nothing. Must not import torch: `mmdiff config` does not wait for it.
"""

from .load import load_config, packaged, parsed, sampler_nodes, task_and_sampler, to_yaml
from .nodes import build, check_nodes, flatten, locate
from .parts import build_part, check_parts, part, trusted, trusting

__all__ = [
    "build",
    "build_part",
    "check_nodes",
    "check_parts",
    "flatten",
    "load_config",
    "locate",
    "packaged",
    "parsed",
    "part",
    "sampler_nodes",
    "to_yaml",
    "task_and_sampler",
    "trusted",
    "trusting",
]
