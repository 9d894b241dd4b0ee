"""Families of Qwen's architectures: Dream, SDAR, Fast-dLLM v2. Their tensors have transformers' names.

Dream 7B (arXiv 2508.15487; Dream-Coder, DreamOn and DiffuCoder, too): Qwen2.5, every position sees every other, and
    the logits of a position come from the state one to the left.
SDAR (arXiv 2510.06303; TraDo, too): Qwen3, block-causal, of `block_size` positions counted from the row's start.
Fast-dLLM v2 (arXiv 2509.26328): Qwen2.5, block-causal of `bd_size`, with the logits of the state to the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import BlockCausal

from .decoder import Decoder
from .published.qwen import DREAM as DREAM_MODELS
from .published.qwen import FAST_DLLM as FAST_DLLM_MODELS
from .published.qwen import SDAR as SDAR_MODELS
from .tokenizers import byte_tokenizer

MASK, EOS, END = "<|mask|>", "<|endoftext|>", "<|im_end|>"
SLIDING = {"use_sliding_window": False, "rope_scaling": None}


def blocks(raw: Mapping[str, Any]) -> Pattern | None:
    """Returns block-causal attention of the size that a config.json names."""
    return BlockCausal(int(raw.get("block_size") or raw.get("bd_size") or 4))


def toy_tokenizer(mask: str = MASK) -> Any:
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
