"""Causal language models of transformers as backbones: run as they were trained they compute what transformers does.

Shape letters: R rows, L positions, V vocabulary.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from mmdiff.backbones import Backbone, load_backbone, new_backbone
from mmdiff.backbones.families.tokenizers import byte_tokenizer
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.objectives.denoise import Denoise
from mmdiff.sharing.inspection.inspect import inspect

KINDS = ["llama", "qwen2", "qwen3", "mistral", "olmo2", "gpt2", "phi3", "qwen3_moe", "olmoe", "smollm3", "granite"]
SIZES = {
    "vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": 256, "sliding_window": None, "use_sliding_window": False, "initializer_range": 0.2,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
}  # fmt: skip
IDS = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=KINDS)
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, whose tokenizer has no mask token and whose table has no row to spare."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param)
    own = {*config.to_dict(), *config.attribute_map, "head_dim"}
    config = AutoConfig.for_model(request.param, **{name: value for name, value in SIZES.items() if name in own})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer(bos=None, eos="<eos>", special=("<more>",)).save_pretrained(folder)
    return folder


def left_to_right(backbone: Backbone, ids_RL: Tensor) -> Tensor:
    block_RL = torch.arange(ids_RL.shape[1]).expand(ids_RL.shape)
    shown = Visibility(Causal(), Coordinates(block=block_RL))
    return backbone.head(backbone.hidden(backbone.embed(ids_RL), None, None, shown))


@torch.no_grad()
def test_left_to_right_it_is_the_model_it_was(stock: Path, tmp_path: Path) -> None:
    """Loaded, saved in either layout and loaded again, there and here: the same logits for the ids that there were."""
    theirs = AutoModelForCausalLM.from_pretrained(stock).eval()(IDS).logits
    assert theirs.std() > 0.1
    backbone = load_backbone(stock).eval()
    assert backbone.facts.shift == 1 and backbone.facts.mask_id == 258 < backbone.vocab_size
    torch.testing.assert_close(left_to_right(backbone, IDS)[..., :258], theirs, atol=1e-5, rtol=1e-5)
    assert (backbone(IDS)[..., :258] - theirs).abs().max() > 0.01  # in both directions it is another function
    for name, original in (("ours", False), ("theirs", True)):
        backbone.save_pretrained(tmp_path / name, original_format=original)
        again = load_backbone(tmp_path / name).eval()
        assert again.facts == backbone.facts and torch.equal(again(IDS), backbone(IDS))
    stock_again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    torch.testing.assert_close(stock_again(IDS).logits[..., :258], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "own"),
    [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 3.0}), ("opt", {})],
)
@torch.no_grad()
def test_what_classes_do_beside_body_and_head(kind: str, own: dict[str, float], tmp_path: Path) -> None:
    """Logits that are scaled behind the head, and positions that a body would count from a mask."""
    torch.manual_seed(0)
    known = AutoConfig.for_model(kind)
    fields = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**fields, **own})).save_pretrained(tmp_path)
    byte_tokenizer(bos=None, eos="<eos>", special=("<more>",)).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(IDS).logits
    backbone = load_backbone(tmp_path).eval()
    ours = left_to_right(backbone, IDS)[..., :258]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.01
    weight_VD, _ = backbone.linear_head  # type: ignore[misc]
    h_RLD = backbone.hidden(backbone.embed(IDS))
    torch.testing.assert_close((h_RLD @ weight_VD.T)[..., :258], backbone(IDS)[..., :258])  # as losses read it


def test_a_head_that_does_more_is_refused(tmp_path: Path) -> None:
    known = AutoConfig.for_model("gemma2")
    fields = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    config = AutoConfig.for_model("gemma2", **{**fields, "layer_types": ["full_attention"] * 2})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer(bos=None, eos="<eos>", special=("<more>",)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^config.json: final_logit_softcapping: 30.0: not known of gemma2"):
        load_backbone(tmp_path)


def test_it_trains_and_generates(stock: Path) -> None:
    model = MMDiff(load_backbone(stock))
    batch = collate([[Text([5, 6]), Target([7, 8, 9, 10])]], model.vocab)
    plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
    Denoise().terms(model.train(), plan)["denoise"].value.backward()
    grad = model.backbone.model.get_input_embeddings().weight.grad
    assert grad is not None and float(grad[model.vocab.mask_id].abs().sum()) > 0
    out = model.generate(collate([[Text([5, 6, 7]), Target(length=4)]], model.vocab), early_stop=False).targets()
    assert len(out[0]) == 4 and model.vocab.mask_id not in out[0]


@torch.no_grad()
def test_half_precision_stays_near(stock: Path) -> None:
    exact, half = (load_backbone(stock, dtype=dtype).eval()(IDS).float() for dtype in ("float32", "bfloat16"))
    assert half.isfinite().all() and float((half - exact).abs().mean()) < 0.1 * float(exact.std())


def test_it_takes_adapters(stock: Path) -> None:
    """In the projections of its attention, whatever it calls them: they alone are trained, recomputed or not."""
    model = MMDiff(load_backbone(stock)).train()
    if stock.name.startswith("gpt2"):  # its layers are no linear ones of torch
        with pytest.raises(ConfigError, match="matches no linear layer"):
            add_adapters(model, {"part": "backbone", "modules": "c_attn", "r": 2, "alpha": 4, "dropout": 0.0})
        return
    add_adapters(model, {"part": "backbone", "modules": "q_proj|v_proj|qkv_proj", "r": 2, "alpha": 4, "dropout": 0.0})
    batch = collate([[Text([5, 6]), Target([7, 8, 9, 10])]], model.vocab)
    for recomputed in (False, True):
        model.backbone.gradient_checkpointing(recomputed)
        model.zero_grad()
        plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        Denoise().terms(model, plan)["denoise"].value.backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        assert moved and all("lora_" in name for name in moved)


def test_the_same_folder_is_converted_to_the_same_bits(stock: Path) -> None:
    """Whatever was drawn before; the row of the mask is near the mean of the others, in the table and the head."""
    torch.manual_seed(1)
    first = load_backbone(stock).model.state_dict()
    torch.manual_seed(2)
    backbone = load_backbone(stock)
    assert all(torch.equal(value, first[name]) for name, value in backbone.model.state_dict().items())
    for layer in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
        old, new = layer.weight[:258].detach(), layer.weight[258:].detach()
        far = (new - old.mean(0)).abs() / old.std(0)
        assert len(new) > 1 and 0.005 < float(far.mean()) < 0.012 and float(far.max()) < 0.05
    assert not torch.equal(new[0], new[1])


def test_options(tmp_path: Path) -> None:
    made = new_backbone(
        family="llama", tokenizer=byte_tokenizer(bos=None, eos="<eos>", special=()), hidden_size=16, layers=1, heads=2,
        options={"shift": 0, "mask": "<hole>"},
    )  # fmt: skip
    assert made.facts.shift == 0 and made.vocab.encode("<hole>") == [made.facts.mask_id]
    made.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).facts == made.facts
    assert load_backbone(tmp_path, options={"shift": 1}).facts.shift == 1
    assert new_backbone(family="qwen3", tokenizer=word_tokenizer(["a"]), hidden_size=16, layers=1, heads=2)
    for options, message in (
        ({"shift": 2}, "options.shift: 2, expected 0 or 1"),
        ({"shfit": 0}, 'options.shfit: no such option of llama \\(did you mean "shift"'),
    ):
        with pytest.raises(ConfigError, match=message):
            load_backbone(tmp_path, options=options)


@pytest.mark.parametrize("kind", ["mamba", "t5"])
def test_what_cannot_look_both_ways_is_one_line(kind: str, tmp_path: Path) -> None:
    config: Any = AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        new_backbone(family=kind, tokenizer=word_tokenizer(["a"]), hidden_size=16, layers=1, heads=2)
    assert "\n" not in str(error.value)


@pytest.mark.skipif("MMDIFF_REAL_WEIGHTS" not in os.environ, reason="needs a folder of real weights")
@torch.no_grad()
def test_a_trained_model_is_what_transformers_makes_of_it() -> None:
    folder = Path(os.environ["MMDIFF_REAL_WEIGHTS"]) / "smollm2-135m"
    backbone = load_backbone(folder)
    ids = torch.tensor([backbone.vocab.encode("The capital of France is")])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    ours = left_to_right(backbone, ids)
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, atol=1e-4, rtol=1e-4)
    assert backbone.vocab.decode([int(ours[0, -1].argmax())]) == " Paris"


OLDER: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "phimoe": {"num_local_experts": 4, "num_key_value_heads": 2},
    "granitemoe": {"num_local_experts": 4},
    "gpt_neox": {},
    "gpt2": {},
    "deepseek_v3": {
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 16, "v_head_dim": 8,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OLDER)
@torch.no_grad()
def test_files_may_have_the_names_that_transformers_maps(kind: str, tmp_path: Path) -> None:
    """Those that it writes itself (w1, embed_out, input_linear, ...), and what it leaves out; DeepSeek's correction."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind)
    own = {*config.to_dict(), *config.attribute_map}
    sizes = {name: value for name, value in SIZES.items() if name in own and name != "num_key_value_heads"}
    fields = {**sizes, **OLDER[kind]}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).eval()
    for name, buffer in made.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_()
    made.save_pretrained(tmp_path / "stock")
    byte_tokenizer(bos=None, eos="<eos>", special=()).save_pretrained(tmp_path / "stock")
    file = tmp_path / "stock/model.safetensors"
    tensors = load_file(file)
    if kind == "gpt2":  # as its authors' file is
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    if kind == "gpt_neox":
        assert "embed_out.weight" in tensors
        tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, file, {"format": "pt"})
    theirs = made(IDS).logits
    backbone = load_backbone(tmp_path / "stock").eval()
    torch.testing.assert_close(left_to_right(backbone, IDS)[..., :258], theirs, atol=2e-5, rtol=1e-5)
    found = inspect(tmp_path / "stock", length=8)
    assert found["missing"] == found["unexpected"] == [] and len(found["elsewhere"]) == kind.startswith("gpt")
    for name, original in (("ours", False), ("theirs", True)):
        backbone.save_pretrained(tmp_path / name, original_format=original)
        again = load_backbone(tmp_path / name).eval()
        assert torch.equal(again(IDS), backbone(IDS))
        read, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        if original:
            torch.testing.assert_close(read.eval()(IDS).logits[..., :258], theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model_type": "bloom"}, "ALiBi"), ({"model_type": "mpt"}, "ALiBi"), ({"model_type": "xglm"}, "without sdpa"),
        ({"model_type": "falcon", "alibi": True}, "ALiBi"), ({"model_type": "mamba"}, "from left to right"),
        ({"model_type": "gemma2"}, "a window to the left"), ({"model_type": "gemma3_text"}, "a window to the left"),
        ({"model_type": "exaone4"}, "a window to the left"),
    ],
)  # fmt: skip
def test_what_cannot_attend_in_both_directions_is_one_line(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    byte_tokenizer(bos=None, eos="<eos>", special=()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "vocab_size": 258}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    for read in (load_backbone, inspect):
        with pytest.raises(ConfigError, match=why) as error:
            read(tmp_path)
        assert "Llama, Mistral" in str(error.value) and "\n" not in str(error.value)
