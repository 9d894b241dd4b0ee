"""Whisper's encoder against the whole model of transformers, from waveforms on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_towers import shaken
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy import backbone

from mmdiff.canvas.sample import Media
from mmdiff.config import build
from mmdiff.connectors.mlp import MLP
from mmdiff.data.collate import collate
from mmdiff.encoders.whisper import Whisper
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff

SMALL = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 40}
IDS = {
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
}
EVERY_LAYER = [-4, -3, -2, -1, 0, 1, 2, 3, [0, 1, 2, 3], [3, 1], [-1, 2, 0], [1], [0]]


def published(folder: Path, seconds: int = 2, mels: int = 80, head: bool = True, **more: Any) -> Any:
    """Write a checkpoint as transformers does, of the speech recogniser or the bare model. Returns its model."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

    config = WhisperConfig(**SMALL, **DECODER, **IDS, num_mel_bins=mels, max_source_positions=50 * seconds, **more)
    whole = shaken((WhisperForConditionalGeneration if head else WhisperModel)(config))
    whole.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds).save_pretrained(folder)
    return whole.model if head else whole


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def clip(wave: Tensor) -> dict[str, Any]:
    return {"array": wave, "sampling_rate": 16000}


def reference(model: Any, wave: Tensor, seconds: int = 2) -> tuple[Tensor, ...]:
    """transformers' hidden states of one clip, filled up by its own extractor."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=seconds)
    features = torch.from_numpy(extractor(wave.numpy(), sampling_rate=16000)["input_features"])
    with torch.no_grad():
        out = model.encoder(features, output_hidden_states=True)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    return tuple(state[0] for state in out.hidden_states)


def features(encoder: Whisper, wave: Tensor) -> Tensor:
    """(N, T, E) of all windows of one clip."""
    item = encoder.read(clip(wave))
    with torch.no_grad():
        return encoder(item.values, torch.tensor(item.lengths))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("whisper")
    return folder, published(folder)


# Against transformers


@pytest.mark.parametrize("layers", EVERY_LAYER, ids=str)
def test_features_are_those_of_transformers(checkpoint: tuple[Path, Any], layers: Any) -> None:
    folder, model = checkpoint
    encoder = Whisper(weights=str(folder), layers=layers).eval()
    for samples in (20000, 31990, 32000):
        states = reference(model, noise(samples))
        expected = torch.cat([states[i] for i in (layers if isinstance(layers, list) else [layers])], dim=1)
        out_1TE = features(encoder, noise(samples))
        assert out_1TE.shape == (1, encoder.tokens, encoder.width)
        torch.testing.assert_close(out_1TE[0], expected, atol=2e-5, rtol=0)
    highest = max(i % 4 for i in (layers if isinstance(layers, list) else [layers]))
    assert len(encoder.tower.layers) == highest, "layers above are dropped"
    assert isinstance(encoder.tower.layer_norm, nn.Identity) == (highest < 3)


def test_thirty_seconds_and_128_mels(tmp_path: Path) -> None:
    model = published(tmp_path, seconds=30, mels=128, head=False)  # `encoder.` stands before the names
    encoder = Whisper(weights=str(tmp_path)).eval()
    assert (encoder.tokens, encoder.seconds) == (1500, 30.0)
    out_1TE = features(encoder, noise(70000))
    torch.testing.assert_close(out_1TE[0], reference(model, noise(70000), 30)[-1], atol=2e-5, rtol=0)


def test_a_shorter_window_cuts_the_table_of_positions(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = checkpoint
    one = published(tmp_path, seconds=1)
    encoder = Whisper(weights=str(folder), seconds=1.0).eval()
    whole = load_file(folder / "model.safetensors")
    assert encoder.tokens == 50
    assert torch.equal(encoder.tower.embed_positions.weight, whole["model.encoder.embed_positions.weight"][:50])
    for key, value in one.encoder.state_dict().items():
        value.copy_(whole[f"model.encoder.{key}"][: len(value)])
    torch.testing.assert_close(features(encoder, noise(9000))[0], reference(one, noise(9000), 1)[-1], atol=2e-5, rtol=0)


def test_positions_are_sinusoids_that_training_leaves_alone() -> None:
    encoder = Whisper(config=SMALL, seconds=2)
    at_T1 = torch.arange(100)[:, None] / 10000 ** (torch.arange(16) / 15)
    torch.testing.assert_close(encoder.tower.embed_positions.weight, torch.cat([at_T1.sin(), at_T1.cos()], dim=1))
    assert "tower.embed_positions.weight" in encoder.state_dict()
    assert all("positions" not in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "inner", "mels", "millions"),
    [
        ("tiny", 384, 4, 6, 1536, 80, 8.2),
        ("base", 512, 6, 8, 2048, 80, 20.6),
        ("small", 768, 12, 12, 3072, 80, 88.2),
        ("medium", 1024, 24, 16, 4096, 80, 307.2),
        ("large-v2", 1280, 32, 20, 5120, 80, 636.8),
        ("large-v3", 1280, 32, 20, 5120, 128, 637.0),
        ("large-v3-turbo", 1280, 32, 20, 5120, 128, 637.0),
    ],
)
def test_published_sizes(name: str, width: int, depth: int, heads: int, inner: int, mels: int, millions: float) -> None:
    from transformers import WhisperConfig, WhisperModel

    size = {"d_model": width, "encoder_layers": depth, "encoder_ffn_dim": inner, "num_mel_bins": mels}
    config = WhisperConfig(**size, encoder_attention_heads=heads, decoder_attention_heads=heads)
    with torch.device("meta"):
        encoder = Whisper(name)
        theirs = WhisperModel(config).encoder.state_dict()
    ours = encoder.tower.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert round(sum(value.numel() for value in ours.values()) / 1e6, 1) == millions
    assert encoder.tower.layers[0].self_attn.num_heads == heads
    assert (encoder.width, encoder.tokens) == (width, 1500)
    assert encoder.read(clip(noise(1600))).values.shape == (1, mels, 12)


def test_dropped_layers_are_not_made() -> None:
    with torch.device("meta"):
        diffa = Whisper("small", layers=[2, 5, 8, 11])
    assert diffa.width == 4 * 768 and len(diffa.tower.layers) == 11


# Weights


def test_a_saved_encoder_is_made_again(checkpoint: tuple[Path, Any]) -> None:
    folder, _ = checkpoint
    for more in ({}, {"layers": [1, -1]}, {"layers": -2, "seconds": 1.0, "trim": False}):
        encoder = Whisper(weights=str(folder), **more).eval()
        assert str(folder) not in json.dumps(encoder.node)
        again = build(json.loads(json.dumps(encoder.node)))
        assert again.node == encoder.node and again.read(clip(noise(9000))).tokens == (
            (29,) if not more.get("seconds") else (50,)
        )
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(features(again.eval(), noise(9000)), features(encoder, noise(9000)))


def test_weights_by_file_name_and_precision(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = checkpoint
    tensors = load_file(folder / "model.safetensors")
    bare = {k.removeprefix("model.encoder."): v for k, v in tensors.items() if k.startswith("model.encoder.")}
    save_file({k: v.half() for k, v in bare.items()}, tmp_path / "encoder.safetensors")
    config = {**SMALL, "max_source_positions": 100}
    encoder = Whisper(config=config, weights=str(tmp_path / "encoder.safetensors")).eval()
    assert encoder.tower.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(
        encoder.tower.state_dict(), {k: bare[k].half().float() for k in encoder.tower.state_dict()}
    )
    with pytest.raises(ConfigError, match="no size is named"):
        Whisper(weights=str(tmp_path / "encoder.safetensors"))


def test_bad_weights(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = checkpoint
    tensors = load_file(folder / "model.safetensors")
    facts = json.loads((folder / "config.json").read_text())
    features = json.loads((folder / "preprocessor_config.json").read_text())

    def refused(message: str, content: Any = None, config: Any = None, preprocessor: Any = None, **more: Any) -> None:
        save_file(tensors if content is None else content, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({**facts, **(config or {})}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**features, **(preprocessor or {})}))
        with pytest.raises(ConfigError, match=message) as caught:
            Whisper(weights=str(tmp_path), **more)
        assert "\n" not in str(caught.value)

    def without(*names: str) -> dict[str, Tensor]:
        return {k: v for k, v in tensors.items() if k not in {f"model.encoder.{name}" for name in names}}

    refused("1 missing tensors: layers.2.fc1.bias", without("layers.2.fc1.bias"))
    refused("unexpected tensor 'layers.2.fc3.bias'", {**tensors, "model.encoder.layers.2.fc3.bias": torch.zeros(3)})
    refused("unexpected tensor 'layers.3.fc1.bias'", {**tensors, "model.encoder.layers.3.fc1.bias": torch.zeros(48)})
    refused("'layers.0.fc1.bias' has shape", {**tensors, "model.encoder.layers.0.fc1.bias": torch.zeros(4)})
    refused(r"holds 0 tensors 'conv1.weight'", without("conv1.weight"))
    refused(r"holds 2 tensors 'conv1.weight'", {**tensors, "other.conv1.weight": torch.zeros(1)})
    refused("model_type: 'wav2vec2', expected 'whisper'", config={"model_type": "wav2vec2"})
    refused("config: d_model: 'x' is not a whole number", config={"d_model": "x"})
    refused("preprocessor_config.json: feature_size: 128, expected 80", preprocessor={"feature_size": 128})
    refused("preprocessor_config.json: hop_length: 200, expected 160", preprocessor={"hop_length": 200})
    refused("15 missing tensors: layers.3.fc1.bias", name="tiny")
    refused("has shape", name="tiny", layers=0)
    refused("'embed_positions.weight' has shape", config={"max_source_positions": 200})
    refused("seconds: 3 is not a multiple of 0.02 s, up to 2 s", seconds=3)
    with pytest.raises(ConfigError, match="no such file or folder"):
        Whisper("tiny", weights=str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name: no size is named"),
        ({"name": "smal"}, "name: 'smal' is not a size of Whisper .did you mean \"small\""),
        ({"config": {"d_modle": 8}}, "config: 'd_modle' .* .did you mean \"d_model\""),
        ({"config": {**SMALL, "encoder_layers": 0}}, "config: encoder_layers: 0 is not a whole number"),
        ({"config": {**SMALL, "d_model": 33}}, "config: d_model: 33 is not an even number"),
        ({"config": {**SMALL, "encoder_attention_heads": 3}}, "config: d_model: 32 .* that 3 heads divide"),
        ({"config": {**SMALL, "activation_function": "geluu"}}, "activation_function: 'geluu' is unknown .*gelu"),
        ({"config": {**SMALL, "dropout": 1}}, "config: dropout: 1 is not a number in"),
        ({"config": SMALL, "layers": 4}, r"layers: 4 is not a whole number in -4..3 \(3 layers\)"),
        ({"config": SMALL, "layers": -5}, "layers: -5 is not a whole number"),
        ({"config": SMALL, "layers": "all"}, "layers: 'all' is not a whole number"),
        ({"config": SMALL, "layers": [1, True]}, "layers.1: True is not a whole number"),
        ({"config": SMALL, "layers": []}, r"layers: \[\] names no layer"),
        ({"config": SMALL, "layers": [3, -1]}, r"layers: \[3, -1\] names a layer twice"),
        ({"config": SMALL, "seconds": 0}, "seconds=0: expected a number above 0"),
        ({"config": SMALL, "seconds": 1.01}, "seconds: 1.01 is not a multiple"),
        ({"config": SMALL, "seconds": 30.02}, "seconds: 30.02 is not a multiple"),
        ({"config": SMALL, "seconds": "2"}, "seconds: '2' is not a number"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Whisper(**arguments)
    if arguments and "no size" not in message:
        with pytest.raises(ConfigError, match="layers|name|config|seconds"):
            Whisper.toy(**arguments)


def test_bad_sound_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"a\.wav: not a sound file"):
        Whisper.toy("tiny").read(tmp_path / "a.wav")


# NoisedBatch


def test_tokens_are_those_of_the_real_sound() -> None:
    trimmed, whole = (Whisper(config=SMALL, seconds=2, trim=trim) for trim in (True, False))
    for samples, tokens in ((1, 1), (160, 1), (320, 1), (321, 2), (16000, 50), (31680, 99), (31681, 100), (32000, 100)):
        item = trimmed.read(clip(noise(samples)))
        frames = -(-samples // 160)  # what DIFFA goes by: the extractor's attention mask, then a stride of 2
        assert item.tokens == (tokens,) == (-(-frames // 2),)
        assert frames <= item.lengths[0] <= min(frames + 2, 200) and item.values.shape == (1, 80, item.lengths[0])
        assert whole.read(clip(noise(samples))).tokens == (100,)


def test_long_sound_becomes_windows(checkpoint: tuple[Path, Any]) -> None:
    folder, model = checkpoint
    encoder = Whisper(weights=str(folder)).eval()
    wave = noise(32000 * 2 + 5000) * torch.linspace(0.1, 1, 32000 * 2 + 5000)  # each window has a loudest point
    item = encoder.read(clip(wave))
    assert item.tokens == (100, 100, 16) and item.lengths == (200, 200, 33)
    assert item.values.shape == (3, 80, 200) and not item.values[2, :, 33:].any()
    for out_TE, piece in zip(features(encoder, wave), wave.split(32000), strict=True):
        torch.testing.assert_close(out_TE, reference(model, piece)[-1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("layers", [-1, [1, 3]], ids=str)
def test_a_batch_gives_what_single_clips_give(checkpoint: tuple[Path, Any], layers: Any) -> None:
    folder, _ = checkpoint
    encoder = Whisper(weights=str(folder), layers=layers).eval()
    clips = [clip(noise(n, n) * loud) for n, loud in ((3000, 1.0), (40000, 0.01), (31999, 1.0), (1, 1.0))]
    model = MMDiff(backbone(), {"audio": encoder}, {"audio": MLP(encoder.width, 32)}).eval()

    def media(chosen: list[Any]) -> Any:
        return collate([[Media("audio", one)] for one in chosen], model.vocab, model.readers).media

    together = media(clips)
    tokens = together["audio"].tokens
    assert tokens == [10, 100, 25, 100, 1]
    with torch.no_grad():
        out_NTE = model.features("audio", together["audio"])
        single = [crop for one in clips for crop in model.features("audio", media([one])["audio"])]
        slots_MD = model.encode(together)["audio"]
        alone_MD = torch.cat([model.encode(media([one]))["audio"] for one in clips])
    torch.testing.assert_close(slots_MD, alone_MD, atol=1e-5, rtol=0)
    assert len(slots_MD) == sum(tokens)
    assert out_NTE.shape == (5, 100, encoder.width)
    for crop_TE, alone_TE, n in zip(out_NTE, single, tokens, strict=True):
        torch.testing.assert_close(crop_TE[:n], alone_TE[:n], atol=1e-5, rtol=0)
        assert not crop_TE[n:].any()


def test_what_fills_a_view_up_has_no_say() -> None:
    encoder = Whisper(config=SMALL, seconds=2).eval()
    item = encoder.read(clip(noise(9000)))
    length_N = torch.tensor(item.lengths)
    dirty = torch.nn.functional.pad(item.values, (0, 30), value=9.0)
    with torch.no_grad():
        assert torch.equal(encoder(dirty, length_N), encoder(item.values, length_N))
        assert torch.equal(encoder(item.values), encoder(item.values, length_N))


# Training


def test_dropout_is_off_in_evaluation_and_no_grad_works() -> None:
    encoder = Whisper(config={**SMALL, "dropout": 0.5, "attention_dropout": 0.5}, seconds=2)
    out = features(encoder.eval(), noise(9000))
    assert torch.equal(out, features(encoder, noise(9000))) and not out.requires_grad
    assert not torch.equal(out, features(encoder.train(), noise(9000)))


@pytest.mark.parametrize("layers", [-1, 2, [0, 1, 3]], ids=str)
def test_gradient_checkpointing_changes_no_gradient(layers: Any) -> None:
    torch.manual_seed(0)
    encoder = Whisper(config=SMALL, seconds=1, layers=layers).train()
    item = encoder.read(clip(noise(9000)))
    gradients = []
    for on in (False, True, False):
        encoder.gradient_checkpointing(on)
        runs = []
        handle = encoder.tower.layers[0].fc1.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        encoder.zero_grad()
        encoder(item.values, torch.tensor(item.lengths)).square().sum().backward()
        handle.remove()
        assert len(runs) == (2 if on else 1), "a checkpointed layer runs again"
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(encoder.parameters()))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_bfloat16() -> None:
    encoder = Whisper(config=SMALL, seconds=1).eval()
    item = encoder.read(clip(noise(9000)))
    whole = features(encoder, noise(9000))
    encoder.to(torch.bfloat16)
    with torch.no_grad():
        out = encoder(item.values.bfloat16(), torch.tensor(item.lengths))
    assert out.dtype == torch.bfloat16 and (out.float() - whole).abs().mean() < 0.05


# Toys


def test_toys_keep_tokens_and_layers() -> None:
    for arguments, taps in (
        ({"name": "large-v3", "trim": False}, 1),
        ({"name": "small", "layers": [2, 5, 8, 11, -1]}, 5),
        ({"weights": "/not/here", "layers": -2, "seconds": 3}, 1),
    ):
        toy = Whisper.toy(**arguments)
        assert toy.width == taps * 32 and toy.trim == arguments.get("trim", True)
        assert toy.tokens == 50 * arguments.get("seconds", 30)
        assert features(toy.eval(), noise(9000)).shape == (1, toy.tokens, toy.width)
