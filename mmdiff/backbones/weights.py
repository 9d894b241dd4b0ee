"""Tensors of a model folder, read and written as safetensors under the names of either layout. Nothing is unpickled."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmdiff.errors import ConfigError, nearest
from mmdiff.files import open_tensors
from mmdiff.files import read_json as read_any

from .shares import Outline, Published, Share

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
NAMES = {"int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_weights(
    model: nn.Module,
    folder: Path,
    published: Published,
    is_elsewhere: Callable[[str], bool],
    *,
    lora_alpha: float | None = None,
) -> None:
    """Copy the tensors of `folder` into `model`, cast to its dtype, one at a time.

    published: a folder may use these names, or those of `model`.
    is_elsewhere: names that belong to another part of a model and are left alone.
    lora_alpha: of the LoRA factors that a folder may hold beside a weight (`x.base_layer.weight`,
        `x.lora_A.default.weight`, `x.lora_B.default.weight`, as peft names them); W + alpha / r B A is what is read.
    Raises ConfigError, before anything is read, for missing, unexpected, misshapen or non-float tensors; then for
    numbers that are not finite.
    """
    import torch

    headers = [header for path in weight_files(folder) for header in headers_of(path)]
    matched = match(model, headers, published, is_elsewhere)
    wanted, found = matched.wanted, matched.found
    for at in (header for header in headers if header.name in matched.unexpected[:1]):
        raise ConfigError(f"{at.file}: unexpected tensor {at.name!r}{nearest(at.name, [*published, *wanted])}")
    for fault in (*matched.faults, *factor_faults(matched, folder, lora_alpha)):
        raise ConfigError(fault)
    if names := matched.missing:
        raise ConfigError(f"{folder}: {len(names)} missing tensors: {', '.join([*names[:4], '...'][: len(names)])}")
    for path in sorted({path for path, _ in found.values()}):
        with open_tensors(path) as file, torch.no_grad():
            for name in dict.fromkeys(name for home, name in found.values() if home == path):
                value = file.get_tensor(name)
                check_finite(value, f"{path}: {name}")
                for share in _shares(published, name.replace(".base_layer.", ".")):
                    share.of(wanted[share.ours]).copy_(value[slice(*(share.rows or (None,)))])
    for header, share in matched.copies:
        value, held = _tensor(header.file, header.name), share.of(wanted[share.ours])
        if not torch.equal(value[slice(*(share.rows or (None,)))].to(held), held):
            raise ConfigError(
                f"{header.file}: {header.name!r} differs from {found[_part(share)][1]!r}, expected the same"
            )
    for ours, pair in matched.factors.items():
        a_RI, b_OR = (_tensor(pair[which].file, pair[which].name).float() for which in "AB")
        with torch.no_grad():  # the sum in fp32, rounded once
            whole = _tensor(*found[Share(ours)]).float() + float(lora_alpha or 0) / len(a_RI) * b_OR @ a_RI
            wanted[ours].copy_(whole)


class Header(NamedTuple):
    """A tensor of a safetensors file, as the head of the file describes it. dtype: safetensors' name, such as BF16."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def get_dtype(self) -> str:  # as those of safetensors have it
        return self.dtype

    def get_shape(self) -> tuple[int, ...]:
        return self.shape


@dataclass
class Match:
    """Which tensors of files are of a model.

    wanted: its parameters, and buffers that published files hold. found: what of them -> file, name in the file.
    factors: name in the model -> LoRA factors A and B. missing: names that no file has. unexpected: names that no model
    has. elsewhere: names of another part. faults: a line per tensor of another shape or kind of number.
    copies: tensors of what another tensor holds as well, which have to be equal.
    """

    wanted: dict[str, Tensor]
    found: dict[Share, tuple[Path, str]] = field(default_factory=dict)
    factors: dict[str, dict[str, Header]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    copies: list[tuple[Header, Share]] = field(default_factory=list)


def match(model: Any, headers: Iterable[Header], published: Published, is_elsewhere: Callable[[str], bool]) -> Match:
    """Returns which tensors are of `model`: a module, on whatever device, or one of outlines (`named_parameters`,
    `named_buffers`, `state_dict`). Arguments are those of `read_weights`."""
    buffers, saved = _named_buffers(model, published), model.state_dict()
    needed = {name: value for name, value in buffers.items() if name in saved and not name.endswith("inv_freq")}
    required = dict(model.named_parameters()) | needed  # tied ones once
    out = Match(required | buffers)
    for header in headers:
        name = header.name
        if lora := re.fullmatch(r"(.+)\.lora_([AB])\.(?:\w+\.)?weight", name):
            pair = out.factors.setdefault(_shares(published, lora[1] + ".weight")[0].ours, {})
            if lora[2] in pair:
                out.faults.append(f"{header.file}: {name!r} is of a second adapter of the weight, expected one")
            pair[lora[2]] = header
            continue
        shares = _shares(published, name.replace(".base_layer.", "."))
        if shares[0].ours not in out.wanted:
            (out.elsewhere if is_elsewhere(name) else out.unexpected).append(name)
            continue
        try:
            check_header(header, _whole(shares, out.wanted), f"{header.file}: {name}")
        except ConfigError as error:
            out.faults.append(str(error))
        for share in shares:
            held = _part(share)
            if held in out.found and share.ours in required:
                other = out.found[held][1]
                if {name, other} <= published.keys():  # of one layout: a head that shares the embeddings
                    out.copies.append((header, share))
                    continue
                out.faults.append(f"{header.file}: {name!r} and {other!r} are both {share.ours!r}, expected one")
            out.found[held] = (header.file, name)
    out.missing = missing_names(required, published, out.found)
    return out


def factor_faults(matched: Match, folder: Path, lora_alpha: Any) -> Iterator[str]:
    """Yields a line per LoRA factors that cannot be added to their weight. lora_alpha: as for `read_weights`."""
    for ours, pair in matched.factors.items():
        if Share(ours) not in matched.found or set(pair) != {"A", "B"}:
            yield f"{folder}: LoRA factors of {ours!r} without the weight, or without each other"
            continue
        if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, int | float):
            fault = "is missing" if lora_alpha is None else f"{lora_alpha!r} is no number"
            yield f"{folder / 'config.json'}: lora_alpha {fault}, and {ours!r} has LoRA factors"
        a, b = (pair[which].shape for which in "AB")
        if len(a) != 2 or len(b) != 2 or not a[0] or (b[0], a[1]) != tuple(matched.wanted[ours].shape) or b[1] != a[0]:
            yield f"{folder}: LoRA factors of {ours!r} have shapes {a} and {b}"


def write_weights(model: nn.Module, folder: Path, published: Published, dtype: torch.dtype | None = None) -> None:
    """Write the parameters as safetensors of at most 5 GB each, with an index where there are several.

    published: what a file holds, of several names for one thing the last. dtype: of the files; None: as the parameters
    are. Raises ConfigError for a parameter that none of the names holds.
    """
    import torch
    from huggingface_hub import save_torch_state_dict

    have = {name: value.detach() for name, value in model.named_parameters()}  # tied ones once
    for name in have:
        if not any(share.ours == name for shares in published.values() for share in shares):
            raise ConfigError(
                f"backbone: parameter {name!r} is not of this architecture (merge adapters before saving)"
            )
    have |= {name: value.detach() for name, value in _named_buffers(model, published).items()}
    last = {_part(share): name for name, shares in published.items() for share in shares}
    state = {}
    for name in dict.fromkeys(last.values()):
        values = [share.of(have[share.ours]) for share in published[name] if share.ours in have]
        if values:
            whole = len(values) == 1 and not published[name][0].at
            value = values[0].contiguous() if whole else torch.cat(values)  # safetensors writes no views
            state[name] = value if dtype is None else value.to(dtype)
    save_torch_state_dict(state, folder)


def missing_names(required: Mapping[str, Tensor], published: Published, found: Collection[Share]) -> list[str]:
    """Returns, sorted, what is not among `found` of the parameters: published names where any of these was found."""
    counts = dict.fromkeys(required, 0)
    for share in found:
        if share.ours in counts:
            counts[share.ours] += share.of(required[share.ours]).numel()
    missing = {ours for ours, count in counts.items() if count < required[ours].numel()}
    held = ((name, _part(share)) for name, shares in published.items() for share in shares)
    if not any(Share(name) != share and share in found for name, share in held):
        return sorted(missing)
    last = {share: name for name, shares in published.items() for share in map(_part, shares)}  # of several, as written
    return sorted({name for share, name in last.items() if share.ours in missing and share not in found})


def _part(share: Share) -> Share:
    return share._replace(rows=None)  # whatever tensor it comes from


def _shares(published: Published, name: str) -> tuple[Share, ...]:
    return published.get(name, (Share(name),))


def _named_buffers(model: Any, published: Published) -> dict[str, Tensor]:
    """Buffers that published files hold, such as rotary frequencies, rounded as the model was trained with."""
    named = {share.ours for shares in published.values() for share in shares}
    return {name: value for name, value in model.named_buffers() if name in named}


def _whole(shares: tuple[Share, ...], wanted: Mapping[str, Any]) -> Any:
    """Returns a tensor of the shape and dtype that a file has for some shares."""
    first = shares[0].of(wanted[shares[0].ours])
    if shares[0].rows is None:
        return first
    rows = max(share.rows[1] for share in shares if share.rows is not None)
    return Outline((rows, *first.shape[1:]), first.is_floating_point(), str(first.dtype))


def tensor_names(folder: Path) -> set[str]:
    """Names of all tensors of a folder."""
    return {header.name for path in weight_files(folder) for header in headers_of(path)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises ConfigError when there are none, or one of the index is not there."""
    if (folder / INDEX).is_file():
        files = read_json(folder / INDEX).get("weight_map")
        if not files or not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise ConfigError(f"{folder / INDEX}: weight_map is not {{tensor: file}}")
        listed = set(files.values())
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


def check_header(header: Any, expected: Any, where: str) -> None:
    """Raise ConfigError for a tensor of a safetensors file of another shape or kind of number than a model's.

    Floats of any width may stand for each other, other kinds for themselves only: a cast would change them silently.
    """
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if shape != tuple(expected.shape):
        raise ConfigError(f"{where} has shape {shape}, expected {tuple(expected.shape)}")
    kind = "plain floats" if expected.is_floating_point() else str(expected.dtype).removeprefix("torch.")
    if dtype not in (FLOATS if expected.is_floating_point() else (NAMES.get(kind),)):
        raise ConfigError(f"{where} holds {dtype}, expected {kind}")


def check_finite(value: Tensor, where: str, *, infinite: bool = False) -> None:
    """Raise ConfigError for a tensor with NaN, or infinity unless that is allowed (a mask may hold it)."""
    import torch

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


def headers_of(path: Path) -> list[Header]:
    """Returns the headers of all tensors of a safetensors file. Raises ConfigError for a damaged file."""
    with open_tensors(path, "np") as file:  # by which nothing is mapped but for reading
        slices = {name: file.get_slice(name) for name in file.keys()}
        return [Header(path, name, at.get_dtype(), tuple(at.get_shape())) for name, at in slices.items()]


def _tensor(path: Path, name: str) -> Any:
    with open_tensors(path) as file:
        return file.get_tensor(name)
