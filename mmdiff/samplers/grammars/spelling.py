"""How the ids of a vocabulary are spelled: the bytes that each adds to a decoded text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError


@dataclass(frozen=True)
class Spelling:
    """The bytes of all ids of a text, one after the other, are `before`, the text, `behind`."""

    bytes_of: dict[int, bytes]  # of the ids of plain text
    before: str = ""
    behind: str = ""

    @classmethod
    def of(cls, vocab: Vocab) -> Spelling:
        """Raises ConfigError for a tokenizer whose texts are not made of the bytes of its tokens."""
        backend = getattr(vocab.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError("sampler.constraint: the model has no tokenizer of the library `tokenizers`")
        decoder = json.loads(backend.to_str())["decoder"]
        kinds = [one["type"] for one in (decoder or {}).get("decoders", [decoder]) if one]
        ids = [int(i) for i in vocab.text_ids]
        tokens = dict(zip(ids, vocab.tokenizer.convert_ids_to_tokens(ids), strict=True))
        added = {i: str(token) for i, token in vocab.tokenizer.added_tokens_decoder.items()}
        before = behind = ""
        if kinds == ["ByteLevel"]:
            spelled = {i: _of_alphabet(token) for i, token in tokens.items()}
        elif set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and kinds:
            spelled = {i: _of_pieces(token) for i, token in tokens.items()}
            before = " " if {"Strip", "Metaspace"} & set(kinds) else ""  # which decoding takes away
        elif not kinds and type(backend.model).__name__ == "WordLevel":  # decoded with spaces between words
            spelled, behind = {i: f"{token} ".encode() for i, token in tokens.items()}, " "
        else:
            raise ConfigError(f"sampler.constraint: texts of a tokenizer with decoder {kinds} are not held")
        if not behind:
            spelled |= {i: added[i].encode() for i in added.keys() & spelled.keys()}
        return cls({i: found for i, found in spelled.items() if found}, before, behind)


def _of_alphabet(token: str) -> bytes | None:
    """Returns the bytes of a token of a byte-level tokenizer, which writes each as one visible character (GPT-2)."""
    found = [ALPHABET.get(character) for character in token]
    return None if None in found else bytes(b for b in found if b is not None)


def _of_pieces(token: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _alphabet() -> dict[str, int]:
    shown: list[Any] = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


ALPHABET = _alphabet()
