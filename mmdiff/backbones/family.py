"""What is known of a family of published models. Each family has one file that provides it, as `llada.py` does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mmdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = {"llada": "llada", "llava_llada": "llada", "esm": "esm", "esm_diff": "esm", "dsm": "esm"}
"""`model_type` in a config.json -> the file beside this one that knows it."""


@dataclass(frozen=True)
class Facts:
    """What diffusion has to know of a backbone and its weights do not tell.

    end_ids: ids that end an answer, EOS among them.
    shift: the logits of position p come from hidden state p - shift.
    attention: "full": every position attends every other.
    max_length: positions the model was trained on.
    """

    mask_id: int
    eos_id: int
    pad_id: int
    bos_id: int | None
    end_ids: tuple[int, ...]
    shift: int
    attention: str
    max_length: int


class Family(Protocol):
    """The functions of a family's file. `raw` is a config.json as it was read, `config` the transformers one."""

    PUBLISHED: Mapping[str, Mapping[str, Any]]
    """Hub id -> its config.json."""

    AUTO_CLASS: str
    """The class of transformers' that makes the model of a configuration."""

    CACHES: bool
    """Whether `run` takes a memory: keys and values of positions that are not run again."""

    GROWS: bool
    """Whether rows can be put behind the embedding table and the head."""

    def settle(self, raw: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        """Returns `raw` with the fields that the names of the tensors in its folder decide."""
        ...

    def config(self, raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        """Returns the transformers configuration of `raw`, with `is_causal=False`.

        options: what a family offers besides, by name; they override `raw`. Raises ConfigError for what the
        transformers class cannot express.
        """
        ...

    def new_config(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        layers: int,
        heads: int,
        kv_heads: int,
        intermediate_size: int | None,
        max_length: int,
        rope_theta: float | None,
        init_std: float,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns the transformers configuration of the family's architecture at any size."""
        ...

    def facts(self, raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts: ...

    def published_config(self, config: Any, facts: Facts) -> dict[str, Any]:
        """Returns a config.json as the family publishes it, the inverse of `config`."""
        ...

    def published_names(self, config: Any) -> dict[str, str]:
        """Returns {published name of every tensor: its name in the transformers class}."""
        ...

    def is_elsewhere(self, name: str) -> bool:
        """Whether a tensor of a published file belongs to another part of a model (a vision tower, a projector)."""
        ...

    def toy_options(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns `options` of a new model that make it a toy twin of the model of `raw`."""
        ...

    def toy_tokenizer(self) -> Any:
        """Returns a small tokenizer that encodes any text and has the family's special tokens."""
        ...

    def folder_tokenizer(self, folder: Path) -> Any:
        """Returns the tokenizer of a folder; None where transformers finds it."""
        ...

    def finished(self, model: Any) -> Any:
        """Returns the model as it was made, without what diffusion does not use."""
        ...

    def embed(self, model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor: ...

    def run(
        self,
        model: Any,
        x_RLD: Tensor,
        mask: Any,
        attend_RL: Tensor | None,
        position_ids_RL: Tensor | None,
        every: bool,
        memory: Any = None,
    ) -> Any:
        """Runs the body as `mmdiff.backbones.forward` does. mask: `attend_RL` in the form that the attention takes."""
        ...

    def head(self, model: Any, h: Tensor, ids_K: Tensor | None = None) -> Tensor: ...


def find_family(name: str) -> Family:
    """Returns the family of a `model_type`. Raises ConfigError for one that no file here knows."""
    if name not in FAMILIES:
        raise ConfigError(f"model_type {name!r}: no backbone family of that name{nearest(name, FAMILIES)}")
    return cast(Family, import_module(f".{FAMILIES[name]}", __package__))


def token_id(tokenizer: Any, token: str) -> int | None:
    """Returns the id of one token by its exact spelling; None where the tokenizer does not have it."""
    found = tokenizer.convert_tokens_to_ids(token)  # the unknown id, or None, for what is not there
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None
