"""Which ids the sampler may commit at which position.

Shape letters: B samples, L canvas length, Q queried positions, K distinct allow-sets, V vocabulary, N banned ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import NO_MASK, Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError


@dataclass(frozen=True)
class Allowed:
    """allow_KV: the ids of each allow-set. allow_BL: the allow-set of each position. banned_N: where there is one
    allow-set, the ids outside it."""

    allow_KV: Tensor
    allow_BL: Tensor
    banned_N: Tensor | None

    @classmethod
    def of(cls, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Allowed:
        """Never allowed are the mask id, the slot id (unless it is an end id too, as LLaDA's is), `suppress_ids` and
        `suppress_tokens`, end ids under eos_policy=suppress, and rows of the embedding table that stand for nothing
        (published tables are padded) or for a named range, unless an allow-set claims them.
        Raises ConfigError for an id or token outside the vocabulary, and for an pending position left without any id.
        """
        text_V = torch.ones(vocab.size, dtype=torch.bool)
        if vocab.tokenizer is not None:
            text_V[len(vocab.tokenizer) :] = False
        ends = [vocab.eos_id, *vocab.end_ids]
        text_V[ends] = True
        device = batch.ids_BL.device
        if batch.allow_KV is None or batch.allow_BL is None:
            allow_KV, allow_BL = text_V[None].to(device), torch.zeros_like(batch.ids_BL)
        else:
            free_K = batch.allow_KV.all(1, keepdim=True)  # no allow-set was named
            allow_KV, allow_BL = torch.where(free_K, text_V.to(device), batch.allow_KV), batch.allow_BL
        allow_KV[:, _banned(vocab, config, ends)] = False
        stuck_BL = batch.target_BL & (batch.ids_BL == vocab.mask_id) & ~allow_KV.any(1)[allow_BL]
        if stuck_BL.any():
            b, position = stuck_BL.nonzero()[0].tolist()
            raise ConfigError(
                f"row {b}, position {position}: suppress_ids and eos_policy leave no id of its allow-set to commit"
            )
        banned_N = (~allow_KV[0]).nonzero().squeeze(1) if len(allow_KV) == 1 else None
        return cls(allow_KV, allow_BL, banned_N)

    def relayout(self, batch: Batch) -> Allowed:
        """Returns the same on the batch's new canvas."""
        allow_BL = torch.zeros_like(batch.ids_BL) if batch.allow_BL is None else batch.allow_BL
        return replace(self, allow_BL=allow_BL)

    def of_positions(self, at_Q: tuple[Tensor, Tensor]) -> Tensor:
        """Returns bool (Q, V), the ids that positions (of the B rows) may hold; (1, V) where they are the same."""
        return self.allow_KV if self.banned_N is not None else self.allow_KV[self.allow_BL[at_Q]]

    def any_id(self, at_Q: tuple[Tensor, Tensor], u_Q: Tensor) -> Tensor:
        """Returns int64 (Q,), an id that each position may hold, all as likely. u_Q: float64 numbers in (0, 1)."""
        if self.banned_N is not None:
            count = self.allow_KV.shape[1] - len(self.banned_N)
            ids_N = torch.nonzero_static(self.allow_KV[0], size=count).squeeze(1)
            return ids_N[(u_Q * count).floor().long()]
        allow_QV = self.of_positions(at_Q)
        rank_Q1 = (u_Q * allow_QV.sum(1)).floor().long()[:, None]
        return torch.searchsorted(allow_QV.long().cumsum(1), rank_Q1, right=True).squeeze(1)

    def ban(self, logits_QV: Tensor, at_Q: tuple[Tensor, Tensor], *, own: bool) -> Tensor:
        """Returns the logits with -inf at ids that may not stand there. own: the tensor may be overwritten."""
        out_QV = logits_QV if own else logits_QV.clone()
        if self.banned_N is not None:
            return out_QV.index_fill_(1, self.banned_N, -torch.inf)
        return out_QV.masked_fill_(~self.of_positions(at_Q), -torch.inf)


def _banned(vocab: Vocab, config: GenerationConfig, ends: list[int]) -> list[int]:
    slots = [] if vocab.slot_id in ends else [vocab.slot_id]
    masks = [] if vocab.mask_id == NO_MASK else [vocab.mask_id]
    banned = [*masks, *slots, *(ends if config.eos_policy == "suppress" else [])]
    banned += [vocab.id_of(token, "sampler.suppress_tokens") for token in config.suppress_tokens]
    banned += [vocab.id_of(i, "sampler.suppress_ids") for i in config.suppress_ids]
    return banned
