"""The arithmetic of published decoders in plain torch, from published tensors by their published names.

Shape letters: R rows, L positions, D width, H heads, F width of a head, V vocabulary, E experts, N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def logits(
    w: Weights, raw: Mapping[str, Any], ids_RL: Tensor, sees_RLL: Tensor, position_RL: Tensor | None = None
) -> Tensor:
    """Returns (R, L, V). raw: a published config.json. sees_RLL: bool, who sees whom. position_RL: 0 behind padding, as
    it matters where the size of queries depends on it; None: 0, 1, ..."""
    llada2 = raw["model_type"] == "llada2_moe"
    embed, o, qn, kn = (
        ("word_embeddings", "attention.dense", "attention.query_layernorm", "attention.key_layernorm")
        if llada2
        else ("embed_tokens", "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm")
    )
    heads, kv = raw["num_attention_heads"], raw["num_key_value_heads"]
    width = raw.get("head_dim") or raw["hidden_size"] // heads
    eps, length = raw["rms_norm_eps"], ids_RL.shape[1]
    turned = int(width * raw.get("partial_rotary_factor", 1.0))
    rope = raw.get("rope_parameters") or {}
    rate_F = (raw["rope_theta"] if not rope else rope["rope_theta"]) ** -(torch.arange(0, turned, 2) / turned)
    scale_R1L1 = torch.ones(1, 1, length, 1)
    if rope:
        rate_F = yarn(rate_F, rope)
        beta, span = rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]
        position_RL = torch.arange(length)[None] if position_RL is None else position_RL
        scale_R1L1 = 1 + beta * (1 + position_RL[:, None, :, None] // span).log()
    angle_LF = (torch.arange(length)[:, None] * rate_F).repeat(1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()

    def rotate(x_RHLF: Tensor) -> Tensor:
        x, rest = x_RHLF[..., :turned], x_RHLF[..., turned:]
        a, b = x.chunk(2, -1)
        return torch.cat((x * angle_LF.cos() + torch.cat((-b, a), -1) * angle_LF.sin(), rest), -1)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def gated(x: Tensor, name: str) -> Tensor:
        return linear(F.silu(linear(x, f"{name}.gate_proj")) * linear(x, f"{name}.up_proj"), f"{name}.down_proj")

    def mixture(x_ND: Tensor, at: str) -> Tensor:
        k, out = raw["num_experts_per_tok"], torch.zeros_like(x_ND)
        score_NE = linear(x_ND, f"{at}.gate")
        if llada2:
            score_NE = score_NE.sigmoid()
            chosen_NE = score_NE + w[f"{at}.gate.expert_bias"]
            best_NG = chosen_NE.unflatten(-1, (raw["n_group"], -1)).topk(2, -1).values.sum(-1)
            kept_NG = torch.zeros_like(best_NG).scatter(1, best_NG.topk(raw["topk_group"], -1).indices, 1.0)
            group_NE = kept_NG.repeat_interleave(chosen_NE.shape[1] // raw["n_group"], 1)
            top_NK = chosen_NE.masked_fill(group_NE == 0, -torch.inf).topk(k, -1).indices
            weight_NK = score_NE.gather(1, top_NK)
            weight_NK = raw["routed_scaling_factor"] * weight_NK / weight_NK.sum(-1, keepdim=True)
        else:
            weight_NK, top_NK = score_NE.softmax(-1).topk(k, -1)
            if raw.get("norm_topk_prob"):
                weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        for n in range(len(x_ND)):
            for weight, expert in zip(weight_NK[n], top_NK[n].tolist(), strict=True):
                out[n] += weight * gated(x_ND[n], f"{at}.experts.{expert}")
        return out + gated(x_ND, f"{at}.shared_experts") if llada2 else out

    body, top = ("encoder", "diffusion_head") if "diffusion_head.weight" in w else ("model", "lm_head")
    x = w[f"{body}.{embed}.weight"][ids_RL]
    for i in range(raw["num_hidden_layers"]):
        at = f"{body}.layers.{i}"
        h = norm(x, f"{at}.input_layernorm")
        if llada2:
            q, k, v = linear(h, f"{at}.attention.query_key_value").split([n * width for n in (heads, kv, kv)], -1)
        else:
            q, k, v = (linear(h, f"{at}.self_attn.{name}_proj") for name in "qkv")
        q, k, v = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in (q, k, v))
        if f"{at}.{qn}.weight" in w:
            q, k = norm(q, f"{at}.{qn}"), norm(k, f"{at}.{kn}")
        k, v = rotate(k).repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        score = (rotate(q) * scale_R1L1 @ k.mT / width**0.5).masked_fill(~sees_RLL[:, None], -torch.inf)
        x = x + linear((score.softmax(-1) @ v).transpose(1, 2).flatten(-2), f"{at}.{o}")
        h = norm(x, f"{at}.post_attention_layernorm")
        sparse = f"{at}.mlp.gate.weight" in w
        x = x + (mixture(h.flatten(0, 1), f"{at}.mlp").view_as(h) if sparse else gated(h, f"{at}.mlp"))
    return linear(norm(x, f"{body}.norm"), top)


def yarn(rate_F: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Returns rotary frequencies by YaRN (arXiv 2309.00071, eq. 18 and 23): slow ones are divided by the factor."""
    # in the published code the ramp is linear in the number of the frequency, between two whole numbers
    number_F = torch.arange(len(rate_F))
    width, theta = 2 * len(rate_F), torch.tensor(rope["rope_theta"])

    def where(turns: float) -> Tensor:
        span = torch.tensor(rope["original_max_position_embeddings"] / (turns * 2 * torch.pi))
        return width * span.log() / (2 * theta.log())

    low, high = where(rope["beta_fast"]).floor().clamp(min=0), where(rope["beta_slow"]).ceil().clamp(max=width - 1)
    ramp_F = ((number_F - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return rate_F / rope["factor"] * ramp_F + rate_F * (1 - ramp_F)
