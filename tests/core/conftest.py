"""The toy, trained once for all tests that only read the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import toy

from mmdiff import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps, with two sets to evaluate. To be left as it is."""
    folder = tmp_path_factory.mktemp("trained")
    config = toy.config(stage={"steps": 4})
    held = {"target": "toy.Corners", "lengths": [4]}
    config.eval = replace(config.eval, data={"a": {**held, "n": 12}, "b": {**held, "n": 8, "seed": 5}}, batch_size=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config)
    return folder / "runs" / "toy"
