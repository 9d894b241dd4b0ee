"""One thread for every test, no search for garbage among what was imported, and `@pytest.mark.needs("timm")`."""

from __future__ import annotations

import gc
import os
import tempfile
from importlib.util import find_spec

import pytest
import torch

os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="mmdiff-tests-")  # the key of signatures is not this user's
gc.set_threshold(50_000, 20, 50)  # nor often among the rest: a twentieth of all time
torch.set_num_threads(1)  # small tensors: more threads wait for each other, and for other tests


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    _keep_what_is_there()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:  # files import more on the way
        _keep_what_is_there()


def _keep_what_is_there() -> None:
    """A search looks at every object: half a second with torch and transformers, and each training ends in one."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            if find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
