"""What an end id ends: the positions behind it need not be denoised.

Shape letters: B samples, L canvas length, X end ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.vocab import Vocab


@dataclass(frozen=True)
class Stopping:
    """Fills the rest of a target span with EOS behind the end id that ends it.

    span_BL: the target span of each position. may_end_BL: bool, where EOS may stand. end_ids_X: the end ids.
    rule: when the first end id ends its span: `complete`, when no position before it is pending; `at_once`, as soon as
        it is committed (Whisper-LLaDA, arXiv 2509.16622); `before`, at once too, but what stands behind stays as it is,
        for the model to see, until the generation is over (LLaDA-V, arXiv 2505.16933).
    """

    span_BL: Tensor
    may_end_BL: Tensor
    end_ids_X: Tensor
    eos_id: int
    rule: str

    @classmethod
    def of(cls, batch: Batch, allow_BL: Tensor, vocab: Vocab, end_ids_X: Tensor, rule: str) -> Stopping:
        if batch.allow_KV is None or batch.allow_BL is None:  # bans do not apply: EOS is not proposed here
            may_end_BL = torch.ones_like(batch.target_BL)
        else:
            may_end_BL = batch.allow_KV[batch.allow_BL, vocab.eos_id]
        return cls(spans(batch.target_BL, allow_BL), may_end_BL, end_ids_X, vocab.eos_id, rule)

    def __call__(self, state: GenerationState, live_BL: Tensor) -> None:
        """What stands behind the end of a span is no part of the answer, also where it was committed before the end
        was. What was given stays. live_BL: positions that may yet change, where an end id ends nothing."""
        target_BL = state.batch.target_BL
        ended_BL = target_BL & (state.step_BL > 0) & ~live_BL & torch.isin(state.ids_BL, self.end_ids_X)
        end_BL = self._first(ended_BL)
        behind_BL = torch.arange(target_BL.shape[1], device=target_BL.device) > end_BL
        if self.rule == "complete":
            behind_BL &= end_BL < self._first(state.pending_BL & self.may_end_BL)
        rest_BL = behind_BL & target_BL & self.may_end_BL & (state.pending_BL | ((state.step_BL > 0) & ~ended_BL))
        state.pending_BL = state.pending_BL & ~rest_BL
        if self.rule == "before":
            state.extras["behind"] = rest_BL | state.extras["behind"] if "behind" in state.extras else rest_BL
        else:
            self._fill(state, rest_BL)

    def finish(self, state: GenerationState) -> None:
        """Fill up what was left as it was."""
        if "behind" in state.extras:
            self._fill(state, state.extras["behind"])

    def _fill(self, state: GenerationState, rest_BL: Tensor) -> None:
        state.ids_BL = state.ids_BL.masked_fill(rest_BL, self.eos_id)
        state.confidence_BL = state.confidence_BL.masked_fill(rest_BL, 1.0)
        state.step_BL = torch.where(rest_BL, state.forwards_B[:, None].int(), state.step_BL)

    def _first(self, marked_BL: Tensor) -> Tensor:
        """Returns int64 BL, the first marked position of the span that a position lies in; L where it has none."""
        length = marked_BL.shape[1]
        position_BL = torch.where(marked_BL, torch.arange(length, device=marked_BL.device), length)
        first_BL = torch.full_like(self.span_BL, length).scatter_reduce(1, self.span_BL, position_BL, "amin")
        return first_BL.gather(1, self.span_BL)


def spans(target_BL: Tensor, allow_BL: Tensor) -> Tensor:
    """Returns int64 BL, the number of the target span of each position. A span is neighbours with one allow-set."""
    starts_BL = target_BL.clone()
    starts_BL[:, 1:] &= ~target_BL[:, :-1] | (allow_BL[:, 1:] != allow_BL[:, :-1])
    return (starts_BL.cumsum(1) - 1).clamp(min=0)
