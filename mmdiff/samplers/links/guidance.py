"""Classifier-free guidance (arXiv 2410.18514, used by LLaDA), unsupervised: the context is masked, or media left out.

Shape letters: R rows, L canvas length, P queried positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative
from mmdiff.protocols import Denoise


@part
@dataclass(frozen=True)
class Guidance:
    """Returns logits `u + (scale + 1) (c - u)`: c as asked, u without context and media.

    The context, masked for u, is every attended position that is not a target; ids given within a target stay. All
    copies of a row go through the model in one call.

    media: a second scale, for media alone: with m the logits with the text of the context but without media, the result
        is `u + (scale + 1) (m - u) + (media + 1) (c - m)`, three copies per row. None: one scale for both.
    """

    scale: NotNegative = 0.0
    media: NotNegative | None = None

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        def guided(query: Query) -> Prediction:
            layout = query.batch or batch
            context_RL = (layout.attend_BL & ~layout.target_BL)[query.row_R]
            bare_RL = query.ids_RL.masked_fill(context_RL, vocab.noise_id)
            shown_R = query.media_R if query.media_R is not None else torch.ones_like(query.row_R, dtype=torch.bool)
            hidden_R = torch.zeros_like(shown_R)
            if self.media is None:
                ids, media = [query.ids_RL, bare_RL], [shown_R, hidden_R]
            else:
                ids, media = [query.ids_RL, query.ids_RL, bare_RL], [shown_R, hidden_R, hidden_R]
            out = denoise(copies(query, ids, media))
            c_PV, *others = out.logits_PV.chunk(len(ids))
            u_PV = others[-1]
            if self.media is None:
                logits_PV = u_PV + (self.scale + 1) * (c_PV - u_PV)
            else:
                m_PV = others[0]
                logits_PV = u_PV + (self.scale + 1) * (m_PV - u_PV) + (self.media + 1) * (c_PV - m_PV)
            logits_PV = logits_PV.masked_fill(c_PV == -torch.inf, -torch.inf)  # ids that may stand nowhere
            h_PD = None if out.hidden_PD is None else out.hidden_PD.chunk(len(ids))[0]
            return Prediction(logits_PV, h_PD)

        return guided


def copies(query: Query, ids: list[Tensor], media: list[Tensor]) -> Query:
    """Returns the query of several canvases per row: all rows of the first, then all of the second, ..."""
    n, rows = len(ids), len(query.row_R)
    row_P, position_P = query.at()
    return replace(
        query,
        ids_RL=torch.cat(ids),
        predict_RL=query.predict_RL.repeat(n, 1),
        row_R=query.row_R.repeat(n),
        media_R=torch.cat(media),
        step=None if query.step is None else query.step.repeat(n),
        fresh=None if query.fresh is None else query.fresh.repeat(n),
        at_P=(torch.cat([row_P + i * rows for i in range(n)]), position_P.repeat(n)),
        extras={name: values_RL.repeat(n, *[1] * (values_RL.ndim - 1)) for name, values_RL in query.extras.items()},
    )
