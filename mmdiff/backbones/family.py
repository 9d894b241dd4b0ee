"""What is known of a family of published models. Each family has one file that provides it, as `llada.py` does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mmdiff.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from mmdiff.canvas.pattern import Pattern

    from .shares import Share

MASKED = (
    "bert", "camembert", "data2vec-text", "distilbert", "ernie", "eurobert", "modernbert", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
"""`model_type` of masked language models that are run as transformers has them."""
FAMILIES = {
    "llada": "llada.FAMILY",
    "llava_llada": "llada.FAMILY",
    "llada_moe": "moe.LLADA_MOE",
    "llada2_moe": "moe.LLADA2",
    "Dream": "dense.DREAM",
    "llava_dream": "dense.LLAVA_DREAM",
    "dream-vl": "dense.DREAM_VL",
    "diffusionvl_qwen": "dense.DIFFUSION_VL",
    "sdar": "dense.SDAR",
    "sdar_moe": "moe.SDAR_MOE",
    "Fast_dLLM_Qwen": "dense.FAST_DLLM",
    "nemotron_labs_diffusion": "dense.NEMOTRON",
    "diffusion_gemma": "gemma.FAMILY",
    "esm": "esm",
    "esm_diff": "esm",
    "dsm": "esm",
    "esmc": "esmc.FAMILY",
    **dict.fromkeys(MASKED, "masked.family()"),
}
"""`model_type` in a config.json -> the family in the room `families`; (): a function of the name, which returns it."""


@dataclass(frozen=True)
class Facts:
    """What diffusion needs of a backbone and its weights do not hold.

    end_ids: ids that end an answer, EOS among them.
    shift: the logits of position p come from hidden state p - shift.
    max_length: positions the model was trained on.
    attention: who sees whom in the published model; None: every position sees every other.
    mask_id: None: the model has no mask token, its noise is uniform.
    causal_shift: `shift` of a model that was trained from left to right as well, where it is run so; None: `shift`.
    """

    mask_id: int | None
    eos_id: int
    pad_id: int
    bos_id: int | None
    end_ids: tuple[int, ...]
    shift: int
    max_length: int
    attention: Pattern | None = None
    causal_shift: int | None = None

    @property
    def noise(self) -> str:
        """What noise does to a token: `absorbing`, it becomes the mask; `uniform`, it becomes any."""
        return "uniform" if self.mask_id is None else "absorbing"

    @classmethod
    def found(
        cls,
        *,
        mask_id: int | None,
        eos_id: int | None,
        pad_id: int | None,
        bos_id: int | None,
        end_ids: Iterable[int | None],
        max_length: int,
        masks: bool = True,
    ) -> Facts:
        """Returns the facts of a model without shift; padding is EOS where there is none.

        masks: whether it has a mask token. Raises ConfigError where no mask or end-of-sequence id was found.
        """
        if (masks and mask_id is None) or eos_id is None:
            missing = "mask" if masks and mask_id is None else "eos"
            raise ConfigError(f"tokenizer: no {missing} token, and config.json has no {missing}_token_id")
        ends = tuple(dict.fromkeys(i for i in end_ids if i is not None))
        for i in (mask_id, eos_id, pad_id, bos_id, *ends):
            if i is not None and (isinstance(i, bool) or not isinstance(i, int)):
                raise ConfigError(f"config.json: {str(i)[:80]!r} is no id of a token, expected a whole number")
        return cls(mask_id, eos_id, eos_id if pad_id is None else pad_id, bos_id, ends, 0, max_length)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a new model. intermediate_size, rope_theta: None: as the family's published models have it.

    init_std: of all weights.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int | None
    max_length: int
    rope_theta: float | None
    init_std: float


class Family(Protocol):
    """What a family's file provides, as functions or as its `FAMILY`, mostly a `Decoder`.

    `raw` is a config.json as it was read, `config` the transformers one.
    """

    PUBLISHED: Mapping[str, Mapping[str, Any]]
    """Hub id -> its config.json."""

    AUTO_CLASS: str
    """The class of transformers' that makes the model of a configuration."""

    CACHES: bool
    """Whether `run` takes a memory: keys and values of positions that are not run again."""

    GROWS: bool
    """Whether rows can be put behind the embedding table and the head. `LINEAR = True`: the head is a table alone.

    `NOISED = True`, which few have: noised positions are run otherwise than context. `run` takes `noised_RL` then, of
    the whole canvas, `block_RK`, the blocks of its pattern, and `soft_RQD`, of `Query.extras["backbone"]`; and there is
    `soft(model, logits)`."""

    def settle(self, raw: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        """Returns `raw` with the fields that the names of the tensors in its folder decide."""
        ...

    def config(self, raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        """Returns the transformers configuration of `raw`, with `is_causal=False`.

        options: what a family offers besides, by name; they override `raw`. Raises ConfigError for what the
        transformers class cannot express.
        """
        ...

    def new_config(self, sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
        """Returns the transformers configuration of the family's architecture at any size."""
        ...

    def facts(self, raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts: ...

    def published_config(self, config: Any, facts: Facts) -> dict[str, Any]:
        """Returns a config.json as the family publishes it, the inverse of `config`."""
        ...

    def published_names(self, config: Any) -> Mapping[str, tuple[Share, ...]]:
        """Returns {published name of every tensor: the parameters of the transformers class that it holds}."""
        ...

    def fields_of(self, facts: Facts) -> dict[str, Any]:
        """Returns the fields of config.json that hold facts which nothing else in a folder does."""
        ...

    def is_elsewhere(self, name: str) -> bool:
        """Returns whether a tensor of a published file is of another part of a model (a vision tower, a projector)."""
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
    """Returns the family of a `model_type`. Raises ConfigError for one that `FAMILIES` lacks."""
    if name not in FAMILIES and (found := import_module(".families.causal", __package__).find(name)) is not None:
        return cast(Family, found)
    if name not in FAMILIES:
        raise ConfigError(f"model_type {name!r}: no backbone family of that name{nearest(name, FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(".")
    home = import_module(f".families.{module}", __package__)
    if attribute.endswith("()"):
        return cast(Family, getattr(home, attribute[:-2])(name))
    return cast(Family, getattr(home, attribute) if attribute else home)


def model_type_of(raw: Mapping[str, Any]) -> str:
    """Returns the name of a config.json's family: its `model_type`, but LLaDA-MoE calls itself as LLaDA does."""
    name = str(raw.get("model_type"))
    return "llada_moe" if name in ("llada", "lladamoe") and "num_experts" in raw else name


def token_id(tokenizer: Any, token: str) -> int | None:
    """Returns the id of one token by its exact spelling; None where the tokenizer does not have it."""
    found = tokenizer.convert_tokens_to_ids(token)  # the unknown id, or None, for what is not there
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == token else None


def checked_mask_id(raw: Mapping[str, Any], tokenizer: Any, spelling: str) -> int | None:
    """Returns the mask id of config.json, else of the tokenizer. Raises ConfigError where the two differ."""
    given, spelled = raw.get("mask_token_id"), token_id(tokenizer, spelling)
    if given is not None and spelled is not None and given != spelled:
        raise ConfigError(f"mask_token_id: {given} in config.json, but {spelling} is {spelled} in the tokenizer")
    return spelled if given is None else int(given)


def first(*values: Any) -> int | None:
    """Returns the first value that is not None, as a number."""
    return next((int(value) for value in values if value is not None), None)


def required(raw: Mapping[str, Any], name: str) -> Any:
    """Returns a field of config.json. Raises ConfigError where it is missing or null."""
    if raw.get(name) is None:
        raise ConfigError(f"config.json: {name} is missing")
    return raw[name]


def transformers_config(name: str, **fields: Any) -> Any:
    """Returns the configuration of that class, with attention in both directions. Raises ConfigError as it does."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        return getattr(transformers, name)(is_causal=False, use_cache=False, **fields)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"config.json: {' '.join(str(error).split())[:200]}") from error


def stock_model(family: Family, config: Any, **named: Any) -> Any:
    """Returns transformers' model of a configuration, of an auto class or a class of its own. named: as it has them."""
    import transformers

    made = getattr(transformers, family.AUTO_CLASS)
    return (made.from_config if hasattr(made, "from_config") else made._from_config)(config, **named)
