"""FAST (Pertsch et al., arXiv 2501.09747): DCT, rounding, byte-pair encoding; fewer codes, but not equally many.

Shape letters: N chunks, K actions of a chunk, D dimensions, T codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, DataError
from mmdiff.files import read_json, write_text
from mmdiff.parts.ranges import AtLeast1

from .bins import Bools, Codes, Floats, checked_chunk, checked_codes, dct
from .normalise import Normaliser, Statistics

FIRST = 0xF0000  # the character of coefficient -radius, in a plane for private use
RADIUS, MOST, LONGEST = (
    30_000,
    1 << 20,
    1 << 22,
)  # of coefficients, of codes and tokens, and of what all codes stand for
FIELDS = ("scale", "radius", "merges", "max_tokens")


@saveable
class FAST:
    """round(scale * c) of the orthonormal DCT-II of every dimension, low frequencies first, their dimensions together,
    as codes of a table of merges. Fewer codes than entries where motion is smooth.

    table: what `train` makes, as a mapping or a JSON file of one: {"scale", "radius": coefficients are whole numbers
        -radius..radius, "merges": [[code, code], ...], "max_tokens"}. A model saves the mapping itself.
    max_tokens: codes of a canvas; by default the most that a chunk of the training data took. A shorter sequence is
        filled up with the end code, size - 1. A longer one is cut: its highest frequencies are lost (`length` tells).

    The error of entry n is at most sum_k |M_kn| / (2 scale) where nothing is cut: 0.05 to 0.1 for chunks of 1 to 5 at
    scale 10, and below 1 up to chunks of 100, so binary dimensions keep their value.

    Limits. A code stands for several coefficients, so one wrong code spoils all that follow it, and a sequence that was
    not made by `encode` may hold too few or too many coefficients: `decode` takes missing ones for 0 and leaves out
    those too many, `surplus` counts them. No code is padded unless all actions are.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, table: str | Path | Mapping[str, Any], max_tokens: AtLeast1 | None = None) -> None:
        self.table = _checked(_read(table) if isinstance(table, str | Path) else table)
        self.node["table"] = self.table
        self.max_tokens = self.table["max_tokens"] if max_tokens is None else max_tokens
        self.scale, self.radius = self.table["scale"], self.table["radius"]
        self.parts = _parts(2 * self.radius + 1, self.table["merges"])  # code -> coefficients, counted from -radius
        self.size = len(self.parts) + 1
        self.end = self.size - 1
        self._bpe = _bpe(self.parts, self.table["merges"])

    @classmethod
    def train(
        cls, chunks_NKD: ArrayLike, vocab: int = 1024, scale: float = 10.0, max_tokens: int | None = None
    ) -> FAST:
        """From chunks in [-1, 1]. vocab: codes at most, the end code among them.

        Every coefficient that entries in [-1, 1] can have gets a code. Raises ConfigError when `vocab` does
        not hold those.
        """
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer

        x = np.asarray(chunks_NKD, np.float64)
        if x.ndim != 3 or 0 in x.shape or not np.isfinite(x).all():
            raise DataError(f"chunks of shape {x.shape}: expected finite numbers (chunks, actions, dimensions)")
        if not 0 < scale < math.inf:
            raise ConfigError(f"scale: {scale} is not a number above 0")
        radius = _radius(scale, x.shape[1])
        alphabet = [chr(FIRST + i) for i in range(2 * radius + 1)]
        if vocab < len(alphabet) + 1:
            raise ConfigError(f"vocab: {vocab} is below {len(alphabet) + 1}, the coefficients at scale {scale:g}")
        texts = [_text(_coefficients(chunk, scale, radius)) for chunk in x.clip(-1, 1)]
        trainer = BpeTrainer(
            vocab_size=vocab - 1, min_frequency=2, show_progress=False, special_tokens=[], initial_alphabet=alphabet
        )
        tokenizer = Tokenizer(BPE())
        tokenizer.train_from_iterator(texts, trainer)
        merges = _numbered(json.loads(tokenizer.to_str())["model"]["merges"], len(alphabet))
        table = {"scale": float(scale), "radius": radius, "merges": merges, "max_tokens": 1}
        table["max_tokens"] = max(map(cls(table).length, x))
        return cls(table, max_tokens)

    def save(self, path: str | Path) -> None:
        """The table as JSON. Raises ConfigError for a file that is there, or cannot be written."""
        if Path(path).exists():
            raise ConfigError(f"{path}: exists")
        try:
            write_text(Path(path), json.dumps({**self.table, "max_tokens": self.max_tokens}))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None

    def bind(self, statistics: Statistics, normaliser: Normaliser) -> FAST:
        return self

    def tokens(self, chunk: int, dims: int) -> int:
        if _radius(self.scale, chunk) > self.radius:
            longest = int(((self.radius + 0.5) / self.scale) ** 2)
            raise ConfigError(
                f"codec: a table of FAST for chunks of at most {longest} actions, given {chunk}; train one"
            )
        return self.max_tokens

    def length(self, x_KD: ArrayLike) -> int:
        """Returns the number of codes of a chunk, also above `max_tokens`."""
        return len(self._codes(x_KD))

    def encode(self, x_KD: ArrayLike) -> Codes:
        codes = self._codes(x_KD)[: self.max_tokens]
        return np.array(codes + [self.end] * (self.max_tokens - len(codes)), np.int64)

    def decode(self, codes_T: ArrayLike, chunk: int, dims: int) -> Floats:
        found = self._found(codes_T)[: chunk * dims]
        c_KD = np.zeros(chunk * dims)
        c_KD[: len(found)] = np.array(found, np.float64) - self.radius
        return (dct(chunk).T @ (c_KD.reshape(chunk, dims) / self.scale)).clip(-1, 1)

    def surplus(self, codes_T: ArrayLike, chunk: int, dims: int) -> int:
        """Coefficients that codes hold beyond those of a chunk; below 0: so many are missing; 0: a valid sequence."""
        return len(self._found(codes_T)) - chunk * dims

    def padded(self, pad_K: ArrayLike, dims: int) -> Bools:
        return np.full(self.max_tokens, np.asarray(pad_K, bool).all())

    def steps(self, chunk: int, dims: int) -> tuple[int, int]:
        """One group: codes do not fall into actions."""
        return 1, self.max_tokens

    def _codes(self, x_KD: ArrayLike) -> list[int]:
        ids: list[int] = self._bpe.encode(_text(_coefficients(checked_chunk(x_KD), self.scale, self.radius))).ids
        return ids

    def _found(self, codes_T: ArrayLike) -> list[int]:
        """Coefficients before the first end code, counted from -radius."""
        codes = checked_codes(codes_T, self.max_tokens, self.size).tolist()
        codes = codes[: codes.index(self.end)] if self.end in codes else codes
        return [c for code in codes for c in self.parts[code]]


def _radius(scale: float, chunk: int) -> int:
    """The greatest rounded coefficient of entries in [-1, 1]: all 1."""
    return max(1, round(scale * math.sqrt(chunk)))


def _coefficients(x_KD: Floats, scale: float, radius: int) -> Codes:
    """Flat, low frequencies first, 0..2 radius."""
    return np.round(scale * dct(len(x_KD)) @ x_KD).astype(np.int64).clip(-radius, radius).ravel() + radius


def _text(numbers: Iterable[int]) -> str:
    return "".join(chr(FIRST + i) for i in numbers)


def _parts(symbols: int, merges: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What each code stands for. Two merges may make the same sequence, which is one code. Raises ConfigError."""
    parts: list[tuple[int, ...]] = [(i,) for i in range(symbols)]
    known, length = set(parts), symbols
    for i, pair in enumerate(merges):
        if len(pair) != 2 or not all(_whole(code, 0) and code < len(parts) for code in pair):
            raise ConfigError(f"table.merges[{i}]: {pair!r} is not two of the {len(parts)} codes made before it")
        made = parts[pair[0]] + parts[pair[1]]
        if made not in known:
            length += len(made)
            if length > LONGEST:  # a few merges may double it each
                raise ConfigError(f"table.merges[{i}]: with it, codes stand for more than {LONGEST:,} coefficients")
            known.add(made)
            parts.append(made)
    return parts


def _numbered(merges: Iterable[Sequence[str]], symbols: int) -> list[list[int]]:
    """Merges of strings as merges of codes, numbered as in `_parts`."""
    codes = {chr(FIRST + i): i for i in range(symbols)}
    numbered = []
    for left, right in merges:
        numbered.append([codes[left], codes[right]])
        codes.setdefault(left + right, len(codes))
    return numbered


def _bpe(parts: Sequence[tuple[int, ...]], merges: Sequence[Sequence[int]]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    words = list(map(_text, parts))
    pairs = [(words[left], words[right]) for left, right in merges]
    return Tokenizer(BPE(vocab={word: code for code, word in enumerate(words)}, merges=pairs))


def _read(path: str | Path) -> Any:
    try:
        return read_json(Path(path))
    except FileNotFoundError as error:
        raise ConfigError(f"table: {path}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"table: {str(error).replace(': not JSON', ' is not JSON')}") from None


def _checked(table: Any) -> dict[str, Any]:
    if not isinstance(table, Mapping) or not set(FIELDS) <= set(table):
        raise ConfigError(f"table: expected a mapping of {', '.join(FIELDS)}, as FAST.train makes it")
    if not isinstance(table["scale"], int | float) or not 0 < table["scale"] < math.inf:
        raise ConfigError(f"table.scale: {table['scale']!r} is not a number above 0")
    for name, most in (("radius", RADIUS), ("max_tokens", MOST)):
        if not _whole(table[name], 1) or table[name] > most:
            raise ConfigError(
                f"table.{name}: {table[name]!r:.60} is not a whole number of at least 1, at most {most:,}"
            )
    if not isinstance(table["merges"], list | tuple) or not all(isinstance(m, list | tuple) for m in table["merges"]):
        raise ConfigError("table.merges: expected a list of pairs of codes")
    if len(table["merges"]) > MOST:
        raise ConfigError(f"table.merges: {len(table['merges']):,} pairs, expected at most {MOST:,}")
    merges = [list(pair) for pair in table["merges"]]
    return {**{name: table[name] for name in FIELDS}, "scale": float(table["scale"]), "merges": merges}


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
