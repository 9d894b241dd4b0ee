"""Configurations: files to dataclasses (`load.py`), their nodes to objects (`nodes.py`), what saved
folders may name (`gate.py`), classes that can be saved (`saveable.py`).

May import: nothing. Must not import torch: `mmdiff config` does not wait for it.
"""

from .gate import build_part, build_saved, check_parts, trusted, trusting
from .load import entries_of, load_config, packaged, parsed, sampler_nodes, task_and_sampler, to_yaml
from .nodes import as_node, build, check_nodes, flatten, locate

__all__ = [
    "as_node",
    "build",
    "build_part",
    "build_saved",
    "check_nodes",
    "check_parts",
    "entries_of",
    "flatten",
    "load_config",
    "locate",
    "packaged",
    "parsed",
    "sampler_nodes",
    "to_yaml",
    "task_and_sampler",
    "trusted",
    "trusting",
]
