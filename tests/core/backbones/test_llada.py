"""The LLaDA family against plain torch, and against folders laid out as LLaDA publishes its weights.

Shape letters: R rows, L positions, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.backbones import Backbone, Facts, load_backbone
from mmdiff.backbones.families import llada
from mmdiff.backbones.shares import Share
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import ConfigError

LAYERS, D, HEADS, FF, V = 3, 48, 4, 80, 300
CONFIG: dict[str, Any] = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig", "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": D, "embedding_dropout": 0.0,
    "embedding_size": V, "eos_token_id": 257, "flash_attention": False, "include_bias": False,
    "include_qkv_bias": False, "init_cutoff_factor": None, "init_device": "meta", "init_fn": "mitchell",
    "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms", "layer_norm_with_affine": True,
    "mask_token_id": 261, "max_sequence_length": 128, "mlp_hidden_size": FF, "mlp_ratio": 4, "model_type": "llada",
    "multi_query_attention": None, "n_heads": HEADS, "n_kv_heads": HEADS, "n_layers": LAYERS, "pad_token_id": 257,
    "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": True, "rope_full_precision": True,
    "rope_theta": 5000.0, "scale_logits": False, "transformers_version": "4.46.3", "use_cache": False, "vocab_size": V,
    "weight_tying": False,
}  # fmt: skip


def published_tensors() -> dict[str, Tensor]:
    """Random weights under published names, large enough for attention to matter."""
    torch.manual_seed(0)
    shapes = {"wte": (V, D), "ln_f": (D,), "ff_out": (V, D)}
    for i in range(LAYERS):
        square = {name: (D, D) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        wide = {"ff_proj": (FF, D), "up_proj": (FF, D), "ff_out": (D, FF), "attn_norm": (D,), "ff_norm": (D,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in (square | wide).items()}
    draw = {name: torch.randn(shape) * (0.2 if len(shape) > 1 else 1.0) for name, shape in shapes.items()}
    return {f"model.transformer.{name}.weight": value for name, value in draw.items()}


def write_folder(folder: Path, tensors: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))
    save_file(published_tensors() if tensors is None else tensors, folder / "model.safetensors", {"format": "pt"})
    llada.toy_tokenizer().save_pretrained(folder)
    return folder


def plain_torch(w: dict[str, Tensor], ids_RL: Tensor, attend_RL: Tensor | None = None) -> Tensor:
    """Logits (R, L, V) of a bidirectional Llama under published names; rotation in fp32 whatever the weights are."""
    w = {name.removeprefix("model.transformer.").removesuffix(".weight"): value for name, value in w.items()}
    angle_LF = torch.arange(ids_RL.shape[1])[:, None] * 5000.0 ** -(torch.arange(0, D // HEADS, 2) / (D // HEADS))
    cos, sin = angle_LF.cos().repeat(1, 2), angle_LF.sin().repeat(1, 2)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * (x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype)

    def heads(x_RLD: Tensor) -> Tensor:
        return x_RLD.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        a, b = x.float().chunk(2, -1)
        return (x.float() * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)

    x = w["wte"][ids_RL]
    mask = None if attend_RL is None else attend_RL[:, None, None]
    for i in range(LAYERS):
        block = {name.removeprefix(f"blocks.{i}."): v for name, v in w.items() if name.startswith(f"blocks.{i}.")}
        h = norm(x, block["attn_norm"])
        q, k, v = (heads(h @ block[name].T) for name in ("q_proj", "k_proj", "v_proj"))
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
        x = x + mixed.transpose(1, 2).flatten(-2) @ block["attn_out"].T
        h = norm(x, block["ff_norm"])
        x = x + (F.silu(h @ block["ff_proj"].T) * (h @ block["up_proj"].T)) @ block["ff_out"].T
    return norm(x, w["ln_f"]) @ w["ff_out"].T


def some_ids() -> Tensor:
    return torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(1))


PADDING = {
    "whole": [[1] * 11] * 3,
    "right": [[1] * 11, [1] * 6 + [0] * 5, [1] * 2 + [0] * 9],
    "left": [[1] * 11, [0] * 5 + [1] * 6, [0] * 9 + [1] * 2],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_equal_plain_torch(folder: Path, attention: str, padding: str) -> None:
    ids_RL, attend_RL = some_ids(), torch.tensor(PADDING[padding], dtype=torch.bool)
    backbone = load_backbone(folder, attention=attention)
    expected = plain_torch(published_tensors(), ids_RL, attend_RL)
    assert expected.std() > 0.5  # else a tolerance would say little
    torch.testing.assert_close(backbone(ids_RL, attend_RL)[attend_RL], expected[attend_RL], atol=2e-5, rtol=0)
    if padding == "whole":
        torch.testing.assert_close(backbone(ids_RL), expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_equals_the_published_arithmetic_to_the_last_bit(folder: Path) -> None:
    weights = {name: value.bfloat16() for name, value in published_tensors().items()}
    ids_RL = torch.arange(90)[None] % 256  # positions far enough apart for the rounding of angles to show
    expected = plain_torch(weights, ids_RL)
    assert torch.equal(load_backbone(folder, dtype="bfloat16")(ids_RL), expected)
    assert not torch.equal(load_backbone(folder, dtype="bfloat16", rope_in_fp32=False)(ids_RL), expected)
    exact = plain_torch({name: value.float() for name, value in weights.items()}, ids_RL)
    eager = load_backbone(folder, dtype="bfloat16", attention="eager")(ids_RL)
    assert (eager - exact).std() < 1.5 * (expected - exact).std()


def test_saving_in_the_original_format_gives_back_the_published_folder(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(folder)
    backbone.save_pretrained(tmp_path, original_format=True)
    written, published = load_file(tmp_path / "model.safetensors"), published_tensors()
    assert written.keys() == published.keys()
    assert all(torch.equal(written[name], published[name]) for name in published)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    again = load_backbone(tmp_path)
    assert again.facts == backbone.facts == Facts(261, 257, 257, 256, (257, 260), 0, 128)
    assert torch.equal(again(some_ids()), backbone(some_ids()))


def test_a_saved_folder_opens_in_stock_transformers(folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    backbone = load_backbone(folder)
    backbone.save_pretrained(tmp_path)
    assert torch.equal(load_backbone(tmp_path)(some_ids()), backbone(some_ids()))
    stock = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(stock(some_ids()).logits, backbone(some_ids()))


def test_sharded_weights(folder: Path, tmp_path: Path) -> None:
    tensors = published_tensors()
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:13], "model-00002-of-00002.safetensors": names[13:]}
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in shards.items() for name in held}}))
    assert torch.equal(load_backbone(tmp_path)(some_ids()), load_backbone(folder)(some_ids()))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="model-00002-of-00002.safetensors"):
        load_backbone(tmp_path)
    outside = tmp_path.parent / "outside.safetensors"
    save_file(tensors, outside)
    index.write_text(json.dumps({"weight_map": {name: f"../{outside.name}" for name in tensors}}))
    with pytest.raises(ConfigError, match="not a file of the folder"):
        load_backbone(tmp_path)


def test_llada_v_folder(folder: Path, tmp_path: Path) -> None:
    """Llama's names for fields and tensors, a vision tower beside them, and a bos_token_id of another vocabulary."""
    backbone = load_backbone(folder)
    backbone.save_pretrained(tmp_path)
    config = {
        "model_type": "llava_llada", "architectures": ["LlavaLLaDAModelLM"], "hidden_size": D, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": V,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "rope_scaling": None,
        "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": 257, "mm_vision_tower": "a/siglip",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    vision = {"model.mm_projector.0.weight": torch.ones(2, 2), "model.image_newline": torch.ones(2)}
    vision["model.vision_tower.vision_tower.vision_model.post_layernorm.bias"] = torch.ones(2)
    save_file(load_file(file) | vision, file)
    again = load_backbone(tmp_path)
    assert torch.equal(again(some_ids()), backbone(some_ids()))
    assert again.facts == Facts(261, 257, 257, 256, (257, 260), 0, 512)
    for field in ("rms_norm_eps", "rope_theta"):  # transformers has defaults for these, and they are not LLaDA's
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != field}))
        with pytest.raises(ConfigError, match=f"{field} is missing"):
            load_backbone(tmp_path)


@torch.no_grad()
def test_tied_embeddings(tmp_path: Path) -> None:
    tensors = published_tensors()
    del tensors["model.transformer.ff_out.weight"]
    backbone = load_backbone(write_folder(tmp_path / "in", tensors, weight_tying=True))
    expected = plain_torch(
        tensors | {"model.transformer.ff_out.weight": tensors["model.transformer.wte.weight"]}, some_ids()
    )
    torch.testing.assert_close(backbone(some_ids()), expected, atol=1e-5, rtol=0)
    backbone.save_pretrained(tmp_path / "out", original_format=True)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("name", llada.FAMILY.PUBLISHED)
def test_published_parameter_count(name: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # nothing is allocated
        model = AutoModelForCausalLM.from_config(llada.FAMILY.config(llada.FAMILY.PUBLISHED[name]))
    assert sum(p.numel() for p in model.parameters()) == 8_015_581_184


def test_published_names_at_full_size() -> None:
    names = llada.FAMILY.published_names(llada.FAMILY.config(llada.FAMILY.PUBLISHED["GSAI-ML/LLaDA-8B-Instruct"]))
    assert len(names) == 32 * 9 + 3 == len(set(names.values()))
    (held,) = names["model.transformer.blocks.31.ff_out.weight"]
    assert held == Share("model.layers.31.mlp.down_proj.weight")
    assert names["model.transformer.ff_out.weight"] == (Share("lm_head.weight"),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_type", "sequential"), ("layer_norm_type", "default"), ("alibi", True), ("rope", False),
        ("attention_layer_norm", True), ("scale_logits", True), ("input_emb_norm", True), ("block_group_size", 2),
        ("include_bias", True), ("include_qkv_bias", True), ("activation_type", "swiglu"), ("clip_qkv", 8.0),
        ("residual_dropout", 0.1), ("rope_scaling", {"type": "linear", "factor": 2.0}), ("n_heads", None),
        ("rope_theta", None), ("d_model", "wide"), ("quantization_config", {"quant_method": "x"}),
    ],
)  # fmt: skip
def test_what_a_llama_cannot_express_is_refused(folder: Path, tmp_path: Path, field: str, value: Any) -> None:
    write_folder(tmp_path, **{field: value})
    with pytest.raises(ConfigError, match="hidden_size" if value == "wide" else field) as caught:
        load_backbone(tmp_path)
    assert "\n" not in str(caught.value)


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    def refused(match: str, **changed: Tensor | None) -> None:
        tensors = published_tensors()
        for name, value in changed.items():
            name = f"model.transformer.{name.replace('__', '.')}.weight"
            tensors = {k: v for k, v in tensors.items() if k != name} | ({} if value is None else {name: value})
        with pytest.raises(ConfigError, match=match):
            load_backbone(write_folder(tmp_path, tensors))

    refused(r"1 missing tensors: model\.transformer\.blocks\.1\.up_proj\.weight", blocks__1__up_proj=None)
    refused(r"blocks\.0\.q_prj\.weight.*did you mean.*blocks\.0\.q_proj", blocks__0__q_prj=torch.ones(D, D))
    refused(r"blocks\.3\.ff_norm", blocks__3__ff_norm=torch.ones(D))
    refused(r"wte\.weight has shape \(299, 48\), expected \(300, 48\)", wte=torch.ones(V - 1, D))
    refused(r"wte\.weight holds I8", wte=torch.ones(V, D, dtype=torch.int8))


def test_pickles_code_and_broken_files_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    trace = tmp_path / "executed"
    for code in ("modeling_llada.py", "configuration_llada.py"):
        (tmp_path / code).write_text(f"open({str(trace)!r}, 'w').close()")
    load_backbone(tmp_path)
    assert not trace.exists()
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load_backbone(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds neither"):
        load_backbone(tmp_path)
    torch.save(published_tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin: pickled weights are refused"):
        load_backbone(tmp_path)


def test_ids_come_from_the_config_then_the_tokenizer_then_the_family(tmp_path: Path) -> None:
    raw = llada.FAMILY.PUBLISHED["GSAI-ML/LLaDA-8B-Base"]
    full, words = llada.FAMILY.config(raw), word_tokenizer(["a"])
    assert llada.FAMILY.facts(raw, full, words).mask_id == raw["mask_token_id"]
    assert llada.FAMILY.facts({}, full, words).mask_id == words.mask_token_id
    words.mask_token = None
    assert llada.FAMILY.facts({}, full, words).mask_id == raw["mask_token_id"]
    small = llada.FAMILY.config(CONFIG)
    with pytest.raises(ConfigError, match="no mask token"):
        llada.FAMILY.facts({}, small, words)  # LLaDA-8B's ids mean nothing in another vocabulary
    assert llada.FAMILY.facts(CONFIG | {"eos_token_id": [257, 259]}, small, llada.toy_tokenizer()).end_ids == (
        257,
        259,
        260,
    )
    with pytest.raises(ConfigError, match="mask_token_id: 3 in config.json, but .* is 261 in the tokenizer"):
        load_backbone(write_folder(tmp_path, mask_token_id=3))
    with pytest.raises(ConfigError, match="pad_token_id 261: is the mask id too"):
        load_backbone(write_folder(tmp_path, pad_token_id=261))
    with pytest.raises(ConfigError, match="eos_token_id 300: expected an id below vocab_size 300"):
        load_backbone(write_folder(tmp_path, eos_token_id=300))


def test_no_other_file_holds_the_published_ids() -> None:
    root = ROOT
    ids = re.compile(r"\b(?:1260(?:80|81)|1263(?:36|46|47|48))\b")
    files = [f for part in ("mmdiff", "encoders", "tasks", "configs") for f in (root / part).rglob("*.[py]*")]
    found = {f.parent.name + "/" + f.name for f in files if f.suffix in (".py", ".yaml") and ids.search(f.read_text())}
    assert found == {"published/llada.py"}


def test_gradients_flow_through_the_published_weights(folder: Path) -> None:
    """The end-of-sequence row is learnt too: transformers would freeze it if the configuration called it padding."""
    backbone: Backbone = load_backbone(folder)
    backbone(torch.full((1, 4), backbone.facts.pad_id)).square().sum().backward()
    gradients = {name: p.grad for name, p in backbone.model.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())
    assert gradients["model.embed_tokens.weight"][backbone.facts.pad_id].abs().sum() > 0


@torch.no_grad()
def test_a_table_without_room_grows_and_what_was_there_stays(folder: Path, tmp_path: Path) -> None:
    """256 action tokens do not fit the free rows of a published table."""
    old = load_backbone(folder)
    room = old.vocab_size - len(old.vocab.tokenizer)
    grown = load_backbone(folder, reserve={"action": room + 5, "state": 7})
    assert grown.vocab_size % 128 == 0 and grown.vocab_size - old.vocab_size in range(12, 128 + 12)
    assert grown.vocab.size == grown.vocab_size == grown.model.get_output_embeddings().weight.shape[0]
    low, high = grown.vocab.range("action")
    assert (low, high) == (len(old.vocab.tokenizer), len(old.vocab.tokenizer) + room + 5)
    assert grown.vocab.range("state") == (high, high + 7)
    ids_RL = some_ids() % len(old.vocab.tokenizer)
    logits_RLV = grown(ids_RL)
    assert torch.equal(logits_RLV[..., : old.vocab_size], old(ids_RL))
    new_RLD = grown.embed(torch.arange(old.vocab_size, high)[None])
    assert new_RLD.isfinite().all() and new_RLD.std() > 0
    grown.save_pretrained(tmp_path / "saved")
    again = load_backbone(tmp_path / "saved")
    assert again.vocab.ranges == grown.vocab.ranges and torch.equal(again(ids_RL), logits_RLV)
    assert load_backbone(folder, reserve={"action": room}).vocab_size == old.vocab_size
