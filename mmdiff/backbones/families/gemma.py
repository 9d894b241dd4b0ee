"""DiffusionGemma (Google, 2026) through transformers' own decoder: uniform noise, no mask token, 26B with 4B active.

One stack of layers is run in two ways. Context (its "encoder") is causal; a canvas of `canvas_length` targets sees all
that stands before it and itself. Canvas embeddings go through `self_conditioning`, with what the model predicted at the
step before, if anything (`Query.extras["backbone"]`); and each layer scales context and canvas by a number of its own.
In layers with a window a canvas sees `sliding_window` - 1 positions before its first one, and all of itself. Here both
are one pass with a mask. A canvas that is finished is context of the next (`CausalContext.finished_is_context`).

Slots of a picture see all of each other (`CausalContext.media`), in layers with a window too, as in transformers.
The vision tower is read beside it (`mmdiff.model.published.gemma`); here its tensors are `elsewhere`, and not written.

Shape letters: R rows, L canvas length, Q positions that are run, K keys, D width, P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from mmdiff.canvas.patterns import CausalContext
from mmdiff.errors import ConfigError, nearest

from ..family import Facts, Sizes, first, required, transformers_config
from ..shares import Share
from .decoder import NO_EFFECT
from .options import check_options
from .published.gemma import DIFFUSION_GEMMA
from .tokenizers import byte_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

EOS, TURN = "<eos>", "<turn|>"
OPENING = ("<|turn>", "<|image>", "<image|>")  # a turn, a picture and its end
BASE = DIFFUSION_GEMMA["google/diffusiongemma-26B-A4B-it"]
TOP = frozenset({*BASE, "initializer_range", "mmdiff", "audio_config", "vision_soft_tokens_per_image"})
TEXT = frozenset({*BASE["text_config"], "per_layer_config"})
SIZES = "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size".split()


class DiffusionGemma:
    """The family; its functions are those that `mmdiff.backbones.family.Family` asks for."""

    PUBLISHED = DIFFUSION_GEMMA
    AUTO_CLASS = "DiffusionGemmaDecoderModel"  # no second copy of all layers, which only causes memory
    CACHES = True
    GROWS = False  # the head is the embedding table
    NOISED = True

    def settle(self, raw: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
        return raw

    def config(self, raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        """Returns transformers' configuration; its field `mmdiff` is `raw`. The vision tower is the smallest there is.

        Raises ConfigError for a missing field, one that is not known, and one that is not expressed here.
        """
        for name in options or ():
            raise ConfigError(f"options.{name}: diffusion_gemma has no options")
        raw = raw.get("mmdiff") or raw
        text = required(raw, "text_config")
        if not isinstance(text, Mapping):
            raise ConfigError(f"config.json: text_config is {str(text)[:80]!r}, expected an object")
        for fields, known in ((raw, TOP), (text, TEXT)):
            for name in fields:
                if name not in known and name not in NO_EFFECT:
                    hint = nearest(name, known)
                    raise ConfigError(f"config.json: {name}: diffusion_gemma has no such field{hint}")
        for name in (*SIZES, "head_dim", "num_experts", "top_k_experts", "moe_intermediate_size", "sliding_window"):
            required(text, name)
        for fields, name, only in (
            (raw, "tie_word_embeddings", (True, None)),
            (text, "tie_word_embeddings", (True, None)),
            (text, "use_bidirectional_attention", ("vision", None)),
            (raw, "audio_config", (None,)),
        ):
            if fields.get(name) not in only:
                raise ConfigError(f"config.json: {name}: {fields[name]!r}, expected {only[0]!r}")
        plain = {name: value for name, value in text.items() if name not in (NO_EFFECT - {"dtype"})}
        tower = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        made = transformers_config(
            "DiffusionGemmaConfig",
            text_config={**plain, "is_causal": False},
            vision_config={**tower, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16},
            canvas_length=raw.get("canvas_length") or 256, initializer_range=text.get("initializer_range", 0.02),
        )  # fmt: skip
        if (most := made.text_config.num_experts) < (few := made.text_config.top_k_experts) or few < 1:
            raise ConfigError(f"config.json: text_config.top_k_experts: {few}, expected 1 to {most}")
        made.max_position_embeddings, made.pad_token_id = made.text_config.max_position_embeddings, None
        for name in SIZES:
            setattr(made, name, text[name])
        made.mmdiff = dict(raw)
        return made

    def new_config(self, sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
        """Returns the architecture at any size, with four experts, in which every sixth layer and the last see all."""
        check_options("diffusion_gemma", {}, options)
        wide = 2 * sizes.hidden_size if sizes.intermediate_size is None else sizes.intermediate_size
        head = sizes.hidden_size // sizes.heads
        kinds = ["full_attention" if not (i + 1) % 6 else "sliding_attention" for i in range(sizes.layers)]
        kinds[-1] = "full_attention"
        text = {
            **BASE["text_config"],
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": wide,
            "moe_intermediate_size": max(wide // 4, 1),
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "num_global_key_value_heads": sizes.kv_heads,
            "head_dim": head,
            "global_head_dim": head,
            "layer_types": kinds,
            "max_position_embeddings": sizes.max_length,
            "initializer_range": sizes.init_std,
            "num_experts": 4,
            "top_k_experts": 2,
            **dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id")),  # the tokenizer says
        }
        if sizes.rope_theta is not None:
            rope = {kind: {**one, "rope_theta": sizes.rope_theta} for kind, one in text["rope_parameters"].items()}
            text["rope_parameters"] = rope
        return self.config({**BASE, "eos_token_id": None, "text_config": text})

    def facts(self, raw: Mapping[str, Any], config: Any, tokenizer: Any) -> Facts:
        """Returns ids from config.json, then from the tokenizer; without a mask, whatever the tokenizer has."""
        raw = raw.get("mmdiff") or raw or {}
        given, text = raw.get("eos_token_id"), raw.get("text_config") or {}
        ends = list(given) if isinstance(given, list) else [given]
        eos = first(*ends, text.get("eos_token_id"), tokenizer.eos_token_id)
        found = Facts.found(
            mask_id=None,
            masks=False,
            eos_id=eos,
            pad_id=first(text.get("pad_token_id"), tokenizer.pad_token_id),
            bos_id=first(text.get("bos_token_id"), tokenizer.bos_token_id),
            end_ids=(eos, *ends),
            max_length=config.max_position_embeddings,
        )
        return Facts(**{**vars(found), "attention": CausalContext(config.canvas_length)})

    def published_config(self, config: Any, facts: Facts) -> dict[str, Any]:
        """Returns the config.json that transformers' class reads: that which the model was made of."""
        ends = list(facts.end_ids)
        return {**config.mmdiff, "eos_token_id": config.mmdiff.get("eos_token_id") or ends}

    def published_names(self, config: Any) -> Mapping[str, tuple[Share, ...]]:
        """Returns the names of transformers' class with its head; the encoder's layers are the decoder's."""
        from transformers import DiffusionGemmaDecoderModel

        with torch.device("meta"):
            model = DiffusionGemmaDecoderModel(config)
        out = {"lm_head.weight": (Share("embed_tokens.weight"),)}
        out |= {f"model.decoder.{name}": (Share(name),) for name, _ in model.named_parameters()}
        for i in range(config.num_hidden_layers):
            out[f"model.encoder.language_model.layers.{i}.layer_scalar"] = (Share(f"context_scale_{i}"),)
            out[f"model.decoder.layers.{i}.layer_scalar"] = (Share(f"canvas_scale_{i}"),)
        return out

    def fields_of(self, facts: Facts) -> dict[str, Any]:
        return {}

    def is_elsewhere(self, name: str) -> bool:
        return name.startswith(("model.encoder.vision_tower.", "model.encoder.embed_vision."))

    def toy_options(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def toy_tokenizer(self) -> Any:
        return byte_tokenizer(bos="<bos>", eos=EOS, special=(TURN, *OPENING))

    def folder_tokenizer(self, folder: Path) -> Any:
        return None

    def finished(self, model: Any) -> Any:
        """Returns the model whose layers keep keys and values as any other's do, and scale by nothing themselves."""
        model.embed_tokens.padding_idx = None
        model.get_output_embeddings = model.get_input_embeddings
        model.text_config._experts_implementation = "eager" if model.dtype == torch.float64 else "grouped_mm"
        for i, layer in enumerate(model.layers):
            ones = layer.layer_scalar
            del layer.layer_scalar
            layer.layer_scalar = 1.0
            model.register_buffer(f"canvas_scale_{i}", torch.ones_like(ones))
            model.register_buffer(f"context_scale_{i}", torch.ones_like(ones))
            layer.self_attn.append_to_cache = partial(_kept, i)
        return model

    def embed(self, model: Any, ids_RL: Tensor, attend_RL: Tensor | None) -> Tensor:
        embedded: Tensor = model.embed_tokens(ids_RL)
        return embedded

    def soft(self, model: Any, logits_PV: Tensor) -> Tensor:
        """Returns (P, D), the mean embedding of a prediction, of its logits as the next step is to see them."""
        table_VD = model.embed_tokens.weight
        p_PV = logits_PV.to(table_VD.dtype).softmax(-1, dtype=torch.float32).to(table_VD.dtype)
        mean_PD: Tensor = p_PV @ table_VD * model.embed_tokens.embed_scale.to(table_VD.dtype)
        return mean_PD

    def run(
        self,
        model: Any,
        x_RQD: Tensor,
        mask: Any,
        attend_RK: Tensor | None,
        position_ids_RQ: Tensor | None,
        every: bool,
        memory: Any = None,
        noised_RL: Tensor | None = None,
        soft_RQD: Tensor | None = None,
        block_RK: Tensor | int = 0,
    ) -> Any:
        """Returns the last hidden state, after the final norm. noised_RL: the canvas; None: all is context. block_RK:
        of context, a position's own, but for a picture's slots, which share one; 0: only the canvas is run."""
        rows, length = x_RQD.shape[:2]
        at_RQ = torch.arange(length, device=x_RQD.device).expand(rows, length)
        if memory is not None and memory.at_SN is not None:
            at_RQ = memory.at_SN
        position_ids_RQ = at_RQ if position_ids_RQ is None else position_ids_RQ
        canvas_RQ1, from_RQ = None, at_RQ
        if noised_RL is not None:
            canvas_RQ = F.pad(noised_RL, (0, 1)).gather(1, at_RQ)
            canvas_RQ1, from_RQ = canvas_RQ[..., None], torch.where(canvas_RQ, _first(noised_RL), at_RQ)
            soft_RQD = torch.zeros_like(x_RQD) if soft_RQD is None else soft_RQD.to(x_RQD.dtype)
            x_RQD = torch.where(canvas_RQ1, model.self_conditioning(x_RQD, soft_RQD), x_RQD)
        masks = self._masks(model, x_RQD, mask, at_RQ, from_RQ, memory, block_RK)
        kinds = model.text_config.layer_types
        turned = {kind: model.rotary_emb(x_RQD, position_ids_RQ, kind) for kind in dict.fromkeys(kinds)}
        states = [x_RQD] if every else []  # all of them are many times the memory of a forward
        for layer in model.layers:
            i = layer.layer_idx
            kind = kinds[i]
            x_RQD = layer(
                x_RQD,
                position_embeddings=turned[kind],
                attention_mask=masks[kind],
                position_ids=position_ids_RQ,
                cache=memory,
            )
            context, canvas = getattr(model, f"context_scale_{i}"), getattr(model, f"canvas_scale_{i}")
            x_RQD = x_RQD * (context if canvas_RQ1 is None else torch.where(canvas_RQ1, canvas, context))
            states += [x_RQD] if every else []
        return SimpleNamespace(last_hidden_state=model.norm(x_RQD), hidden_states=tuple(states) if every else None)

    def head(self, model: Any, h: Tensor, ids_K: Tensor | None = None) -> Tensor:
        table = model.embed_tokens.weight
        cap = model.text_config.final_logit_softcapping
        return torch.tanh(F.linear(h, table if ids_K is None else table[ids_K]).float() / cap) * cap

    def _masks(
        self, model: Any, x_RQD: Tensor, mask: Any, at_RQ: Tensor, from_RQ: Tensor, memory: Any, block_RK: Tensor | int
    ) -> dict[str, Tensor | None]:
        """Returns who sees whom by kind of layer. from_RQ: the position that the window of each is counted from."""
        if mask is not None and not isinstance(mask, torch.Tensor):
            raise ConfigError("attention 'flex_attention': layers with a window need sdpa or eager")
        keys, window = x_RQD.shape[1], model.text_config.sliding_window
        if memory is not None and memory.at_SN is not None:
            keys = memory.length + memory.ragged
        seen: Tensor | None = None
        if mask is not None:
            pairs = mask if mask.ndim == 4 else mask[:, None, None].bool()
            seen = pairs if pairs.dtype == torch.bool else pairs == 0
        key_K = torch.arange(keys, device=x_RQD.device)
        near = None if keys <= window else (from_RQ[..., None] - key_K < window)[:, None]
        if near is not None and not isinstance(block_RK, int):
            near = near | (block_RK.gather(1, at_RQ)[..., None] == block_RK[:, None])[:, None]
        own = (at_RQ[..., None] == key_K)[:, None]
        inside = seen if near is None else near if seen is None else seen & near

        def form(one: Tensor | None) -> Tensor | None:
            if one is None:
                return None
            one = one | own  # padding may see nothing else
            if "eager" in model.config._attn_implementation:
                return torch.where(one, x_RQD.new_zeros(()), torch.finfo(x_RQD.dtype).min)
            return one

        return {"full_attention": form(seen), "sliding_attention": form(inside)}


def _kept(layer: int, cache: Any, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
    """Returns all keys and values that are seen: the class would only read a cache that its encoder has filled."""
    kept: tuple[Tensor, Tensor] = cache.update(key_states, value_states, layer)
    return kept


def _first(noised_RL: Tensor) -> Tensor:
    """Returns int64 (R, 1), where the first noised position stands; L where there is none."""
    order_L = torch.arange(noised_RL.shape[1], device=noised_RL.device)
    return torch.where(noised_RL, order_L, noised_RL.shape[1]).amin(1, keepdim=True)


FAMILY = DiffusionGemma()
