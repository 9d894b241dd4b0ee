"""Tensors of a model folder, read and written as safetensors under the names of either layout. Nothing is unpickled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.errors import ConfigError, nearest
from mmdiff.files import read_json as read_any

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
NAMES = {torch.int64: ("I64",), torch.int32: ("I32",), torch.uint8: ("U8",), torch.bool: ("BOOL",)}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_weights(
    model: nn.Module,
    folder: Path,
    published: Mapping[str, str],
    is_elsewhere: Callable[[str], bool],
    *,
    lora_alpha: float | None = None,
) -> None:
    """Copy the tensors of `folder` into `model`, cast to its dtype, one at a time.

    published: published name -> name in `model`; a folder may use either.
    is_elsewhere: names that belong to another part of a model and are left alone.
    lora_alpha: of the LoRA factors that a folder may hold beside a weight (`x.base_layer.weight`,
        `x.lora_A.default.weight`, `x.lora_B.default.weight`, as peft names them); W + alpha / r B A is what is read.
    Raises ConfigError, before anything is read, for missing, unexpected, misshapen or non-float tensors; then for
    numbers that are not finite.
    """
    from safetensors import safe_open

    wanted = dict(model.named_parameters())  # tied ones once
    required, named = set(wanted), set(published.values())
    wanted |= {name: buffer for name, buffer in model.named_buffers() if name in named}  # type: ignore[misc]
    found: dict[str, tuple[Path, str]] = {}  # name in the model -> file, name in the file
    factors: dict[str, dict[str, tuple[Path, str]]] = {}  # name in the model -> A, B
    shapes: dict[str, tuple[int, ...]] = {}  # of the factors
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():
                if lora := re.fullmatch(r"(.+)\.lora_([AB])\.(?:\w+\.)?weight", name):
                    plain = lora[1] + ".weight"
                    pair = factors.setdefault(published.get(plain, plain), {})
                    if lora[2] in pair:
                        raise ConfigError(f"{path}: {name!r} is of a second adapter of the weight, expected one")
                    pair[lora[2]] = (path, name)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
                    continue
                plain = name.replace(".base_layer.", ".")
                ours = published.get(plain, plain)
                if ours not in wanted:
                    if not is_elsewhere(name):
                        hint = nearest(name, [*published, *wanted])
                        raise ConfigError(f"{path}: unexpected tensor {name!r}{hint}")
                    continue
                check_header(file.get_slice(name), wanted[ours], f"{path}: {name}")
                if ours in found and ours in required:
                    raise ConfigError(
                        f"{path}: {name!r} and {found[ours][1]!r} are both {ours!r}, expected one of them"
                    )
                found[ours] = (path, name)
    for ours, pair in factors.items():
        if ours not in found or set(pair) != {"A", "B"}:
            raise ConfigError(f"{folder}: LoRA factors of {ours!r} without the weight, or without each other")
        if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, int | float):
            said = "is missing" if lora_alpha is None else f"{lora_alpha!r} is no number"
            raise ConfigError(f"{folder / 'config.json'}: lora_alpha {said}, and {ours!r} has LoRA factors")
        a, b = (shapes[pair[which][1]] for which in "AB")
        if len(a) != 2 or len(b) != 2 or not a[0] or (b[0], a[1]) != tuple(wanted[ours].shape) or b[1] != a[0]:
            raise ConfigError(f"{folder}: LoRA factors of {ours!r} have shapes {a} and {b}")
    if missing := required - found.keys():
        in_file = {ours: name for name, ours in published.items()} if _is_published(found) else {}
        names = sorted(in_file.get(name, name) for name in missing)
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise ConfigError(f"{folder}: {len(names)} missing tensors: {shown}")
    for path in sorted({path for path, _ in found.values()}):
        with safe_open(path, "pt") as file, torch.no_grad():
            for ours, (home, name) in found.items():
                if home == path:
                    value = file.get_tensor(name)
                    check_finite(value, f"{path}: {name}")
                    wanted[ours].copy_(value)
    for ours, pair in factors.items():
        a_RI, b_OR = (_tensor(*pair[which]).float() for which in "AB")
        with torch.no_grad():  # the sum in fp32, rounded once
            whole = _tensor(*found[ours]).float() + float(lora_alpha or 0) / len(a_RI) * b_OR @ a_RI
            wanted[ours].copy_(whole)


def write_weights(model: nn.Module, folder: Path, names: Mapping[str, str]) -> None:
    """Write the parameters as safetensors of at most 5 GB each, with an index where there are several.

    names: name in `model` -> name in the file. Raises ConfigError for a parameter it does not have.
    """
    from huggingface_hub import save_torch_state_dict

    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():  # tied ones once
        if name not in names:
            raise ConfigError(
                f"backbone: parameter {name!r} is not of this architecture (merge adapters before saving)"
            )
        state[names[name]] = parameter.detach()
    for name, buffer in model.named_buffers():
        if name in names:  # rotary frequencies that a file brought, rounded as the model was trained with
            state[names[name]] = buffer.detach()
    save_torch_state_dict(state, folder)


def tensor_names(folder: Path) -> set[str]:
    """Names of all tensors of a folder."""
    names: set[str] = set()
    for path in weight_files(folder):
        with _opened(path) as file:
            names |= set(file.keys())
    return names


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises ConfigError when there are none, or one of the index is not there."""
    if (folder / INDEX).is_file():
        listed: Iterable[str] = set(read_json(folder / INDEX).get("weight_map", {}).values())
        for name in listed:
            if Path(name).name != name or not (folder / name).is_file():
                raise ConfigError(f"{folder / INDEX}: names {name!r}, which is not a file of the folder")
        return sorted(folder / name for name in listed)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    for pattern in PICKLED:
        for path in sorted(folder.glob(pattern)):
            raise ConfigError(f"{path}: pickled weights are refused, for they can run code; convert to safetensors")
    raise ConfigError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


def check_header(header: Any, expected: Tensor, where: str) -> None:
    """Raise ConfigError for a tensor of a safetensors file of another shape or kind of number than a model's.

    Floats of any width may stand for each other, other kinds for themselves only: a cast would change them silently.
    """
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if shape != tuple(expected.shape):
        raise ConfigError(f"{where} has shape {shape}, expected {tuple(expected.shape)}")
    if dtype not in (FLOATS if expected.is_floating_point() else NAMES.get(expected.dtype, ())):
        kind = "plain floats" if expected.is_floating_point() else str(expected.dtype).removeprefix("torch.")
        raise ConfigError(f"{where} holds {dtype}, expected {kind}")


def check_finite(value: Tensor, where: str, *, infinite: bool = False) -> None:
    """Raise ConfigError for a tensor with NaN, or infinity unless that is allowed (a mask may hold it)."""
    if value.numel() and value.is_floating_point():
        least, most = torch.aminmax(value)  # NaN goes through both; no copy is made
        if bool(least.isnan()) or not (infinite or (bool(least.isfinite()) and bool(most.isfinite()))):
            raise ConfigError(f"{where} holds numbers that are not finite")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError that names the file."""
    try:
        content = read_any(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def _is_published(found: Mapping[str, tuple[Path, str]]) -> bool:
    return any(ours != name for ours, (_, name) in found.items())


def _tensor(path: Path, name: str) -> Tensor:
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file: {error}") from None
