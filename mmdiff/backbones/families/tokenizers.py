"""Small tokenizers for toy twins of published models, and the files of any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..family import Facts


def byte_tokenizer(*, bos: str | None, eos: str, special: tuple[str, ...]) -> Any:
    """Returns a tokenizer of one id per byte, then special tokens: it encodes any text and needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos, additional_special_tokens=[*special]
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files of a tokenizer so that transformers 4, which authors' code needs, reads what transformers 5 does.

    It knows the class by its older name only, and no list of `extra_special_tokens`.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_generation(facts: Facts, folder: Path) -> None:
    """Write the ids of special tokens as generation_config.json, without which Dream's own code reads no folder."""
    ids = {"mask": facts.mask_id, "eos": facts.eos_id, "pad": facts.pad_id, "bos": facts.bos_id}
    fields = {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    (folder / "generation_config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
