"""DIFFA's two adapters: a semantic one, whose slots grow with the sound, and an acoustic one of a fixed number.

Shape letters: N crops, T features per crop, E width in, D width out, M slots, Q queries, R learned prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import build
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast0, AtLeast1

from .qformer import BERT, TOY, layer_name
from .weights import take

PUBLISHED: Mapping[str, Any] = MappingProxyType({})  # no setting but those of the adapters' own defaults


@saveable
class DualAdapter(nn.Module):
    """Makes slots per crop: learned prompts, then acoustic ones (`LayerQFormer`), then semantic ones (`ConvFrames`).

    DIFFA (arXiv 2507.18452) trains the semantic adapter with 20 prompts first (`acoustic: null, prompts: 20`), then
    both adapters without prompts. A sound of several windows is several crops, each with all of its slots.

    width_in: of `taps` layers and the encoder's last, one behind the other. The acoustic adapter reads the taps, the
        semantic one the last layer.
    semantic, acoustic: arguments of the adapters but the widths and `taps`; acoustic: null leaves it out.
    prompts: vectors before each crop, which start as large as the semantic slots.
    weights: a saved model or DIFFA's tensors (see `take`, `diffa_name`). Adapters and prompts that it does not have
        stay new, those that this adapter does not use are left alone.
    Raises ConfigError for features that are not those of `taps` + 1 layers, and for what the adapters refuse.
    """

    node: dict[str, Any]  # set by @saveable
    reads_saved = True  # a part of it is enough, see `mmdiff.model.build`

    def __init__(
        self,
        width_in: AtLeast1,
        width_out: AtLeast1,
        *,
        taps: AtLeast0 = 4,
        semantic: Mapping[str, Any] = PUBLISHED,
        acoustic: Mapping[str, Any] | None = PUBLISHED,
        prompts: AtLeast0 = 0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width_in % (taps + 1):
            raise ConfigError(f"taps: {taps} layers and the last do not make {width_in} features, check the encoder")
        self.width = width_in // (taps + 1)
        sizes = {"width_in": self.width, "width_out": width_out}
        self.semantic = _adapter("frames.ConvFrames", semantic, "semantic", **sizes)
        self.acoustic = None
        if acoustic is not None:
            sizes["width_in"] *= taps
            self.acoustic = _adapter("qformer.LayerQFormer", acoustic, "acoustic", taps=taps, **sizes)
        self.prompts_RD = None
        if prompts:
            self.prompts_RD = nn.Parameter(torch.randn(prompts, width_out) * (semantic.get("out_norm") or 1.0))
        if weights is not None:
            take(self, weights, diffa_name, optional=("semantic", "acoustic", "prompts_RD"))
            self.node["weights"] = None

    @classmethod
    def toy(cls, width_in: AtLeast1, width_out: AtLeast1, **settings: Any) -> DualAdapter:
        acoustic = settings.get("acoustic", PUBLISHED)
        small = None if acoustic is None else {**acoustic, **TOY}
        return cls(width_in, width_out, **{**settings, "acoustic": small, "weights": None})

    def slots(self, tokens: int, item: Item) -> int:
        crop = Item(item.values[:1])
        fixed = 0 if self.prompts_RD is None else len(self.prompts_RD)
        fixed += 0 if self.acoustic is None else self.acoustic.slots(tokens, crop)
        return len(item.values) * (fixed + self.semantic.frames(tokens))

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        n, tokens, width = features_NTE.shape
        taps_NTE, last_NTE = features_NTE.split([width - self.width, self.width], 2)
        semantic_MD = self.semantic(last_NTE, media)
        fixed: list[Tensor] = []
        if self.prompts_RD is not None:
            fixed.append(self.prompts_RD.expand(n, -1, -1))
        if self.acoustic is not None:
            fixed.append(self.acoustic(taps_NTE, media).unflatten(0, (n, -1)))
        if not fixed:
            return semantic_MD
        counts = [self.semantic.frames(t) for t in media.tokens or [tokens] * n]
        crops = zip(torch.cat(fixed, 1), semantic_MD.split(counts), strict=True)
        return torch.cat([slots_MD for crop in crops for slots_MD in crop])


def _adapter(name: str, settings: Any, where: str, **run_time: Any) -> Any:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where}: {settings!r} is not a mapping of arguments")
    return build({**settings, "target": f"mmdiff.connectors.{name}"}, where=where, **run_time)


# Published names

DIFFA = {
    "trainable_prompts.weight": "prompts_RD",
    "semantic_connector.conv.0.": "semantic.convs.0.",
    "semantic_connector.conv.2.": "semantic.convs.1.",
    "semantic_connector.linear_connector.0.": "semantic.linears.0.",
    "semantic_connector.linear_connector.2.": "semantic.linears.1.",
    "semantic_connector.layernorm.": "semantic.out_norm.",
    "acoustic_connector.layer_prompts.": "acoustic.queries_1QH.",
    "acoustic_connector.layer_weights": "acoustic.mix_QK",
    "acoustic_connector.proj.0.": "acoustic.norm.",
    "acoustic_connector.proj.1.": "acoustic.proj.",
}
LAYERS = "acoustic_connector.qformer.layer."


def diffa_name(name: str) -> str | None:
    """Returns our name of a tensor of DIFFA or DIFFA-2; None for its `whisper_model` and `llm_model`.

    An unknown name of an adapter's tensor is returned as it is, and refused by `take`.
    """
    if name.startswith(LAYERS):
        ours = layer_name(name.removeprefix(LAYERS), BERT)
        return f"acoustic.qformer.{ours}" if ours else name
    for published, part_name in DIFFA.items():
        if name.startswith(published):
            return part_name + name.removeprefix(published)
    return name if name.startswith(("semantic_connector.", "acoustic_connector.")) else None
