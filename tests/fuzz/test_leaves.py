"""Every number, word and list of the packaged configurations in turn gives way to hostile values: each is refused in
one line that names its key, or is taken, and then a check of it ends in a result or in one line."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mmdiff.config import load_config
from mmdiff.config.load import check_weights, packaged
from mmdiff.config.schema import as_annotated
from mmdiff.config.settings import Config
from mmdiff.errors import UserError
from mmdiff.training.train import _check_stages
from tests.fuzz.judge import Subject, trial

HOSTILE = {
    ".nan": math.nan, ".inf": math.inf, "-1": -1, "0": 0, "x": "x", "''": "", "[]": [], "{}": {}, "null": None,
    "true": True, str(2**70): 2**70, str(10**12): 10**12, "1.0e+30": 1e30, "-0.5": -0.5,
}  # fmt: skip
"""As a command line has them, and what they are."""
Path_ = tuple[str | int, ...]


def leaves(tree: Any, path: Path_ = ()) -> Iterator[Path_]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not inner or not tree:
        yield path
    for name, value in inner:
        yield from leaves(value, (*path, name))


def refused(tree: dict[str, Any], path: Path_, value: Any) -> str | None:
    """The line by which a configuration with another value is refused before anything is built; None: it is taken."""
    changed = copy.deepcopy(tree)
    at = changed
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    try:
        config: Config = as_annotated(Config, changed, "")
        check_weights(config.model)
        _check_stages(config)
    except UserError as error:
        return str(error)
    return None


def taken(name: str) -> list[tuple[str, str]]:
    """The keys and values that a configuration may have; all others are refused in one line each, which names the key
    or that of the node above."""
    tree, out = asdict(load_config(name)), []
    for path in leaves(tree):
        for text, value in HOSTILE.items():
            line = refused(tree, path, value)
            if line is None:
                out.append((".".join(map(str, path)), text))
            else:
                assert "\n" not in line and any(str(part) in line for part in path[-2:]), (path, text, line)
    return out


def _nothing(folder: Path) -> None:
    """The command reads no file."""


def test_values_of_a_configuration_are_refused_by_key() -> None:
    found = taken("asr-own")
    assert ("train.stages.tune.lr", "0") in found and ("train.stages.tune.lr", "-1") not in found
    assert not [at for at in found if at[1] in (".nan", ".inf") and not at[0].startswith("eval.")]


@pytest.mark.slow
@pytest.mark.parametrize("name", packaged())
def test_values_of_every_configuration_are_refused_by_key(name: str) -> None:
    assert taken(name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["asr-own", "protein-own", "vla-own", "vqa-own"])
def test_what_is_taken_is_checked_without_a_traceback(name: str, seed: int, tmp_path: Path) -> None:
    own = [(key, text) for key, text in taken(name) if key.startswith(("model.", "task.", "train."))]
    (tmp_path / "pristine").mkdir()
    for key, text in Random(f"{name}/{seed}").sample(own, 4):
        subject = Subject("leaf", _nothing, lambda *_, what=f"{key}={text}": what, ["check", name, f"{key}={text}"])
        verdict, _ = trial(subject, tmp_path / "pristine", tmp_path / "copy", Random(0), undamaged="none")
        assert verdict.kind != "fault" or verdict.why.startswith("hang"), (name, key, text, verdict)
