"""ESM-2 as an encoder against transformers' own model, and against itself under padding, saving and cropping.

Shape letters: N proteins, T residues, E width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from safetensors.torch import save_file
from torch import Tensor
from toy import backbone
from transformers import EsmConfig, EsmForMaskedLM

from mmdiff import MMDiff, check
from mmdiff.backbones.families import esm
from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.config import build, check_nodes, load_config
from mmdiff.connectors.merge import FrameStack
from mmdiff.connectors.mlp import MLP
from mmdiff.data.collate import collate
from mmdiff.encoders.protein import LETTERS, Esm, residues
from mmdiff.errors import ConfigError, DataError
from mmdiff.model.features import FeatureCache, fingerprint
from mmdiff.model.likelihood import bound

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
ESM2 = dict(esm.PUBLISHED["facebook/esm2_t6_8M_UR50D"]) | SIZES
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "G", "ACDEFGHIKLMNPQRSTVWYXBZUO", "MKV"]
Checkpoint = tuple[Path, Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A folder as ESM-2's, and transformers' model of it; weights large enough for attention to matter."""
    folder = tmp_path_factory.mktemp("esm2")
    known = EsmConfig().to_dict()
    torch.manual_seed(0)
    model: Any = EsmForMaskedLM(EsmConfig(**{name: value for name, value in ESM2.items() if name in known})).eval()
    assert model.config.token_dropout
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(float("norm" in name.lower() and name.endswith("weight")), 0.2)
    state = {name: p.clone() for name, p in model.state_dict().items() if name != "lm_head.decoder.weight"}
    write(folder, state)
    return folder, model


def write(folder: Path, state: dict[str, Tensor], **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ESM2 | fields))
    (folder / "vocab.txt").write_text("\n".join(esm.TOKENS))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def reference(model: Any, protein: str) -> tuple[Tensor, ...]:
    """(T, E) of the residues after every layer, by transformers' tokenizer and model."""
    ids = torch.tensor([esm.tokenizer()(protein)["input_ids"]])
    assert ids.shape == (1, len(protein) + 2)
    out = model.esm(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return tuple(h[0, 1:-1] for h in (*out.hidden_states[:-1], out.last_hidden_state))


@torch.no_grad()
def features(encoder: Esm, protein: Any) -> Tensor:
    item = encoder.read(protein)
    out: Tensor = encoder(item.values, torch.tensor(item.lengths))[0]
    return out


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def model_of(encoder: Esm, connector: Any = None) -> MMDiff:
    torch.manual_seed(1)
    return MMDiff(backbone(), {"protein": encoder}, {"protein": connector or MLP(encoder.width, 32)}).eval()


def rows(model: MMDiff, proteins: list[Any]) -> Any:
    where, east = Text(model.vocab.encode("where")), Target(model.vocab.encode("east south"))
    return collate([[Media("protein", p), where, east] for p in proteins], model.vocab, model.readers)


# Features


@pytest.mark.parametrize("protein", PROTEINS)
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_features_are_those_of_transformers(checkpoint: Checkpoint, protein: str, layer: int) -> None:
    folder, model = checkpoint
    encoder = Esm(str(folder), layer=layer).eval()
    assert encoder.width == 32 and encoder.node["token_dropout"] is True
    close(features(encoder, protein), reference(model, protein)[layer])
    assert len(encoder.backbone.model.esm.encoder.layer) == 4 + layer, "layers above are not kept"


def test_token_dropout_is_a_scale(checkpoint: Checkpoint) -> None:
    folder, model = checkpoint
    first = model.esm.embeddings.word_embeddings.weight[torch.tensor([esm.TOKENS.index(a) for a in "MKV"])].detach()
    for given, scale in ((None, 0.88), (True, 0.88), (False, 1.0)):
        encoder = Esm(str(folder), layer=-3, token_dropout=given)
        vocab = encoder.backbone.vocab
        ids = torch.tensor([[vocab.bos_id, *(encoder.id_of[a] for a in "MKV"), vocab.eos_id]])
        close(encoder.backbone.embed(ids)[0, 1:-1].detach(), scale * first)
    with_it, without = (features(Esm(str(folder), token_dropout=on), "MKV") for on in (True, False))
    assert (with_it - without).abs().max() > 0.01


def test_dsm_was_trained_without_token_dropout_whatever_its_config_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    _, model = checkpoint
    state = {name: p.clone() for name, p in model.state_dict().items()}
    state["lm_head.decoder.bias"] = state.pop("lm_head.bias")
    folder = write(tmp_path / "dsm", state, model_type="esm_diff", token_dropout=True)
    assert Esm(str(folder)).node["token_dropout"] is False
    plain = Esm(str(write(tmp_path / "plain", state)), token_dropout=False)
    close(features(Esm(str(folder)), "MKV"), features(plain, "MKV"))


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("token_dropout", [True, False])
def test_a_backbone_that_was_saved_here_keeps_its_token_dropout(
    checkpoint: Checkpoint, tmp_path: Path, published: bool, token_dropout: bool
) -> None:
    from mmdiff.backbones import load_backbone

    made = load_backbone(checkpoint[0], options={"token_dropout": token_dropout})
    made.save_pretrained(tmp_path / "b", original_format=published)
    assert Esm(str(tmp_path / "b")).node["token_dropout"] is token_dropout


def test_what_fills_a_protein_up_and_what_stands_beside_it_have_no_say(checkpoint: Checkpoint) -> None:
    encoder = Esm(str(checkpoint[0])).eval()
    items = [encoder.read(protein) for protein in PROTEINS]
    length_N = torch.tensor([item.lengths[0] for item in items])
    for fill in (0, 5, 32):
        values_NT = torch.full((len(items), 30), fill)
        for n, item in enumerate(items):
            values_NT[n, : item.lengths[0]] = item.values[0]
        with torch.no_grad():
            out_NTE = encoder(values_NT, length_N)
        assert out_NTE.shape == (len(items), 30, 32)
        for n, protein in enumerate(PROTEINS):
            close(out_NTE[n, : len(protein)], features(encoder, protein))
    with torch.no_grad():
        close(encoder(items[0].values)[0], features(encoder, PROTEINS[0]))


@pytest.mark.parametrize("connector", ["mlp", "stack"])
def test_a_row_of_a_batch_is_what_it_is_alone(checkpoint: Checkpoint, tmp_path: Path, connector: str) -> None:
    """Through a model: collated, cut, zeroed, laid into the canvas; then with features from disk."""
    encoder = Esm(str(checkpoint[0]))
    model = model_of(encoder, MLP(32, 32) if connector == "mlp" else FrameStack(32, 32, 4))
    batch = rows(model, PROTEINS)
    assert batch.media["protein"].tokens == [22, 1, 25, 3]
    slots = [22, 1, 25, 3] if connector == "mlp" else [6, 1, 7, 1]
    assert (batch.slots["protein"] >= 0).sum(1).tolist() == slots
    whole_NTE = model.features("protein", batch.media["protein"])
    assert whole_NTE.shape == (4, 25, 32) and not whole_NTE[3, 3:].any()
    nll_B = bound(model, batch).nll_B
    for b, protein in enumerate(PROTEINS):
        alone = rows(model, [protein])
        alone.index_B[:] = b
        close(bound(model, alone).nll_B, nll_B[b : b + 1])
    model.encoders.requires_grad_(False)
    cache, prints = FeatureCache(tmp_path / "features.sqlite"), {"protein": fingerprint(encoder)}
    for chosen in (PROTEINS, PROTEINS[2:], PROTEINS[:1]):
        filled = cache.fill(model, rows(model, chosen), prints).media["protein"]
        close(filled.features_NTE, model.features("protein", rows(model, chosen).media["protein"]))
    assert (cache.hits, cache.misses) == (3, 4)


def test_ids_survive_half_precision(checkpoint: Checkpoint) -> None:
    encoder = Esm(str(checkpoint[0])).eval()
    whole = features(encoder, LETTERS)
    model = model_of(encoder.to(torch.bfloat16))
    with torch.no_grad():
        out = model.features("protein", rows(model, [LETTERS]).media["protein"])[0]
    assert out.dtype == torch.bfloat16 and (out.float() - whole).abs().mean() < 0.05
    ids = encoder.read(LETTERS).values
    assert torch.equal(ids.bfloat16().long(), ids) and len(set(ids[0].tolist())) == len(LETTERS) == 25


# Folders


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_saved_model_needs_no_checkpoint(checkpoint: Checkpoint, tmp_path: Path, layer: int) -> None:
    state = {name: p.clone() for name, p in checkpoint[1].state_dict().items()}
    state["esm.rotary_embeddings.inv_freq"] = state["esm.rotary_embeddings.inv_freq"].half().float()
    folder = write(tmp_path / "esm2", state)
    made = model_of(Esm(str(folder), layer=layer, max_length=50, crop=True))
    out = made.features("protein", rows(made, PROTEINS).media["protein"])
    made.save_pretrained(tmp_path / "model")
    for file in folder.iterdir():
        file.unlink()
    again = MMDiff.from_pretrained(tmp_path / "model")
    assert str(folder) not in (tmp_path / "model" / "config.json").read_text()
    assert torch.equal(again.features("protein", rows(again, PROTEINS).media["protein"]), out)
    encoder: Any = again.encoders["protein"]
    assert (encoder.tokens, encoder.crop, encoder.width) == (50, True, 32)


def test_a_new_one_and_its_toy() -> None:
    torch.manual_seed(0)
    new = Esm(hidden_size=48, layers=2, heads=4, max_length=9)
    assert new.node["intermediate_size"] == 4 * 48 and new.node["token_dropout"] is True
    assert features(new.eval(), "MKV").shape == (3, 48)
    build(new.node).load_state_dict(new.state_dict())
    toy = Esm.toy("/not/here", layer=-3, max_length=7, crop=True)
    assert features(toy.eval(), PROTEINS[0]).shape == (7, toy.width)
    assert (toy.tokens, toy.crop, len(toy.backbone.model.esm.encoder.layer)) == (7, True, 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "hidden_size: is missing, and no `weights` say it"),
        ({"hidden_size": 32, "heads": 2}, "layers: is missing"),
        ({"hidden_size": 32, "heads": 2, "layers": 0}, "Esm.layers=0: expected a whole number of at least 1"),
        ({"hidden_size": 32, "heads": 2, "layers": 2, "layer": -3}, "layer: -3 lies below the first of 2 layers"),
        ({"weights": "folder", "layer": 0}, "layer: 0 is not a negative number"),
        ({"weights": "folder", "layer": -4}, "layer: -4 lies below the first of 3 layers"),
        ({"weights": "folder", "layers": 3}, "layers: 3, but weights "),
        ({"weights": "folder", "max_length": 0}, "Esm.max_length=0: expected a whole number of at least 1"),
        ({"weights": "folder", "token_dropout": "yes"}, "Esm.token_dropout: 'yes' is not true or false"),
        ({"weights": "no folder"}, "path 'no folder': neither a folder nor a hub id"),
    ],
)
def test_bad_arguments_are_one_line(checkpoint: Checkpoint, arguments: dict[str, Any], line: str) -> None:
    if arguments.get("weights") == "folder":
        arguments = arguments | {"weights": str(checkpoint[0])}
    with pytest.raises(ConfigError) as caught:
        Esm(**arguments)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before: True, expected False as in ESM-2"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps: 1e-12, expected 1e-05"),
        ({"model_type": "llada"}, "model_type: 'llada', expected 'esm'"),
    ],
)
def test_what_is_not_esm2_is_refused(checkpoint: Checkpoint, tmp_path: Path, fields: Any, message: str) -> None:
    state = {name: p.clone() for name, p in checkpoint[1].state_dict().items()}
    if "emb_layer_norm_before" in fields:
        state |= {f"esm.embeddings.layer_norm.{name}": torch.ones(32) for name in ("weight", "bias")}
    with pytest.raises(ConfigError, match=message):
        Esm(str(write(tmp_path / "f", state, **fields)))


# Reading


def test_what_is_read() -> None:
    encoder = Esm.toy(max_length=5)
    item = encoder.read("MKV")
    assert item.values.tolist() == [[20, 15, 7]] and item.lengths == item.tokens == (3,)
    assert torch.equal(encoder.read({"id": "a", "sequence": "MKV"}).values, item.values)
    assert encoder.read("MKVXX").tokens == (5,)
    assert Esm.toy(max_length=5, crop=True).read("MKVXXGG").values.tolist() == encoder.read("MKVXX").values.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("MKVXXG", "protein: 6 residues, max_length is 5"),
        ("MKJV", "protein: residue 3 is 'J', expected one of ABCDEFGHIKLMNOPQRSTUVWXYZ"),
        ("MKv", "residue 3 is 'v', .*written in upper case"),
        ("MK V", "residue 3 is ' '"),
        ("M-V", "residue 2 is '-'"),
        ("MKÄ", "residue 3 is 'Ä'"),
        ("", "protein: the sequence is empty"),
        (7, "protein: 7 is no sequence"),
        ({"id": "a"}, "is no sequence"),
    ],
)
def test_what_cannot_be_read(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Esm.toy(max_length=5).read(data)


def test_a_bad_letter_behind_the_crop_is_still_bad() -> None:
    with pytest.raises(DataError, match="residue 7"):
        Esm.toy(max_length=5, crop=True).read("MKVXXG*")
    assert residues("MKV") == "MKV"


# Training


@pytest.mark.parametrize("layer", [-1, -2])
def test_gradient_checkpointing_changes_no_gradient_and_no_parameter_is_idle(layer: int) -> None:
    torch.manual_seed(0)
    encoder = Esm(hidden_size=32, layers=3, heads=2, layer=layer).train()
    item = encoder.read(PROTEINS[0])
    runs = [0]
    encoder.backbone.model.esm.encoder.layer[0].intermediate.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for on in (False, True, False):
        encoder.gradient_checkpointing(on)
        encoder.zero_grad()
        encoder(item.values, torch.tensor(item.lengths)).square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert sum(runs) == 4 and len(gradients[0]) == len(list(encoder.parameters()))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


# The configuration


def test_check() -> None:
    out = check(load_config("protein-chat"))
    assert set(out["loss"]) == {"align", "tune"} and len(out["forwards"]) == 2


def test_what_the_file_says_can_be_changed() -> None:
    stack = "model.connectors.protein={target: mmdiff.connectors.merge.FrameStack, factor: 4, norm: true}"
    key, _, value = stack.partition("=")
    assert f'{key}="{value}"' in (ROOT / "configs" / "protein-chat.yaml").read_text()
    check_nodes(load_config("protein-chat", [stack]))


def test_the_connector_has_22_million_parameters() -> None:
    config = load_config("protein-chat")
    width = esm.PUBLISHED[config.model.encoders["protein"]["weights"]]["hidden_size"]
    with torch.device("meta"):
        connector = build(config.model.connectors["protein"], width_in=width, width_out=4096)
    assert sum(p.numel() for p in connector.parameters()) == 2 * 1280 + 1281 * 4096 + 4097 * 4096 == 22_030_848
