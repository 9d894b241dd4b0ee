"""MMDiff: encoders -> connectors -> one bidirectional backbone, over a canvas of ids.

Shape letters: B samples, L canvas length, R rows (copies of samples), D backbone width, V vocabulary, N crops of media,
T features per crop, E encoder width, M slots of one kind in the batch, P masked or predicted positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmdiff.backbones import Backbone
from mmdiff.backbones.backbone import check_attention
from mmdiff.backbones.bounds import bounded_by
from mmdiff.backbones.compiled import compiled
from mmdiff.backbones.load import backbone_from_folder
from mmdiff.backbones.reserve import grow
from mmdiff.backbones.rope import check_axes
from mmdiff.canvas.batch import Batch, MediaBatch, real_NT, to_device, where
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.patterns import Full
from mmdiff.canvas.prompt import prompt_canvas
from mmdiff.canvas.vocab import Vocab
from mmdiff.config import trusting
from mmdiff.config.settings import GenerationConfig
from mmdiff.config.typed import typed
from mmdiff.data.media_reader import MediaReader
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Denoise
from mmdiff.samplers.deliberation import rewrite
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config as checked

from . import saving
from .denoiser import Denoiser
from .evaluating import evaluating
from .params import add_adapters, read_adapters
from .prefix import Layout, backbone_states, hidden_copies, network_of
from .published.described import read_config
from .scorer import Scores, score

T = TypeVar("T")

BEYOND = 8
"""A canvas may be so many times as long as the canvases that its backbone was trained on."""


class MMDiff(nn.Module):
    """A multimodal diffusion language model. encoders, connectors, heads: by kind of media (`image`, `audio`, ...).

    extras: further modules by name, which objectives and samplers ask for (`mmdiff.objectives.extras`).
    logit_chunk: masked positions whose logits exist at one time while training.
    attention: who sees whom (`mmdiff.canvas.patterns`); None: as the backbone's family has it. Context that sees no
        target is run once for all copies of a sample and all steps of a generation (`mmdiff.model.prefix`).
    Raises ConfigError for encoders and connectors of different kinds.
    """

    @typed
    def __init__(
        self,
        backbone: Backbone,
        encoders: Mapping[str, nn.Module] | None = None,
        connectors: Mapping[str, nn.Module] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        extras: Mapping[str, nn.Module] | None = None,
        *,
        logit_chunk: AtLeast1 = 4096,
        attention: Pattern | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        given = (encoders, connectors, heads, extras)
        self.encoders, self.connectors, self.heads, self.extras = (nn.ModuleDict(part or {}) for part in given)
        self.adapters: list[dict[str, Any]] = []  # LoRA configurations in place, see mmdiff.model.params
        self.published: dict[str, Any] | None = None  # config.json of the checkpoint, see mmdiff.model.published
        self.logit_chunk = logit_chunk
        self.attention = attention or backbone.facts.attention or Full()
        if set(self.encoders) != set(self.connectors):
            raise ConfigError(
                f"model: encoders {sorted(self.encoders)} and connectors {sorted(self.connectors)} differ"
            )
        check_axes(backbone, self.encoders.items())

    @property
    def vocab(self) -> Vocab:
        """The backbone's id space."""
        return self.backbone.vocab

    @property
    def readers(self) -> dict[str, MediaReader]:
        """What `collate` needs to lay media out, by kind."""
        return {kind: MediaReader(encoder, self.connectors[kind]) for kind, encoder in self.encoders.items()}

    @property
    def device(self) -> torch.device:
        """The device of the backbone's weights."""
        return next(self.backbone.parameters()).device

    def train(self, mode: bool = True) -> MMDiff:
        """As `nn.Module.train`, but frozen encoders stay in evaluation mode, for their features may be cached."""
        super().train(mode)
        for kind in self.encoders:
            if self.frozen(kind):
                self.encoders[kind].eval()
        return self

    def frozen(self, kind: str) -> bool:
        """Whether no parameter of that kind's encoder is trained."""
        return not any(p.requires_grad for p in self.encoders[kind].parameters())

    def forward(self, function: Callable[..., T], *args: Any) -> T:
        """Returns `function(self, *args)`.

        All that an objective computes lies inside one call of the module, so that what wraps such a call (data
        parallelism, mixed precision) covers it.
        """
        return function(self, *args)

    def features(self, kind: str, media: MediaBatch) -> Tensor:
        """Returns features (N, T, E) of all crops of one kind; cached features are taken as they are.

        Where crops are of unequal length, T is that of the longest, and features behind the end of a crop are zero.
        """
        if media.features_NTE is not None:
            return media.features_NTE
        encoder = self.encoders[kind]
        values_N = media.values_N.to(next(encoder.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen(kind)):
            if media.length_N is None or media.tokens is None:
                features_NTE: Tensor = encoder(values_N)
                return features_NTE
            given = {"layouts": media.layouts} if getattr(encoder, "by_layout", False) else {}
            features_NTE = encoder(values_N, media.length_N, **given)[:, : max(media.tokens)]
        return features_NTE.masked_fill(~real_NT(media.tokens, features_NTE)[..., None], 0.0)

    def encode(self, media: Mapping[str, MediaBatch]) -> dict[str, Tensor]:
        """Returns {kind: slots (M, D)}, computed once per sample, whatever the number of copies or denoising steps."""
        return {kind: self.connectors[kind](self.features(kind, group), group) for kind, group in media.items()}

    def hidden(
        self,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        row_R: Tensor,
        media_R: Tensor | None = None,
        memory: Any = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns last hidden states (R, L, D): ids are embedded, features put into their slots, the backbone is run,
        or what an extra does in its place (`mmdiff.protocols.Extra.hidden`).

        row_R: the row of `batch` that a row of ids is a copy of. media_R: bool, False where a row must not see its
            media. memory: takes in keys and values; of a network, what it keeps. extras: as for `embedded`.
        """
        run = backbone_states if (network := network_of(self)) is None else network.hidden
        out: Tensor = run(self, ids_RL, batch, features, row_R, media_R, memory, extras)
        return out

    def embedded(
        self,
        ids_RL: Tensor,
        features: Mapping[str, Tensor],
        slots: Mapping[str, Tensor],
        attend_RL: Tensor | None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Returns embeddings (R, L, D). slots: kind -> int64 (R, L), the feature there; -1: the id. extras: by name."""
        most = BEYOND * self.backbone.facts.max_length
        if ids_RL.shape[1] > most:
            raise DataError(f"a canvas of {ids_RL.shape[1]} positions, expected at most {most} of this backbone")
        x_RLD = self.backbone.embed(ids_RL, attend_RL)
        for name, extra in self.extras.items():
            if hasattr(extra, "embed"):
                x_RLD = extra.embed(x_RLD, ids_RL, (extras or {}).get(name))  # type: ignore[operator]
        for kind, features_MD in features.items():
            slot_RL = slots[kind]
            filled_RLD = features_MD.to(x_RLD.dtype)[slot_RL.clamp(min=0)]
            x_RLD = torch.where((slot_RL >= 0)[..., None], filled_RLD, x_RLD)
        return x_RLD

    def shares_context(self, copies: int) -> bool:
        """Whether context is run once for so many copies of a sample."""
        once = self.attention.one_target_block and copies > 1 and self.backbone.caches
        return once and network_of(self) is None

    def hidden_copies(
        self,
        ids_RL: Tensor,
        batch: Batch,
        features: Mapping[str, Tensor],
        copies: int,
        *,
        blockwise: bool = False,
        extras: Mapping[str, Tensor] | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Returns `hidden` of copies * B rows, copy after copy. blockwise: they see earlier blocks clean."""
        if blockwise or self.shares_context(copies):
            return hidden_copies(self, ids_RL, batch, features, copies, extras or {}, layout)
        rows_B = torch.arange(len(batch), device=ids_RL.device)
        return self.hidden(ids_RL, batch, features, rows_B.repeat(copies), extras=extras)

    def gather(self, h_RLD: Tensor, row_P: Tensor, position_P: Tensor) -> Tensor:
        """Returns (P, D), the states that predict the positions (one to the left in models with shifted logits)."""
        return h_RLD[row_P, (position_P - self.backbone.facts.shift).clamp(min=0)]

    def score(self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, **how: Any) -> Scores:
        """Returns the cross-entropy of the masked positions, in row-major order.

        h_RLD: hidden states of R rows. how: `weight_P` and `restrict` of `mmdiff.model.scorer.score`.
        """
        h_PD = self.gather(h_RLD, *where(masked_RL))
        return score(self.backbone, h_PD, batch, masked_RL, row_R, chunk=self.logit_chunk, **how)

    def denoiser(self, batch: Batch, *, restrict: bool = False) -> Denoise:
        """Returns a Denoise with all bound that does not change between steps.

        batch: on this model's device; its media are encoded once.
        restrict: logits of ids that no target position may hold (`Batch.allowed_ids_N`) are not computed but -inf.
        """
        with torch.no_grad():
            features = self.encode(batch.media)
        return Denoiser(self, batch, features, batch.allowed_ids_N if restrict else None)

    @typed
    def generate(
        self,
        batch_or_ids: Batch | Tensor,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        **named: Any,
    ) -> Generation:
        """Fill the masked positions of a canvas. Returns it with its step map, see `mmdiff.canvas.generation`.

        batch_or_ids: a Batch, or ids (B, P), padded on the left where `attention_mask` is False, and `max_new_tokens`.
        streamer: see `mmdiff.samplers.streamers`. named: single fields of GenerationConfig, over `generation_config`.
        """
        config = checked(generation_config, **named)
        batch = prompt_canvas(batch_or_ids, attention_mask, config.max_new_tokens, self.vocab)
        batch = to_device(batch, self.device)
        with evaluating(self), compiled(self.backbone, config.compile):
            if config.prefix_cache and self.attention.exact_prefix:
                config = replace(config, prefix_cache=False)  # the context is kept, and exactly
            denoise = self.denoiser(batch, restrict=True)
            return (sample if config.draft is None else rewrite)(denoise, batch, self.vocab, config, streamer=streamer)

    @typed
    def grow(self, words: Sequence[str] = (), reserve: Mapping[str, AtLeast1] | None = None) -> None:
        """Add words and reserved ids to the vocabulary; what there is stays, see `mmdiff.backbones.reserve.grow`."""
        tables = {f"heads.{kind}": head for kind, head in self.heads.items()}
        tables |= {f"extras.{name}": e for name, e in self.extras.items() if "vocab_size" in getattr(e, "node", ())}
        grow(self.backbone, words, reserve or {}, tables)

    def save_pretrained(self, folder: str | Path, *, original_format: bool = False) -> None:
        """Write the model to `folder`, see `mmdiff.model.saving`. Raises ConfigError unless it is new or empty.

        original_format: as the authors of the multimodal checkpoint that it came from lay it out.
        """
        (saving.save_original if original_format else saving.save_model)(self, Path(folder))

    @classmethod
    @typed
    def from_pretrained(
        cls, folder: str | Path, *, dtype: str | None = None, weights: bool = True, trust: bool = False
    ) -> MMDiff:
        """Returns the model of a saved folder, or of a multimodal checkpoint as its authors publish it.

        dtype: of the backbone ("float32", "bfloat16"); None: as it was saved.
        weights: False leaves the numbers as they are made; whoever fills them in calls `check_attention` then.
        trust: call whatever the folder names, also where this user did not write it (docs/security.md).
        Raises ConfigError for a file that is not as its checksum has it, a folder that asks for more memory than its
        weights need, and missing, unexpected or misshapen weights, by name.
        """
        with trusting(trust):
            config = read_config(folder := Path(folder), whole=weights)
            made = config["backbone"] | ({"dtype": dtype} if dtype else {})
            with bounded_by(saving.weight_files(folder), folder) if weights else nullcontext():
                backbone = backbone_from_folder(saving.backbone_folder(folder), weights=False, **made)
                model = cls(backbone, *saving.saved_parts(config, folder), attention=saving.pattern_of(config, folder))
                model.published = config.get("published")
                for adapter in read_adapters(config["adapters"], f"{folder}: adapters"):
                    add_adapters(model, adapter)
        if weights:
            saving.load_model_weights(model, folder, config)
            check_attention(backbone, model.attention)
        return model.eval()
