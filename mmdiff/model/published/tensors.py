"""Published weights of an encoder or a connector: safetensors, read by name, copied strictly. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmdiff.backbones.weights import headers_of, weight_files
from mmdiff.errors import ConfigError, nearest
from mmdiff.files import open_tensors


def tensor_files(weights: str, single: Sequence[str] = ()) -> list[Path]:
    """Returns the safetensors files of a file or folder.

    single: file names of this library's own layout, looked for before `model.safetensors` and its index.
    Raises ConfigError for what is missing, and for pickled weights.
    """
    path = Path(weights)
    if path.is_dir():
        own = [path / name for name in single if (path / name).is_file()]
        return own[:1] or weight_files(path)
    if not path.is_file():
        raise ConfigError(f"weights: {path}: no such file or folder")
    if path.suffix != ".safetensors":
        raise ConfigError(f"weights: {path}: only .safetensors is read, for pickled weights can run code")
    return [path]


def tensor_names(files: Iterable[Path]) -> list[str]:
    """Returns the names of all tensors. Raises ConfigError for a damaged file."""
    return list(tensor_shapes(files))


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors by name. Raises ConfigError for a damaged file."""
    return {header.name: header.shape for path in files for header in headers_of(path)}


def read_tensors(files: Iterable[Path], prefix: str = "") -> dict[str, Tensor]:
    """Returns the tensors whose name starts with `prefix`, by the rest of the name."""
    found: dict[str, Tensor] = {}
    for path in files:
        with open_tensors(path) as file:
            for name in file.keys():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = file.get_tensor(name)
    return found


def tensors_around(weights: str, name: str, model: str) -> dict[str, Tensor]:
    """Returns the tensors of the one model in `weights` that has a tensor `name`, whatever prefix is in front of it.

    model: what it is called in errors. Raises ConfigError where there is none, or more than one.
    """
    files = tensor_files(weights)
    prefixes = [found.removesuffix(name) for found in tensor_names(files) if found.endswith(name)]
    if len(prefixes) != 1:
        raise ConfigError(f"{weights}: holds {len(prefixes)} tensors {name!r}, expected one {model}")
    return read_tensors(files, prefixes[0])


def fill_own(module: nn.Module, weights: str) -> None:
    """Copy a file of a module's own names into it. Raises ConfigError as `fill` does."""
    fill(module, read_tensors(tensor_files(weights)), weights)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str, spare: Iterable[str] = ()) -> None:
    """Copy `tensors` into `module`, cast to its dtype.

    spare: names that may be there and are left alone (pruned layers, heads).
    Raises ConfigError for missing, unexpected and misshapen tensors, before anything is copied.
    """
    state = module.state_dict()
    if missing := sorted(state.keys() - tensors.keys()):
        raise ConfigError(f"{where}: {len(missing)} missing tensors: {', '.join(missing[:3])}")
    if unexpected := sorted(tensors.keys() - state.keys() - set(spare)):
        raise ConfigError(f"{where}: unexpected tensor {unexpected[0]!r}{nearest(unexpected[0], state)}")
    for name, value in state.items():
        if tensors[name].shape != value.shape:
            shapes = f"{tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
            raise ConfigError(f"{where}: tensor {name!r} has shape {shapes}")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])
