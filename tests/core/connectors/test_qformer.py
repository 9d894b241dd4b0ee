"""Q-Formers: transformers' layers, windows cut by hand, published names and sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from spoken import CROP, check_lengths, filled, media
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from mmdiff.config import build
from mmdiff.connectors.qformer import LayerQFormer, QFormer, WindowQFormer, window_name
from mmdiff.errors import ConfigError

SMALL: dict[str, Any] = {"hidden": 12, "heads": 3, "ffn": 20}
IN, OUT = 8, 6


def blip2(context: int = IN) -> Blip2QFormerModel:
    """transformers' Q-Former, with weights and biases large enough to matter."""
    config = Blip2QFormerConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        cross_attention_frequency=1,
        encoder_hidden_size=context,
    )
    torch.manual_seed(0)
    model = Blip2QFormerModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def published(reference: Blip2QFormerModel, prefix: str) -> dict[str, Tensor]:
    """Its tensors under the names of BERT, as the code that SALMONN builds on has them."""
    out = {}
    for name, tensor in reference.state_dict().items():
        name = name.replace("attention.attention.", "attention.self.")
        name = name.replace("layernorm.", "embeddings.LayerNorm.") if name.startswith("layernorm") else name
        out[f"{prefix}.bert.{name}"] = tensor.clone()
    return out


def salmonn(reference: Blip2QFormerModel, queries: int = 2, adapter: str = "speech_Qformer") -> dict[str, Tensor]:
    proj = "speech_llama_proj" if adapter == "speech_Qformer" else "linear_proj"
    return {
        **published(reference, adapter),
        "speech_query_tokens": torch.randn(1, queries, 12),
        f"{proj}.weight": torch.randn(OUT, 12),
        f"{proj}.bias": torch.randn(OUT),
    }


def dead(adapter: str) -> dict[str, Tensor]:
    """What a checkpoint holds besides: BERT's text half and the other parts of the model."""
    names = [
        f"{adapter}.bert.embeddings.word_embeddings.weight",
        f"{adapter}.bert.embeddings.position_embeddings.weight",
        f"{adapter}.bert.encoder.layer.0.intermediate.dense.weight",
        f"{adapter}.bert.encoder.layer.1.output.dense.bias",
        f"{adapter}.bert.encoder.layer.1.output.LayerNorm.weight",
        f"{adapter}.cls.predictions.decoder.weight",
        "llada.base_model.model.model.transformer.blocks.0.q_proj.lora_A.default.weight",
        "whisper.layers.0.fc1.weight",
    ]
    return {name: torch.randn(3) for name in names}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def test_layers_are_those_of_blip2(tmp_path: Path) -> None:
    """Self-attention, masked cross-attention and feed-forward, each before its residual and norm."""
    reference = blip2()
    save_file(salmonn(reference), tmp_path / "q.safetensors")
    ours = WindowQFormer(IN, OUT, queries=2, **SMALL, weights=str(tmp_path / "q.safetensors")).eval()
    queries, context = torch.randn(5, 2, 12), torch.randn(5, 9, IN)
    real = torch.arange(9) < torch.tensor([9, 1, 5, 8, 2])[:, None]
    for mask in (None, real):
        wanted = reference(queries, encoder_hidden_states=context, encoder_attention_mask=mask).last_hidden_state
        assert torch.allclose(ours.qformer(ours.query_norm(queries), context, mask), wanted, atol=1e-5)
    changed = torch.where(real[..., None], context, 1e4)
    masked = ours.qformer(queries, context, real)
    assert torch.allclose(ours.qformer(queries, changed, real), masked, atol=1e-6)
    assert not torch.allclose(ours.qformer(queries, context), masked, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(("keep_tail", "stride"), [(True, 5), (False, 5), (True, 3), (False, 3)])
@pytest.mark.parametrize("adapter", ["speech_Qformer", "adapter"])
def test_windows_cut_by_hand(tmp_path: Path, adapter: str, keep_tail: bool, stride: int) -> None:
    """Each window of each crop through transformers' model by itself, the last one as short as it is."""
    reference = blip2()
    tensors = {
        **salmonn(reference, adapter=adapter),
        "ln_speech.weight": torch.randn(IN),
        "ln_speech.bias": torch.ones(IN),
    }
    save_file(tensors | dead(adapter), tmp_path / "q.safetensors")
    ours = WindowQFormer(
        IN,
        OUT,
        window=5,
        stride=stride,
        queries=2,
        norm=True,
        keep_tail=keep_tail,
        **SMALL,
        weights=str(tmp_path / "q.safetensors"),
    ).eval()
    norm = nn.functional.layer_norm
    proj = next(name.removesuffix(".weight") for name in tensors if "proj.weight" in name)
    tokens = [4, 12, 5, 17, 1, 15, 6]
    crops = [torch.randn(n, IN) for n in tokens]
    wanted = []
    for crop in crops:
        starts = [0]
        while starts[-1] + 5 < len(crop):
            starts.append(starts[-1] + stride)
        if not keep_tail:
            starts = [s for s in starts if s + 5 <= len(crop)] or [0]
        for start in starts:
            window = norm(crop[start : start + 5], (IN,), tensors["ln_speech.weight"], tensors["ln_speech.bias"])
            read = reference(tensors["speech_query_tokens"], encoder_hidden_states=window[None]).last_hidden_state[0]
            wanted.append(read @ tensors[f"{proj}.weight"].T + tensors[f"{proj}.bias"])
    assert torch.allclose(ours(filled(crops), media(tokens)), torch.cat(wanted), atol=1e-4)


def test_windows_of_whisper_llada() -> None:
    """30 s are 1500 features, 88 windows of 17, 352 slots; four features (80 ms) fall off, or get a window."""
    with torch.device("meta"):
        published, kept = (WindowQFormer(1280, 4096, keep_tail=keep) for keep in (False, True))
    assert 1500 == 88 * 17 + 4
    assert published.slots(1500, CROP) == 352 and kept.slots(1500, CROP) == 356
    assert published.slots(50, CROP) == 8 and kept.slots(50, CROP) == 12  # 1 s
    assert published.slots(3, CROP) == 4  # no sound without a slot


def test_parameters_of_whisper_llada() -> None:
    """20.5 million in the Q-Former that are used, 3.15 in the map; 22.3 in LayerQFormer at DIFFA's size."""
    with torch.device("meta"):
        windows, layers = WindowQFormer(1280, 4096), LayerQFormer(4 * 768, 4096)
    norm, square = 2 * 768, 768 * 768 + 768
    ffn = 768 * 3072 + 3072 + 3072 * 768 + 768
    layer = (4 * square + norm) + (2 * square + 2 * (1280 * 768 + 768) + norm) + (ffn + norm)
    assert count(windows.qformer) == 2 * layer == 20_476_416
    assert count(windows.qformer) + count(windows.query_norm) + windows.queries_1QH.numel() == 20_481_024
    assert count(windows.proj) == 768 * 4096 + 4096 == 3_149_824
    assert count(windows) == 20_481_024 + 3_149_824
    layer = 2 * (4 * square + norm) + (ffn + norm)
    assert count(layers) == 4 * 64 * 768 + 64 * 4 + 2 * layer + norm + 768 * 4096 + 4096 == 22_251_776


def test_start() -> None:
    torch.manual_seed(0)
    windows = WindowQFormer(64, 32, queries=40, hidden=96)
    assert windows.queries_1QH.std().item() == pytest.approx(0.02, rel=0.1)
    for name, tensor in windows.qformer.named_parameters():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep_tail": False},
        {"window": 7, "stride": 3, "norm": True, "out_norm": 0.1},
        {"window": 7, "stride": 3, "keep_tail": False},
        {"window": 1, "queries": 1},
        {"window": 300},
    ],
    ids=str,
)
def test_every_length_in_windows(settings: dict[str, Any]) -> None:
    check_lengths(WindowQFormer(IN, OUT, **SMALL, **settings), IN)


@pytest.mark.parametrize("settings", [{"queries": 3}, {"queries": 2, "taps": 2, "out_norm": 0.1}], ids=str)
def test_every_length_in_layers(settings: dict[str, Any]) -> None:
    check_lengths(LayerQFormer(IN, OUT, **SMALL, **settings), IN)


@torch.no_grad()
def test_layers_are_mixed_by_each_query() -> None:
    """Own queries for each layer through the one Q-Former; a query that looks at layer 2 alone sees that alone."""
    torch.manual_seed(0)
    layers = LayerQFormer(3 * IN, OUT, taps=3, queries=2, **SMALL).eval()
    features = torch.randn(2, 5, 3 * IN)
    read = [
        layers.qformer(queries.expand(2, -1, -1), features[..., IN * k : IN * (k + 1)])
        for k, queries in enumerate(layers.queries_1QH)
    ]
    even = layers.proj(layers.norm(sum(read) / 3))
    assert torch.allclose(layers(features, media(None, 2)), even.flatten(0, 1), atol=1e-5)
    layers.mix_QK.copy_(torch.tensor([[0, 50.0, 0], [50.0, 0, 0]]))
    mixed = torch.stack([read[1][:, 0], read[0][:, 1]], 1)
    wanted = layers.proj(layers.norm(mixed))
    assert torch.allclose(layers(features, media(None, 2)), wanted.flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        {"target": "mmdiff.connectors.qformer.WindowQFormer", "window": 5, "norm": True, "out_norm": 0.2},
        {"target": "mmdiff.connectors.qformer.LayerQFormer", "taps": 2, "queries": 3, "out_norm": 0.2},
    ],
    ids=lambda node: node["target"].split(".")[-1],
)
def test_gradients_node_and_scale(node: dict[str, Any]) -> None:
    torch.manual_seed(0)
    connector = build({**node, **SMALL}, width_in=IN, width_out=64).eval()
    features = torch.randn(3, 12, IN)
    out = connector(features, media([12, 3, 7]))
    assert torch.allclose(out.square().mean(1).sqrt(), torch.tensor(0.2), atol=0.01)
    (out**3).sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # a bias of keys moves all scores of a query alike
        assert name.endswith("key.bias") or parameter.grad.any(), name
    again = build(json.loads(json.dumps(connector.node))).eval()
    again.load_state_dict(connector.state_dict())
    assert torch.equal(again(features, media([12, 3, 7])), out)
    toy = build({**node, "hidden": 768, "heads": 12}, toy=True, width_in=IN, width_out=OUT)
    assert count(toy) < 50_000 and toy.slots(12, CROP) == connector.slots(12, CROP)


def test_names() -> None:
    layer = "bert.encoder.layer.1"
    assert window_name("speech_query_tokens") == "queries_1QH"
    assert (
        window_name(f"adapter.{layer}.crossattention.self.key.weight") == "qformer.layers.1.cross_attention.key.weight"
    )
    assert window_name(f"speech_Qformer.{layer}.output_query.LayerNorm.bias") == "qformer.layers.1.norm.bias"
    assert window_name("adapter.bert.embeddings.LayerNorm.weight") == "query_norm.weight"
    assert {window_name(name) for name in dead("adapter")} == {None}


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "q.safetensors"

    def load(tensors: dict[str, Tensor], **settings: Any) -> WindowQFormer:
        save_file(tensors, file)
        return WindowQFormer(IN, OUT, **{"queries": 2, **SMALL, **settings}, weights=str(file))

    whole = salmonn(blip2())
    assert load(whole).node["weights"] is None
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(whole, folder / "model.safetensors")
    WindowQFormer(IN, OUT, queries=2, **SMALL, weights=str(folder))
    with pytest.raises(ConfigError, match="1 missing tensors: proj.bias"):
        load({name: t for name, t in whole.items() if name != "speech_llama_proj.bias"})
    with pytest.raises(ConfigError, match="'ln_speech.bias' is 'norm.bias', which this connector has not"):
        load({**whole, "ln_speech.weight": torch.ones(IN), "ln_speech.bias": torch.ones(IN)})
    with pytest.raises(ConfigError, match=r"'speech_query_tokens' has shape \(1, 2, 12\), expected \(1, 4, 12\)"):
        load(whole, queries=4)
    with pytest.raises(ConfigError, match="is 'qformer.layers.1.cross_attention.key.bias', which"):
        load(whole, layers=1)
    with pytest.raises(ConfigError, match="holds no tensor of this connector"):
        load({"llama.weight": torch.ones(1)})
    for name, wanted in (("q.pth", "only .safetensors is read"), ("bad.safetensors", "not a safetensors file")):
        (tmp_path / name).write_bytes(b"?" * 20)
        with pytest.raises(ConfigError, match=wanted):
            WindowQFormer(IN, OUT, weights=str(tmp_path / name), **SMALL)
    with pytest.raises(ConfigError, match="no such file or folder"):
        WindowQFormer(IN, OUT, weights=str(tmp_path / "none.safetensors"), **SMALL)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"heads": 5}, "heads: 5 does not divide hidden 768"),
        ({"dropout": 1.5}, "dropout=1.5: expected a number of at least 0 and below 1"),
        ({"window": 0}, "window=0: expected a whole number of at least 1"),
        ({"stride": 20}, "stride: 20 leaves features between windows of 17 out"),
        ({"queries": 1.5}, "queries: 1.5 is not a whole number"),
        ({"out_norm": 0}, "out_norm=0: expected a number above 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], wanted: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=wanted):
        WindowQFormer(16, 16, **settings)


def test_bad_taps() -> None:
    with pytest.raises(ConfigError, match="taps: 3 layers do not make 16 features"):
        LayerQFormer(16, 16, taps=3)
    with pytest.raises(ConfigError, match="layers=0"):
        QFormer(16, 16, layers=0)
