"""Contrastive guidance: what a strong model says and a weak one does not (arXiv 2210.15097), also of media.

Shape letters: P queried positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative, Share
from mmdiff.protocols import Denoise

from .guidance import copies

LEAST = -100.0
"""What a log-probability of the weak model counts at least, so that no id becomes infinitely likely."""
BEHIND = 1000.0
"""What is taken off the logits of ids below the cut: all others come first, and where none of them may stand at a
position, these have the law of the strong model."""


@part
@dataclass(frozen=True)
class Contrastive:
    """Returns log-probabilities `s + weight (s - w)`, s of the strong model and w of the weak one.

    cut: ids that are less than so many times as likely as the strong model's likeliest come behind all others: a weak
        model is also right where it finds nonsense unlikely.
    model: the weak model: the folder of a saved model or finished run with the same vocabulary, or, in Python, a model.
        None: the strong model without media (visual contrastive decoding, arXiv 2311.16922).
    """

    weight: NotNegative = 1.0
    cut: Share = 0.1
    model: Any = None

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        if self.model is None:
            if not getattr(getattr(denoise, "model", None), "encoders", True):  # rows of other models may lack them
                raise ConfigError("sampler.denoise: Contrastive leaves media out where it has no model; there are none")
            return lambda query: self._without_media(denoise, query)
        weak = self._weak(denoise, batch)

        def contrasted(query: Query) -> Prediction:
            strong = denoise(query)
            return Prediction(self._mixed(strong.logits_PV, weak(query).logits_PV), strong.hidden_PD)

        return contrasted

    def _without_media(self, denoise: Denoise, query: Query) -> Prediction:
        shown_R = query.media_R if query.media_R is not None else torch.ones_like(query.row_R, dtype=torch.bool)
        both = denoise(copies(query, [query.ids_RL] * 2, [shown_R, torch.zeros_like(shown_R)]))
        s_PV, w_PV = both.logits_PV.chunk(2)
        return Prediction(self._mixed(s_PV, w_PV), None if both.hidden_PD is None else both.hidden_PD.chunk(2)[0])

    def _weak(self, denoise: Denoise, batch: Batch) -> Denoise:
        where = "sampler.denoise.model"
        if not isinstance(self.model, str):
            if not callable(getattr(self.model, "denoiser", None)):
                raise ConfigError(f"{where}: {self.model!r:.80} is neither a folder nor a model")
            weak: Denoise = self.model.denoiser(batch)
            return weak
        other = getattr(denoise, "other", None)
        if other is None:
            raise ConfigError(f"{where}: a weak model stands beside the model itself; list Contrastive first")
        try:
            found: Denoise = other(self.model)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return found

    def _mixed(self, s_PV: Tensor, w_PV: Tensor) -> Tensor:
        s_PV = s_PV.log_softmax(-1)
        mixed_PV = s_PV + self.weight * (s_PV - w_PV.log_softmax(-1).clamp(min=LEAST))
        plausible_PV = s_PV.exp() >= self.cut * s_PV.amax(-1, keepdim=True).exp()
        out_PV = torch.where(plausible_PV, mixed_PV, s_PV - BEHIND)
        return out_PV.masked_fill(s_PV == -torch.inf, -torch.inf)  # ids that may stand nowhere
