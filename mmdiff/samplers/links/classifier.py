"""Guidance by a classifier: the law of a token by Bayes' rule, p(x) p(c | x)^scale (D-CBG, arXiv 2412.10193).

Shape letters: R rows, L canvas length, P queried positions, K candidates of a position, N canvases that are judged,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, NotNegative
from mmdiff.protocols import Denoise

LogProbability = Callable[[Tensor, Tensor], Tensor]
"""(ids_NL, row_N) -> log p(c | canvas) (N,): of canvases that are partly masked, as copies of rows of the batch."""


class Judge(Protocol):
    """A node of `Classifier.classifier`: a classifier with the class that is asked for."""

    def bind(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> LogProbability:
        """Returns the classifier for canvases of `batch`. denoise: what the link stands around. Raises ConfigError."""
        ...


@part
@dataclass(frozen=True)
class Classifier:
    """Adds `scale * log p(c | canvas with a token in its position)` to the logits of likely tokens.

    Of one position that is exact, if the classifier is; positions that are committed in one step are guided apart. One
    position per step, scale 1 and an exact classifier of partly masked canvases sample p(x | c).

    candidates: so many of a position's likeliest ids are tried, one canvas each; None: all. To the others, the
        classifier's opinion of the canvas as it is counts, where their position is still masked.
    chunk: canvases per call of the classifier.
    """

    classifier: Any
    scale: NotNegative = 1.0
    candidates: AtLeast1 | None = 50
    chunk: AtLeast1 = 256

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        if not callable(getattr(self.classifier, "bind", None)):
            raise ConfigError(f"sampler.denoise.classifier: {type(self.classifier).__qualname__} has no `bind`")
        log_p: LogProbability = self.classifier.bind(denoise, batch, vocab)

        def guided(query: Query) -> Prediction:
            out = denoise(query)
            logits_PV = out.logits_PV.float()
            row_P, position_P = query.at()
            as_it_is_R = self._in_chunks(log_p, query, torch.arange(len(query.row_R), device=row_P.device), None, None)
            count = min(self.candidates or logits_PV.shape[1], logits_PV.shape[1])
            ids_PK = logits_PV.topk(count, dim=1).indices
            with_it_N = self._in_chunks(
                log_p,
                query,
                row_P.repeat_interleave(count),
                position_P.repeat_interleave(count),
                ids_PK.flatten(),
            )
            log_c_PV = as_it_is_R[row_P][:, None].expand(logits_PV.shape)
            log_c_PV = log_c_PV.scatter(1, ids_PK, with_it_N.view(-1, count))
            guided_PV = logits_PV + self.scale * log_c_PV if self.scale else logits_PV
            return Prediction(guided_PV.masked_fill(logits_PV == -torch.inf, -torch.inf), out.hidden_PD)

        return guided

    def _in_chunks(
        self, log_p: LogProbability, query: Query, row_N: Tensor, position_N: Tensor | None, ids_N: Tensor | None
    ) -> Tensor:
        """Returns fp32 (N,), log p(c | canvas) of the rows, with an id at a position of each where they are given."""
        out = []
        for start in range(0, len(row_N), self.chunk):
            here = slice(start, start + self.chunk)
            ids_CL = query.ids_RL[row_N[here]]
            if position_N is not None and ids_N is not None:
                ids_CL = ids_CL.scatter(1, position_N[here, None], ids_N[here, None])
            out.append(log_p(ids_CL, query.row_R[row_N[here]]).float())
        return torch.cat(out)
