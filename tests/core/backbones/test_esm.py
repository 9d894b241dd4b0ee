"""The ESM family against transformers' own model, and against folders laid out as ESM-2, DSM and DPLM publish theirs.

Shape letters: R rows, L positions, D width, V vocabulary.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from logit_tables import asked
from models.esm_checkpoints import HEADS, LAYERS, D, reference, tensors, write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EsmForMaskedLM

from mmdiff import MMDiff
from mmdiff.backbones import Backbone, load_backbone, new_backbone
from mmdiff.backbones.families import esm
from mmdiff.canvas.pattern import Coordinates, Visibility
from mmdiff.canvas.patterns import Documents
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError

CLS, PAD, EOS, MASK = 0, 1, 2, 32


def rows(masked: bool = True) -> tuple[Tensor, Tensor]:
    """Two sequences, the second one shorter and padded on the right."""
    torch.manual_seed(1)
    ids_RL = torch.randint(4, 24, (2, 14))
    ids_RL[:, 0], ids_RL[0, -1], ids_RL[1, 9], ids_RL[1, 10:] = CLS, EOS, EOS, PAD
    if masked:
        ids_RL[0, [2, 5, 6]] = MASK
        ids_RL[1, [1, 2, 3, 4, 8]] = MASK
    return ids_RL, ids_RL != PAD


def close(a: Tensor, b: Tensor, attend_RL: Tensor) -> None:
    torch.testing.assert_close(a[attend_RL], b[attend_RL], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_of_esm2_are_those_of_transformers_without_token_dropout(tmp_path: Path) -> None:
    model, (ids_RL, attend_RL) = reference(), rows()
    backbone = load_backbone(write_folder(tmp_path, tensors(model)))
    close(backbone(ids_RL, attend_RL), model(ids_RL, attention_mask=attend_RL.long()).logits, attend_RL)
    assert backbone.facts.mask_id == MASK and backbone.facts.bos_id == CLS and backbone.facts.pad_id == PAD


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saves_is_read(tmp_path: Path, tied: bool) -> None:
    """`save_pretrained` of transformers 5 writes other names than its model has."""
    model, (ids_RL, attend_RL) = reference(tie_word_embeddings=tied), rows()
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    close(backbone(ids_RL, attend_RL), model(ids_RL, attention_mask=attend_RL.long()).logits, attend_RL)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dplm", "option"])
def test_token_dropout_where_it_is_asked_for_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    """DPLM has it always, ESM-2 as an option; transformers applies it to ids only, here embeddings come in."""
    model, (ids_RL, attend_RL) = reference(token_dropout=True), rows()
    fields = {"architectures": ["EsmForDPLM"]} if name == "dplm" else {}
    folder = write_folder(tmp_path / "f", tensors(model), **fields)
    backbone = load_backbone(folder, options=None if name == "dplm" else {"token_dropout": True})
    close(backbone(ids_RL, attend_RL), model(ids_RL, attention_mask=attend_RL.long()).logits, attend_RL)
    without = load_backbone(folder, options={"token_dropout": False})
    assert (without(ids_RL, attend_RL) - backbone(ids_RL, attend_RL)).abs().max() > 0.1
    MMDiff(backbone).save_pretrained(tmp_path / "saved")
    again = MMDiff.from_pretrained(tmp_path / "saved").backbone
    assert torch.equal(again(ids_RL, attend_RL), backbone(ids_RL, attend_RL))


@torch.no_grad()
def test_a_row_of_masks_alone_is_a_number_under_token_dropout(tmp_path: Path) -> None:
    backbone = load_backbone(
        write_folder(tmp_path, tensors(reference(token_dropout=True)), architectures=["EsmForDPLM"])
    )
    assert backbone(torch.full((1, 5), MASK)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["esm_diff", "dsm"])
@pytest.mark.parametrize("tied", [True, False])
def test_dsm_has_a_cap_a_bias_in_its_decoder_and_perhaps_an_untied_head(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    model, (ids_RL, attend_RL) = reference(tie_word_embeddings=tied), rows()
    state = tensors(model)
    state["lm_head.decoder.bias"] = state.pop("lm_head.bias")
    state |= {"pooler.dense.weight": torch.randn(D, D), "pooler.dense.bias": torch.randn(D)}
    if not tied:
        state["lm_head.decoder.weight"] = model.lm_head.decoder.weight.detach().clone()
        assert not torch.equal(state["lm_head.decoder.weight"], state["esm.embeddings.word_embeddings.weight"])
    more = {"num_at_layers": 1, "at_vocab_size": 30000, "tie_word_embeddings": False}  # whatever the tensors are
    folder = write_folder(tmp_path / "f", state, model_type=model_type, architectures=["ESM_Diff"], **more)
    backbone = load_backbone(folder)  # config.json says `token_dropout: true`, as those made from Facebook's do
    logits = model(ids_RL, attention_mask=attend_RL.long()).logits
    close(backbone(ids_RL, attend_RL), 30 * torch.tanh(logits / 30), attend_RL)
    is_one = backbone.model.lm_head.decoder.weight is backbone.model.esm.embeddings.word_embeddings.weight
    assert is_one == tied

    backbone.save_pretrained(tmp_path / "published", original_format=True)
    written = load_file(tmp_path / "published" / "model.safetensors")
    unused = ("pooler.", "esm.contact_head.", "esm.embeddings.position")
    names = {name for name in state if not name.startswith(unused) and "inv_freq" not in name}
    assert set(written) == names | {"esm.rotary_embeddings.inv_freq"} and all(
        torch.equal(written[name], state[name]) for name in names
    )
    assert torch.equal(load_backbone(tmp_path / "published")(ids_RL, attend_RL), backbone(ids_RL, attend_RL))
    backbone.save_pretrained(tmp_path / "own")
    assert torch.equal(load_backbone(tmp_path / "own")(ids_RL, attend_RL), backbone(ids_RL, attend_RL))


@torch.no_grad()
def test_lora_factors_in_a_file_are_merged(tmp_path: Path) -> None:
    model, (ids_RL, attend_RL) = reference(), rows()
    state, alpha, r = tensors(model), 16.0, 4
    for name in [n for n in state if n.endswith(("query.weight", "value.weight"))]:
        base = name.removesuffix(".weight")
        a_RI, b_OR = torch.randn(r, D) * 0.1, torch.randn(D, r) * 0.1
        state |= {f"{base}.lora_A.default.weight": a_RI, f"{base}.lora_B.default.weight": b_OR}
        state[f"{base}.base_layer.weight"] = state.pop(name)
        state[f"{base}.base_layer.bias"] = state.pop(f"{base}.bias")
        layer: Any = model.get_submodule(base)
        layer.weight += alpha / r * b_OR @ a_RI
    backbone = load_backbone(write_folder(tmp_path / "lora", state, lora_alpha=alpha, lora_r=r))
    close(backbone(ids_RL, attend_RL), model(ids_RL, attention_mask=attend_RL.long()).logits, attend_RL)
    with pytest.raises(ConfigError, match="lora_alpha is missing"):
        load_backbone(write_folder(tmp_path / "no-alpha", state))
    state = {name: value for name, value in state.items() if "lora_B" not in name}
    with pytest.raises(ConfigError, match="without each other"):
        load_backbone(write_folder(tmp_path / "half", state, lora_alpha=alpha))
    pair = {f"esm.nowhere.lora_{which}.default.weight": torch.zeros(4, 4) for which in "AB"}
    with pytest.raises(ConfigError, match="'esm.nowhere.weight' without the weight"):
        load_backbone(write_folder(tmp_path / "nowhere", tensors(reference()) | pair, lora_alpha=alpha))


@torch.no_grad()
def test_rotary_frequencies_of_a_file_are_kept_also_in_saved_models(tmp_path: Path) -> None:
    """Older files hold them rounded to half precision, which is what the model was trained with."""
    model, (ids_RL, attend_RL) = reference(), rows()
    model.esm.rotary_embeddings.inv_freq.copy_(model.esm.rotary_embeddings.inv_freq.half().float() * 1.01)
    backbone = load_backbone(write_folder(tmp_path / "f", tensors(model)))
    expected = model(ids_RL, attention_mask=attend_RL.long()).logits
    close(backbone(ids_RL, attend_RL), expected, attend_RL)
    MMDiff(backbone).save_pretrained(tmp_path / "saved")
    close(MMDiff.from_pretrained(tmp_path / "saved").backbone(ids_RL, attend_RL), expected, attend_RL)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("before", [False, True])
def test_absolute_positions_are_those_of_transformers_wherever_the_padding_is(
    tmp_path: Path, side: str, before: bool
) -> None:
    model = reference(position_embedding_type="absolute", max_position_embeddings=20, emb_layer_norm_before=before)
    fields = {"position_embedding_type": "absolute", "max_position_embeddings": 20, "emb_layer_norm_before": before}
    backbone = load_backbone(write_folder(tmp_path, tensors(model), **fields))
    ids_RL, attend_RL = rows(masked=False)
    expected = model(ids_RL, attention_mask=attend_RL.long()).logits
    if side == "left":
        ids_RL = torch.stack([ids_RL[0], ids_RL[1].roll(4)])
        attend_RL, expected = ids_RL != PAD, torch.stack([expected[0], expected[1].roll(4, dims=0)])
    position_ids_RL = (attend_RL.cumsum(1) - 1).clamp(min=0)
    close(backbone(ids_RL, attend_RL, position_ids_RL), expected, attend_RL)
    with pytest.raises(DataError, match="a canvas of 19 positions; this backbone has absolute positions for 18"):
        backbone(torch.full((1, 19), 5))


@torch.no_grad()
def test_documents_of_a_packed_row_do_not_see_each_other() -> None:
    backbone = small()
    a, b = torch.randint(4, 24, (1, 5)), torch.randint(4, 24, (1, 7))
    visibility = Visibility(Documents(), Coordinates(document=torch.tensor([[0] * 5 + [1] * 7])))
    x = backbone.embed(torch.cat([a, b], 1))
    packed = backbone.hidden(x, None, torch.tensor([[*range(5), *range(7)]]), visibility)
    alone = torch.cat([backbone.hidden(backbone.embed(a)), backbone.hidden(backbone.embed(b))], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_layers_are_transformers_hidden_states(tmp_path: Path) -> None:
    model, (ids_RL, attend_RL) = reference(), rows(masked=False)
    backbone = load_backbone(write_folder(tmp_path, tensors(model)))
    theirs = model(ids_RL, attention_mask=attend_RL.long(), output_hidden_states=True).hidden_states
    ours = backbone.layers(backbone.embed(ids_RL, attend_RL), attend_RL)
    assert len(ours) == len(theirs) == LAYERS + 1
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        close(a, b, attend_RL)
    close(ours[-1], backbone.hidden(backbone.embed(ids_RL, attend_RL), attend_RL), attend_RL)


def test_a_canvas_is_scored_by_the_whole_head_on_predicted_positions_only() -> None:
    """`MMDiff.denoiser` runs dense, norm, decoder, bias and cap on the predicted positions."""
    backbone = small(options={"logit_cap": 0.5})
    samples = [[Text([CLS]), Target([5, MASK, 7, MASK]), Text([EOS])], [Text([CLS]), Target([MASK]), Text([EOS])]]
    batch = collate(samples, backbone.vocab, side="left")
    open_BL = batch.ids_BL == MASK
    logits = asked(MMDiff(backbone).denoiser(batch), batch.ids_BL, open_BL, torch.arange(2))
    full = backbone(batch.ids_BL, batch.attend_BL)
    torch.testing.assert_close(logits, full[open_BL], rtol=1e-5, atol=1e-6)
    assert full.abs().max() <= 0.5


def test_the_published_sizes() -> None:
    """Parameter counts on the meta device, without contact head, the head of DSM being a tensor of its own."""
    counts = {}
    for name in ("facebook/esm2_t6_8M_UR50D", "GleghornLab/DSM_150", "GleghornLab/DSM_650"):
        raw = esm.PUBLISHED[name]
        with torch.device("meta"):
            model = esm.finished(EsmForMaskedLM(esm.config(raw)))
        counts[name] = sum(p.numel() for p in model.parameters())
        width, layers = raw["hidden_size"], raw["num_hidden_layers"]
        layer = 12 * width**2 + 13 * width  # attention, 4x inside, two norms, biases everywhere
        head = width**2 + 3 * width + 33 + (0 if raw.get("tie_word_embeddings", True) else 33 * width)
        assert counts[name] == 33 * width + layers * layer + 2 * width + head
    assert list(counts.values()) == [7_512_353, 148_160_673, 651_084_833]


def test_every_published_size_is_that_of_its_name() -> None:
    """ESM-2's heads have 16, 24, 32 and, from 650 M parameters on, 64 dimensions."""
    sizes = {"8": (8, 16), "35": (35, 24), "150": (150, 32), "650": (650, 64), "3": (3000, 64)}
    for name, raw in esm.PUBLISHED.items():
        found = re.search(r"_(8|35|150|650|3)[mMbB]?(?:_|$)", name)
        millions, dims = sizes[found[1] if found else "650"]  # the one that has no number is made of that one
        width, layers = raw["hidden_size"], raw["num_hidden_layers"]
        assert 12 * layers * width**2 / 1e6 == pytest.approx(millions, rel=0.1), name
        assert raw["num_attention_heads"] * dims == width and raw["intermediate_size"] == 4 * width, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"tokendropout": True}}, "options.tokendropout: no such option of ESM.*token_dropout"),
        ({"options": {"positions": "relative"}}, "options.positions: 'relative'"),
        ({"options": {"logit_cap": -1}}, "options.logit_cap: -1, expected a number above 0"),
        ({"options": {"logit_cap": 0}}, "options.logit_cap: 0, expected a number above 0"),
        ({"options": {"logit_cap": True}}, "options.logit_cap: True, expected a number above 0"),
        ({"options": {"logit_cap": "3"}}, "options.logit_cap: '3', expected a number above 0"),
        ({"options": {"token_dropout": 1}}, "options.token_dropout: 1 is not true or false"),
        ({"kv_heads": 2}, "kv_heads 2: ESM has as many as heads = 4"),
        ({"family": "llada", "options": {"logit_cap": 3}}, "options.logit_cap: no such option of llada"),
        ({"reserve": {"residues": 0}}, "reserve.residues: 0 is not a whole number"),
        ({"reserve": {"residues": 8}, "vocab_size": 40}, "reserve: 8 ids, but 7 rows of the 40 are free"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: dict[str, Any], message: str) -> None:
    made = {"family": "esm", "tokenizer": esm.tokenizer(), "hidden_size": 16, "layers": 1, "heads": 4}
    with pytest.raises(ConfigError, match=message):
        new_backbone(**{**made, **arguments})


def test_toy_twins_have_the_options_of_their_family() -> None:
    toy = load_backbone.toy  # type: ignore[attr-defined]
    assert toy("GleghornLab/DSM_650").family == "esm_diff"
    assert toy("GleghornLab/DSM_650").model.config.mmdiff["logit_cap"] == esm.CAP
    assert toy("airkingbd/dplm_650m").model.config.mmdiff["token_dropout"] is True
    assert toy("facebook/esm2_t33_650M_UR50D").model.config.mmdiff["token_dropout"] is False


def test_reserved_ids_come_behind_the_tokenizer_and_are_saved(tmp_path: Path) -> None:
    backbone = small(reserve={"bins": 5, "more": 2})
    assert backbone.vocab.ranges == {"bins": (33, 38), "more": (38, 40)} and backbone.vocab_size == 40
    MMDiff(backbone).save_pretrained(tmp_path / "m")
    assert MMDiff.from_pretrained(tmp_path / "m").vocab.ranges == backbone.vocab.ranges


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["EsmForMaskedLM", "EsmForDPLM"])
def test_half_precision_is_close_and_keeps_its_frequencies(tmp_path: Path, dtype: str, architecture: str) -> None:
    ids_RL, attend_RL = rows()
    folder = write_folder(tmp_path, tensors(reference()), architectures=[architecture])
    full = load_backbone(folder)(ids_RL, attend_RL)
    backbone = load_backbone(folder, dtype=dtype)
    logits = backbone(ids_RL, attend_RL)
    assert logits.dtype == getattr(torch, dtype)
    assert backbone.model.esm.rotary_embeddings.inv_freq.dtype == torch.float32
    error = (logits.float() - full)[attend_RL].abs().max() / full[attend_RL].abs().max()
    assert error < {"bfloat16": 0.03, "float16": 0.004}[dtype]


@torch.no_grad()
def test_rotary_positions_are_those_that_are_given(tmp_path: Path) -> None:
    model, (ids_RL, _) = reference(), rows(masked=False)
    backbone, position_ids_RL = load_backbone(write_folder(tmp_path, tensors(model))), (torch.arange(14) ** 2)[None]
    expected = model(ids_RL[:1], position_ids=position_ids_RL).logits
    assert (expected - model(ids_RL[:1]).logits).abs().max() > 0.1
    torch.testing.assert_close(backbone(ids_RL[:1], None, position_ids_RL), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("original_format", [False, True])
@pytest.mark.parametrize("token_dropout", [False, True])
def test_folders_that_are_written_are_the_same_function(
    tmp_path: Path, original_format: bool, token_dropout: bool
) -> None:
    """Also at another base of the rotary frequencies; and `options` are over what a folder says."""
    (ids_RL, attend_RL), on = rows(), {"token_dropout": token_dropout}
    raw = small().model.config.to_dict()
    assert raw.get("rope_theta", (raw.get("rope_parameters") or {}).get("rope_theta")) == 10_000  # ESM-2's
    backbone = small(options=on, rope_theta=50.0)
    backbone.save_pretrained(tmp_path, original_format=original_format)
    assert json.loads((tmp_path / "config.json").read_text())["token_dropout"] is (token_dropout and original_format)
    again = load_backbone(tmp_path)
    assert torch.equal(again(ids_RL, attend_RL), backbone(ids_RL, attend_RL)) and again.facts == backbone.facts
    other = load_backbone(tmp_path, options={"token_dropout": not token_dropout})
    assert (other(ids_RL, attend_RL) - backbone(ids_RL, attend_RL)).abs().max() > 0.01


@torch.no_grad()
def test_weights_in_several_half_precision_files_and_no_tokenizer(tmp_path: Path) -> None:
    """DSM's folders have no tokenizer: ESM-2's is taken."""
    (ids_RL, attend_RL), state = rows(), tensors(reference().half().float())
    whole = load_backbone(write_folder(tmp_path / "whole", state))
    folder = write_folder(tmp_path / "parts", state)
    (folder / "model.safetensors").unlink()
    (folder / "vocab.txt").unlink()
    index = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(index.values()):
        part = {name: value for name, value in state.items() if index[name] == file}
        save_file({k: v.half() if v.is_floating_point() else v for k, v in part.items()}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    backbone = load_backbone(folder)
    assert torch.equal(backbone(ids_RL, attend_RL), whole(ids_RL, attend_RL))
    assert backbone.vocab.tokenizer.get_vocab() == whole.vocab.tokenizer.get_vocab()
    assert backbone.facts == whole.facts and backbone.facts.max_length == 1024


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_folding_model": True}, "is_folding_model: true, expected false"),
        ({"is_decoder": True}, "is_decoder: true, expected false"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key'"),
        ({"mask_token_id": 31}, "mask_token_id: 31 in config.json, but <mask> is 32 in the tokenizer"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"vocab_size": 32}, "tokenizer: 33 ids do not fit 32 rows"),
    ],
)
def test_what_is_another_architecture_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(write_folder(tmp_path, tensors(reference()), **fields))


@pytest.mark.parametrize("name", ["classifier.dense.weight", "esm.encoder.layer.2.LayerNorm.bias"])
def test_a_tensor_that_is_of_no_language_model_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"unexpected tensor '{name}'"):
        load_backbone(write_folder(tmp_path, tensors(reference()) | {name: torch.zeros(D)}))


@pytest.mark.parametrize("options", [{}, {"positions": "absolute"}, {"token_dropout": True}])
def test_gradients_are_those_without_checkpointing(options: dict[str, Any]) -> None:
    backbone, (ids_RL, attend_RL) = small(options=options).train(), rows()
    runs = [0]
    backbone.model.esm.encoder.layer[0].intermediate.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for on in (False, True):
        backbone.gradient_checkpointing(on)
        backbone.zero_grad()
        backbone(ids_RL, attend_RL)[attend_RL].logsumexp(-1).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None})
    assert sum(runs) == 3  # once, then twice
    assert len(gradients[0]) == len(list(backbone.parameters()))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_beside_padding(tmp_path: Path, attention: str) -> None:
    backbone = load_backbone(write_folder(tmp_path, tensors(reference())), attention=attention)
    ids_RL, attend_RL = rows()
    segment_RL = (torch.arange(14) >= 6).long().expand(2, 14)
    visibility = Visibility(Documents(), Coordinates(document=segment_RL))
    hidden = backbone.hidden(backbone.embed(ids_RL, attend_RL), attend_RL, None, visibility)
    assert hidden.isfinite().all()
    for row, positions in ((0, slice(0, 6)), (0, slice(6, 14)), (1, slice(0, 6)), (1, slice(6, 10))):
        alone = backbone.hidden(backbone.embed(ids_RL[row : row + 1, positions]))
        torch.testing.assert_close(hidden[row : row + 1, positions], alone, rtol=1e-5, atol=1e-5)


def small(**more: Any) -> Backbone:
    torch.manual_seed(0)
    made = {"hidden_size": D, "layers": LAYERS, "heads": HEADS, "max_length": 64, "init_std": 0.2}
    return new_backbone(family="esm", tokenizer=esm.tokenizer(), **made, **more)


def test_reserved_ids_are_saved_with_a_backbone_alone(tmp_path: Path) -> None:
    backbone = small(reserve={"bins": 5})
    backbone.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).vocab.ranges == {"bins": (33, 38)}
