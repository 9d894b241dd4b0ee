"""The tokenizer of a folder without transformers, where it would be what the files say and nothing besides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.backbones.families.esm import TOKENS

from ..strict import read_object

SPECIAL = ("eos_token", "pad_token", "bos_token", "mask_token", "unk_token", "sep_token", "cls_token")
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of tokenizers whose special tokens are the named ones."""
QWEN, BERT = {"eos_token", "pad_token", "bos_token"}, {"unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
KNOWN = {
    **dict.fromkeys(("Qwen2Tokenizer", "Qwen2TokenizerFast"), QWEN),
    **dict.fromkeys(("BertTokenizer", "BertTokenizerFast"), BERT),
    **dict.fromkeys(("RobertaTokenizer", "RobertaTokenizerFast"), BERT | QWEN),
}
"""Those that have defaults for some, which are here if they are named."""


class Ids:
    """A tokenizer.json: what a family asks of a tokenizer."""

    def __init__(self, core: Any, special: Mapping[str, str | None]) -> None:
        self.core = core
        for name, token in special.items():
            setattr(self, name, token)
            setattr(self, f"{name}_id", None if token is None else core.token_to_id(token))

    def __len__(self) -> int:
        return int(self.core.get_vocab_size(with_added_tokens=True))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        found: int | None = self.core.token_to_id(token)
        return found

    def convert_ids_to_tokens(self, index: int) -> str | None:
        found: str | None = self.core.id_to_token(index)
        return found

    def add_special_tokens(self, added: Mapping[str, str]) -> None:
        for name, token in added.items():
            self.core.add_special_tokens([token])
            setattr(self, f"{name}_id", self.core.token_to_id(token))


class Words:
    """A list of tokens, ESM-2's vocab.txt: what a family asks of a tokenizer."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self.tokens.index(token) if token in self.tokens else None

    def convert_ids_to_tokens(self, index: int) -> str | None:
        return self.tokens[index] if 0 <= index < len(self.tokens) else None


def read_words(home: Path) -> Words | None:
    """Returns the tokenizer of an ESM-2's folder, that of the published ones where it has none; None for any other."""
    file = home / "vocab.txt"
    if not file.is_file():
        return None if (home / "tokenizer.json").is_file() else Words(TOKENS)
    tokens = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    plain = len({*tokens}) == len(tokens) and {*TOKENS[:4], TOKENS[-1]} <= {*tokens} and "" not in tokens
    return Words(tokens) if plain else None


def read_tokenizer(home: Path) -> Ids | None:
    """Returns the tokenizer of a folder; None where transformers would make another of its files."""
    if not (home / "tokenizer.json").is_file() or (home / "tokenizer.model").exists():
        return None
    named = read_object(home / "tokenizer_config.json") if (home / "tokenizer_config.json").is_file() else {}
    if "auto_map" in named:
        return None
    added: Mapping[str, Any] = {}
    if "added_tokens_decoder" not in named:  # older folders; elsewhere transformers does not look at these files
        named = {**named, **_optional(home / "special_tokens_map.json")}
        added = _optional(home / "added_tokens.json")
    if (kind := named.get("tokenizer_class")) not in (*GENERIC, *KNOWN):
        return None
    if not named.keys() >= KNOWN.get(kind, set()):
        return None
    special = {name: _spelled(named.get(name)) for name in SPECIAL}
    more = named.get("additional_special_tokens") or named.get("extra_special_tokens") or []
    decoder = named.get("added_tokens_decoder") or {}
    try:
        from tokenizers import Tokenizer

        core = Tokenizer.from_file(str(home / "tokenizer.json"))
        core.decode(core.encode("a").ids)
        listed = [_spelled(token) for token in (more.values() if isinstance(more, Mapping) else more)]
        every = [*filter(None, special.values()), *listed]
        if any(token is None or core.token_to_id(token) is None for token in every):
            return None
        placed = {**{token["content"]: i for i, token in decoder.items()}, **added}
        if any(core.token_to_id(token) != int(i) for token, i in placed.items()):
            return None
    except BaseException as error:  # of tokenizers, written in Rust: bare ones, and panics, which are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return None
    return Ids(core, special)


def _optional(file: Path) -> Mapping[str, Any]:
    return read_object(file) if file.exists() else {}


def _spelled(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None
