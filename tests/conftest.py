"""One thread for every test, and `@pytest.mark.needs("timm")` for tests of optional packages."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

torch.set_num_threads(1)  # small tensors: more threads wait for each other, and for other tests


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            if find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
