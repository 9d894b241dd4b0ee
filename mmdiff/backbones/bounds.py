"""Bounds on what a saved folder may ask for: its weights say how large the model is, whatever its config.json says.

Without them a file of a kilobyte that names 300,000 layers fills the memory of the machine before any shape is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff.errors import ConfigError, UserError
from mmdiff.files import regular

SLACK_NUMBERS, SLACK_TENSORS = 16 * 1024**2, 2000
"""What a model makes besides its weights: rotary tables, filter banks, position ids (64 MiB in fp32)."""
FILE_BYTES = 256 * 1024**2
"""Most bytes of a file that is no weights: tokenizers of 250,000 words have about 35 MB."""
LAYERS = 4096
SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()


def check_files(folder: Path) -> None:
    """Raise ConfigError for a file of a folder, links followed, that is none or is too large; weights may be large."""
    for path in folder.iterdir():
        if not path.is_dir():
            try:
                regular(path, None if path.suffix == ".safetensors" else FILE_BYTES)
            except FileNotFoundError:
                raise ConfigError(f"{path}: a link that leads nowhere") from None


def check_layers(config: dict[str, Any], file: Path) -> None:
    """Raise ConfigError for a number of layers that no model has: transformers makes a list of that length."""
    for key, value in config.items():
        if "layer" in key and isinstance(value, int | float) and not isinstance(value, bool) and value > LAYERS:
            raise ConfigError(f"{file}: {key} is {value}, expected at most {LAYERS}")


def check_sizes(config: Any, file: Path) -> None:
    """Raise ConfigError for a size of a transformers configuration that is not above 0: it makes a model of nothing."""
    for name in SIZES:
        value = getattr(config, name, None)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{file}: {name} is {value!r}, expected a whole number above 0")
    rope = getattr(config, "rope_parameters", None)
    theta = rope.get("rope_theta", 1.0) if isinstance(rope, dict) else 1.0
    if not isinstance(theta, int | float) or not 0 < theta < float("inf"):
        raise ConfigError(f"{file}: rope_theta is {theta!r}, expected a number above 0")


@contextmanager
def one_line(file: Path, what: str = "") -> Iterator[None]:
    """Make a ConfigError of whatever other packages raise at content that is not as they wrote it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:  # of tokenizers, written in Rust: bare ones, and panics, which are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file}: {what}cannot be read: {cause}") from error


@contextmanager
def bounded_by(files: Iterable[Path], folder: Path) -> Iterator[None]:
    """Within it, no more tensors may be made than a model with the weights in `files` needs. Raises ConfigError."""
    from safetensors import SafetensorError, safe_open

    numbers = tensors = 0
    for path in files:
        try:
            regular(path)
            with safe_open(path, "pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]
        except (SafetensorError, FileNotFoundError) as error:
            raise ConfigError(f"{path}: not a safetensors file: {error}") from None
        numbers += sum(map(prod, shapes))
        tensors += len(shapes)
    with _Budget(2 * numbers + SLACK_NUMBERS, 4 * tensors + SLACK_TENSORS, folder):
        yield


class _Budget(TorchDispatchMode):
    """Counts the tensors that are made of nothing but a size, before they are made."""

    def __init__(self, numbers: int, tensors: int, folder: Path) -> None:
        super().__init__()
        self.numbers, self.tensors, self.folder = numbers, tensors, folder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = args[0] if args else ()
        if func.overloadpacket._qualified_op_name == "aten::arange":
            self._count(abs(int((args[1] if len(args) > 1 else args[0]) - (args[0] if len(args) > 1 else 0))))
        elif isinstance(size, list | tuple) and all(isinstance(n, int) for n in size):
            self._count(prod(size))
        return func(*args, **(kwargs or {}))

    def _count(self, numbers: int) -> None:
        self.numbers -= numbers
        self.tensors -= 1
        if self.numbers < 0 or self.tensors < 0:
            raise ConfigError(f"{self.folder}: config.json asks for a larger model than the weights there are of")
