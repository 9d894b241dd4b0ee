"""Causal models of transformers: what files call otherwise than its classes do, and models that are not taken.

Names are those that transformers' own conversion accepts (its `conversion_mapping`), and that it leaves out on loading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmdiff.backbones.shares import Published, Share

EXPERTS = tuple((rf"(\.experts\.\d+\.){ours}\.", rf"\1{theirs}.") for ours, theirs in
                (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")))  # fmt: skip
SPARSE = ((r"\.mlp\.", ".block_sparse_moe."), *EXPERTS)
GRANITE = (
    (r"\.experts\.gate_up_proj$", ".input_linear.weight"),
    (r"\.experts\.down_proj$", ".output_linear.weight"),
    (r"\.router\.weight$", ".router.layer.weight"),
)
RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gpt_neox": ((r"^lm_head\.", "embed_out."),),
    "mixtral": SPARSE,
    "minimax": SPARSE,
    "phimoe": (*SPARSE, (r"\.router\.weight$", ".gate.weight")),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), GRANITE),
}
"""`model_type` -> (name of transformers' class, name in files), as patterns."""
ELSEWHERE = (
    r"(.*\.)?(attn|attention|crossattention)\.(masked_)?bias",  # triangles of GPT-2, GPT-J and GPT-NeoX
    r"(.*\.)?rotary_emb\.inv_freq",
)
"""Tensors of older files that are no weights."""
FURTHER = {"deepseek_v3": (r"model\.layers\.61\..*",)}
"""Those of another part: DeepSeek-V3's prediction of a second token."""
ALIBI = "positions are distances to the left (ALiBi), which say nothing of those to the right"
UNFIT = {
    **dict.fromkeys(("bloom", "mpt"), ALIBI),
    **dict.fromkeys(("gpt_neo", "xglm"), "its class has an attention of its own, without sdpa"),
    **dict.fromkeys(
        ("falcon_mamba", "jamba", "mamba", "mamba2", "rwkv"), "it reads state by state, from left to right"
    ),
}
"""`model_type` -> why it cannot be made to attend in both directions."""
TAKEN = "Llama, Mistral, Mixtral, Qwen2, Qwen3, OLMo, Phi, GPT-2, GPT-NeoX and their kin"
WINDOWED = f"its layers see a window to the left, and are not made to see one on both sides; {TAKEN} are taken"


def named_in_files(model_type: str, names: Published) -> Published:
    """Returns names of tensors with those that files of the model have; of several for one, the last is written."""
    patterns = RENAMED.get(model_type, ())
    plain = dict(names)
    if patterns is GRANITE:  # whose files hold all experts in one tensor, as the class does
        plain = {name: shares for name, shares in names.items() if ".experts." not in name}
        held = {share.ours for name, shares in names.items() if ".experts." in name for share in shares}
        plain |= {ours: (Share(ours),) for ours in sorted(held)}
    out = dict(plain)
    for name, shares in plain.items():
        for ours, theirs in patterns:
            name = re.sub(ours, theirs, name)
        out[name] = out.pop(name, shares)
    return out
