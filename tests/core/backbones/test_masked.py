"""Masked language models of transformers and ESM C: folders that transformers wrote, and folders as they were published
before, against transformers' own model. One cell of the table in docs/backbones.md per test and family.

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
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, AutoTokenizer

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.backbone import check_attention
from mmdiff.backbones.families.published.masked import HUB, OFFSET
from mmdiff.backbones.family import FAMILIES, MASKED, find_family
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import BlockCausal, Documents
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.objectives.denoise import Denoise

NAMES = [*MASKED, "esmc"]
SMALL: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 40, "pad_token_id": 1, "local_attention": 4,
}  # fmt: skip


def theirs(name: str) -> Any:
    """transformers' model at a small size, with weights large enough for all of them to matter."""
    config_class: Any = CONFIG_MAPPING[name]
    have = {*config_class().to_dict()}
    ids = {"mask_token_id": find_family(name).toy_tokenizer().mask_token_id}
    config = config_class(**{field: value for field, value in {**SMALL, **ids}.items() if field in have})
    model = AutoModelForMaskedLM.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.1))
    return model


@pytest.fixture(scope="module", params=NAMES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = theirs(name)
    model.save_pretrained(folder)
    find_family(name).toy_tokenizer().save_pretrained(folder)
    return name, folder, model


IDS = torch.randint(4, 24, (3, 11), generator=torch.Generator().manual_seed(1))
ATTEND = {"whole": [[1] * 11] * 3, "right": [[1] * 11, [1] * 6 + [0] * 5, [1] * 2 + [0] * 9],
          "left": [[1] * 11, [0] * 5 + [1] * 6, [0] * 9 + [1] * 2]}  # fmt: skip


@pytest.mark.parametrize("padding", ATTEND)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_equal_those_of_transformers(published: tuple[str, Path, Any], attention: str, padding: str) -> None:
    """Each row alone, without padding, by transformers; here all of them at once."""
    name, folder, model = published
    backbone = load_backbone(folder, attention=attention)
    assert backbone.family == name and backbone.facts.shift == 0 and not backbone.caches
    attend_RL = torch.tensor(ATTEND[padding], dtype=torch.bool)
    found_RLV = backbone(IDS, attend_RL)
    positions_RL = (attend_RL.cumsum(1) - 1).clamp(min=0)
    again_RLV = backbone(IDS, attend_RL, positions_RL)
    torch.testing.assert_close(again_RLV[attend_RL], found_RLV[attend_RL], atol=1e-5, rtol=1e-5)
    for ids_L, attend_L, found_LV in zip(IDS, attend_RL, found_RLV, strict=True):
        expected_LV = model(input_ids=ids_L[attend_L][None]).logits[0]
        torch.testing.assert_close(found_LV[attend_L], expected_LV, atol=1e-5, rtol=1e-5)
    assert expected_LV.std() > 0.5  # else a tolerance would say little
    if padding != "left":  # where transformers counts positions from the padding on
        expected_RLV = model(input_ids=IDS.masked_fill(~attend_RL, 1), attention_mask=attend_RL.long()).logits
        torch.testing.assert_close(found_RLV[attend_RL], expected_RLV[attend_RL], atol=1e-5, rtol=1e-5)
    few_K = torch.tensor([7, 3])
    torch.testing.assert_close(backbone.head(backbone.hidden(backbone.embed(IDS)), few_K), backbone(IDS)[..., few_K])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_documents_of_a_packed_row_are_kept_apart(published: tuple[str, Path, Any], attention: str) -> None:
    """A document in a packed row gets the logits that it gets alone, in layers of a window, too."""
    _, folder, model = published
    backbone = load_backbone(folder, attention=attention)
    document_RL = torch.tensor([[0] * 7 + [1] * 4])
    positions_RL = torch.tensor([[*range(7), *range(4)]])
    seen = Visibility(Documents(), Coordinates(document=document_RL))
    found_LV = backbone.head(backbone.hidden(backbone.embed(IDS[:1]), None, positions_RL, seen))[0]
    alone_LV = torch.cat([model(input_ids=ids_L[None]).logits[0] for ids_L in IDS[0].split([7, 4])])
    torch.testing.assert_close(found_LV, alone_LV, atol=1e-5, rtol=1e-5)
    check_attention(backbone, BlockCausal(2))


@torch.no_grad()
def test_folders_come_back_and_transformers_reads_them(published: tuple[str, Path, Any], tmp_path: Path) -> None:
    name, folder, model = published
    backbone = load_backbone(folder)
    expected_RLV = model(input_ids=IDS).logits
    before, raw = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    for original in (True, False):
        saved = tmp_path / str(original)
        backbone.save_pretrained(saved, original_format=original)
        again = load_backbone(saved)
        assert again.facts == backbone.facts and again.family == name
        assert torch.equal(again(IDS), backbone(IDS))
        stock, found = AutoModelForMaskedLM.from_pretrained(saved, output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"]
        assert torch.equal(stock.eval()(input_ids=IDS).logits, expected_RLV)
        assert AutoTokenizer.from_pretrained(saved).mask_token_id == backbone.facts.mask_id
    after = load_file(tmp_path / "True" / "model.safetensors")
    now = json.loads((tmp_path / "True" / "config.json").read_text())
    assert {field: now[field] for field in raw} == raw
    plain = {key.replace("gamma", "weight").replace("beta", "bias"): value for key, value in before.items()}
    assert after.keys() == plain.keys() and all(torch.equal(after[key], plain[key]) for key in after)
    MMDiff(backbone).save_pretrained(tmp_path / "model")
    assert torch.equal(MMDiff.from_pretrained(tmp_path / "model").backbone(IDS), backbone(IDS))


def test_it_generates_trains_and_takes_adapters(published: tuple[str, Path, Any]) -> None:
    """Ragged rows get what each gets alone; a step moves every weight, or the adapters alone, recomputed or not."""
    _, folder, _ = published
    model = MMDiff(load_backbone(folder))
    rows: list[Sample] = [[Text([5, 6, 7, 8]), Target(length=5)], [Text([9]), Target(length=7)]]
    named: dict[str, Any] = {"block_length": 3, "early_stop": False}
    together = model.generate(collate(rows, model.vocab, index=[0, 1]), **named).targets()
    assert all(model.vocab.mask_id not in row for row in together)
    for i, row in enumerate(rows):
        assert model.generate(collate([row], model.vocab, index=[i]), **named).targets() == [together[i]]
    batch = collate([[Text([5, 6]), Target([7, 8, 9, 10])]], model.vocab)

    def step() -> dict[str, float]:
        plan = Denoise().plan(batch, NoiseKey(0, 0, "x"), model.vocab)
        model.zero_grad()
        Denoise().terms(model.train(), plan)["denoise"].value.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {n: float(grad.abs().sum()) for n, grad in grads.items() if bool(grad.abs().sum() > 0)}

    first = step()
    unreached = {n for n, _ in model.named_parameters()} - first.keys()
    assert not [n for n in unreached if "k_lin.bias" not in n and "key.bias" not in n and "task_type" not in n]
    assert step() == first  # no dropout
    model.backbone.gradient_checkpointing(True)
    assert step() == pytest.approx(first, rel=1e-4)
    linear = {n.rsplit(".", 1)[-1] for n, m in model.backbone.named_modules() if type(m) is torch.nn.Linear}
    values = "|".join(sorted(linear & {"value", "v_lin", "v_proj", "Wqkv"}))
    assert values
    add_adapters(model, {"part": "backbone", "modules": values, "r": 2, "alpha": 4, "dropout": 0.0})
    assert step() and all("lora_" in n for n in step())


@torch.no_grad()
def test_half_precision_stays_near(published: tuple[str, Path, Any]) -> None:
    _, folder, _ = published
    exact, half = load_backbone(folder)(IDS), load_backbone(folder, dtype="bfloat16")(IDS).float()
    assert half.isfinite().all() and float((half - exact).abs().mean()) < 0.1 * float(exact.std())


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_files_as_they_were_published_are_read(name: str, tmp_path: Path) -> None:
    """Norms as gamma and beta, a pooler, a head for sentence pairs, buffers, fields without effect, dropout, no eos."""
    model = theirs(name)
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    for kind, other in (("weight", "gamma"), ("bias", "beta")):
        tensors = {n.replace(f"LayerNorm.{kind}", f"LayerNorm.{other}"): p for n, p in tensors.items()}
    tensors[f"{name}.pooler.dense.weight"] = torch.zeros(32, 32)
    tensors["cls.seq_relationship.bias"] = torch.zeros(2)
    tensors[f"{name}.embeddings.position_ids"] = torch.arange(40)[None]
    raw = {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 48, "layer_norm_eps": 1e-12 if name == "bert" else 1e-5, "max_position_embeddings": 40,
        "model_type": name, "num_attention_heads": 4, "num_hidden_layers": 3, "pad_token_id": 1,
        "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2,
        "use_cache": True, "vocab_size": 264, "pooler_fc_size": 768, "directionality": "bidi",
    }  # fmt: skip
    model.config.layer_norm_eps = raw["layer_norm_eps"]
    save_file({n: p.contiguous() for n, p in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(raw))
    find_family(name).toy_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(backbone(IDS), stock(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    backbone.save_pretrained(tmp_path / "again", original_format=True)
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {field: again[field] for field in raw} == raw
    assert backbone.facts.max_length == (40 if name == "bert" else 38)
    assert backbone(IDS[:, :1].expand(3, backbone.facts.max_length)).isfinite().all()
    with pytest.raises(DataError, match=rf"a canvas of 41 positions; .* for {backbone.facts.max_length}$"):
        backbone(IDS[:, :1].expand(3, 41))


def test_a_head_beside_the_embeddings_that_it_shares_is_read_if_it_is_the_same(tmp_path: Path) -> None:
    theirs("bert").save_pretrained(tmp_path)
    find_family("bert").toy_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table, head = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    expected = load_backbone(tmp_path)(IDS)
    both = tensors | {head: tensors[table].clone(), "cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 0}
    alone = {head if name == table else name: value for name, value in tensors.items()}
    for same in (both, alone):
        save_file(same, tmp_path / "model.safetensors", {"format": "pt"})
        assert torch.equal(load_backbone(tmp_path)(IDS), expected)
        assert load_backbone(tmp_path, dtype="bfloat16")
    save_file(both | {head: tensors[table] + 1e-3}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"weight' differs from '.*weight', expected the same"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_new_ones_at_any_size_and_toy_twins(name: str) -> None:
    family = find_family(name)
    named = {"tokenizer": family.toy_tokenizer(), "hidden_size": 16, "layers": 1, "heads": 2, "max_length": 20}
    backbone = new_backbone(family=name, **named)
    assert backbone.facts.max_length == 20 and backbone.dim == 16
    table = getattr(getattr(backbone.model.base_model, "embeddings", None), "position_embeddings", None)
    assert getattr(table, "padding_idx", None) == (1 if name in OFFSET else None)
    assert not [m for m in backbone.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    with pytest.raises(ConfigError, match="kv_heads 1: "):
        new_backbone(family=name, kv_heads=1, **named)
    if name in HUB:
        assert load_backbone.toy(HUB[name]).family == name  # type: ignore[attr-defined]


def test_what_transformers_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    model = theirs("bert")
    model.save_pretrained(tmp_path)
    find_family("bert").toy_tokenizer().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for field, value in [("position_embedding_type", "relative_key"), ("is_decoder", True), ("looped_layers", 2),
                         ("model_type", "mobilebert"), ("hidden_sizes", 2)]:  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**raw, field: value}))
        with pytest.raises(ConfigError, match=field) as error:
            load_backbone(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="options.x: bert has no options"):
        load_backbone(tmp_path, options={"x": 1})
    body = {name.removeprefix("bert."): value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file({n: v for n, v in body.items() if not n.startswith("cls.")}, tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"5 missing tensors: cls.predictions.bias, .*LayerNorm.bias, .*LayerNorm.wei"
    ):
        load_backbone(tmp_path)  # a body alone, as encoders of sentences are
    assert set(NAMES) < set(FAMILIES) and "mobilebert" not in FAMILIES


REAL = Path(os.environ.get("MMDIFF_REAL_WEIGHTS", "runs/real")) / "minilm-l6"


@pytest.mark.skipif(not REAL.is_dir(), reason="no MiniLM in $MMDIFF_REAL_WEIGHTS/minilm-l6")
@torch.no_grad()
def test_trained_weights_of_minilm(tmp_path: Path) -> None:
    """An encoder of sentences without a head: transformers makes one, and the folder then loads with its words."""
    stock = AutoModelForMaskedLM.from_pretrained(REAL).eval()
    stock.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(REAL).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    text = backbone.vocab.tokenizer("The cat sat on the mat.", return_tensors="pt")
    assert text["input_ids"][0, 0] == backbone.facts.bos_id and text["input_ids"][0, -1] == backbone.facts.eos_id
    expected = stock(**text).logits
    torch.testing.assert_close(backbone(text["input_ids"]), expected, atol=1e-5, rtol=1e-5)
