"""wav2vec 2.0, HuBERT and WavLM against torchaudio's models and transformers', one clip at a time and in batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.config import build
from mmdiff.encoders.wav2vec import ARCHITECTURES, RATE, RELATIVE, Wav2Vec2
from mmdiff.errors import ConfigError, DataError

pytestmark = pytest.mark.needs("torchaudio")

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
LENGTHS = (400, 719, 720, 3000, 9000)
DROPOUTS = ("projection", "attention", "ff_interm")


def args(norm_first: bool, relative: bool = False, **more: Any) -> dict[str, Any]:
    """Arguments of torchaudio's builders, at a size for tests."""
    return {
        "extractor_mode": "layer_norm" if norm_first else "group_norm",
        "extractor_conv_layer_config": [[8, k, s] for k, s in zip(KERNELS, STRIDES, strict=True)],
        "extractor_conv_bias": norm_first,
        "encoder_embed_dim": 32,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 3,
        "encoder_num_heads": 4,
        "encoder_ff_interm_features": 48,
        "encoder_layer_norm_first": norm_first,
        **({"encoder_num_buckets": 12, "encoder_max_distance": 20} if relative else {}),
        **more,
    }


def shaken(model: Any) -> Any:
    """Weights as training leaves them: no norm or bias is still at its first value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def theirs(**arguments: Any) -> Any:
    from torchaudio.models import wav2vec2_model, wavlm_model

    none = {f"encoder_{name}_dropout": 0.0 for name in DROPOUTS} | {"encoder_dropout": 0.0, "encoder_layer_drop": 0.0}
    make = wavlm_model if "encoder_num_buckets" in arguments else wav2vec2_model
    return shaken(make(**arguments, **none, aux_num_out=None))


def clip(samples: int, seed: int = 0) -> Tensor:
    """With an offset and a loudness of its own, so that a shared normalisation shows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, generator=generator) * (0.1 + 0.2 * seed) + 0.1 * seed


def assert_close(ours: Tensor, wanted: Tensor) -> None:
    assert ours.shape == wanted.shape
    assert torch.allclose(ours, wanted, atol=1e-5, rtol=1e-5), (ours - wanted).abs().max()


KINDS = [(first, relative) for first in (False, True) for relative in (False, True)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{'pre' if kind[0] else 'post'}{'-wavlm' if kind[1] else ''}")
def kind(request: Any) -> dict[str, Any]:
    return args(*request.param)


@torch.no_grad()
def test_every_layer_of_a_clip_is_torchaudios(kind: dict[str, Any]) -> None:
    reference = theirs(**kind)
    for layer in (-1, -2, -3):
        encoder = Wav2Vec2(config=kind, layer=layer).eval()
        missing, _ = encoder.model.load_state_dict(reference.state_dict(), strict=False)
        assert not missing and len(encoder.model.encoder.transformer.layers) == 4 + layer
        for n, samples in enumerate(LENGTHS):
            wave_S = clip(samples, n)
            wanted_NTE = reference.extract_features(wave_S[None])[0][layer]
            assert_close(encoder(wave_S[None], torch.tensor([samples])), wanted_NTE)
            assert_close(encoder(wave_S[None]), wanted_NTE)


@torch.no_grad()
def test_neither_the_fill_nor_the_neighbours_change_a_clip(kind: dict[str, Any]) -> None:
    """torchaudio's base models normalise over the fill as well, and its WavLM takes no lengths at all."""
    reference = theirs(**kind)
    encoder = Wav2Vec2(config=kind).eval()
    encoder.model.load_state_dict(reference.state_dict(), strict=False)
    batch_NS = torch.full((len(LENGTHS), max(LENGTHS) + 50), 1e3)  # whatever the fill is
    for n, samples in enumerate(LENGTHS):
        batch_NS[n, :samples] = clip(samples, n)
    features_NTE = encoder(batch_NS, torch.tensor(LENGTHS))
    for n, samples in enumerate(LENGTHS):
        wanted_TE = reference.extract_features(clip(samples, n)[None])[0][-1][0]
        assert_close(features_NTE[n, : len(wanted_TE)], wanted_TE)


@torch.no_grad()
def test_tokens_said_are_tokens_made() -> None:
    encoder = Wav2Vec2(config=args(False), seconds=0.1).eval()
    for samples in (1, 399, 400, 401, 719, 720, 1599, 1600, 1601, 5000):
        item = encoder.read({"array": clip(samples).numpy(), "sampling_rate": RATE})
        assert len(item.values) == len(item.tokens) == math.ceil(samples / 1600)
        for value_S, length, tokens in zip(item.values, item.lengths, item.tokens, strict=True):
            assert encoder(value_S[None, :length]).shape == (1, tokens, encoder.width)
            assert 1 <= tokens <= encoder.tokens == 4
            assert not value_S[length:].any()


def test_windows_hold_the_whole_recording() -> None:
    encoder = Wav2Vec2(config=args(False), seconds=0.1)
    wave_S = clip(3500)
    item = encoder.read({"array": wave_S.numpy(), "sampling_rate": RATE})
    assert item.lengths == (1600, 1600, 400)  # 300 samples, and silence up to one token
    assert torch.equal(item.values.flatten()[:3500], wave_S) and not item.values.flatten()[3500:].any()


def test_normalised_as_the_model_was_trained() -> None:
    sound = {"array": clip(3000, 3).numpy(), "sampling_rate": RATE}
    raw_S = sound["array"].astype(np.float64)
    wanted_S = torch.from_numpy((raw_S - raw_S.mean()) / np.sqrt(raw_S.var() + 1e-5)).float()
    for norm_first, given, normalized in (
        (False, None, False),
        (True, None, True),
        (False, True, True),
        (True, False, False),
    ):
        encoder = Wav2Vec2(config=args(norm_first), normalize=given)
        (values_S,) = encoder.read(sound).values
        assert encoder.node["normalize"] is normalized
        assert torch.allclose(values_S, wanted_S if normalized else torch.from_numpy(sound["array"]), atol=1e-5)


def test_dropout_only_where_it_is_asked_for() -> None:
    wave_NS = clip(3000)[None]
    encoder = Wav2Vec2(config=args(False)).train()
    assert torch.equal(encoder(wave_NS), encoder(wave_NS))
    encoder = Wav2Vec2(config=args(False, encoder_dropout=0.5)).train()
    assert not torch.equal(encoder(wave_NS), encoder(wave_NS))


@pytest.mark.parametrize("norm", [False, True])
def test_every_parameter_gets_its_gradient(kind: dict[str, Any], norm: bool) -> None:
    """Also with checkpointing, and of batches."""
    torch.manual_seed(0)
    encoder = Wav2Vec2(config=kind, layer=-2, norm=norm).train()
    waves_NS, length_N = torch.randn(2, 3000), torch.tensor([3000, 1700])
    gradients = []
    for on in (False, True):
        encoder.gradient_checkpointing(on)
        encoder.zero_grad()
        encoder(waves_NS, length_N)[..., ::2].square().sum().backward()
        assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-5)


# --- published sizes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_torchaudios_own(name: str) -> None:
    from torchaudio import models, pipelines

    none = {f"encoder_{part}_dropout": 0.0 for part in DROPOUTS} | {"encoder_dropout": 0.0, "encoder_layer_drop": 0.0}
    with torch.device("meta"):
        reference = getattr(models, name)(**none)
        encoder = Wav2Vec2(name, norm=True)
    if encoder.model.encoder.transformer.layers[0].layer_norm_first:
        encoder.model.encoder.transformer.layer_norm, encoder.norm = encoder.norm, torch.nn.Identity()
    assert repr(encoder.model) == repr(reference)
    ours, wanted = encoder.model.state_dict(), reference.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in wanted.items()}
    bundle = getattr(pipelines, name.upper())
    kept = {key: bundle._params[key] for key in ARCHITECTURES[name]}
    kept["extractor_conv_layer_config"] = [list(conv) for conv in kept["extractor_conv_layer_config"]]
    assert kept == ARCHITECTURES[name]
    assert (bundle._model_type == "WavLM") == (RELATIVE.keys() <= kept.keys())
    assert encoder.normalize == bundle._normalize_waveform
    assert encoder.width == kept["encoder_embed_dim"] and encoder.tokens == 1499


@pytest.mark.parametrize(
    (
        "name",
        "millions",
    ),  # 95 M and 317 M (arXiv:2006.11477, 3.2), 316 M and 964 M (2106.07447, I), 0.96, 2.2 B (2111.09296)
    [
        ("wav2vec2_base", 95),
        ("wav2vec2_large_lv60k", 317),
        ("hubert_large", 317),
        ("hubert_xlarge", 964),
        ("wav2vec2_xlsr_1b", 965),
        ("wav2vec2_xlsr_2b", 2162),
        ("wavlm_base", 94.70),
        ("wavlm_large", 316.62),
    ],
)
def test_published_sizes(name: str, millions: float) -> None:
    """The papers count the parts of pre-training too, so a little less is left."""
    with torch.device("meta"):
        count = sum(p.numel() for p in Wav2Vec2(name, norm=True).parameters())
    assert 0.99 * millions < count / 1e6 < millions


# --- folders of Hugging Face


@dataclass
class Published:
    folder: Path
    reference: Any  # the bare model
    norm_first: bool


def hugging_face(family: str, norm_first: bool, head: bool, **more: Any) -> Any:
    import transformers

    stem = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[family]
    facts = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer" if norm_first else "group",
        "conv_bias": norm_first,
        "do_stable_layer_norm": norm_first,
        "vocab_size": 7,
        **({"num_buckets": 12, "max_bucket_distance": 20} if family == "wavlm" else {}),
        **more,
    }
    config = getattr(transformers, f"{stem}Config")(**facts)
    return shaken(getattr(transformers, f"{stem}{'ForCTC' if head else 'Model'}")(config))


@pytest.fixture(
    scope="module",
    params=[(f, first) for f in ("wav2vec2", "hubert", "wavlm") for first in (False, True)],
    ids=lambda made: f"{made[0]}-{'pre' if made[1] else 'post'}",
)
def published(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Published:
    family, norm_first = request.param
    model = hugging_face(family, norm_first, head=False)
    folder = tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    return Published(folder, model, norm_first)


@torch.no_grad()
def test_a_clip_has_transformers_features(published: Published) -> None:
    wave_NS = clip(6000, 1)[None]
    seen: list[Tensor] = []
    for layer in published.reference.encoder.layers:
        layer.register_forward_hook(lambda _module, _given, out: seen.append(out[0] if isinstance(out, tuple) else out))
    last_NTE = published.reference(wave_NS).last_hidden_state
    assert_close(Wav2Vec2(weights=str(published.folder), norm=True).eval()(wave_NS), last_NTE)
    for layer in (-1, -2):
        encoder = Wav2Vec2(weights=str(published.folder), layer=layer).eval()
        assert_close(encoder(wave_NS), seen[layer])
        assert torch.allclose(encoder(wave_NS), last_NTE, atol=1e-3) == (layer == -1 and not published.norm_first)
        if published.norm_first:
            wanted_NTE = published.reference.encoder.layer_norm(seen[layer])
            assert_close(Wav2Vec2(weights=str(published.folder), layer=layer, norm=True).eval()(wave_NS), wanted_NTE)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
@torch.no_grad()
def test_models_under_a_head_and_old_names(family: str, tmp_path: Path) -> None:
    """As the published files are: ForCTC, and the names of weight norm before torch 2."""
    model = hugging_face(family, True, head=True)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    stem = f"{family}.encoder.pos_conv_embed.conv"
    new = (f"{stem}.parametrizations.weight.original0", f"{stem}.parametrizations.weight.original1")
    old = (f"{stem}.weight_g", f"{stem}.weight_v")
    wanted_NTE = getattr(model, family)(clip(3000)[None]).last_hidden_state
    for have, want in ((old, new), (new, old)):
        for source, target in zip(have, want, strict=True):
            if source in tensors:
                tensors[target] = tensors.pop(source)
        assert f"{family}.{'feature_projection.projection.weight'}" in tensors and "lm_head.weight" in tensors
        save_file(tensors, file)
        assert_close(Wav2Vec2(weights=str(tmp_path), norm=True).eval()(clip(3000)[None]), wanted_NTE)


def test_rebuilt_without_the_weights(published: Published) -> None:
    (published.folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": not published.norm_first}))
    encoder = Wav2Vec2(weights=str(published.folder), layer=-2, config={"encoder_dropout": 0.25}).eval()
    assert encoder.normalize is not published.norm_first  # the folder's own word
    node = json.loads(json.dumps(encoder.node))
    assert str(published.folder) not in json.dumps(node)
    again = build(node).eval()
    again.load_state_dict(encoder.state_dict())
    assert again.normalize is encoder.normalize
    assert again.model.encoder.transformer.dropout.p == 0.25
    with torch.no_grad():
        assert torch.equal(again(clip(3000)[None]), encoder(clip(3000)[None]))


def test_parity_with_the_feature_extractor() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    sound = 0.3 * np.random.default_rng(0).standard_normal(5000).astype(np.float32) + 0.05
    wanted = Wav2Vec2FeatureExtractor(do_normalize=True)(sound, sampling_rate=RATE, return_tensors="pt").input_values
    item = Wav2Vec2(config=args(True)).read({"array": sound, "sampling_rate": RATE})
    assert torch.allclose(item.values, wanted, atol=1e-3)  # it has 1e-7 under the root, fairseq 1e-5


# --- toys and mistakes


@pytest.mark.parametrize("name", [*ARCHITECTURES, None])
def test_toys_keep_the_family_and_the_tokens(name: str | None) -> None:
    toy = Wav2Vec2.toy(name, weights="/none", layer=-2, norm=True, seconds=2.0, config={"encoder_dropout": 0.1})
    whole = ARCHITECTURES[name or "wav2vec2_base"]
    assert toy.tokens == 99 and toy.width == 32 and toy.relative == ("encoder_num_buckets" in whole)
    assert toy.normalize == whole["encoder_layer_norm_first"]
    item = toy.read({"array": clip(2 * RATE + 5000).numpy(), "sampling_rate": RATE})
    assert toy(item.values, torch.tensor(item.lengths)).shape == (2, 99, 32)
    assert sum(p.numel() for p in toy.parameters()) < 60_000


def small(**more: Any) -> Callable[[], Wav2Vec2]:
    return lambda: Wav2Vec2(**{"config": args(False), **more})


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: Wav2Vec2("wav2vec2_bas"),
            r'architecture: \'wav2vec2_bas\' is not .*\(did you mean "wav2vec2_base"\?\)',
        ),
        (lambda: Wav2Vec2(), "architecture: none is named, .*config has no extractor_conv_layer_config"),
        (
            lambda: Wav2Vec2("hubert_base", config={"encoder_num_layer": 2}),
            r"config: 'encoder_num_layer' .*\"encoder_num_layers\"",
        ),
        (lambda: Wav2Vec2("hubert_base", config={"encoder_num_buckets": 2}), "config: 'encoder_num_buckets' is not"),
        (small(layer=0), "layer: 0 is not a negative number"),
        (small(layer=-4), "layer: -4 lies below the first of 3 layers"),
        (small(seconds=0.02), "seconds: 0.02, expected a length of at least 0.025"),
        (small(seconds=math.inf), "seconds=inf"),
        (small(weights="/no/such/folder"), "weights: /no/such/folder: no such file or folder"),
        (small(config=args(False, encoder_num_heads=5)), "config: .*32.*not divisible by.*5"),
        (small(config=args(False, True, encoder_num_heads=5)), "config: embed_dim must be divisible by num_heads"),
        (small(config=args(False, extractor_mode="batch_norm")), "config: Invalid norm mode"),
    ],
)
def test_bad_arguments_are_one_line(make: Callable[[], Wav2Vec2], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model_type": "wav2vec2-bert"}, "model_type: 'wav2vec2-bert' is not one of wav2vec2, hubert, wavlm"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu', but torchaudio's models have 'gelu'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm: True, but"),
        ({"feat_proj_layer_norm": False}, "feat_proj_layer_norm: False, but"),
        ({"conv_stride": [5, 2]}, "conv_dim, conv_kernel and conv_stride are not of one length"),
        ({"num_hidden_layers": 4}, "missing tensors: encoder.transformer.layers.3"),
        ({"num_hidden_layers": 2}, "unexpected tensor 'encoder.transformer.layers.2"),
        ({"intermediate_size": 40}, "has shape .* expected"),
    ],
)
def test_folders_that_do_not_fit(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    hugging_face("hubert", False, head=False).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=line) as caught:
        Wav2Vec2(weights=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_name_that_the_folder_contradicts(tmp_path: Path) -> None:
    hugging_face("wav2vec2", False, head=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is no hubert_base: .* in its config.json, .*; leave the name out"):
        Wav2Vec2("hubert_base", weights=str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = hugging_face("wav2vec2", False, head=False)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        Wav2Vec2(weights=str(tmp_path))


def test_unreadable_sound_is_a_data_error() -> None:
    with pytest.raises(DataError):
        Wav2Vec2(config=args(False)).read({"array": np.full(1000, np.nan, np.float32), "sampling_rate": RATE})
