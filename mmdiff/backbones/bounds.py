"""Bounds on what a saved folder may ask for: its weights say how large the model is, whatever its config.json says.

Without them a file of a kilobyte that names 300,000 layers fills the memory of the machine before any shape is checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import ConfigError, UserError, line_of
from mmdiff.files import regular

from .weights import headers_of

if TYPE_CHECKING:
    from .family import Facts

DTYPES = ("float32", "bfloat16", "float16", "float64")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no code, no pickles

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
    """Raise ConfigError for a number of layers, or experts, that no model has: lists of that length are made."""
    for fields in (config, *(value for value in config.values() if isinstance(value, dict))):  # text_config
        for key, value in fields.items():
            counts = "layer" in key or "experts" in key
            if counts and isinstance(value, int | float) and not isinstance(value, bool) and value > LAYERS:
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
        cause = line_of(error)
        raise ConfigError(f"{file}: {what}cannot be read: {cause}") from error


@contextmanager
def bounded_by(files: Iterable[Path], folder: Path) -> Iterator[None]:
    """Within it, no more tensors may be made than a model with the weights in `files` needs. Raises ConfigError."""
    shapes: list[Sequence[int]] = []
    for path in files:
        if path.exists():  # one that is not is refused in the same words as a damaged one
            regular(path)
        shapes += [header.shape for header in headers_of(path)]
    with bounded_to(shapes, folder):
        yield


def bounded_to(shapes: Collection[Sequence[int]], folder: Path) -> Any:
    """Within it, no more tensors may be made than a model needs whose weights have these shapes."""
    return _budget(2 * sum(map(prod, shapes)) + SLACK_NUMBERS, 4 * len(shapes) + SLACK_TENSORS, folder)


def _budget(numbers: int, tensors: int, folder: Path) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Budget(TorchDispatchMode):
        """Counts the tensors that are made of nothing but a size, before they are made."""

        left = [numbers, tensors]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            size = args[0] if args else ()
            if func.overloadpacket._qualified_op_name == "aten::arange":
                self._count(abs(int((args[1] if len(args) > 1 else args[0]) - (args[0] if len(args) > 1 else 0))))
            elif isinstance(size, list | tuple) and all(isinstance(n, int) for n in size):
                self._count(prod(size))
            return func(*args, **(kwargs or {}))

        def _count(self, size: int) -> None:
            self.left = [self.left[0] - size, self.left[1] - 1]
            if min(self.left) < 0:
                raise ConfigError(f"{folder}: config.json asks for a larger model than the weights there are of")

    return Budget()


# Ids ------------------------------------------------------------------------------------------------------------------


def check_ids(facts: Facts, rows: int, length: int) -> None:
    """Raise ConfigError for ids of special tokens that are not in a table of `rows`, and for more ids than that."""
    if length > rows:
        raise ConfigError(f"tokenizer: {length} ids do not fit {rows} rows of embeddings (vocab_size)")
    ids: Mapping[str, int | None] = {
        "mask_token_id": facts.mask_id,
        "eos_token_id": facts.eos_id,
        "pad_token_id": facts.pad_id,
        "bos_token_id": facts.bos_id,
    }
    for name, value in ids.items():
        if value is not None and not 0 <= value < rows:
            raise ConfigError(f"{name} {value}: expected an id below vocab_size {rows}")
        if name != "mask_token_id" and value is not None and value == facts.mask_id:
            raise ConfigError(f"{name} {value}: is the mask id too, which diffusion never commits")


def reserved_ids(reserve: Mapping[str, int] | None) -> int:
    """Returns the number of reserved ids of all names. What is no number is left to `reserve_ranges` to refuse."""
    return sum(n for n in (reserve or {}).values() if isinstance(n, int))


def reserve_ranges(reserve: Mapping[str, int] | None, first: int, rows: int) -> dict[str, tuple[int, int]]:
    """Returns half-open ranges by name, one behind the other from the id `first` on.

    rows: of the embedding table. Raises ConfigError for a count below 1 and for more ids than there are free rows.
    """
    ranges, low = {}, first
    for name, count in (reserve or {}).items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"reserve.{name}: {count!r} is not a whole number of at least 1")
        ranges[name] = (low, low + count)
        low += count
    if low > rows:
        raise ConfigError(f"reserve: {low - first} ids, but {rows - first} rows of the {rows} are free")
    return ranges


def reserve_of(raw: Mapping[str, Any], first: int, rows: int) -> Mapping[str, int] | None:
    """Returns the reserved ids of a folder's config.json, which stand in the table that it has.

    Raises ConfigError for what is none, and as `reserve_ranges` does.
    """
    reserve = raw.get("reserve")
    if reserve is not None and not isinstance(reserve, dict):
        raise ConfigError(f"config.json: reserve is {str(reserve)[:80]!r}, expected {{name: how many}}")
    if reserve:
        reserve_ranges(reserve, first, rows)
    return reserve


def padded_rows(ids: int) -> int:
    """Returns the rows of an embedding table for so many ids: a multiple of 128, as LLaDA's 126464 is."""
    return -(-ids // 128) * 128
