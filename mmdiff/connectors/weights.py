"""Tensors of a connector, from a saved model or a published checkpoint. Safetensors only; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from torch import nn

from mmdiff.errors import ConfigError
from mmdiff.files import open_tensors
from mmdiff.model.published.tensors import tensor_files, tensor_names

Found = dict[str, tuple[Path, str]]
"""Name in the connector -> file, name in the file."""


def take(
    module: nn.Module,
    weights: str,
    published: Callable[[str], str | None],
    optional: Collection[str] = (),
    kind: str = "audio",
) -> None:
    """Copy a connector's tensors into `module`, cast to its dtype.

    weights: a safetensors file, or a folder of them. Names are those of `module`, alone or behind `connectors.<kind>.`
        as a saved model has them, or published ones.
    published: published name -> name in `module`; None: of another part of that model, and left alone.
    optional: parts of `module` (first words of names) that file or `module` may lack as a whole.
    Raises ConfigError, before anything is copied, for missing, unexpected and misshapen tensors.
    """
    state = module.state_dict()
    found = _find(weights, state, published, f"connectors.{kind}.")
    here, there = _parts(state), _parts(found)
    found = {name: at for name, at in found.items() if _part(name) in here or _part(name) not in optional}
    required = {name for name in state if _part(name) in there or _part(name) not in optional}
    if not found:
        raise ConfigError(f"weights: {weights}: holds no tensor of this connector")
    if unexpected := sorted(found.keys() - state.keys()):
        key = found[unexpected[0]][1]
        raise ConfigError(f"weights: {weights}: tensor {key!r} is {unexpected[0]!r}, which this connector has not")
    if missing := sorted(required - found.keys()):
        raise ConfigError(f"weights: {weights}: {len(missing)} missing tensors: {', '.join(missing[:3])}")
    for name, (path, key) in found.items():
        with open_tensors(path) as file:
            shape = tuple(file.get_slice(key).get_shape())
        if shape != state[name].shape:
            raise ConfigError(f"weights: {path}: {key!r} has shape {shape}, expected {tuple(state[name].shape)}")
    with torch.no_grad():
        for name, (path, key) in found.items():
            with open_tensors(path) as file:
                state[name].copy_(file.get_tensor(key))


def _find(weights: str, own: Collection[str], published: Callable[[str], str | None], saved: str) -> Found:
    found: Found = {}
    for path in tensor_files(weights):
        for key in tensor_names([path]):
            bare = key.removeprefix(saved)
            name = bare if bare != key or bare in own else published(key)
            if name is not None:
                found[name] = (path, key)
    return found


def _part(name: str) -> str:
    return name.partition(".")[0]


def _parts(names: Iterable[str]) -> set[str]:
    return {_part(name) for name in names}
