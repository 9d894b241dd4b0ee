"""`@saveable`: an object remembers how it was made, so that a saved folder can make it again.

A model is saved as weights plus one node per part, `{target: dotted.path, **arguments}`, which `mmdiff.config.build`
builds. A part whose arguments point outside the folder (a directory of pre-trained weights, say) replaces them in its
own `__init__` by ones that do not: `self.node["weights"] = None`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from mmdiff.parts import part

T = TypeVar("T", bound=type)


def saveable(cls: T) -> T:
    """Declares a part that can be saved: `self.node` holds the dotted path and the arguments an instance was made with.

    An argument that is saveable itself is stored as its node. `self.node` is set before `__init__` runs, which may
    change it.
    """
    original = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        node: dict[str, Any] = {"target": f"{cls.__module__}.{cls.__qualname__}"}
        for name, value in list(given.items())[1:]:
            node[name] = getattr(value, "node", value)
        object.__setattr__(self, "node", node)
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    return part(cls)
