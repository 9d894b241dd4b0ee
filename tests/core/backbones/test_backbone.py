"""Backbones of any size: what a position may see, dtypes, saving, and what is refused.

Shape letters: R rows, L positions, D width.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import Tensor

from mmdiff.backbones import Backbone, backbone_from_folder, check_attention, load_backbone, new_backbone
from mmdiff.backbones.families import llada
from mmdiff.backbones.families.decoder import Decoder
from mmdiff.backbones.family import Facts
from mmdiff.backbones.reserve import resize
from mmdiff.canvas.pattern import Coordinates, Pattern, Visibility
from mmdiff.canvas.patterns import BlockCausal, Causal, CausalContext, Documents, PrefixCausal
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import ConfigError

WORDS = word_tokenizer([f"w{i}" for i in range(30)])


def small(**changed: Any) -> Backbone:
    """Two layers, with weights large enough that attention matters."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"tokenizer": WORDS, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2}
    backbone = new_backbone(**(sizes | changed))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return backbone


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 34, (rows, length), generator=torch.Generator().manual_seed(seed))


def packed_of(segment_RL: Tensor) -> Visibility:
    return Visibility(Documents(), Coordinates(document=segment_RL))


def hidden(backbone: Backbone, ids_RL: Tensor, *masks: Any) -> Tensor:
    return backbone.hidden(backbone.embed(ids_RL), *masks)


def close(a: Tensor, b: Tensor) -> None:
    assert b.std() > 0.1  # else a tolerance would say little
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


# What a position may see


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(attention: str, side: str) -> None:
    backbone, row, other = small(attention=attention), ids(1, 5), ids(1, 9, seed=1)
    for filling in (WORDS.pad_token_id, 7):  # what stands on padding does not matter
        pad = torch.full((1, 4), filling)
        padded = torch.cat((pad, row) if side == "left" else (row, pad), 1)
        real = slice(4, 9) if side == "left" else slice(0, 5)
        attend_RL = torch.ones(2, 9, dtype=torch.bool)
        attend_RL[0] = False
        attend_RL[0, real] = True
        logits = backbone(torch.cat((padded, other)), attend_RL)
        close(logits[0, real], backbone(row)[0])
        close(logits[1], backbone(other)[0])
        position_ids_RL = (attend_RL.cumsum(1) - 1).clamp(min=0)  # the positions of a batch, not of the canvas
        close(backbone(torch.cat((padded, other)), attend_RL, position_ids_RL)[0, real], backbone(row)[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_documents_equal_separate_rows(attention: str) -> None:
    backbone, lengths = small(attention=attention), (3, 1, 5)
    documents = [ids(1, length, seed=length) for length in lengths]
    packed = torch.cat([*documents, torch.full((1, 2), WORDS.pad_token_id)], 1)
    segment_RL = torch.tensor([[0] * 3 + [1] + [2] * 5 + [0] * 2])  # padding may carry the number of a document
    position_ids_RL = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 0]])
    attend_RL = torch.arange(11)[None] < 9
    h_RLD = hidden(backbone, packed, attend_RL, position_ids_RL, packed_of(segment_RL))
    assert h_RLD.isfinite().all()
    for document, h_LD in zip(documents, h_RLD[0, :9].split(lengths), strict=True):
        close(h_LD, hidden(backbone, document)[0])
    whole = hidden(backbone, packed[:, :9], None, position_ids_RL[:, :9], packed_of(segment_RL[:, :9]))
    close(whole, h_RLD[:, :9])
    leaking = hidden(backbone, packed[:, :9], None, position_ids_RL[:, :9])
    assert (leaking - whole).abs().max() > 0.1  # positions that start again keep no documents apart


@torch.no_grad()
def test_padding_that_is_a_document_of_its_own_stays_finite() -> None:
    segment_RL, attend_RL = torch.tensor([[0, 0, 0, 9, 9]]), torch.tensor([[True, True, True, False, False]])
    for attention in ("sdpa", "eager"):
        assert hidden(small(attention=attention), ids(1, 5), attend_RL, None, packed_of(segment_RL)).isfinite().all()
    # some kernels forgive a position that may see nothing, others write nan: there is none
    mask = packed_of(segment_RL).mask(small().embed(ids(1, 5)), attend_RL, "sdpa")
    assert mask.shape == (1, 1, 5, 5) and mask.any(-1).all()


@torch.no_grad()
def test_positions_may_stand_in_any_order() -> None:
    """Attention in both directions knows order from positions only."""
    backbone, row, order = small(), ids(1, 7), torch.tensor([3, 0, 6, 2, 5, 1, 4])
    close(hidden(backbone, row[:, order], None, order[None]), hidden(backbone, row)[:, order])
    assert (hidden(backbone, row[:, order]) - hidden(backbone, row)[:, order]).abs().max() > 0.1


def test_packed_rows_under_flash_attention_are_refused() -> None:
    backbone = small()
    backbone.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="flash_attention_2.*sdpa"):
        hidden(backbone, ids(1, 4), None, None, packed_of(torch.zeros(1, 4, dtype=torch.int64)))


@torch.no_grad()
def test_every_position_sees_every_other() -> None:
    backbone, before = small(), ids(1, 6)
    for changed in range(6):
        after = before.clone()
        after[0, changed] = WORDS.mask_token_id
        moved_L = (backbone(after) != backbone(before)).any(-1)[0]
        assert moved_L.all()


# A causal model fails the load


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_causal_configuration_fails(attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save_pretrained(tmp_path)
    made = Decoder._made

    def causal(self: Decoder, fields: Any) -> Any:
        config = made(self, fields)
        config.is_causal = True
        return config

    monkeypatch.setattr(Decoder, "_made", causal)
    with pytest.raises(ConfigError, match="position 0 of a whole row does not see position 1, unlike Full"):
        load_backbone(tmp_path, attention=attention)
    with pytest.raises(ConfigError, match="position 0 of a whole row does not see position 1, unlike Full"):
        small(attention=attention)


def test_the_switch_of_the_modules_alone_fails_where_transformers_makes_the_mask() -> None:
    backbone = small(attention="eager")
    del backbone.model.config.is_causal
    for layer in backbone.model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ConfigError, match="a whole row does not see"):
        check_attention(backbone)


@pytest.mark.parametrize(
    ("canvases", "row", "name"), [(1, 2, "a whole row"), (2, 3, "a padded row"), (2, 5, "a padded row")]
)
def test_one_blind_row_of_any_kind_is_enough(
    canvases: int, row: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that is causal in one row only, of whole rows or of padded ones, is found there."""
    backbone = small()
    check_attention(backbone)
    hidden = backbone.hidden

    def blind(x_RLD: Tensor, attend_RL: Tensor | None = None, *more: Any) -> Tensor:
        h_RLD = hidden(x_RLD, attend_RL, *more)
        if len(x_RLD) == 4 * canvases:
            h_RLD = h_RLD.clone()
            h_RLD[row, : row % 4] = 0.0
        return h_RLD

    monkeypatch.setattr(backbone, "hidden", blind)
    with pytest.raises(ConfigError, match=f"{name} does not see position {row % 4}"):
        check_attention(backbone)


class OwnBlock(Pattern):
    """A position sees its own block, and no earlier one."""

    def sees(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return query.block == key.block


@pytest.mark.parametrize(
    "pattern", [PrefixCausal(), BlockCausal(32), Causal(), CausalContext() & Documents(), CausalContext(2)]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_declared_pattern_is_what_is_looked_for(
    attention: str, pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = small(attention=attention)
    check_attention(backbone, pattern)
    mask = Visibility.mask

    def dropped(self: Visibility, x_RLD: Tensor, attend_RL: Tensor | None, attention: str) -> Any:
        return attend_RL

    monkeypatch.setattr(Visibility, "mask", dropped)
    with pytest.raises(ConfigError, match=r"position [01] of a whole row sees position 2, unlike"):
        check_attention(backbone, pattern)

    def only_whole(self: Visibility, x_RLD: Tensor, attend_RL: Tensor | None, attention: str) -> Any:
        return mask(self, x_RLD, attend_RL, attention) if attend_RL is None else attend_RL

    monkeypatch.setattr(Visibility, "mask", only_whole)
    with pytest.raises(ConfigError, match=r"position 1 of a padded row sees position 2, unlike"):
        check_attention(backbone, pattern)

    def too_narrow(self: Visibility, x_RLD: Tensor, attend_RL: Tensor | None, attention: str) -> Any:
        return mask(replace(self, pattern=OwnBlock()), x_RLD, attend_RL, attention)

    monkeypatch.setattr(Visibility, "mask", too_narrow)
    with pytest.raises(ConfigError, match=r"position 2 of a whole row does not see position 0, unlike"):
        check_attention(backbone, pattern)


def test_a_saved_causal_configuration_is_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"is_causal": false', '"is_causal": true'))
    with pytest.raises(ConfigError, match="is_causal: true"):
        load_backbone(tmp_path)


def test_the_check_sees_through_dropout_and_keeps_the_mode() -> None:
    backbone = small().train()
    check_attention(backbone)
    assert backbone.training and backbone.model.training
    backbone.model.config.is_causal = True
    backbone.model.model.layers[0].mlp.register_forward_hook(
        lambda module, args, out: torch.nn.functional.dropout(out, 0.5, module.training)
    )
    with pytest.raises(ConfigError, match="a whole row does not see"):
        check_attention(backbone)


def test_what_belongs_to_causal_models_is_refused() -> None:
    backbone, row = small(), ids(1, 4)
    with pytest.raises(ConfigError, match="sampler"):
        backbone.model.generate(row, max_new_tokens=2)
    with pytest.raises(ConfigError, match="objective"):
        backbone.model(input_ids=row, labels=row)
    with pytest.raises(ConfigError, match="objective"):
        backbone.model(row, None, None, None, None, row)
    assert torch.equal(backbone.model(input_ids=row).logits, backbone(row))


# Numbers and weights


def test_half_precision_keeps_fp32_frequencies(tmp_path: Path) -> None:
    full, half = small(), small(dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    full.save_pretrained(tmp_path)
    for backbone in (half, load_backbone(tmp_path, dtype="bfloat16"), load_backbone(tmp_path, dtype="float16")):
        frequencies = backbone.model.model.rotary_emb.inv_freq
        assert frequencies.dtype == torch.float32
        assert torch.equal(frequencies, full.model.model.rotary_emb.inv_freq)
    rounded = load_backbone(tmp_path, dtype="bfloat16")
    for name, value in full.model.named_parameters():
        assert torch.equal(rounded.model.get_parameter(name), value.bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_every_dtype_runs_padded_and_packed(dtype: str, attention: str) -> None:
    backbone, exact = small(dtype=dtype, attention=attention), small()
    exact.load_state_dict(backbone.state_dict())
    attend_RL, segment_RL = torch.tensor([[False, True, True, True, True]]), torch.tensor([[0, 0, 0, 1, 1]])
    h_RLD = hidden(backbone, ids(1, 5), attend_RL, None, packed_of(segment_RL))
    assert h_RLD.dtype == getattr(torch, dtype)
    error = (h_RLD.double() - hidden(exact, ids(1, 5), attend_RL, None, packed_of(segment_RL)))[attend_RL].abs().max()
    assert error < {"bfloat16": 0.2, "float16": 0.03}.get(dtype, 1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    backbone, gradients = small().train(), []
    for on in (False, True, False):
        backbone.gradient_checkpointing(on)
        assert backbone.model.model.layers[0].gradient_checkpointing is on
        backbone.zero_grad()
        backbone(ids(2, 6)).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in backbone.named_parameters()})
    assert all(torch.equal(gradients[0][name], other[name]) for other in gradients[1:] for name in other)


def test_adapters_go_into_the_model_and_not_into_its_files(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    backbone = small()
    before = backbone(ids(2, 6))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), backbone.model)
    assert torch.equal(backbone(ids(2, 6)), before)
    backbone(ids(2, 6)).logsumexp(-1).sum().backward()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)
    with pytest.raises(ConfigError, match="merge adapters"):
        backbone.save_pretrained(tmp_path)


def test_architecture_alone_takes_weights_from_elsewhere(tmp_path: Path) -> None:
    backbone = small()
    backbone.save_pretrained(tmp_path, weights=False)
    assert not list(tmp_path.glob("*.safetensors"))
    empty = backbone_from_folder(tmp_path, weights=False)
    empty.load_state_dict(backbone.state_dict())
    check_attention(empty)
    assert torch.equal(empty(ids(2, 6)), backbone(ids(2, 6)))
    assert empty.facts == backbone.facts
    arguments = {name: value for name, value in backbone.node.items() if name != "target"}
    assert backbone_from_folder(tmp_path, **arguments).dim == 32
    with pytest.raises(ConfigError, match=r"holds neither model\.safetensors"):
        load_backbone(tmp_path)


# Sizes, tokenizers, names


def test_new_backbone_takes_its_ids_from_the_tokenizer() -> None:
    backbone = small(vocab_size=64, intermediate_size=40, max_length=99)
    facts, vocab = backbone.facts, backbone.vocab
    assert (facts.pad_id, facts.eos_id, facts.mask_id, facts.bos_id) == (0, 1, 2, None)
    assert (facts.end_ids, facts.shift, facts.max_length) == ((1,), 0, 99)
    assert (vocab.size, vocab.mask_id, vocab.eos_id, vocab.pad_id, vocab.end_ids) == (64, 2, 1, 0, (1,))
    assert vocab.slot_id != vocab.mask_id
    assert (backbone.dim, backbone.vocab_size, backbone(ids(2, 6)).shape) == (32, 64, (2, 6, 64))
    assert backbone.model.model.layers[0].mlp.up_proj.weight.shape == (40, 32)
    assert backbone.model.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"hidden_size": 30}, "hidden_size 30: expected a multiple of 2 x heads = 8"),
        ({"kv_heads": 3}, "kv_heads 3: expected a divisor of heads = 4"),
        ({"dtype": "bfloat"}, "dtype 'bfloat'.*did you mean \"bfloat16\""),
        ({"attention": "spda"}, "attention 'spda'.*did you mean \"sdpa\""),
        ({"family": "lada"}, "model_type 'lada'.*did you mean \"llada\""),
        ({"vocab_size": 20}, "tokenizer: 34 ids do not fit 20 rows"),
        ({"tokenizer": "words"}, "tokenizer: 'words', expected one of transformers"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        small(**changed)


def test_a_folder_without_tokenizer_needs_one(tmp_path: Path) -> None:
    backbone = small()
    backbone.save_pretrained(tmp_path)
    saved = load_backbone(tmp_path)
    assert saved.vocab.encode("W3 w0 other") == WORDS("W3 w0 other")["input_ids"] == [7, 4, 3]
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="no tokenizer .*pass tokenizer="):
        load_backbone(tmp_path)
    assert torch.equal(load_backbone(tmp_path, tokenizer=WORDS)(ids(2, 6)), backbone(ids(2, 6)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        load_backbone(tmp_path)


def test_unknown_families_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="neither a folder nor a hub id"):
        load_backbone("/no/such/folder")
    with pytest.raises(ConfigError, match='did you mean "GSAI-ML/LLaDA-8B-Instruct"'):
        load_backbone("GSAI-ML/LLaDA-8B-Instrct")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llda"}')
    with pytest.raises(ConfigError, match="model_type 'llda'.*did you mean \"llada\""):
        load_backbone(tmp_path)
    snapshot = tmp_path / "cache" / "models--me--mine" / "snapshots" / ("0" * 40)
    small().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert load_backbone("me/mine").dim == 32


# The toy twin


def test_the_toy_is_a_small_backbone_of_the_same_family(tmp_path: Path) -> None:
    toy = load_backbone.toy("GSAI-ML/LLaDA-8B-Instruct", dtype="bfloat16")
    assert inspect.signature(load_backbone.toy) == inspect.signature(load_backbone)
    assert type(toy.model).__name__ == "LlamaForCausalLM" and toy.model.dtype == torch.bfloat16
    assert sum(p.numel() for p in toy.parameters()) < 300_000
    for text in ("plain", "Grüße, 世界 🙂\n\t", "<|not_a_token|>", "two  spaces "):
        assert toy.vocab.decode(toy.vocab.encode(text)) == text
    special = (llada.MASK, llada.BOS, llada.EOS, *llada.HEADER, llada.EOT)
    spelled = [toy.vocab.encode(token) for token in special]
    assert all(len(one) == 1 for one in spelled) and len({one[0] for one in spelled}) == 6
    assert (toy.facts.mask_id, toy.facts.bos_id, toy.facts.eos_id) == tuple(one[0] for one in spelled[:3])
    assert toy.facts.end_ids == (toy.facts.eos_id, spelled[5][0])
    assert toy.vocab.decode([spelled[1][0], *toy.vocab.encode("a"), spelled[5][0]]) == "a"
    assert toy.vocab.size > len(toy.vocab.tokenizer)
    toy.save_pretrained(tmp_path)
    assert load_backbone.toy(tmp_path).facts == load_backbone(tmp_path).facts == toy.facts
    (tmp_path / "config.json").write_text('{"model_type": "llda"}')
    with pytest.raises(ConfigError, match="llda"):
        load_backbone.toy(tmp_path)


@pytest.mark.parametrize(("mask", "eos", "missing"), [(None, 1, "mask"), (1, None, "eos"), (None, None, "mask")])
def test_a_model_needs_a_mask_and_an_end(mask: int | None, eos: int | None, missing: str) -> None:
    more: dict[str, Any] = {"pad_id": None, "bos_id": None, "end_ids": (), "max_length": 8}
    with pytest.raises(ConfigError, match=f"tokenizer: no {missing} token"):
        Facts.found(mask_id=mask, eos_id=eos, **more)
    assert Facts.found(mask_id=1, eos_id=2, **more).pad_id == 2


def test_rows_behind_the_table_are_near_the_mean_of_the_others() -> None:
    backbone = new_backbone(tokenizer=word_tokenizer(["a", "b"]), hidden_size=64, layers=1, heads=2)
    table = backbone.model.get_input_embeddings().weight.detach()
    before = len(table)
    with torch.no_grad():
        table[:] = torch.where(torch.arange(before)[:, None] % 2 == 0, 5.0, 3.0)
    mean, deviation = table.mean(0), table.std(0, correction=0)
    resize(backbone, before + 256)
    rows = backbone.model.get_input_embeddings().weight[before:].detach()
    far = (rows - mean) / deviation
    assert len(rows) == 256 and float(far.std()) == pytest.approx(0.01, rel=0.05) and abs(float(far.mean())) < 0.001


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, mmdiff.backbones.families.llada; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
