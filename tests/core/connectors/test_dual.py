"""DIFFA's adapters: transformers' BertEncoder and published names, the order of slots, two stages of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from spoken import CROP, check_lengths, filled, media
from torch import Tensor, nn
from torch.nn import functional as F
from toy import backbone
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from mmdiff.canvas.sample import Item, Media, Target
from mmdiff.config import build
from mmdiff.config.saveable import saveable
from mmdiff.connectors.dual import DualAdapter, diffa_name
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff

WIDTH, OUT, TAPS, QUERIES, PROMPTS = 12, 6, 2, 3, 5
SMALL: dict[str, Any] = {
    "taps": TAPS,
    "semantic": {"keep_tail": False},
    "acoustic": {"queries": QUERIES, "hidden": WIDTH, "heads": 3, "ffn": 20},
}
IN = (TAPS + 1) * WIDTH


class Published(nn.Module):
    """Tensors named and applied as DIFFA's repository does: Conv1d and Linear layers, BertEncoder, softmax a query."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20)
        config.add_cross_attention = config.is_decoder = True
        config._attn_implementation = "eager"
        self.trainable_prompts = nn.Embedding(PROMPTS, OUT)
        self.semantic_connector = nn.ModuleDict(
            {
                "conv": nn.Sequential(
                    nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Conv1d(WIDTH, 4 * WIDTH, 3, 4, padding=1)
                ),
                "linear_connector": nn.Sequential(
                    nn.Linear(4 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT), nn.ReLU()
                ),
                "layernorm": nn.LayerNorm(OUT),
            }
        )
        self.acoustic_connector = nn.Module()
        self.acoustic_connector.layer_prompts = nn.ParameterList(torch.randn(1, QUERIES, WIDTH) for _ in range(TAPS))
        self.acoustic_connector.layer_weights = nn.Parameter(torch.randn(QUERIES, TAPS))
        self.acoustic_connector.qformer = BertEncoder(config)
        self.acoustic_connector.proj = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUT))
        self.whisper_model = nn.Linear(3, 3)
        for name, parameter in self.named_parameters():
            if "acoustic_connector.qformer" in name:
                nn.init.normal_(parameter, std=0.3)

    def acoustic(self, taps: list[Tensor]) -> Tensor:
        connector = self.acoustic_connector
        read = [
            connector.qformer(hidden_states=prompt, encoder_hidden_states=tap[None]).last_hidden_state
            for prompt, tap in zip(connector.layer_prompts, taps, strict=True)
        ]
        weights = connector.layer_weights.softmax(-1)[..., None]
        out: Tensor = connector.proj((torch.stack(read).permute(1, 2, 0, 3) * weights).sum(2))[0]
        return out

    def semantic(self, last: Tensor) -> Tensor:
        connector = self.semantic_connector
        x = connector["conv"](last[: len(last) // 4 * 4].T[None]).transpose(1, 2)
        out: Tensor = connector["layernorm"](connector["linear_connector"](x))[0]
        return out


def checkpoint(folder: Path) -> tuple[Published, str]:
    published = Published().eval()
    file = folder / "diffa.safetensors"
    save_file(published.state_dict(), file)
    return published, str(file)


def crops(*tokens: int) -> list[Tensor]:
    return [torch.randn(n, IN) for n in tokens]


@torch.no_grad()
def test_published_tensors_compute_what_they_did(tmp_path: Path) -> None:
    """Both stages: [prompts][semantic], then [acoustic][semantic], for each crop alone."""
    published, file = checkpoint(tmp_path)
    sounds = crops(9, 24, 4, 15)
    batch, features = media([9, 24, 4, 15]), filled(sounds)
    layers = [sound.split(WIDTH, 1) for sound in sounds]
    second = DualAdapter(IN, OUT, **SMALL, weights=file).eval()
    wanted = [x for *taps, last in layers for x in (published.acoustic(taps), published.semantic(last))]
    assert torch.allclose(second(features, batch), torch.cat(wanted), atol=1e-5)
    first = DualAdapter(IN, OUT, **{**SMALL, "acoustic": None}, prompts=PROMPTS, weights=file).eval()
    wanted = [x for *_, last in layers for x in (published.trainable_prompts.weight, published.semantic(last))]
    assert torch.allclose(first(features, batch), torch.cat(wanted), atol=1e-5)
    assert second.node["weights"] is None and json.dumps(second.node)


def test_bert_is_not_causal() -> None:
    """The reference lets the first query see the last: `is_decoder` alone puts no causal mask on it."""
    published = Published().eval()
    context = torch.randn(1, 4, WIDTH)
    prompt = torch.randn(1, QUERIES, WIDTH)
    changed = prompt.clone()
    changed[:, -1] += 1
    read = [
        published.acoustic_connector.qformer(hidden_states=x, encoder_hidden_states=context).last_hidden_state[0, 0]
        for x in (prompt, changed)
    ]
    assert not torch.allclose(*read, atol=1e-3)


def test_parameters_of_diffa() -> None:
    """36.7 million are trained: 14.37 semantic, 22.25 acoustic, 20 prompts; DIFFA-2 has 36.4 and 47.9."""
    with torch.device("meta"):
        small = DualAdapter(5 * 768, 4096, prompts=20)
        large = DualAdapter(9 * 1280, 4096, taps=8, acoustic={"hidden": 1280, "heads": 20})
    assert sum(p.numel() for p in small.parameters()) == 14_369_280 + 22_251_776 + 20 * 4096 == 36_702_976
    assert sum(p.numel() for p in large.semantic.parameters()) == pytest.approx(36.4e6, abs=0.05e6)
    assert sum(p.numel() for p in large.acoustic.parameters()) == pytest.approx(47.9e6, abs=0.05e6)
    assert small.slots(1500, CROP) == 20 + 64 + 375


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        {**SMALL, "prompts": 2, "semantic": {}},
        {**SMALL, "acoustic": None, "prompts": 2},
        {**SMALL, "acoustic": None},
        {"taps": 0, "acoustic": None},
    ],
    ids=["both", "all", "prompts", "taps unread", "semantic"],
)
def test_every_length(settings: dict[str, Any]) -> None:
    check_lengths(DualAdapter(IN, OUT, **settings), IN)


def test_gradients_and_node() -> None:
    torch.manual_seed(0)
    node = {"target": "mmdiff.connectors.dual.DualAdapter", **SMALL, "prompts": 2}
    adapter = build(node, width_in=IN, width_out=OUT).eval()
    features = filled(crops(9, 5))
    out = adapter(features, media([9, 5]))
    (out**3).sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    again = build(json.loads(json.dumps(adapter.node))).eval()
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again(features, media([9, 5])), out)


def test_toy_is_small_and_of_the_same_kind() -> None:
    node = {"target": "mmdiff.connectors.dual.DualAdapter", "prompts": 20, "weights": "/no/such/folder"}
    toy = build(node, toy=True, width_in=5 * 16, width_out=32)
    assert sum(p.numel() for p in toy.parameters()) < 100_000
    assert toy.slots(100, CROP) == 20 + 64 + 25
    assert build({**node, "acoustic": None}, toy=True, width_in=5 * 16, width_out=32).acoustic is None


def test_prompts_start_as_large_as_semantic_slots() -> None:
    torch.manual_seed(0)
    for settings, size in (({}, 1.0), ({"out_norm": 0.1}, 0.1)):
        adapter = DualAdapter(8, 256, taps=0, acoustic=None, semantic=settings, prompts=20)
        out = adapter(torch.randn(1, 40, 8), media([40]))
        rms = out.square().mean(1).sqrt()
        assert rms[:20].mean().item() == pytest.approx(size, rel=0.05)
        assert rms[20:].mean().item() == pytest.approx(size, rel=0.05)


@saveable
class Sound(nn.Module):
    """Samples as they are, IN of them a feature."""

    width, tokens = IN, 50

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def read(self, data: Any) -> Item:
        values = nn.utils.rnn.pad_sequence([crop.flatten() for crop in data], batch_first=True)
        lengths = tuple(crop.numel() for crop in data)
        return Item(values, (), lengths, tuple(n // IN for n in lengths))

    def forward(self, values_N: Tensor, length_N: Tensor) -> Tensor:
        return F.pad(values_N * self.scale, (0, -values_N.shape[1] % IN)).unflatten(1, (-1, IN))

    def gradient_checkpointing(self, on: bool) -> None: ...


def model(**settings: Any) -> MMDiff:
    body = backbone()
    return MMDiff(body, {"audio": Sound()}, {"audio": DualAdapter(IN, body.dim, **settings)}).eval()


@torch.no_grad()
def test_slots_of_a_model(tmp_path: Path) -> None:
    """Sounds of one and of two windows on a canvas: as many slots as promised, a batch is its rows."""
    torch.manual_seed(0)
    whole = model(**SMALL, prompts=1)
    rows = [[Media("audio", crops(*tokens)), Target([5, 6])] for tokens in ((30, 7), (11,), (50, 50, 2))]
    together = collate(rows, whole.vocab, whole.readers)
    slots = [int((row >= 0).sum()) for row in together.slots["audio"]]
    assert slots == [2 * 4 + 7 + 1, 4 + 2, 3 * 4 + 12 + 12 + 1]
    features = whole.encode(together.media)["audio"].split(slots)
    for row, wanted in zip(rows, features, strict=True):
        alone = collate([row], whole.vocab, whole.readers)
        assert torch.allclose(whole.encode(alone.media)["audio"], wanted, atol=1e-5)


@torch.no_grad()
def test_second_stage_takes_the_first_ones_adapter(tmp_path: Path) -> None:
    """Of a saved model: the semantic adapter is taken, the acoustic one stays new, the prompts are left behind."""
    first = model(**{**SMALL, "acoustic": None}, prompts=PROMPTS)
    for parameter in first.connectors.parameters():
        parameter.normal_()
    first.save_pretrained(tmp_path / "first")
    torch.manual_seed(1)
    new = model(**SMALL).connectors["audio"]
    torch.manual_seed(1)
    second = model(**SMALL, weights=str(tmp_path / "first")).connectors["audio"]
    taken, trained, fresh = second.state_dict(), first.connectors["audio"].state_dict(), new.state_dict()
    for name, tensor in taken.items():
        assert torch.equal(tensor, (trained if name.startswith("semantic.") else fresh)[name]), name
    assert second.node["weights"] is None
    other = {**SMALL, "semantic": {"hidden": 7}}
    with pytest.raises(ConfigError, match="'connectors.audio.semantic.linears.0.bias' has shape"):
        model(**other, weights=str(tmp_path / "first"))


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    _, file = checkpoint(tmp_path)
    tensors = Published().state_dict()
    del tensors["acoustic_connector.qformer.layer.1.output.dense.bias"]
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"1 missing tensors: acoustic.qformer.layers.1.ffn.2.bias"):
        DualAdapter(IN, OUT, **SMALL, weights=file)
    save_file({**Published().state_dict(), "semantic_connector.conv.4.weight": torch.ones(1)}, file)
    with pytest.raises(ConfigError, match="'semantic_connector.conv.4.weight', which this connector has not"):
        DualAdapter(IN, OUT, **SMALL, weights=file)

    for name in ("semantic.norm.weight", "acoustic.other.weight"):
        save_file({f"connectors.audio.{name}": torch.ones(OUT)}, file)
        with pytest.raises(ConfigError, match=f"is '{name}', which this connector has not"):
            DualAdapter(IN, OUT, **SMALL, weights=file)


def test_names() -> None:
    layer = "acoustic_connector.qformer.layer.1"
    assert (
        diffa_name(f"{layer}.crossattention.output.LayerNorm.bias")
        == "acoustic.qformer.layers.1.cross_attention.norm.bias"
    )
    assert diffa_name(f"{layer}.intermediate.dense.weight") == "acoustic.qformer.layers.1.ffn.0.weight"
    assert diffa_name("acoustic_connector.layer_prompts.3") == "acoustic.queries_1QH.3"
    assert diffa_name("trainable_prompts.weight") == "prompts_RD"
    assert diffa_name("llm_model.model.transformer.wte.weight") is diffa_name("whisper_model.conv1.bias") is None


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"taps": 4}, "taps: 4 layers and the last do not make 36 features"),
        ({"taps": -1}, "taps=-1: expected a whole number of at least 0"),
        ({"taps": 0}, "taps=0: expected a whole number of at least 1"),
        ({"prompts": 1.5}, "prompts: 1.5 is not a whole number"),
        ({"semantic": {"stride": 2}}, 'semantic.stride: .*did you mean "strides"'),
        ({"acoustic": {"taps": 2}}, "acoustic.taps: set at run time"),
        ({"semantic": None}, "semantic: None is not a mapping"),
        ({"acoustic": "yes"}, "acoustic: 'yes' is not a mapping"),
    ],
)
def test_bad_settings(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        DualAdapter(IN, OUT, **{"taps": 2, **settings})
