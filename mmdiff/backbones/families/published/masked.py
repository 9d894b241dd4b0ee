"""Masked language models of transformers: what their published folders have in common, and what is told by name.

They are read in transformers' own layout, so that only exceptions stand here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from mmdiff.backbones.shares import Share

OFFSET = frozenset("camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl".split())
"""RoBERTa's kin: the first position is the row behind padding's of the table of positions."""
HEADS = {
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "modernbert": ("head", "decoder"),
}
"""Modules between hidden states and logits, where they are not the one module beside the body."""
HUB = {
    "bert": "google-bert/bert-base-uncased",
    "camembert": "almanach/camembert-base",
    "distilbert": "distilbert/distilbert-base-uncased",
    "esmc": "biohub/ESMC-600M",
    "eurobert": "EuroBERT/EuroBERT-210m",
    "modernbert": "answerdotai/ModernBERT-base",
    "roberta": "FacebookAI/roberta-base",
    "xlm-roberta": "FacebookAI/xlm-roberta-base",
}
"""A published model of a family, for toy twins."""

NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
ONLY = {"is_decoder": False, "add_cross_attention": False, "is_causal": False, "position_embedding_type": "absolute"}
"""Fields with the one value under which transformers' class computes what the folder's model is."""
READ = (
    *"rope_theta rope_scaling rope_parameters partial_rotary_factor".split(),
    *"global_attn_every_n_layers global_rope_theta local_rope_theta".split(),
)
"""Fields that transformers' configuration makes others of."""
WITHOUT_EFFECT = re.compile(
    "_name_or_path|adapters|directionality|finetuning_task|gradient_checkpointing|num_labels|output_past|pooler_.*"
    "|reference_compile|repad_logits_with_grad|xla_device|torchscript|layer_norm_eps|classifier_.*"
    "|(mask|cls|sep|bos|eos)_token_id"
)
"""Further fields that change nothing of states and logits."""
ELSEWHERE = re.compile(
    r"(.*\.)?(pooler\.|contact_head\.|classifier\.|seq_relationship\.|\w*inv_freq$)"
    r"|(.*\.)?embeddings\.(position_ids|token_type_ids)$"
)


def names_of(own: Collection[str], body: str, tied: Mapping[str, str]) -> Mapping[str, tuple[Share, ...]]:
    """Returns {published name of a tensor: the parameter that it holds}; of several, the last is written.

    They differ in norms, `gamma` and `beta` in older files; in a head that shares the embeddings and has a name of its
    own; and in files of the body alone, which have no head and are refused for that.
    own: names of parameters. body: what a model calls all but its head. tied: another name -> that of the same one.
    """
    names = {name.removeprefix(f"{body}."): name for name in own}
    for kind, other in (("weight", "gamma"), ("bias", "beta")):
        found = [name for name in own if name.endswith(f"LayerNorm.{kind}")]
        names |= {name.removesuffix(kind) + other: name for name in found}
    names = {name: ours for name, ours in names.items() if name not in own} | {name: name for name in own}
    for name, other in tied.items():
        ours = other if other in own else name
        names.pop(other, None)
        names |= {name: ours, other: ours}  # the other is the one that transformers writes
    return {name: (Share(ours),) for name, ours in names.items()}
