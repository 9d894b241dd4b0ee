"""Files of arrays, safetensors or .npz, read by name: nothing in them is executed, and none is larger than its file.

numpy makes room for what the header of an array says before it reads it, so the headers of an .npz are read first.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.errors import ConfigError, line_of, short
from mmdiff.files import aside, regular, writable

NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U8": "uint8"}
Facts = tuple[tuple[int, ...], str]
"""Shape and kind of number of an array."""


class Arrays:
    """Tensors of a file by name, each read when it is asked for; rows of one are read alone in a safetensors file.

    `facts`: shape and kind of number of each, known before any of it is read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.facts: dict[str, Facts] = {}
        self._npz: Any = None
        self._known: dict[str, NDArray[Any]] = {}  # numpy reads a whole array of an .npz: those asked rows of stay
        if file.suffix == ".npz":
            self.facts = _headers(file)
            self._npz = np.load(file, allow_pickle=False)
        else:
            from safetensors import safe_open

            self._tensors = safe_open(file, "pt")
            for key in self._tensors.keys():  # noqa: SIM118 - it is no dictionary
                part = self._tensors.get_slice(key)
                self.facts[key] = (tuple(part.get_shape()), NAMES.get(part.get_dtype(), part.get_dtype()))

    def expect(self, key: str, shape: tuple[int, ...], kind: str) -> None:
        """Raise ConfigError for an array that is not there, or is of another shape or kind of number."""
        if (found := self.facts.get(key)) != (shape, kind):
            fault = "is missing" if found is None else f"{found[1]} of shape {found[0]}"
            raise ConfigError(f"{short(self.file)}: {short(key, 60)}: {fault}, expected {kind} of shape {shape}")

    def tensor(self, key: str) -> Tensor:
        value: Tensor = torch.from_numpy(self._npz[key]) if self._npz is not None else self._tensors.get_tensor(key)
        return value

    def __call__(self, key: str) -> NDArray[Any]:
        return _array(self.tensor(key))

    def rows(self, key: str, low: int, high: int) -> NDArray[Any]:
        return _array(self.rows_of(key, low, high))

    def rows_of(self, key: str, low: int, high: int) -> Tensor:
        """Rows of a tensor, in its own kind of number."""
        if self._npz is None:
            value: Tensor = self._tensors.get_slice(key)[low:high]
            return value
        if key not in self._known:
            self._known[key] = self._npz[key]
        return torch.from_numpy(self._known[key][low:high])


def open_arrays(file: Path) -> Arrays:
    """Open a file of arrays. Raises ConfigError for a file that is damaged or something else, FileNotFoundError."""
    from safetensors import SafetensorError

    regular(file)
    try:
        return Arrays(file)
    except (SafetensorError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{short(file)}: not a readable file of arrays ({line_of(error)})") from None


def save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of arrays. Raises ConfigError."""
    from safetensors import SafetensorError

    with writable(file), aside(file) as part:
        if file.suffix == ".npz":
            np.savez(part, **{name: x.numpy() for name, x in tensors.items()})  # type: ignore[arg-type]
        else:
            from safetensors.torch import save_file

            try:
                save_file(tensors, part)
            except SafetensorError as error:  # what the disk says, among others
                raise ConfigError(f"{short(file)}: cannot be written ({line_of(error)})") from None


def _headers(file: Path) -> dict[str, Facts]:
    """Returns the facts of the arrays of an .npz. Raises ValueError for arrays that are packed, or are not as long as
    their headers say."""
    found: dict[str, Facts] = {}
    with zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        if sum(one.file_size for one in members) > file.stat().st_size:
            raise ValueError("holds more than its size")
        for one in members:
            if one.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{short(one.filename, 60)} is packed")
            with packed.open(one) as handle:
                version = np.lib.format.read_magic(handle)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(handle)
                if kind.hasobject or math.prod(shape) * kind.itemsize != one.file_size - handle.tell():
                    raise ValueError(f"{short(one.filename, 60)} is not as its header says")
            found[one.filename.removesuffix(".npy")] = (tuple(shape), kind.name)
    return found


def _array(x: Tensor) -> NDArray[Any]:
    out: NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return out
