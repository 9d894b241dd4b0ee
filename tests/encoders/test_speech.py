"""The small speech encoder against the same layers written out, and against itself under padding and batching."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from safetensors.torch import save_file
from torch import Tensor

from mmdiff.canvas.sample import Media, Target
from mmdiff.config import build
from mmdiff.connectors.mlp import Linear
from mmdiff.data.collate import collate
from mmdiff.encoders.media.mel import LogMel
from mmdiff.encoders.speech import RATE, SpeechConv
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff

SMALL = {"mels": 20, "width": 16, "layers": 2, "heads": 2, "seconds": 1.0}


def encoder(**more: Any) -> SpeechConv:
    torch.manual_seed(0)
    made = SpeechConv(**{**SMALL, **more}).eval()
    with torch.no_grad():
        for p in made.parameters():  # as training leaves them: no norm or bias is still at its first value
            p.add_(torch.randn_like(p) * 0.1)
    return made


def sound(samples: int, seed: int = 0) -> dict[str, Any]:
    noise = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    return {"array": 0.1 * noise, "sampling_rate": RATE}


def by_hand(e: SpeechConv, mel_CT: Tensor) -> Tensor:
    """One clip, from the tensors alone: no mask, no batch, softmax written out."""
    w = e.state_dict()
    x = mel_CT
    for i in range(3):
        x = F.gelu(F.conv1d(x[None], w[f"convs.{i}.weight"], w[f"convs.{i}.bias"], stride=2, padding=1)[0])
    x = x.T
    half = e.width // 2
    for t in range(len(x)):
        for i in range(half):
            angle = t / 10_000 ** (i / half)
            x[t, i] += math.sin(angle)
            x[t, half + i] += math.cos(angle)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for b in range(len(e.blocks)):
        q, k, v = linear(f"blocks.{b}.qkv", norm(f"blocks.{b}.attention_norm", x)).chunk(3, 1)
        size = e.width // e.blocks[b].heads
        heads = []
        for at in range(0, e.width, size):
            one = slice(at, at + size)
            heads.append((q[:, one] @ k[:, one].T / math.sqrt(size)).softmax(1) @ v[:, one])
        x = x + linear(f"blocks.{b}.out", torch.cat(heads, 1))
        h = F.gelu(linear(f"blocks.{b}.mlp.0", norm(f"blocks.{b}.mlp_norm", x)))
        x = x + linear(f"blocks.{b}.mlp.2", h)
    return norm("norm", x)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 31, 100])
@torch.no_grad()
def test_a_clip_is_what_its_layers_compute(frames: int) -> None:
    e = encoder()
    torch.manual_seed(frames)
    mel_CT = torch.randn(20, frames)
    features_NTE = e(mel_CT[None], torch.tensor([frames]))
    assert features_NTE.shape == (1, math.ceil(frames / 8), e.width)
    assert torch.allclose(features_NTE[0], by_hand(e, mel_CT), atol=1e-5)
    assert torch.equal(e(mel_CT[None]), features_NTE)


@torch.no_grad()
def test_neither_the_fill_nor_the_neighbours_change_a_clip() -> None:
    e = encoder()
    torch.manual_seed(1)
    lengths = [1, 5, 8, 9, 16, 17, 50, 100]
    clips = [torch.randn(20, n) for n in lengths]
    batch_NCT = torch.full((len(clips), 20, 104), 1e4)  # whatever the fill is
    for n, clip_CT in enumerate(clips):
        batch_NCT[n, :, : clip_CT.shape[1]] = clip_CT
    features_NTE = e(batch_NCT, torch.tensor(lengths))
    for n, clip_CT in enumerate(clips):
        alone_TE = e(clip_CT[None])[0]
        assert torch.allclose(features_NTE[n, : len(alone_TE)], alone_TE, atol=1e-6), lengths[n]


def test_read_gives_the_windows_of_a_recording() -> None:
    e = encoder()
    mel = LogMel(20, seconds=1.0)
    wave = torch.from_numpy(sound(2 * RATE + 3000)["array"])
    item = e.read({"array": wave.numpy(), "sampling_rate": RATE})
    assert item.values.shape == (3, 20, 100) and item.values.dtype == torch.float32
    assert item.lengths == (100, 100, 20)  # frames 0 to 19 see some of 3000 samples, frame 20 begins at 3001
    assert item.tokens == (13, 13, 3) and e.tokens == 13
    for n, start in enumerate((0, RATE, 2 * RATE)):
        wanted_CT = mel(wave[start : start + RATE])
        assert torch.equal(item.values[n, :, : item.lengths[n]], wanted_CT)
        assert not item.values[n, :, item.lengths[n] :].any()


@pytest.mark.parametrize("samples", [1, 199, 400, 12_345, RATE, RATE + 1, 3 * RATE - 1])
@torch.no_grad()
def test_tokens_said_are_tokens_made(samples: int) -> None:
    e = encoder()
    item = e.read(sound(samples))
    features_NTE = e(item.values, torch.tensor(item.lengths))
    assert features_NTE.shape[1] == max(item.tokens) <= e.tokens and min(item.tokens) >= 1
    assert len(item.values) == len(item.lengths) == len(item.tokens) == math.ceil(samples / RATE)


@torch.no_grad()
def test_recordings_of_a_batch_have_the_features_of_each_alone() -> None:
    """Through a model: collated, cut, zeroed, and laid into the canvas."""
    e, backbone = encoder(), toy.backbone()
    model = MMDiff(backbone, {"audio": e}, {"audio": Linear(e.width, backbone.dim)}).eval()
    samples = (9000, 1000, 2 * RATE + 100)
    rows = [[Media("audio", sound(n, seed=n)), Target([5])] for n in samples]
    batch = collate(rows, model.vocab, model.readers)
    media = batch.media["audio"]
    features_NTE = model.features("audio", media)
    assert media.crops == [1, 1, 3]
    seen = []
    for n in samples:
        item = e.read(sound(n, seed=n))
        for value_CT, length, tokens in zip(item.values, item.lengths, item.tokens, strict=True):
            alone_TE = e(value_CT[None, :, :length])[0]
            together_TE = features_NTE[len(seen)]
            assert torch.allclose(together_TE[:tokens], alone_TE, atol=1e-6) and not together_TE[tokens:].any()
            seen.append(tokens)
    assert seen == media.tokens
    assert len(model.encode(batch.media)["audio"]) == sum(seen) == int((batch.slots["audio"] >= 0).sum())


def test_checkpointing_changes_no_gradient() -> None:
    e = encoder().train()
    values_NCT, length_N = torch.randn(2, 20, 30), torch.tensor([30, 11])
    gradients = []
    for on in (False, True):
        e.gradient_checkpointing(on)
        e.zero_grad()
        e(values_NCT, length_N).square().sum().backward()
        gradients.append([p.grad.clone() for p in e.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(e.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_nothing_is_random_by_default() -> None:
    e = encoder().train()
    values_NCT = torch.randn(1, 20, 30)
    assert torch.equal(e(values_NCT), e(values_NCT))
    e = encoder(dropout=0.5).train()
    assert not torch.equal(e(values_NCT), e(values_NCT))


def test_the_size_at_the_defaults() -> None:
    e = SpeechConv()
    convs = 3 * 80 * 128 + 128 + 2 * (3 * 128 * 128 + 128)
    block = 4 * (128 * 128 + 128) + 2 * 4 * 128 * 128 + 5 * 128 + 4 * 128
    assert sum(p.numel() for p in e.parameters()) == convs + 2 * block + 2 * 128 == 526_208
    assert e.tokens == 375  # 12.5 a second


def test_weights_come_back_and_their_path_does_not(tmp_path: Path) -> None:
    e = encoder()
    save_file(e.state_dict(), tmp_path / "weights.safetensors")
    again = SpeechConv(**SMALL, weights=str(tmp_path / "weights.safetensors")).eval()
    values_NCT = torch.randn(1, 20, 30)
    assert torch.equal(again(values_NCT), e(values_NCT))
    assert again.node["weights"] is None
    rebuilt = build(again.node).eval()
    rebuilt.load_state_dict(again.state_dict())
    assert torch.equal(rebuilt(values_NCT), e(values_NCT))


def test_toy_reads_the_same_sound() -> None:
    small = SpeechConv.toy(mels=20, width=512, layers=6, heads=8, seconds=1.0, weights="/none")
    item, wanted = small.read(sound(20_000)), encoder().read(sound(20_000))
    assert torch.equal(item.values, wanted.values) and item.tokens == wanted.tokens
    assert small(item.values, torch.tensor(item.lengths)).shape == (2, 13, small.width)
    assert sum(p.numel() for p in small.parameters()) < 50_000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"width": 30, "heads": 4}, "width: 30 is not an even multiple of heads 4"),
        ({"layers": -1}, "SpeechConv.layers=-1"),
        ({"seconds": math.inf}, "SpeechConv.seconds=inf"),
        ({"seconds": 0.001}, "seconds: 0.001"),
        ({"dropout": 1.0}, "SpeechConv.dropout=1.0"),
        ({"mels": 0}, "SpeechConv.mels=0"),
        ({"weights": "/no/such/file.safetensors"}, "weights: /no/such/file.safetensors: no such file"),
    ],
)
def test_bad_arguments_are_one_line(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SpeechConv(**{**SMALL, **arguments})
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_unreadable_sound_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        encoder().read({"array": np.zeros(0, np.float32), "sampling_rate": RATE})
