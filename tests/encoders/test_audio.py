"""Sound files against the sines they were written from; log-mel features against transformers' extractor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdiff.encoders.media.audio import duration, read_waveform, windows
from mmdiff.encoders.media.mel import LogMel, filled
from mmdiff.errors import ConfigError, DataError

pytestmark = pytest.mark.needs("soundfile", "torchaudio")

RATES = (8000, 16000, 22050, 44100, 48000)


def sine(rate: int, seconds: float = 1.0, hz: float = 440.0, channels: int = 1) -> np.ndarray[Any, Any]:
    """(samples, channels): the first channel sounds, the others are silent."""
    wave = np.zeros((round(seconds * rate), channels), dtype=np.float32)
    wave[:, 0] = 0.5 * np.sin(2 * np.pi * hz * np.arange(len(wave)) / rate)
    return wave


def noise(samples: int, seed: int = 0, loud: float = 0.1) -> Tensor:
    return loud * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def written(path: Path, wave: Any, rate: int, **more: Any) -> str:
    import soundfile

    soundfile.write(path, np.asarray(wave), rate, **more)
    return str(path)


# Files


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_sine_stays_the_same_sine(tmp_path: Path, kind: str, rate: int, channels: int) -> None:
    path = written(tmp_path / f"a.{kind}", sine(rate, 1.0, 440.0, channels), rate)
    wave = read_waveform(path)
    assert wave.dtype == torch.float32 and wave.shape == (16000,)
    expected = torch.from_numpy(sine(16000)[:, 0]) / channels
    error = (wave - expected)[800:-800].abs().max()  # the filter and lossy formats smear the ends
    assert error < {"wav": 1e-3, "flac": 1e-3, "ogg": 0.02, "mp3": 0.08}[kind]  # a sample too late: 0.086
    assert duration(path) == 1.0


def test_what_16_khz_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    wave = read_waveform(written(tmp_path / "a.wav", sine(48000, hz=10000.0), 48000))
    assert wave[800:-800].abs().max() < 0.005  # -40 dB


def test_samples_at_the_wanted_rate_are_untouched(tmp_path: Path) -> None:
    stereo = noise(3000).reshape(-1, 2)
    wave = read_waveform(written(tmp_path / "a.wav", stereo, 16000, subtype="FLOAT"))
    assert torch.equal(wave, stereo.mean(1))
    assert torch.equal(read_waveform(tmp_path / "a.wav"), wave)
    assert torch.equal(read_waveform({"path": str(tmp_path / "a.wav")}), wave)
    for array in (stereo, stereo.numpy(), stereo.double().numpy(), stereo.tolist()):
        assert torch.equal(read_waveform({"array": array, "sampling_rate": 16000, "path": None}), wave)
    assert torch.equal(read_waveform({"array": wave, "sampling_rate": np.int64(16000)}), wave)


def test_resampling_is_that_of_torchaudio() -> None:
    from torchaudio.functional import resample

    wave = noise(5000)
    for source, rate in ((44100, 16000), (8000, 16000), (16000, 22050)):
        array = {"array": wave, "sampling_rate": source}
        torch.testing.assert_close(read_waveform(array, rate), resample(wave, source, rate))


# Segments


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_segment_is_a_slice(tmp_path: Path, kind: str) -> None:
    # a sine alone: encoders of MP3 spread its bits over many frames, so that a seek into the file would show
    path = written(tmp_path / f"a.{kind}", sine(44100, 2.0, 441.7, channels=2), 44100)
    whole = read_waveform(path, 44100)
    assert len(whole) == 88200
    for start, end in ((0.0, 0.5), (0.7, 1.9), (1.25, 2.0)):
        segment = {"path": path, "start": start, "end": end}
        torch.testing.assert_close(read_waveform(segment, 44100), whole[round(start * 44100) : round(end * 44100)])
        assert duration(segment) == pytest.approx(end - start)


def test_kaldi_ends(tmp_path: Path) -> None:
    wave = noise(16000)
    path = written(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    for end in (None, -1, 1.0, 1.4):  # extract-segments takes half a second too much
        for source in ({"path": path}, {"array": wave, "sampling_rate": 16000}):
            assert torch.equal(read_waveform({**source, "start": 0.25, "end": end}), wave[4000:])
    assert torch.equal(read_waveform({"path": path, "end": 0.5}), wave[:8000])


def test_only_the_segment_is_read(tmp_path: Path) -> None:
    wave = noise(16000)
    wave[12000] = math.nan
    path = written(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    assert torch.equal(read_waveform({"path": path, "start": 0.1, "end": 0.75}), wave[1600:12000])
    with pytest.raises(DataError, match=r"a\.wav: holds samples that are not finite"):
        read_waveform(path)
    content = Path(written(tmp_path / "a.flac", noise(160000), 16000)).read_bytes()
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    assert read_waveform({"path": tmp_path / "half.flac", "start": 1.0, "end": 2.0}).shape == (16000,)


# Bad input


def test_bad_files(tmp_path: Path) -> None:
    wave = noise(16000)
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "bare.raw").write_bytes(b"\0" * 800)
    (tmp_path / "folder").mkdir()
    written(tmp_path / "none.wav", wave[:0], 16000)
    written(tmp_path / "odd.wav", wave, 15991)
    content = bytearray(Path(written(tmp_path / "whole.flac", wave, 16000)).read_bytes())
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    content[21] &= 0xF0  # 36 bits of the header hold the number of samples; 0 means unknown
    content[22:26] = b"\0\0\0\0"
    (tmp_path / "stream.flac").write_bytes(content)
    content = bytearray(Path(written(tmp_path / "whole.mp3", wave, 16000)).read_bytes())
    (tmp_path / "half.mp3").write_bytes(content[: len(content) // 2])
    for name, message in {
        "gone.wav": "no such file",
        "folder": "a folder, expected a sound file",
        "text.wav": "not a sound file, expected WAV, FLAC, OGG or MP3",
        "empty.wav": "not a sound file",
        "bare.raw": "not a sound file",
        "none.wav": "holds no samples",
        "half.flac": "damaged sound file",
        "half.mp3": "damaged sound file",
        "stream.flac": "does not say how long it is",
        "odd.wav": "15991 Hz has no simple ratio to 16000 Hz",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read_waveform(str(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for name in ("gone.wav", "folder", "text.wav", "none.wav", "stream.flac"):
        with pytest.raises(DataError, match=name):
            duration(tmp_path / name)


WAVE = noise(16000)
HALF = {"array": WAVE, "sampling_rate": 16000}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WAVE, "audio: a Tensor, expected a path"),
        (None, "audio: a NoneType, expected a path"),
        ({"array": WAVE, "sample_rate": 16000}, "unknown field 'sample_rate' .did you mean \"sampling_rate\""),
        ({"path": None}, "path: None, and no array"),
        ({"path": "", "array": WAVE}, "audio array: sampling_rate: None is not a whole number of Hz"),
        ({"array": WAVE, "sampling_rate": 0}, "sampling_rate: 0 is not"),
        ({"array": WAVE, "sampling_rate": 16000.5}, "sampling_rate: 16000.5 is not"),
        ({"array": WAVE[:0], "sampling_rate": 16000}, "holds no samples"),
        ({"array": WAVE.reshape(2, -1), "sampling_rate": 16000}, r"shape \(2, 8000\), expected \(samples,\)"),
        ({"array": WAVE.reshape(100, 16, 10), "sampling_rate": 16000}, r"shape \(100, 16, 10\)"),
        ({"array": np.zeros(9, np.int16), "sampling_rate": 16000}, "array of int16, expected floats"),
        ({"array": "abc", "sampling_rate": 16000, "path": "x.wav"}, "x.wav: array of <U3"),
        ({"array": [0.0, math.inf], "sampling_rate": 16000}, "not finite"),
        ({"array": [0.0, 1e30], "sampling_rate": 16000}, r"holds samples of 1e\+30, expected -1 to 1"),
        ({**HALF, "start": -0.1}, "no segment from -0.1 to 1 s in 1 s of sound"),
        ({**HALF, "start": 1.0}, "no segment from 1 to 1 s"),
        ({**HALF, "start": 0.5, "end": 0.5}, "no segment from 0.5 to 0.5 s"),
        ({**HALF, "start": 0.5, "end": 1.6}, "no segment from 0.5 to 1.6 s in 1 s"),
        ({**HALF, "start": 1.1, "end": 1.2}, "no segment from 1.1 to 1.2 s in 1 s"),
        ({**HALF, "start": "0"}, "start: '0' is not a number of seconds"),
        ({**HALF, "end": math.nan}, "end: nan is not a number"),
    ],
)
def test_bad_rows(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_waveform(data)


# Windows


@pytest.mark.parametrize(
    ("samples", "sizes"), [(1, [1]), (8000, [8000]), (8001, [8000, 1]), (20000, [8000, 8000, 4000])]
)
def test_windows_cut_nothing_off(samples: int, sizes: list[int]) -> None:
    wave = noise(samples)
    cut = windows(wave, 0.5)
    assert [len(piece) for piece in cut] == sizes and torch.equal(torch.cat(cut), wave)


# Log-mel features


def extracted(wave: Tensor, mels: int, seconds: int) -> Tensor:
    """(C, 100 seconds): what transformers makes of the clip filled up with silence."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    return torch.from_numpy(extractor(wave.numpy(), sampling_rate=16000)["input_features"][0])


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_those_of_the_clip_filled_up(mels: int) -> None:
    mel = LogMel(mels, seconds=2)
    lengths = [1, 2, 100, 159, 160, 161, 199, 200, 201, 320, 361, 362, 363, 9999, 16000]
    lengths += [31600 + n for n in (0, 41, 42, 43, 44, 200, 201, 239, 240, 300, 359, 360, 361, 399, 400)]
    for samples in lengths:
        for loud in (0.1, 1e-6, 0.0):  # the second is so quiet that Whisper's floor is absolute
            wave = noise(samples, samples, loud)
            out_CT = mel(wave)
            assert out_CT.shape == (mels, mel.frames(samples))
            whole_1CT = filled(out_CT[None], torch.tensor([out_CT.shape[1]]), 200)
            torch.testing.assert_close(whole_1CT[0], extracted(wave, mels, 2), atol=1e-5, rtol=0)
            assert bool((whole_1CT[0, :, out_CT.shape[1] :] == (out_CT.max() - 2.0).clamp(min=-1.5)).all())


@pytest.mark.parametrize("mels", [80, 128])
def test_features_of_30_seconds(mels: int) -> None:
    mel = LogMel(mels)
    for samples in (50000, 479700, 479970, 480000):
        out_CT = mel(noise(samples))
        whole_1CT = filled(out_CT[None], torch.tensor([out_CT.shape[1]]), 3000)
        torch.testing.assert_close(whole_1CT[0], extracted(noise(samples), mels, 30), atol=1e-5, rtol=0)


def test_features_in_double_precision() -> None:
    """The definition, written out in numpy."""
    wave = noise(4000).double().numpy()
    padded = np.concatenate([wave[200:0:-1], wave, np.zeros(1000)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * t : 160 * t + 400] * hann for t in range(27)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    hz = np.linspace(0, 8000, 201)
    edges = np.linspace(
        0, 15 + np.log(8) / (np.log(6.4) / 27), 82
    )  # Slaney's scale: linear to 1 kHz, then by 6.4^(1/27)
    edges = np.where(edges < 15, edges * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (edges - 15)))
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = np.maximum(0, np.minimum((hz - low) / (mid - low), (high - hz) / (high - mid))) * 2 / (high - low)
    log = np.log10(np.maximum(bank @ power.T, 1e-10))
    expected = (np.maximum(log, log.max() - 8) + 4) / 4
    np.testing.assert_allclose(LogMel()(noise(4000)), expected[:, : LogMel().frames(4000)], atol=1e-4)


def test_frames_that_see_the_end_are_kept_and_no_more() -> None:
    mel = LogMel(seconds=2)
    for samples in (1000, 1040, 1100, 5000):
        wave = torch.zeros(samples)
        wave[-1] = 1.0
        whole_CT = extracted(wave, 80, 2)
        heard = int((whole_CT > whole_CT.min()).any(0).nonzero().max()) + 1
        assert mel.frames(samples) in (heard, heard + 1)  # the last may see it through a weight too small to tell
        assert mel(wave).shape == (80, mel.frames(samples))
    samples = (1, 121, 122, 281, 282, 31641, 31642, 31999, 32000, 48000)  # frame t sees from 160 t - 199 on
    assert [mel.frames(n) for n in samples] == [2, 2, 3, 3, 4, 199, 200, 200, 200, 300]


def test_a_waveform_longer_than_the_window_ends_with_itself() -> None:
    wave = noise(48000)
    torch.testing.assert_close(LogMel(seconds=2)(wave), extracted(wave, 80, 3), atol=1e-5, rtol=0)


def test_views_are_filled_one_by_one() -> None:
    mel = LogMel(seconds=2)
    clips = [mel(noise(n, n, loud)) for n, loud in ((4000, 0.1), (9000, 1e-3), (500, 0.0))]
    values_NCT = torch.full((3, 80, 60), 7.0)  # what stands behind an end has no say
    for crop, clip in zip(values_NCT, clips, strict=True):
        crop[:, : clip.shape[1]] = clip
    out_NCT = filled(values_NCT, torch.tensor([clip.shape[1] for clip in clips]), 200)
    for out_CT, (n, loud) in zip(out_NCT, ((4000, 0.1), (9000, 1e-3), (500, 0.0)), strict=True):
        torch.testing.assert_close(out_CT, extracted(noise(n, n, loud), 80, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mels": 0}, "mels=0"),
        ({"hop": 1.5}, "hop: 1.5 is no"),
        ({"seconds": 0.0125}, "seconds: 0.0125 is shorter"),
    ],
)
def test_bad_mel_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogMel(**arguments)


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_those_of_torchaudio(mels: int) -> None:
    """torchaudio's MelSpectrogram with Whisper's parameters: 4.9e-6 at most for 80 bands, 1.7e-5 for 128, its filter
    bank being computed in single precision."""
    from torchaudio.transforms import MelSpectrogram

    spectrogram = MelSpectrogram(
        sample_rate=16000, n_fft=400, hop_length=160, n_mels=mels, f_max=8000, norm="slaney", mel_scale="slaney"
    )
    wave = torch.randn(33_000, generator=torch.Generator().manual_seed(mels)) * torch.linspace(0.01, 0.3, 33_000)
    ours_CT = LogMel(mels)(wave)
    log_CT = spectrogram(torch.nn.functional.pad(wave, (0, 480_000 - len(wave)))).clamp(min=1e-10).log10()[:, :-1]
    theirs_CT = (torch.maximum(log_CT, log_CT.max() - 8) + 4) / 4
    torch.testing.assert_close(ours_CT, theirs_CT[:, : ours_CT.shape[1]], atol=2.5e-5, rtol=0)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_the_bytes_of_a_file_are_the_file(ending: str, tmp_path: Path) -> None:
    path = Path(written(tmp_path / f"a.{ending}", noise(16000), 16000))
    assert torch.equal(read_waveform(path.read_bytes()), read_waveform(path))
    with pytest.raises(DataError, match=r"^sound of 9 bytes: not a sound file, expected WAV, FLAC, OGG or MP3$"):
        read_waveform(b"not sound")
