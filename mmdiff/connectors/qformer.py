"""Connectors in which learned queries read the features: of every short window, or of every layer of the encoder.

Shape letters: N crops, T features per crop, E width in, D width out, P windows of all crops, W features per
window, Q queries, H width of the queries, K tapped layers, A heads, C width of what is read, S things that are read.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.canvas.batch import MediaBatch, packed, real_NT
from mmdiff.canvas.sample import Item
from mmdiff.config.saveable import saveable
from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1, BelowOne, Positive

from .mlp import scaled_norm
from .weights import take

EPS = 1e-12  # BERT's, of every LayerNorm among the queries


class Attention(nn.Module):
    """Multi-head attention, then the residual and a LayerNorm, as in BERT."""

    def __init__(self, hidden: int, context: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(context, hidden)
        self.value = nn.Linear(context, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NQH: Tensor, context_NSC: Tensor, real_NS: Tensor | None = None) -> Tensor:
        made = (self.query(x_NQH), self.key(context_NSC), self.value(context_NSC))
        query_NAQh, key_NASh, value_NASh = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in made)
        mask = None if real_NS is None else real_NS[:, None, None]
        dropout = self.dropout.p if self.training else 0.0
        y_NAQh = F.scaled_dot_product_attention(query_NAQh, key_NASh, value_NASh, mask, dropout)
        out_NQH: Tensor = self.norm(x_NQH + self.dropout(self.out(y_NAQh.transpose(1, 2).flatten(2))))
        return out_NQH


class Layer(nn.Module):
    """A layer of a Q-Former: queries attend to each other, then to the context, then a feed-forward network (BLIP-2,
    arXiv 2301.12597). Norms stand behind the residuals."""

    def __init__(self, hidden: int, context: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(hidden, hidden, heads, dropout)
        self.cross_attention = Attention(hidden, context, heads, dropout)
        self.ffn = nn.Sequential(nn.Linear(hidden, ffn), nn.GELU(), nn.Linear(ffn, hidden), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(hidden, eps=EPS)

    def forward(self, x_NQH: Tensor, context_NSC: Tensor, real_NS: Tensor | None) -> Tensor:
        x_NQH = self.self_attention(x_NQH, x_NQH)
        x_NQH = self.cross_attention(x_NQH, context_NSC, real_NS)
        out_NQH: Tensor = self.norm(x_NQH + self.ffn(x_NQH))
        return out_NQH


class QFormer(nn.Module):
    """Layers of BERT with cross-attention in each; queries attend to all queries, not only to earlier ones.

    BLIP-2 (arXiv 2301.12597) without its text half. context: width of the features. ffn: width of the feed-forward.
    Raises ConfigError for sizes that do not fit each other.
    """

    @typed
    def __init__(
        self,
        hidden: AtLeast1,
        context: AtLeast1,
        *,
        layers: AtLeast1 = 2,
        heads: AtLeast1 = 12,
        ffn: AtLeast1 = 3072,
        dropout: BelowOne = 0.1,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"heads: {heads} does not divide hidden {hidden}")
        self.layers = nn.ModuleList(Layer(hidden, context, heads, ffn, dropout) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x_NQH: Tensor, context_NSC: Tensor, real_NS: Tensor | None = None) -> Tensor:
        """Returns (N, Q, H). real_NS: bool, False for features that are padding; each row needs one that is not."""
        for layer in self.layers:
            x_NQH = layer(x_NQH, context_NSC, real_NS)
        return x_NQH


@saveable
class WindowQFormer(nn.Module):
    """Cuts each crop into windows and reads `queries` slots from each: their number grows with the length of the sound.

    SALMONN (arXiv 2310.13289); the defaults are those of Whisper-LLaDA (arXiv 2509.16622): 17 features of 50 Hz, and
    88 windows of 30 s. A crop always has one window, which may be partly empty; what is empty is not read.

    stride: features from one window to the next, as many as it is wide by default.
    hidden, layers, heads, ffn, dropout: of the Q-Former. norm: a LayerNorm before it (SALMONN's `ln_speech`).
    keep_tail: whether the last features get a window though they do not fill it; published models drop them.
    weights: see `take` and `window_name`.
    out_norm: a LayerNorm after the last map, see `scaled_norm`.
    Raises ConfigError for sizes that do not fit each other.
    """

    node: dict[str, object]  # set by @saveable

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        *,
        window: AtLeast1 = 17,
        stride: AtLeast1 | None = None,
        queries: AtLeast1 = 4,
        layers: AtLeast1 = 2,
        hidden: AtLeast1 = 768,
        heads: AtLeast1 = 12,
        ffn: AtLeast1 = 3072,
        dropout: BelowOne = 0.1,
        norm: bool = False,
        keep_tail: bool = True,
        out_norm: Positive | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        stride = window if stride is None else stride
        if stride > window:
            raise ConfigError(f"stride: {stride} leaves features between windows of {window} out")
        self.window, self.stride, self.keep_tail = window, stride, keep_tail
        self.norm = nn.LayerNorm(width_in) if norm else nn.Identity()
        self.qformer = QFormer(hidden, width_in, layers=layers, heads=heads, ffn=ffn, dropout=dropout)
        self.queries_1QH = nn.Parameter(torch.randn(1, queries, hidden) * 0.02)
        self.query_norm = nn.LayerNorm(hidden, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(hidden, width_out)
        self.out_norm = scaled_norm(width_out, out_norm)
        if weights is not None:
            take(self, weights, window_name)
            self.node["weights"] = None

    @classmethod
    def toy(cls, width_in: int, width_out: int, **settings: object) -> WindowQFormer:
        return cls(width_in, width_out, **{**settings, **TOY, "weights": None})  # type: ignore[arg-type]

    def windows(self, tokens: int) -> int:
        """Returns how many windows a crop of `tokens` features is cut into."""
        more = max(tokens - self.window, 0)
        return 1 + (-(-more // self.stride) if self.keep_tail else more // self.stride)

    def slots(self, tokens: int, item: Item) -> int:
        return len(item.values) * self.windows(tokens) * self.queries_1QH.shape[1]

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        tokens = media.tokens or [features_NTE.shape[1]] * len(features_NTE)
        counts = [self.windows(n) for n in tokens]
        extra = (max(counts) - 1) * self.stride + self.window - features_NTE.shape[1]
        x_NTE = F.pad(self.norm(features_NTE), (0, 0, 0, extra))
        x_PWE = packed(x_NTE.unfold(1, self.window, self.stride).transpose(2, 3), counts)
        whole_NT = F.pad(real_NT(tokens, features_NTE), (0, extra))
        real_PW = packed(whole_NT.unfold(1, self.window, self.stride), counts)
        queries_PQH = self.dropout(self.query_norm(self.queries_1QH).expand(len(x_PWE), -1, -1))
        out_PQD: Tensor = self.out_norm(self.proj(self.qformer(queries_PQH, x_PWE, real_PW)))
        return out_PQD.flatten(0, 1)


@saveable
class LayerQFormer(nn.Module):
    """Reads `queries` slots per crop, however long it is, from several layers of the encoder.

    The acoustic adapter of DIFFA (arXiv 2507.18452), after DeSTA2: every layer has its own queries, all share the
    Q-Former, and each query mixes what it read from the layers by a learned softmax.

    width_in: of `taps` layers, one behind the other. hidden, layers, heads, ffn, dropout: of the Q-Former.
    out_norm: a LayerNorm after the last map, see `scaled_norm`.
    Raises ConfigError when `taps` does not divide the features.
    """

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        *,
        taps: AtLeast1 = 4,
        queries: AtLeast1 = 64,
        layers: AtLeast1 = 2,
        hidden: AtLeast1 = 768,
        heads: AtLeast1 = 12,
        ffn: AtLeast1 = 3072,
        dropout: BelowOne = 0.1,
        out_norm: Positive | None = None,
    ) -> None:
        super().__init__()
        if width_in % taps:
            raise ConfigError(f"taps: {taps} layers do not make {width_in} features, check the layers of the encoder")
        self.taps = taps
        self.qformer = QFormer(hidden, width_in // taps, layers=layers, heads=heads, ffn=ffn, dropout=dropout)
        self.queries_1QH = nn.ParameterList(torch.randn(1, queries, hidden) for _ in range(taps))
        self.mix_QK = nn.Parameter(torch.zeros(queries, taps))
        self.norm = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, width_out)
        self.out_norm = scaled_norm(width_out, out_norm)

    @classmethod
    def toy(cls, width_in: int, width_out: int, **settings: object) -> LayerQFormer:
        return cls(width_in, width_out, **{**settings, **TOY})  # type: ignore[arg-type]

    def slots(self, tokens: int, item: Item) -> int:
        return len(item.values) * self.mix_QK.shape[0]

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        real = None if media.tokens is None else real_NT(media.tokens, features_NTE)
        layers = features_NTE.chunk(self.taps, 2)
        read_NQHK = torch.stack(
            [
                self.qformer(queries_1QH.expand(len(layer_NTC), -1, -1), layer_NTC, real)
                for queries_1QH, layer_NTC in zip(self.queries_1QH, layers, strict=True)
            ],
            3,
        )
        mixed_NQH = (read_NQHK * self.mix_QK.softmax(1)[:, None]).sum(3)
        out_NQD: Tensor = self.out_norm(self.proj(self.norm(mixed_NQH)))
        return out_NQD.flatten(0, 1)


TOY = {"hidden": 32, "heads": 2, "ffn": 64}

# Published names

BERT = {  # of a layer
    "attention.self": "self_attention",
    "attention.output.dense": "self_attention.out",
    "attention.output.LayerNorm": "self_attention.norm",
    "crossattention.self": "cross_attention",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "ffn.0",
    "output.dense": "ffn.2",
    "output.LayerNorm": "norm",
}
BLIP2 = {  # of a layer, whose `intermediate` and `output` are for text
    **{name: ours for name, ours in BERT.items() if "attention" in name},
    "intermediate_query.dense": "ffn.0",
    "output_query.dense": "ffn.2",
    "output_query.LayerNorm": "norm",
}
WINDOW = {
    "speech_query_tokens": "queries_1QH",
    "(?:speech_Qformer|adapter).bert.embeddings.LayerNorm": "query_norm",
    "speech_llama_proj|linear_proj": "proj",
    "ln_speech": "norm",
}


def layer_name(name: str, names: dict[str, str]) -> str | None:
    """Returns `layers.0.self_attention.query.weight` for `0.attention.self.query.weight`; None where there is none."""
    number, _, rest = name.partition(".")
    for published, ours in names.items():
        if rest.startswith(f"{published}."):
            return f"layers.{number}.{ours}{rest.removeprefix(published)}"
    return None


def window_name(name: str) -> str | None:
    """Returns our name of a tensor of SALMONN (`speech_Qformer`, ...) or Whisper-LLaDA (`adapter`, `linear_proj`).

    Returns None for all else: their encoder and language model, and BERT's word embeddings, feed-forward for text and
    head, which speech does not run through.
    """
    if found := re.fullmatch(r"(?:speech_Qformer|adapter)\.bert\.encoder\.layer\.(.*)", name):
        ours = layer_name(found[1], BLIP2)
        return f"qformer.{ours}" if ours else None
    for published, part_name in WINDOW.items():
        if found := re.fullmatch(rf"(?:{published})(\.weight|\.bias|)", name):
            return part_name + found[1]
    return None
