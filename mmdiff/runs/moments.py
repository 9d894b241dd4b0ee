"""The state of an optimizer in a file, by parameter name: `exp_avg:backbone.model.norm.weight`, `step:...`.

Parameters that lie in shards are written whole, so a file says nothing of how many processes there were; each process
takes its own shard of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import AdamW, Optimizer

from mmdiff.backbones.weights import check_finite, check_header
from mmdiff.errors import ConfigError
from mmdiff.model.tensors import sharded

ADAMW = ("step", "exp_avg", "exp_avg_sq")
LIKE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""What has the shape of its parameter: kernels read so far."""
NOT_NEGATIVE = ("step", "exp_avg_sq")


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns the tensors of an optimizer's state, as they lie; groups carry `names` beside `params`."""
    out = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    out[f"{key}:{name}"] = torch.as_tensor(value).detach()
    return out


def load_moments(optimizer: Optimizer, file: Path) -> None:
    """Put saved moments in place. file: as for `files_of`.

    Raises ConfigError for a file that cannot be read, for moments of other parameters, of another shape or kind of
    number, and not finite; of AdamW also for a part of a parameter's only: its fused kernel would read beyond them.
    """
    owners: dict[str, Tensor] = {}
    strict: set[str] = set()  # names of parameters that AdamW trains
    for part in getattr(optimizer, "parts", [optimizer]):
        for group in part.param_groups:
            named = dict(zip(group["names"], group["params"], strict=True))
            owners |= named
            strict |= named.keys() if isinstance(part, AdamW) and not group["amsgrad"] else set()
    states: dict[Tensor, dict[str, Tensor]] = {}
    for path, saved in files_of(file):
        for stored in saved.keys():
            key, _, name = stored.partition(":")
            if name not in owners or (name in strict and key not in ADAMW):
                raise ConfigError(f"{path}: moments of {name or stored}, which this stage does not train")
            states.setdefault(owners[name], {})[key] = _checked(saved, stored, owners[name], f"{path}: {stored}")
    for name in strict:
        for key in ADAMW if owners[name] in states else ():  # one that never had a gradient has none of the three
            if key not in states[owners[name]]:
                raise ConfigError(f"{file}: {key}:{name} is missing")
    optimizer.state.update(states)


def files_of(file: Path) -> Iterator[tuple[Path, Any]]:
    """Yields a file of tensors, read lazily, or each of the several that are written in its stead where it would be
    large: `NAME-00001-of-00003.safetensors`. Raises ConfigError for one that cannot be read."""
    several = sorted(file.parent.glob(f"{file.stem}-*-of-*.safetensors"))
    for path in [file] if file.exists() or not several else several:
        try:
            with safe_open(path, "pt") as saved:
                yield path, saved
        except (SafetensorError, FileNotFoundError) as error:
            raise ConfigError(f"{path}: not a readable safetensors file ({error})") from None


def _checked(saved: Any, stored: str, parameter: Tensor, where: str) -> Tensor:
    """Returns a tensor of the state: a scalar, or one like its parameter (of which it is a shard where that is one)."""
    key = stored.partition(":")[0]
    header = saved.get_slice(stored)
    scalar = key == "step" or (key not in LIKE and not header.get_shape())
    like = torch.zeros(()) if scalar else parameter
    reduced = key not in LIKE and not scalar and _reduced(header.get_shape(), parameter)
    if not reduced:
        check_header(header, like, where)
    value: Tensor = saved.get_tensor(stored)
    check_finite(value, where)
    if value.is_floating_point() and key in ADAMW and value.dtype != like.dtype:
        raise ConfigError(f"{where} holds {value.dtype}, expected {like.dtype}")
    if key in NOT_NEGATIVE and bool((value < 0).any()):
        raise ConfigError(f"{where} is negative")
    if scalar or reduced:
        return value if key == "step" else value.to(parameter.device)
    return put(value, torch.empty_like(parameter, dtype=value.dtype))


def _reduced(shape: list[int], parameter: Tensor) -> bool:
    """Whether a shape is a parameter's with some axes of length 1, as Adafactor's row and column means are."""
    axes = zip(shape, parameter.shape, strict=False)
    return len(shape) == parameter.ndim and list(shape) != list(parameter.shape) and all(n in (1, m) for n, m in axes)


def put(value: Tensor, into: Tensor) -> Tensor:
    """Copy a whole tensor into one that lies here, of a sharded one into this process's shard. Returns it."""
    if sharded(into):
        from torch.distributed.tensor import distribute_tensor

        like: Any = into
        value = value.to(into.device)  # no communication: every process has read the file
        value = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    with torch.no_grad():
        into.copy_(value)
    return into
