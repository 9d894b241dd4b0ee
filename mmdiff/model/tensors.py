"""The tensors of a model, which may lie in shards, in files that hold them whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mmdiff.protocols import Model

FILE_BYTES = 4 << 30


def weights(model: Model) -> dict[str, Tensor]:
    """Returns every tensor by name, where and as it lies; tied weights once, under their first name."""
    own = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    seen: dict[int, str] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = own[name] if sharded(tensor) else tensor.data_ptr()  # a shard may be empty, and have none
        if key in seen and tensor.numel() and tensor.shape == out[seen[key]].shape:
            continue
        seen[key] = name
        out[name] = tensor.detach()
    return out


def gathered(tensor: Tensor) -> Tensor:
    """Returns a tensor on the CPU. Every process has to ask for one of which each has a shard."""
    full: Tensor = tensor.full_tensor() if sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full.detach().cpu().contiguous()


def sharded(tensor: Tensor) -> bool:
    """Whether processes have a shard each (a DTensor, whose package takes a second to import)."""
    return hasattr(tensor, "full_tensor")


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, stem: str) -> dict[str, str]:
    """Write tensors in files of at most `FILE_BYTES`, whose names begin with `stem`. Returns {tensor: file}.

    Shards are put together a file at a time, so that no more than one is in the memory of the process that writes.
    """
    groups, size = [[]], 0  # type: list[list[str]], int
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if size > FILE_BYTES and groups[-1]:
            groups, size = [*groups, []], tensor.numel() * tensor.element_size()
        groups[-1].append(name)
    out: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: gathered(tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        out |= dict.fromkeys(names, file)
    return out


def give_shards(tensors: Sequence[Tensor]) -> None:
    """What a process does that writes nothing, while another writes these: it gives its shards."""
    for tensor in tensors:
        if sharded(tensor):
            gathered(tensor)
