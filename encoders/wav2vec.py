"""wav2vec 2.0, HuBERT and WavLM: raw waveforms to features, by torchaudio's models (2.11 or later).

Papers: wav2vec 2.0 arXiv:2006.11477, XLS-R 2111.09296, HuBERT 2106.07447, WavLM 2110.13900.
Shape letters: N crops (windows of sound), S samples, T tokens (about 50 per second), E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError, nearest, require
from mmdiff.model.published.tensors import fill
from mmdiff.parts.ranges import Positive, Whole

from .media.audio import read_waveform, windows
from .media.towers import check_layer
from .media.wav2vec_published import published_config, published_normalize, published_tensors

RATE = 16_000  # samples per second
CONVS = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]  # channels, kernel, stride
EVERY = {"extractor_conv_layer_config": CONVS, "encoder_pos_conv_kernel": 128, "encoder_pos_conv_groups": 16}
POST = {**EVERY, "extractor_mode": "group_norm", "extractor_conv_bias": False, "encoder_layer_norm_first": False}
PRE = {**EVERY, "extractor_mode": "layer_norm", "extractor_conv_bias": False, "encoder_layer_norm_first": True}
BIASED = {**PRE, "extractor_conv_bias": True}
RELATIVE = {"encoder_num_buckets": 320, "encoder_max_distance": 800}  # WavLM's positions
DROPOUTS = (
    "encoder_projection_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_dropout",
)


def _sizes(width: int, layers: int, heads: int, hidden: int) -> dict[str, int]:
    return {
        "encoder_embed_dim": width,
        "encoder_num_layers": layers,
        "encoder_num_heads": heads,
        "encoder_ff_interm_features": hidden,
    }


BASE, LARGE, XLARGE = _sizes(768, 12, 12, 3072), _sizes(1024, 24, 16, 4096), _sizes(1280, 48, 16, 5120)
ARCHITECTURES: dict[str, dict[str, Any]] = {  # under the names of torchaudio's builders
    "wav2vec2_base": {**POST, **BASE},
    "wav2vec2_large": {**POST, **LARGE},
    "wav2vec2_large_lv60k": {**BIASED, **LARGE},
    "wav2vec2_xlsr_300m": {**BIASED, **LARGE},
    "wav2vec2_xlsr_1b": {**BIASED, **XLARGE},
    "wav2vec2_xlsr_2b": {**BIASED, **_sizes(1920, 48, 16, 7680)},
    "hubert_base": {**POST, **BASE},
    "hubert_large": {**PRE, **LARGE},
    "hubert_xlarge": {**PRE, **XLARGE},
    "wavlm_base": {**POST, **BASE, **RELATIVE},
    "wavlm_large": {**PRE, **LARGE, **RELATIVE},
}


@saveable
class Wav2Vec2(nn.Module):
    """An encoder that gives the features of one transformer layer: (N, S) samples at 16 kHz -> (N, T, E).

    A token is 20 ms.

    architecture: a name of `ARCHITECTURES`; left out, that of `config.json` in `weights`.
    config: arguments of torchaudio's `wav2vec2_model` or `wavlm_model` over those (`encoder_num_layers`, ...); its
        dropouts are 0 unless they are given here.
    weights: a folder as Hugging Face publishes them (Wav2Vec2Model, HubertModel, WavLMModel, or one of these under a
        head, as in ForCTC), or a safetensors file; None makes random ones.
    layer: -1 is the last one, as in torchaudio's `extract_features`, -2 the one before it; those above are dropped.
    norm: whether the last norm is applied. Only models with `encoder_layer_norm_first` have one: in the others every
        layer ends in a norm, and this changes nothing.
    normalize: whether a recording gets mean 0 and variance 1. Left out, the `preprocessor_config.json` of `weights`
        says it; without one it is done for models with `encoder_layer_norm_first`, as they were trained.
    seconds: longest window; a longer recording is cut into windows that follow each other, one crop each.
    Raises ConfigError for what does not exist or does not fit.

    Padding of a crop changes nothing. Base models normalise each channel of their first convolution over time, so
    that the convolutions run on one crop after the other; the transformer runs on the batch.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(
        self,
        architecture: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        weights: str | None = None,
        layer: Whole = -1,
        norm: bool = False,
        normalize: bool | None = None,
        seconds: Positive = 30.0,
    ) -> None:
        require("torchaudio", "audio")
        super().__init__()
        config = _arguments(architecture, config, weights)
        check_layer(layer)
        depth = config["encoder_num_layers"]
        if depth + layer < 0:
            raise ConfigError(f"layer: {layer} lies below the first of {depth} layers")
        self.relative = "encoder_num_buckets" in config
        model = _create({**config, "encoder_num_layers": depth + layer + 1})
        transformer = model.encoder.transformer
        norm_last = config["encoder_layer_norm_first"]
        if norm_last and not norm:
            transformer.layer_norm = nn.Identity()
        if weights is not None:
            tensors = published_tensors(weights, self.relative)
            fill(model, tensors, weights, {*_names(config), "masked_spec_embed"})
            normalize = published_normalize(weights) if normalize is None else normalize
        self.norm: nn.Module = nn.Identity()
        if norm_last:
            self.norm, transformer.layer_norm = transformer.layer_norm, self.norm
        self.model = model
        self.width = config["encoder_embed_dim"]
        self.convs = [(kernel, stride) for _, kernel, stride in config["extractor_conv_layer_config"]]
        self.normalize = norm_last if normalize is None else normalize
        self.seconds = seconds
        self.shortest = _samples(1, self.convs)
        if not self.shortest <= seconds * RATE < torch.inf:
            raise ConfigError(f"seconds: {seconds}, expected a length of at least {self.shortest / RATE}: one token")
        self.tokens = _tokens(round(seconds * RATE), self.convs)
        self.checkpointed = False
        self.node.update(architecture=None, config=config, weights=None, normalize=self.normalize)

    @classmethod
    def toy(
        cls,
        architecture: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        layer: Whole = -1,
        norm: bool = False,
        normalize: bool | None = None,
        seconds: Positive = 30.0,
        **outside: Any,
    ) -> Wav2Vec2:
        """A model of the same family (wav2vec2_base where only the weights would say it), with as many tokens."""
        config = config or {}
        family = architecture or ("wavlm_base" if any(key in RELATIVE for key in config) else "wav2vec2_base")
        convs = config.get("extractor_conv_layer_config", CONVS)
        small = {
            "extractor_conv_layer_config": [[8, kernel, stride] for _, kernel, stride in convs],
            "encoder_pos_conv_kernel": 16,
            "encoder_pos_conv_groups": 2,
            **_sizes(32, 1 - layer, 2, 64),
        }
        return cls(family, config={**config, **small}, layer=layer, norm=norm, normalize=normalize, seconds=seconds)

    def read(self, data: object) -> Item:
        """A path or an array with its rate (see `read_waveform`) -> windows of samples. Raises DataError."""
        wave_S = read_waveform(data, RATE)
        if self.normalize:
            wave_S = F.layer_norm(wave_S, wave_S.shape)
        crops = [F.pad(w, (0, max(0, self.shortest - len(w)))) for w in windows(wave_S, self.seconds, RATE)]
        lengths = tuple(map(len, crops))
        tokens = tuple(_tokens(n, self.convs) for n in lengths)
        return Item(pad_sequence(crops, batch_first=True), lengths=lengths, tokens=tokens)

    def forward(self, values_NS: Tensor, length_N: Tensor | None = None) -> Tensor:
        lengths = [values_NS.shape[1]] * len(values_NS) if length_N is None else length_N.tolist()
        extract, encoder = self.model.feature_extractor, self.model.encoder
        rows = [extract(wave_S[None, :n], None)[0][0] for wave_S, n in zip(values_NS, lengths, strict=True)]
        x_NTE = encoder.feature_projection(pad_sequence(rows, batch_first=True))
        count_N = torch.tensor([len(row) for row in rows], device=x_NTE.device)
        pad_NT = torch.arange(x_NTE.shape[1], device=x_NTE.device) >= count_N[:, None]
        x_NTE = x_NTE.masked_fill(pad_NT[..., None], 0.0)  # the convolution of positions looks 64 tokens ahead
        x_NTE = x_NTE + encoder.transformer.pos_conv_embed(x_NTE)
        x_NTE = encoder.transformer.dropout(encoder.transformer.layer_norm(x_NTE))
        out_NTE: Tensor = self.norm(self._layers(x_NTE, pad_NT if len(set(lengths)) > 1 else None))
        return out_NTE

    def _layers(self, x_NTE: Tensor, pad_NT: Tensor | None) -> Tensor:
        # torchaudio's two kinds of attention take the padding in different arguments
        masks: dict[str, Tensor] = {}
        if pad_NT is not None and self.relative:
            dtype = next(self.parameters()).dtype  # that of its bias, also under autocast
            masks["key_padding_mask"] = torch.zeros_like(pad_NT, dtype=dtype).masked_fill(pad_NT, -torch.inf)
        elif pad_NT is not None:
            masks["attention_mask"] = ~pad_NT[:, None, None].expand(-1, 1, pad_NT.shape[1], -1)
        bias = None  # WavLM's first layer makes it for all
        for layer in self.model.encoder.transformer.layers:
            run = partial(checkpoint, layer, use_reentrant=False) if self.checkpointed and self.training else layer
            x_NTE, bias = run(x_NTE, position_bias=bias, **masks)
        return x_NTE

    def gradient_checkpointing(self, on: bool) -> None:
        self.checkpointed = on


def _tokens(samples: int, convs: list[tuple[int, int]]) -> int:
    """Returns the tokens that convolutions (kernel, stride) without padding make of that many samples."""
    for kernel, stride in convs:
        samples = (samples - kernel) // stride + 1
    return samples


def _samples(tokens: int, convs: list[tuple[int, int]]) -> int:
    """Returns the fewest samples that make that many tokens."""
    for kernel, stride in reversed(convs):
        tokens = (tokens - 1) * stride + kernel
    return tokens


def _arguments(architecture: str | None, config: Mapping[str, Any] | None, weights: str | None) -> dict[str, Any]:
    """Returns all arguments of the model: those of the weights' `config.json` or the name, and `config` over them."""
    if architecture is not None and architecture not in ARCHITECTURES:
        known = nearest(architecture, ARCHITECTURES)
        raise ConfigError(f"architecture: {architecture!r} is not one of torchaudio's{known}")
    named = ARCHITECTURES.get(architecture or "")
    published = published_config(weights) if weights is not None else None
    if named is not None and published is not None and named != published:
        field = next(key for key in {**named, **published} if named.get(key) != published.get(key))
        found = f"{published.get(field)} in its config.json, {named.get(field)} in that"
        raise ConfigError(f"architecture: {weights} is no {architecture}: {field} is {found}; leave the name out")
    whole = published or named
    fields = (*whole,) if whole else (*ARCHITECTURES["wavlm_base"],)
    for key in config or {}:
        if key not in (*fields, *DROPOUTS):
            raise ConfigError(f"config: {key!r} is not an argument of the model{nearest(key, [*fields, *DROPOUTS])}")
    if not whole and (missing := [key for key in ARCHITECTURES["wav2vec2_base"] if key not in (config or {})]):
        raise ConfigError(f"architecture: none is named, weights bring no config.json, and config has no {missing[0]}")
    arguments = {**dict.fromkeys(DROPOUTS, 0.0), **(whole or {}), **(config or {})}
    convs = arguments["extractor_conv_layer_config"]
    return {**arguments, "extractor_conv_layer_config": [list(conv) for conv in convs]}


def _create(config: Mapping[str, Any]) -> Any:
    from torchaudio.models import wav2vec2_model, wavlm_model

    build = wavlm_model if "encoder_num_buckets" in config else wav2vec2_model
    convs = [tuple(conv) for conv in config["extractor_conv_layer_config"]]
    try:
        return build(**{**config, "extractor_conv_layer_config": convs}, encoder_layer_drop=0.0, aux_num_out=None)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from None


def _names(config: Mapping[str, Any]) -> set[str]:
    """Returns the names of every tensor of the model, of layers that are dropped too."""
    with torch.device("meta"):
        return set(_create(config).state_dict())
