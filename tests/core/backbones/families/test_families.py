"""Every family in its published layout: loads whole, computes what plain torch does, is saved back bit for bit,
generates, is trained, and adapted. One cell of the table in docs/backbones.md per test and family.

Shape letters: R rows, L positions, D width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models.plain_decoder import logits as plain_logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.backbones import load_backbone
from mmdiff.backbones.family import FAMILIES, find_family, model_type_of
from mmdiff.canvas.pattern import Visibility
from mmdiff.canvas.patterns import Full, visibility
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.objectives.denoise import Denoise

NAMES = [
    "Dream",
    "dream-vl",
    "sdar",
    "Fast_dLLM_Qwen",
    "nemotron_labs_diffusion",
    "llada_moe",
    "sdar_moe",
    "llada2_moe",
]
BIASED = ("Dream", "dream-vl", "Fast_dLLM_Qwen")
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4,
    "beta_fast": 2.0,
    "beta_slow": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}
SMALL: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "dense_intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "rope_theta": 5000.0,
    "max_position_embeddings": 64, "num_experts": 8, "num_experts_per_tok": 3, "expert_intermediate_size": 24,
    "moe_intermediate_size": 24, "n_group": 4, "topk_group": 2, "moe_layer_freq": [1, 0, 1], "block_size": 3,
    "bd_size": 3, "mask_token_id": None, "eos_token_id": 256, "pad_token_id": 256, "bos_token_id": 256,
    "rope_parameters": ROPE,
}  # fmt: skip


def raw_of(name: str) -> dict[str, Any]:
    """The published config.json at a small size."""
    first = dict(next(iter(find_family(name).PUBLISHED.values())))
    small = {field: value for field, value in SMALL.items() if field in first}
    if name == "dream-vl":
        small |= {"mrope_section": [1, 2, 3]}
    if name == "llada_moe":
        small |= {"num_key_value_heads": 4}
    if name == "llada2_moe":
        small |= {"block_size": 3, "rotary_dim": 8}
    return {**first, **small, "mask_token_id": find_family(name).toy_tokenizer().convert_tokens_to_ids(mask_of(name))}


def mask_of(name: str) -> str:
    return str(find_family(name).mask)  # type: ignore[attr-defined]


def tensors_of(name: str) -> dict[str, Tensor]:
    """Random published tensors, by the shapes that the published code would make, large enough for all to matter."""
    raw = raw_of(name)
    d, v, heads, kv = (raw[n] for n in ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads"))
    f = raw.get("head_dim") or d // heads
    wide = int(raw.get("dense_intermediate_size") or raw["intermediate_size"])
    narrow = int(raw.get("expert_intermediate_size") or raw.get("moe_intermediate_size") or 0)
    shapes: dict[str, tuple[int, ...]] = {"model.norm": (d,), "lm_head": (v, d)}

    def mlp(at: str, n: int) -> dict[str, tuple[int, ...]]:
        return {f"{at}.gate_proj": (n, d), f"{at}.up_proj": (n, d), f"{at}.down_proj": (d, n)}

    for i in range(raw["num_hidden_layers"]):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.input_layernorm": (d,), f"{at}.post_attention_layernorm": (d,)}
        if name == "llada2_moe":
            shapes |= {
                f"{at}.attention.query_key_value": ((heads + 2 * kv) * f, d),
                f"{at}.attention.dense": (d, heads * f),
            }
            shapes |= {f"{at}.attention.query_layernorm": (f,), f"{at}.attention.key_layernorm": (f,)}
        else:
            sizes = {"q_proj": (heads * f, d), "k_proj": (kv * f, d), "v_proj": (kv * f, d), "o_proj": (d, heads * f)}
            shapes |= {f"{at}.self_attn.{part}": shape for part, shape in sizes.items()}
            if name not in (*BIASED, "nemotron_labs_diffusion"):
                shapes |= {f"{at}.self_attn.q_norm": (f,), f"{at}.self_attn.k_norm": (f,)}
        dense = {"llada2_moe": i < 1, "llada_moe": not raw.get("moe_layer_freq", [1] * 9)[i], "sdar_moe": False}
        if dense.get(name, True):
            shapes |= mlp(f"{at}.mlp", wide)
            continue
        shapes[f"{at}.mlp.gate"] = (raw["num_experts"], d)
        for e in range(raw["num_experts"]):
            shapes |= mlp(f"{at}.mlp.experts.{e}", narrow)
        if name == "llada2_moe":
            shapes |= mlp(f"{at}.mlp.shared_experts", narrow)
    shapes["model.word_embeddings" if name == "llada2_moe" else "model.embed_tokens"] = (v, d)
    torch.manual_seed(0)
    out = {
        f"{part}.weight": torch.randn(shape) / (math.sqrt(shape[-1]) if len(shape) > 1 else 1)
        for part, shape in shapes.items()
    }
    for i in range(raw["num_hidden_layers"]):
        if name in BIASED:
            for part, n in (("q", heads), ("k", kv), ("v", kv)):
                out[f"model.layers.{i}.self_attn.{part}_proj.bias"] = torch.randn(n * f)
        if name == "llada2_moe" and i >= 1:
            out[f"model.layers.{i}.mlp.gate.expert_bias"] = 0.3 * torch.randn(raw["num_experts"])
    if name == "nemotron_labs_diffusion":
        out = {k.replace("model.", "encoder.").replace("lm_head", "diffusion_head"): x for k, x in out.items()}
    return out


@pytest.fixture(scope="module", params=NAMES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_text(json.dumps(raw_of(name)))
    save_file(tensors_of(name), folder / "model.safetensors", {"format": "pt"})
    find_family(name).toy_tokenizer().save_pretrained(folder)
    return name, folder


IDS = torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(1))
PADDING = {"whole": [[1] * 11] * 3, "right": [[1] * 11, [1] * 6 + [0] * 5, [1] * 2 + [0] * 9],
           "left": [[1] * 11, [0] * 5 + [1] * 6, [0] * 9 + [1] * 2]}  # fmt: skip


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_equal_plain_torch(published: tuple[str, Path], attention: str, padding: str) -> None:
    """With the published attention: block-causal, counted from a row's first position, or causal over all context."""
    name, folder = published
    backbone = load_backbone(folder, attention=attention)
    assert backbone.family == name
    attend_RL = torch.tensor(PADDING[padding], dtype=torch.bool)
    pattern = backbone.facts.attention or Full()
    assert (pattern == Full()) == (name in ("Dream", "dream-vl", "llada_moe"))
    block_RL = (attend_RL.cumsum(1) - 1).clamp(min=0) // (1 if name == "nemotron_labs_diffusion" else 3)
    sees_RLL = attend_RL[:, None] & (block_RL[:, None] <= block_RL[:, :, None] if pattern != Full() else True)
    sees_RLL = sees_RLL | torch.eye(11, dtype=torch.bool)
    model = MMDiff(backbone)
    batch = collate([[Text(row[keep].tolist())] for row, keep in zip(IDS, attend_RL, strict=True)], backbone.vocab,
                    side="left" if padding == "left" else "right")  # fmt: skip
    shown: Visibility = visibility(model.attention, batch, torch.arange(3))
    expected = plain_logits(tensors_of(name), raw_of(name), IDS, sees_RLL, batch.position_ids_BL)
    hidden = backbone.hidden(backbone.embed(IDS, attend_RL), attend_RL, batch.position_ids_BL, shown)
    found = backbone.head(hidden)
    assert expected.std() > 0.5  # else a tolerance would say little
    torch.testing.assert_close(found[attend_RL], expected[attend_RL], atol=2e-5, rtol=1e-5)


def test_the_published_folder_comes_back_bit_for_bit(published: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = published
    backbone = load_backbone(folder)
    backbone.save_pretrained(tmp_path / "theirs", original_format=True)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "theirs"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    raw, again = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "theirs"))
    assert {k: again[k] for k in raw} == raw
    ids = json.loads((tmp_path / "theirs/generation_config.json").read_text())  # which Dream's own code asks for
    assert ids["mask_token_id"] == backbone.facts.mask_id and ids["eos_token_id"] == backbone.facts.eos_id
    backbone.save_pretrained(tmp_path / "ours")
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        other = load_backbone(folder)
        assert other.facts == backbone.facts and other.family == name
        assert torch.equal(other(IDS), backbone(IDS))


def test_it_generates_trains_and_takes_adapters(published: tuple[str, Path], tmp_path: Path) -> None:
    """Ragged rows get what each gets alone; a step moves every weight that a token reaches, or the adapters alone."""
    _, folder = published
    model = MMDiff(load_backbone(folder))
    rows: list[Sample] = [[Text([5, 6, 7, 8]), Target(length=5)], [Text([9]), Target(length=7)]]
    named: dict[str, Any] = {"block_length": 3, "block_start": "row", "early_stop": False}
    together = model.generate(collate(rows, model.vocab, index=[0, 1]), **named).targets()
    for i, row in enumerate(rows):
        assert model.generate(collate([row], model.vocab, index=[i]), **named).targets() == [together[i]]
    batch = collate([[Text([5, 6]), Target([7, 8, 9, 10])]], model.vocab)

    def step() -> set[str]:
        plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        model.zero_grad()
        Denoise().terms(model.train(), plan)["denoise"].value.backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}

    moved = step()
    assert {n for n, _ in model.named_parameters()} - moved == set()
    add_adapters(model, {"part": "backbone", "modules": "q_proj|v_proj", "r": 2, "alpha": 4, "dropout": 0.0})
    assert step() and all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    model.backbone.gradient_checkpointing(True)
    assert all("lora_" in n for n in step())


@torch.no_grad()
def test_half_precision_stays_near(published: tuple[str, Path]) -> None:
    _, folder = published
    exact, half = load_backbone(folder)(IDS), load_backbone(folder, dtype="bfloat16")(IDS).float()
    assert half.isfinite().all() and float((half - exact).abs().mean()) < 0.1 * float(exact.std())


def test_toys_of_every_listed_model() -> None:
    for name in NAMES:
        for hub_id in find_family(name).PUBLISHED:
            toy = load_backbone.toy(hub_id)  # type: ignore[attr-defined]
            assert toy.family == name and toy.facts.shift == (name in BIASED)
    assert model_type_of({"model_type": "llada", "num_experts": 4}) == "llada_moe"
    assert set(NAMES) < set(FAMILIES)


def test_unknown_fields_and_missing_tensors_are_refused(published: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = published
    raw = raw_of(name)
    refused = {
        "Dream": ("use_sliding_window", True),
        "dream-vl": ("full_attn_mask", False),
        "llada2_moe": ("norm_head", True),
        "llada_moe": ("qk_layernorm", False),
        "nemotron_labs_diffusion": ("sliding_window", 4096),
    }
    for field, value in [("looped_layers", 2), refused.get(name, ("rope_scaling", {"factor": 4}))]:
        (tmp_path / "config.json").write_text(json.dumps({**raw, field: value}))
        save_file(tensors_of(name), tmp_path / "model.safetensors")
        find_family(name).toy_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=f"config.json: {field}: ") as error:
            load_backbone(tmp_path)
        assert "\n" not in str(error.value)
    tensors = tensors_of(name)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    gone = next(k for k in reversed(sorted(tensors)) if "expert" in k or "mlp" in k)
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"1 missing tensors: {gone}"):
        load_backbone(tmp_path)


def test_a_vision_tower_of_dream_vl_is_left_alone_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw_of("dream-vl")))
    find_family("dream-vl").toy_tokenizer().save_pretrained(tmp_path)
    tensors = tensors_of("dream-vl")
    tower = {"visual.blocks.0.attn.qkv.weight": torch.zeros(6, 2), "projector.linear_1.weight": torch.zeros(2, 2)}
    save_file(tensors | tower, tmp_path / "model.safetensors")
    load_backbone(tmp_path)
    save_file(tensors | {"visuals.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"unexpected tensor 'visuals.weight'"):
        load_backbone(tmp_path)
