"""What is seen of a folder without torch is what is seen with it; and torch is then not imported."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import transformers
from models import multimodal
from paths import ROOT
from safetensors.torch import load_file, save_file

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.llada import toy_tokenizer
from mmdiff.backbones.family import Sizes, find_family
from mmdiff.backbones.load import tokenizer_of, toy_backbone
from mmdiff.model import MMDiff
from mmdiff.model.params import Lora, apply_rules, merge_adapters, read_rules
from mmdiff.model.published.exported import write_exported
from mmdiff.model.saving import describe, save_model
from mmdiff.sharing.inspection import light
from mmdiff.sharing.inspection.arithmetic import encoder
from mmdiff.sharing.inspection.arithmetic import plain as fields
from mmdiff.sharing.inspection.arithmetic.dense import Dense, memory_of
from mmdiff.sharing.inspection.arithmetic.encoder import Encoder
from mmdiff.sharing.inspection.arithmetic.mixture import Mixture
from mmdiff.sharing.inspection.arithmetic.plain_encoder import KIN, LM
from mmdiff.sharing.inspection.arithmetic.tokenizer import read_tokenizer
from mmdiff.sharing.inspection.counting import memory
from mmdiff.sharing.inspection.figures import ADAPTED, Canvases
from mmdiff.sharing.inspection.inspect import inspect
from mmdiff.sharing.inspection.thorough import on_meta

DENSE = [
    "llada",
    "Dream",
    "dream-vl",
    "diffusionvl_qwen",
    "sdar",
    "llada_moe",
    "sdar_moe",
    "llada2_moe",
    "esm",
    "esm_diff",
    "bert",
    "ernie",
    "roberta",
    "xlm-roberta",
    "camembert",
    "data2vec-text",
    "Fast_dLLM_Qwen",
    "nemotron_labs_diffusion",
    "llama",
    "qwen2",
]
CLASSES = ["LlamaConfig", "Qwen2Config", "Qwen3Config", "Ministral3Config"]


def folder_of(family: str, folder: Path, original_format: bool = True) -> Path:
    own = find_family(family)
    torch.manual_seed(0)
    if own.PUBLISHED:
        toy_backbone(next(iter(own.PUBLISHED))).save_pretrained(folder, original_format=original_format)
    else:
        made = new_backbone(family=family, tokenizer=own.toy_tokenizer(), hidden_size=32, layers=2, heads=2)
        made.save_pretrained(folder, original_format=original_format)
    return folder


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is found without torch, which must be enough, and with it."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mmdiff.sharing.inspection.thorough", None)
        quick = inspect(folder, **more)
    with monkeypatch.context() as patch:
        patch.setattr(light, "look", lambda *_: None)
        return quick, inspect(folder, **more)


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("original_format", [True, False])
def test_it_is_the_same_with_torch_and_without(
    family: str, original_format: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, slow = both(folder_of(family, tmp_path, original_format), monkeypatch, length=48, batch=2, rank=4)
    assert quick == slow and quick["loads"]


def saved_model(folder: Path, family: str) -> MMDiff:
    torch.manual_seed(0)
    backbone = toy_backbone(next(iter(find_family(family).PUBLISHED)), dtype="bfloat16", reserve={"action": 5})
    model = MMDiff(backbone, {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=64)})
    rules = read_rules([{"match": "backbone", "lora": {"r": 4}}, {"match": "*"}])
    apply_rules(model, rules, lr=1e-3, weight_decay=0.0)
    save_model(model, folder, extra={"task": {"target": "toy.Where"}, "sampler": {"steps": 1}})
    return model


@pytest.mark.parametrize("family", ["llada", "sdar", "llada2_moe"])
def test_a_run_is_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run with LoRA factors and an encoder; one with checkpoints alone; a model for the hub."""
    model = saved_model(tmp_path / "run/model", family)
    quick, slow = both(tmp_path / "run", monkeypatch, length=48, batch=2, rank=4)
    assert quick == slow and quick["loads"] and quick["parts"]["lora"] and quick["task"] == "toy.Where"
    shutil.copytree(tmp_path / "run/model", tmp_path / "begun/checkpoints/step-00000003")
    (tmp_path / "begun/checkpoints/step-00000003/trainer.json").write_text("{}")
    again = both(tmp_path / "begun", monkeypatch, length=48, batch=2, rank=4)
    assert again[0] == again[1] == {**quick, "path": str(tmp_path / "begun")}
    merge_adapters(model)
    write_exported(model, tmp_path / "hub", describe(model, tmp_path / "hub"))
    hub = both(tmp_path / "hub", monkeypatch, length=48)
    assert (
        hub[0] == hub[1] and hub[0]["loads"] and hub[0]["parts"]["encoders.image"] == quick["parts"]["encoders.image"]
    )


@pytest.mark.parametrize("name", multimodal.NAMES)
@pytest.mark.parametrize("missing", ["", "model.mm_projector.0.bias", "model.embed_tokens.weight"])
def test_a_multimodal_checkpoint_is_the_same(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multimodal.write_folder(tmp_path, name)
    file = tmp_path / "model.safetensors"
    if missing:
        tensors = load_file(file)
        name = missing if missing in tensors else "model.transformer.wte.weight"
        del tensors[name]
        save_file(tensors, file)
    quick, slow = both(tmp_path, monkeypatch, length=48)
    assert quick == slow and quick["loads"] == (not missing) and "vision_tower" in quick["parts"]


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "no tokenizer", "factors"])
def test_what_is_wrong_is_the_same(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder_of("llada", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    if damage == "missing":
        del tensors["model.transformer.ln_f.weight"]
    elif damage == "unexpected":
        tensors["model.transformer.ln_f.bias"] = torch.zeros(64)
    elif damage == "misshapen":
        tensors["model.transformer.ln_f.weight"] = torch.zeros(63)
    elif damage == "factors":
        tensors["model.transformer.blocks.0.q_proj.lora_A.weight"] = torch.zeros(2, 64)
    else:
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "tokenizer_config.json").unlink()
    save_file(tensors, file)
    quick, slow = both(tmp_path, monkeypatch, length=8)
    assert quick == slow and not quick["loads"]


@pytest.mark.parametrize("name", CLASSES)
def test_memory_of_any_sizes_is_that_of_a_forward_on_the_meta_device(name: str) -> None:
    """To the byte: parameters, keys and values, the worst moment of a forward, and what autograd keeps of one."""
    draw = random.Random(name)
    for dtype in ("float32", "bfloat16", "float64"):
        heads, layers, rows = draw.choice([2, 4, 6]), draw.choice([1, 2, 3]), draw.choice([100, 257])
        head, kv = draw.choice([8, 16]), draw.choice([1, 2])
        width = heads * head * (1 if name == "Qwen2Config" else draw.choice([1, 2]))
        bias, mlp_bias, tied = (draw.random() < 0.5 for _ in range(3))
        sizes = Dense(
            rows, width, layers, heads, kv, head, wide=draw.choice([width // 2, 4 * width]), tied=tied,
            qkv_bias=name == "Qwen2Config" or (bias and name != "Ministral3Config"),
            out_bias=bias and name in ("LlamaConfig", "Qwen3Config"), mlp_bias=mlp_bias and name == "LlamaConfig",
            norms=name == "Qwen3Config", scaled=name == "Ministral3Config",
        )  # fmt: skip
        fields: dict[str, Any] = {"attention_bias": bias} if name in ("LlamaConfig", "Qwen3Config") else {}
        fields |= {"mlp_bias": mlp_bias} if name == "LlamaConfig" else {}
        config = getattr(transformers, name)(
            vocab_size=rows, hidden_size=width, intermediate_size=sizes.wide, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, head_dim=head, tie_word_embeddings=tied,
            is_causal=False, use_cache=False, pad_token_id=None, bos_token_id=None, eos_token_id=None, **fields,
        )  # fmt: skip
        own = find_family("Dream")
        model = on_meta(own, config, dtype)
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == sizes.shapes
        of = Canvases(draw.choice([1, 7, 64]), draw.choice([1, 3]), 5, draw.choice([2, 8]))
        assert memory_of(sizes, dtype, of) == memory.memory_of(model, own, of)


@pytest.mark.parametrize("name", ["Qwen3MoeConfig", "Glm4MoeConfig"])
def test_memory_of_mixtures_is_that_of_a_forward_on_the_meta_device(name: str) -> None:
    draw = random.Random(name)
    for dtype in ("bfloat16", "float32", "float16", "float64"):
        layers, chosen, wide, head = 3, draw.choice([1, 2, 3]), draw.choice([8, 24]), draw.choice([8, 16])
        heads, kv, rows, width, experts = 4, draw.choice([1, 2]), 100, draw.choice([32, 64]), 8
        fields: dict[str, Any] = {}
        if name == "Qwen3MoeConfig":
            fields = {"mlp_only_layers": [1], "norm_topk_prob": draw.random() < 0.5, "num_experts": experts}
            more: dict[str, Any] = {"dense": frozenset([1]), "normalised": fields["norm_topk_prob"]}
        else:
            groups, shared = draw.choice([1, 2, 4]), draw.choice([1, 2])
            fields = {"n_routed_experts": experts, "n_shared_experts": shared, "first_k_dense_replace": 1,
                      "n_group": groups, "topk_group": 1, "partial_rotary_factor": 0.5,
                      "use_qk_norm": True}  # fmt: skip
            more = {"dense": frozenset([0]), "normalised": True, "groups": groups, "chosen_groups": 1,
                    "shared": shared * wide}  # fmt: skip
        sizes = Dense(
            rows, width, layers, heads, kv, head, wide=2 * width, norms=True,
            turned=head // 2 if "n_group" in fields else None, mixture=Mixture(experts, chosen, wide, **more),
        )  # fmt: skip
        config = getattr(transformers, name)(
            vocab_size=rows, hidden_size=width, intermediate_size=sizes.wide, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, head_dim=head, num_experts_per_tok=chosen,
            moe_intermediate_size=wide, is_causal=False, use_cache=False,
            pad_token_id=None, bos_token_id=None, eos_token_id=None, **fields,
        )  # fmt: skip
        own = find_family("Dream")
        model = on_meta(own, config, dtype)
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == sizes.shapes
        assert sizes.buffers.items() <= {n: tuple(b.shape) for n, b in model.named_buffers()}.items()
        of = Canvases(draw.choice([1, 7, 64]), draw.choice([1, 3]), 5, draw.choice([2, 8]))
        assert memory_of(sizes, dtype, of) == memory.memory_of(model, own, of)


@pytest.mark.parametrize("name", ["esm", "bert", "roberta"])
def test_memory_of_encoders_is_that_of_a_forward_on_the_meta_device(name: str) -> None:
    draw, own = random.Random(name), find_family(name)
    for dtype in ("bfloat16", "float32", "float16", "float64"):
        heads, layers = draw.choice([2, 4]), draw.choice([1, 2, 3])
        width = heads * draw.choice([8, 16])
        wide = draw.choice([width // 2, 2 * width, 4 * width])
        config = own.new_config(Sizes(100, width, layers, heads, heads, wide, 64, None, 0.02))
        model = on_meta(own, config, dtype)
        kind, body, head = ("", "esm", LM) if name == "esm" else KIN[name]
        sizes = Encoder(100, width, layers, heads, wide, body, head)
        if name != "esm":
            sizes = dataclasses.replace(sizes, table=config.max_position_embeddings, types=config.type_vocab_size)
        assert kind in ("", type(model).__name__)
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == sizes.shapes
        of = Canvases(draw.choice([1, 7, 40]), draw.choice([1, 3]), 5, draw.choice([2, 8]))
        assert encoder.memory_of(sizes, dtype, of) == memory.memory_of(model, own, of)


def test_adapted_layers_are_those_of_a_rule() -> None:
    assert next(f.default for f in dataclasses.fields(Lora) if f.name == "modules") == ADAPTED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sliding_window", 4096), ("layer_types", ["sliding_attention"] * 2), ("hidden_act", "gelu"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}), ("head_dim", "8"), ("is_causal", True),
        ("num_hidden_layers", 0), ("a_new_field", 1), ("use_sliding_window", True), ("rope_theta", None),
        ("num_key_value_heads", 3),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_transformers(field: str, value: Any, tmp_path: Path) -> None:
    """sliding_window has no effect without use_sliding_window, and is the only one of these that is plain."""
    folder_of("Dream", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert fields.plain_config(find_family("Dream"), raw) is not None  # type: ignore[arg-type]
    plain = fields.plain_config(find_family("Dream"), {**raw, field: value})  # type: ignore[arg-type]
    assert (plain is not None) == (field == "sliding_window")


@pytest.mark.parametrize(
    "named",
    [
        {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|endoftext|>"},
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"},  # transformers would give it a pad token
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<a new one>"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": ["x.X", None]}},
    ],
)
def test_a_tokenizer_that_transformers_completes_is_left_to_it(named: dict[str, Any], tmp_path: Path) -> None:
    toy_tokenizer().save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path) is not None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert read_tokenizer(tmp_path) is None


@pytest.mark.parametrize("decoder", [True, False])
def test_the_files_of_older_tokenizers(decoder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """special_tokens_map.json and added_tokens.json, as LLaDA and SDAR have them: they hold where nothing else does."""
    folder_of("sdar", tmp_path)
    file = tmp_path / "tokenizer_config.json"
    named = json.loads(file.read_text())
    made = tokenizer_of(tmp_path, find_family("sdar"))
    tokens = {str(i): {"content": t.content, "special": True} for i, t in made.added_tokens_decoder.items()}
    named |= {"added_tokens_decoder": tokens} if decoder else {}
    file.write_text(json.dumps({k: v for k, v in named.items() if decoder or k != "eos_token"}))
    special = {"eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "added_tokens.json").write_text(json.dumps({t["content"]: int(i) for i, t in tokens.items()}))
    quick, slow = both(tmp_path, monkeypatch, length=8)
    assert quick == slow and quick["loads"]
    ours, theirs = read_tokenizer(tmp_path), tokenizer_of(tmp_path, find_family("sdar"))
    assert ours is not None and ours.eos_token_id == theirs.eos_token_id and len(ours) == len(theirs)
    assert (theirs.eos_token == "<|im_end|>") == (not decoder)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 3}))
    assert (read_tokenizer(tmp_path) is None) == (not decoder)


COMMAND = """
import sys
from mmdiff.commands.cli import main
code = main(["inspect", sys.argv[1], "--json"])
print(code, [name for name in ("torch", "transformers") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["llada", "llada2_moe", "esm", "bert", "GSAI-ML/LLaDA-V", "a run"])
def test_torch_is_not_imported(kind: str, tmp_path: Path) -> None:
    if kind == "a run":
        saved_model(tmp_path / "model", "llada")
    elif kind in multimodal.NAMES:
        multimodal.write_folder(tmp_path, kind)
    else:
        folder_of(kind, tmp_path)
    done = subprocess.run([sys.executable, "-c", COMMAND, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "0 []\n" and json.loads(done.stdout)["loads"]
