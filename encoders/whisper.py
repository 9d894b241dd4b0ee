"""The encoder of Whisper (Radford et al., 2022, arXiv 2212.04356), as transformers has it (5.2 or later).

Shape letters: N crops (windows of sound), C mel channels, F mel frames (100 per second), T tokens (50 per
second), E width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmdiff.backbones.weights import read_json
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, nearest
from mmdiff.model.published.tensors import fill, tensors_around
from mmdiff.parts.ranges import Positive, Whole

from .media.audio import read_waveform, windows
from .media.mel import LogMel, filled
from .media.towers import checkpoint_layers

RATE, STRIDE = 16000, 320  # Hz, samples per token: a hop of 160, and a convolution of stride 2

FIELDS = (
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
)
NUMBERS, DROPOUTS = FIELDS[:6], FIELDS[7:]
SIZES = {  # num_mel_bins, d_model, encoder_layers, encoder_attention_heads, encoder_ffn_dim
    "tiny": (80, 384, 4, 6, 1536),
    "base": (80, 512, 6, 8, 2048),
    "small": (80, 768, 12, 12, 3072),
    "medium": (80, 1024, 24, 16, 4096),
    "large-v2": (80, 1280, 32, 20, 5120),
    "large-v3": (128, 1280, 32, 20, 5120),
    "large-v3-turbo": (128, 1280, 32, 20, 5120),  # its decoder alone is small
}
TOY = {"d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
FIRST, TABLE = "conv1.weight", "embed_positions.weight"


@saveable
class Whisper(nn.Module):
    """An encoder: log-mel frames (N, C, F) -> (N, T, E), 50 features per second, T = 1500 for the window of 30 s.

    Whisper-LLaDA is name="large-v3", trim=False; DIFFA is name="small", layers=[2, 5, 8, 11, -1].

    name: tiny, base, small, medium, large-v2, large-v3, large-v3-turbo; left out, `config.json` of `weights` is read.
    config: fields of transformers' WhisperConfig for the encoder (`d_model`, `encoder_layers`, ...), over those.
    weights: a folder as published, of the whole model or of its encoder, or a safetensors file; None: random ones.
    layers: an index of transformers' `hidden_states`, where 0 is the embedding and -1 the last layer after the final
        norm. Several of them: their features side by side, E = len(layers) * d_model, in the order given.
        Layers above the highest are dropped.
    seconds: of a window, which is how the table of positions is cut; None: all of it. Longer sound becomes several
        windows, one crop each. A shorter one is filled up with silence, which the features see, as in training.
    trim: whether only the features of the real sound are tokens, one for each 20 ms begun (DIFFA); else all T are.
    Raises ConfigError for what does not exist or does not fit.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        name: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        weights: str | None = None,
        layers: Whole | Sequence[Whole] = -1,
        seconds: Positive | None = None,
        trim: bool = True,
    ) -> None:
        super().__init__()
        facts = _architecture(name, config, weights)
        depth = facts["encoder_layers"]
        self.layers = hidden_states(layers, depth)
        self.tokens = _positions(seconds, facts["max_source_positions"])
        self.trim = trim
        top = max(self.layers)
        tower = _create({**facts, "encoder_layers": top, "max_source_positions": self.tokens})
        if top < depth:
            tower.layer_norm = nn.Identity()  # it belongs to the last layer
        if weights is not None:
            _copy(tower, weights, facts)
        table = tower.embed_positions.weight.detach()
        del tower.embed_positions.weight  # sinusoids stay as they are when the tower is trained
        tower.embed_positions.register_buffer("weight", table)
        self.tower = tower
        self.width = facts["d_model"] * len(self.layers)
        self.seconds = self.tokens * STRIDE / RATE
        self.mel = LogMel(facts["num_mel_bins"], RATE, seconds=self.seconds)
        self.node.update(name=None, config=facts, weights=None, seconds=self.seconds)

    @classmethod
    def toy(
        cls,
        name: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        layers: Whole | Sequence[Whole] = -1,
        seconds: Positive | None = None,
        trim: bool = True,
        **outside: Any,
    ) -> Whisper:
        """As many layers side by side, and as many tokens per second; the depth is as small as that allows."""
        if name is not None or config is not None:
            hidden_states(layers, _architecture(name, config, None)["encoder_layers"])
        taps = 1 if isinstance(layers, int) else len(layers)
        small = {**TOY, "encoder_layers": taps}
        return cls(config=small, layers=list(range(1, taps + 1)), seconds=seconds, trim=trim)

    def read(self, data: object) -> Item:
        """What `read_waveform` takes -> a crop for each window. Raises DataError."""
        waves = windows(read_waveform(data, RATE), self.seconds, RATE)
        mels = [self.mel(wave).T for wave in waves]
        tokens = [-(-len(wave) // STRIDE) if self.trim else self.tokens for wave in waves]
        values_NCF = pad_sequence(mels, batch_first=True).transpose(1, 2)
        return Item(values_NCF, lengths=tuple(map(len, mels)), tokens=tuple(tokens))

    def forward(self, values_NCF: Tensor, length_N: Tensor | None = None) -> Tensor:
        """Returns (N, T, E) of whole windows. length_N: the frames of each crop, with silence behind them."""
        if length_N is None:
            length_N = torch.full((len(values_NCF),), values_NCF.shape[2], device=values_NCF.device)
        several = len(self.layers) > 1
        out = self.tower(filled(values_NCF, length_N, 2 * self.tokens), output_hidden_states=several)
        features_NTE: Tensor = out.last_hidden_state  # also the last of the hidden states
        return torch.cat([out.hidden_states[i] for i in self.layers], dim=2) if several else features_NTE

    def gradient_checkpointing(self, on: bool) -> None:
        checkpoint_layers(self.tower, on)


def hidden_states(layers: int | Sequence[int], depth: int) -> list[int]:
    """Returns indices 0 .. depth of `hidden_states`. Raises ConfigError for one that is not there, or there twice."""
    given: list[Any] = list(layers) if isinstance(layers, list | tuple) else [layers]
    for index in given:
        if isinstance(index, bool) or not isinstance(index, int) or not -depth - 1 <= index <= depth:
            raise ConfigError(f"layers: {index!r} is not a whole number in {-depth - 1}..{depth} ({depth} layers)")
    found = [index % (depth + 1) for index in given]
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"layers: {given} names {'a layer twice' if found else 'no layer'}")
    return found


def _architecture(name: str | None, config: Mapping[str, Any] | None, weights: str | None) -> dict[str, Any]:
    """Returns the fields of the configuration that determine the encoder."""
    config = config or {}
    for key in config:
        if key not in FIELDS:
            raise ConfigError(f"config: {key!r} is not a field of Whisper's encoder{nearest(key, FIELDS)}")
    folder = Path(weights) if weights is not None and Path(weights).is_dir() else None
    published: Mapping[str, Any] = {}
    if name is not None:
        if name not in SIZES:
            raise ConfigError(f"name: {name!r} is not a size of Whisper{nearest(str(name), SIZES)}")
        published = dict(zip(NUMBERS, SIZES[name], strict=False))
    elif folder is not None and (folder / "config.json").is_file():
        published = read_json(folder / "config.json")
        if published.get("model_type") != "whisper":
            kind = published.get("model_type")
            raise ConfigError(f"{folder / 'config.json'}: model_type: {kind!r}, expected 'whisper'")
    elif not config:
        raise ConfigError("name: no size is named, there is no config, and weights bring no config.json")
    from transformers import WhisperConfig

    defaults = WhisperConfig()
    facts = {key: config.get(key, published.get(key, getattr(defaults, key))) for key in FIELDS}
    _check(facts)
    if folder is not None:
        _check_features(folder / "preprocessor_config.json", facts["num_mel_bins"])
    return facts


def _check(facts: Mapping[str, Any]) -> None:
    from transformers.activations import ACT2FN

    for key in NUMBERS:
        if isinstance(facts[key], bool) or not isinstance(facts[key], int) or facts[key] < 1:
            raise ConfigError(f"config: {key}: {facts[key]!r} is not a whole number above 0")
    width, heads = facts["d_model"], facts["encoder_attention_heads"]
    if width < 4 or width % 2 or width % heads:
        raise ConfigError(f"config: d_model: {width} is not an even number above 2 that {heads} heads divide")
    for key in DROPOUTS:
        if isinstance(facts[key], bool) or not isinstance(facts[key], int | float) or not 0 <= facts[key] < 1:
            raise ConfigError(f"config: {key}: {facts[key]!r} is not a number in [0, 1)")
    name = facts["activation_function"]
    if name not in ACT2FN:
        raise ConfigError(f"config: activation_function: {name!r} is unknown{nearest(str(name), ACT2FN)}")


def _check_features(file: Path, mels: int) -> None:
    """Raises ConfigError where a checkpoint was trained on features that `LogMel` does not make."""
    content = read_json(file) if file.is_file() else {}
    for key, made in (("feature_size", mels), ("sampling_rate", RATE), ("n_fft", 400), ("hop_length", 160)):
        if content.get(key, made) != made:
            raise ConfigError(f"{file}: {key}: {content[key]!r}, expected {made}")


def _positions(seconds: float | None, positions: int) -> int:
    """Returns how many positions of the table a window takes."""
    if seconds is None:
        return positions
    exact = seconds * RATE / STRIDE if isinstance(seconds, int | float) else 0
    if not 1 <= exact <= positions or abs(exact - round(exact)) > 1e-6:
        longest = positions * STRIDE / RATE
        raise ConfigError(f"seconds: {seconds} is not a multiple of {STRIDE / RATE} s, up to {longest:g} s")
    return round(exact)


def _create(facts: Mapping[str, Any]) -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(WhisperConfig(**facts))


def _copy(tower: nn.Module, weights: str, facts: Mapping[str, Any]) -> None:
    """Copy the weights of the encoder, whatever their prefix: `model.encoder.`, `encoder.`, none."""
    tensors = tensors_around(weights, FIRST, "encoder")
    if TABLE in tensors and len(tensors[TABLE]) == facts["max_source_positions"]:
        tensors[TABLE] = tensors[TABLE][: tower.state_dict()[TABLE].shape[0]]
    with torch.device("meta"):
        spare = _create(facts).state_dict().keys()  # of layers that are dropped
    fill(tower, tensors, weights, spare)
