"""Log-mel features as Whisper computes them (Radford et al., 2022, section 2.2).

Shape letters: N crops, C mel channels, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1, Positive

FLOOR = 1e-10  # power below which all is silence
RANGE = 8.0  # decades kept under the loudest point of a clip
SILENCE = -1.5  # the feature of FLOOR: (log10 + 4) / 4


class LogMel:
    """Maps a waveform (samples,) to (C, T) float32: the frames of a clip of `seconds` that see any of its sound.

    Whisper fills a clip up with silence before it computes features. The same numbers come out here without those of
    the silence: all behind these T frames have one value (`filled`). Frame t sees the samples from 160 t - 199 to
    160 t + 199, so that T is one or two more than samples / hop; never more than the frames of the window, though.

    mels: 80, or 128 for large-v3. rate: Hz. n_fft, hop: samples. A waveform may be longer than `seconds`: the clip
    then ends with it. Raises ConfigError.
    """

    @typed
    def __init__(
        self,
        mels: AtLeast1 = 80,
        rate: AtLeast1 = 16000,
        n_fft: AtLeast1 = 400,
        hop: AtLeast1 = 160,
        seconds: Positive = 30.0,
    ) -> None:
        from transformers.audio_utils import mel_filter_bank

        if not seconds * rate > n_fft // 2:
            raise ConfigError(f"seconds: {seconds} is shorter than half an analysis window of {n_fft} samples")
        self.rate, self.n_fft, self.hop = rate, n_fft, hop
        self.samples = round(seconds * rate)
        bank_FC = mel_filter_bank(1 + n_fft // 2, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
        self.bank_CF = torch.from_numpy(bank_FC.T.copy()).float()
        self.window = torch.hann_window(n_fft, device="cpu")  # a model may be made under another default device

    def frames(self, samples: int) -> int:
        """Returns T of a waveform. The first weight of a periodic Hann window is 0."""
        seen = (samples - 1 + self.n_fft // 2 - 1) // self.hop + 1
        return min(seen, max(samples, self.samples) // self.hop)

    def __call__(self, wave: Tensor) -> Tensor:
        # enough silence that the clip's end, where the transform mirrors it, is the window's or lies behind the frames
        clip = min(max(self.samples, len(wave)), len(wave) + 2 * self.n_fft)
        padded = F.pad(wave, (0, clip - len(wave)))
        spectrum_FT = torch.stft(padded, self.n_fft, self.hop, window=self.window, return_complex=True)
        power_FT = spectrum_FT[:, : self.frames(len(wave))].abs() ** 2
        log_CT = (self.bank_CF @ power_FT.contiguous()).clamp(min=FLOOR).log10()
        return (torch.maximum(log_CT, log_CT.max() - RANGE) + 4) / 4


def filled(mel_NCT: Tensor, length_N: Tensor, frames: int) -> Tensor:
    """Returns (N, C, frames): behind the `length_N` frames of a crop stands what silence is in it, which depends on its
    loudest point."""
    mel_NCT = F.pad(mel_NCT, (0, frames - mel_NCT.shape[2]))
    padding_N1T = (torch.arange(frames, device=mel_NCT.device) >= length_N[:, None])[:, None]
    peak_N11 = mel_NCT.masked_fill(padding_N1T, -torch.inf).amax((1, 2), keepdim=True)
    return torch.where(padding_N1T, (peak_N11 - RANGE / 4).clamp(min=SILENCE), mel_NCT)
