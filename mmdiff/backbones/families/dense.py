"""Families that are a dense decoder: Dream (LaViDa's, too), SDAR, Fast-dLLM v2 (all Qwen), Nemotron-Labs-Diffusion.

Dream 7B (arXiv 2508.15487; Dream-Coder, DreamOn and DiffuCoder, too): Qwen2.5, every position sees every other, and
    the logits of a position come from the state one to the left.
Dream-VL's language model: Dream, which turns by positions along three axes (`mrope_section`); those of text are one.
    The tower (`visual`) and the projector are read beside it (`mmdiff.model.published.dreamvl`).
SDAR (arXiv 2510.06303; TraDo, too): Qwen3, block-causal, of `block_size` positions counted from the row's start.
Fast-dLLM v2 (arXiv 2509.26328): Qwen2.5, block-causal of `bd_size`, with the logits of the state to the left.
DiffusionVL of Qwen2.5 (arXiv 2512.15713): Qwen2.5, block-causal of `bd3lm_block_size`.
Nemotron-Labs-Diffusion (Fu et al., 2026): Ministral 3; the body is called `encoder`, the head `diffusion_head`. A block
    of `block_size` targets sees itself and a causal context. Run from left to right the same weights are a causal
    model, whose logits come from the state to the left (`mmdiff.samplers.links.verifier.Speculate`). The published code
    has that causal model write the first token of each block; here it is predicted as the others are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import BlockCausal, CausalContext

from ..family import Sizes
from ..rope import checked_sections, turn_along_axes
from ..shares import Share, per_layer
from .decoder import Decoder
from .llada import ELSEWHERE, OF_PICTURES
from .published.ministral import NEMOTRON as NEMOTRON_MODELS
from .published.qwen import DIFFUSION_VL as DIFFUSION_VL_MODELS
from .published.qwen import DREAM as DREAM_MODELS
from .published.qwen import DREAM_VL as DREAM_VL_MODELS
from .published.qwen import FAST_DLLM as FAST_DLLM_MODELS
from .published.qwen import SDAR as SDAR_MODELS
from .tokenizers import byte_tokenizer

MASK, EOS, END = "<|mask|>", "<|endoftext|>", "<|im_end|>"
VISION = ("<|vision_start|>", "<|vision_end|>")
SLIDING = {"use_sliding_window": False, "rope_scaling": None}


def blocks(raw: Mapping[str, Any]) -> Pattern | None:
    """Returns block-causal attention of the size that a config.json names."""
    return BlockCausal(int(raw.get("block_size") or raw.get("bd_size") or 4))


def toy_tokenizer(mask: str = MASK) -> Any:
    """Returns a tokenizer of bytes with Qwen's special tokens, and a mask."""
    return byte_tokenizer(bos=None, eos=EOS, special=("<|im_start|>", END, mask))


DREAM = Decoder(
    name="Dream",
    config_class="Qwen2Config",
    published=DREAM_MODELS,
    mask=MASK,
    only=SLIDING,
    without=("use_mrope",),
    eos=EOS,
    ends=(END,),
    ids={"mask_token_id": 151666, "eos_token_id": 151643},
    shift=1,
    hidden_ratio=4,
    theta=1_000_000.0,
    tokenizer=toy_tokenizer,
)
LLAVA_DREAM = replace(
    DREAM, name="llava_dream", without=(*DREAM.without, *OF_PICTURES, "max_window_layers"), elsewhere=ELSEWHERE
)


class AlongAxes(Decoder):
    """A decoder whose positions are along three axes, see `mmdiff.backbones.rope`."""

    def config(self, raw: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        made = super().config(raw, options)
        made.mrope_section = checked_sections(raw.get("mrope_section"), _half(made))
        return made

    def new_config(self, sizes: Sizes, options: Mapping[str, Any] | None = None) -> Any:
        made = super().new_config(sizes, options)
        made.mrope_section = checked_sections(None, _half(made))
        return made

    def finished(self, model: Any) -> Any:
        turn_along_axes(model, model.config.mrope_section)
        return model


def _half(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads // 2)


DREAM_VL = AlongAxes(
    **{
        **vars(DREAM),
        "name": "dream-vl",
        "published": DREAM_VL_MODELS,
        "only": {**SLIDING, "full_attn_mask": True},
        "without": (*DREAM.without, "max_window_layers", "mrope_section", "vision_config", "projector_hidden_act"),
        "tokenizer": lambda: byte_tokenizer(bos=None, eos=EOS, special=("<|im_start|>", END, MASK, *VISION)),
        "publish": lambda config: {"mrope_section": config.mrope_section},
        "elsewhere": (r"visual\.", r"projector\."),
    }
)
DIFFUSION_VL = replace(
    DREAM,
    name="diffusionvl_qwen",
    published=DIFFUSION_VL_MODELS,
    only={**SLIDING, "enable_bd3lm": True},
    without=(*OF_PICTURES, "max_window_layers", r"bd3lm_\w+"),
    elsewhere=ELSEWHERE,
    eos=END,
    ids={"mask_token_id": 151671, "eos_token_id": 151645},  # an id that the tokenizer has no token for
    shift=0,
    attention=lambda raw: BlockCausal(int(raw.get("bd3lm_block_size") or 8)),
    block_field="bd3lm_block_size",
)
SDAR = Decoder(
    name="sdar",
    config_class="Qwen3Config",
    published=SDAR_MODELS,
    mask="<|MASK|>",
    only={**SLIDING, "attention_bias": False},
    without=("block_size", "debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep"),
    eos=EOS,
    ends=(END,),
    ids={"mask_token_id": 151669, "eos_token_id": 151643},
    attention=blocks,
    hidden_ratio=3,
    theta=1_000_000.0,
    tokenizer=lambda: toy_tokenizer("<|MASK|>"),
)
FAST_DLLM = Decoder(
    name="Fast_dLLM_Qwen",
    config_class="Qwen2Config",
    published=FAST_DLLM_MODELS,
    mask="|<MASK>|",
    only=SLIDING,
    without=("bd_size", "block_size", "conplemenrary_mask"),
    eos=END,
    ends=(END,),
    ids={"mask_token_id": 151665, "eos_token_id": 151645},
    shift=1,
    attention=blocks,
    block_field="bd_size",
    hidden_ratio=4,
    theta=1_000_000.0,
    tokenizer=lambda: toy_tokenizer("|<MASK>|"),
)


_LAYER = (
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj "
    "input_layernorm post_attention_layernorm"
)


def _nemotron_shares(config: Any) -> dict[str, tuple[Share, ...]]:
    """Returns the published tensors: transformers' with `encoder` for `model`, and a head of another name."""
    layer = {f"{name}.weight": f"{name}.weight" for name in _LAYER.split()}
    whole = {"encoder.embed_tokens": "model.embed_tokens", "encoder.norm": "model.norm", "diffusion_head": "lm_head"}
    return per_layer(config.num_hidden_layers, layer, "encoder.layers.{}.", "model.layers.{}.") | {
        f"{theirs}.weight": (Share(f"{ours}.weight"),) for theirs, ours in whole.items()
    }


NEMOTRON = Decoder(
    name="nemotron_labs_diffusion",
    config_class="Ministral3Config",
    published=NEMOTRON_MODELS,
    mask="[MASK]",
    only={"attention_bias": False, "mlp_bias": False, "sliding_window": None, "tie_word_embeddings": False},
    without=("ar_loss_weight", "block_size", "dlm_loss_weight", "dlm_paradigm", "dp_varying_mask_ratio"),
    shares=_nemotron_shares,
    eos="<|im_end|>",
    ids={"mask_token_id": 100, "eos_token_id": 11},
    causal_shift=1,
    attention=lambda raw: CausalContext(int(raw.get("block_size") or 32)),
    small={"rope_parameters": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384,
                               "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                               "llama_4_scaling_beta": 0.1}},
    hidden_ratio=3.5,
    theta=1_000_000.0,
    eps=1e-5,
    tokenizer=lambda: byte_tokenizer(bos="<s>", eos="<|im_end|>", special=("[MASK]",)),
)  # fmt: skip
