"""Deliberation: some positions of a given draft are masked and predicted again, by the loop that fills an empty canvas.

The draft is what the target positions hold: a first-pass transcript, say, filled up with EOS so that words can be
added. A rule (`sampler.draft`) chooses which of its positions are masked, round after round; the loop fills them after
each. Random, low-confidence and semi-autoregressive deliberation are those of Whisper-LLaDA (arXiv 2509.16622).

Shape letters: B samples, L canvas length, R rows of one denoise call, P predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.query import Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.draw import check_numbers, confidence
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.parts import part
from mmdiff.parts.ranges import PositiveShare
from mmdiff.protocols import Denoise

from .loop import process_of, sample
from .options import generation_config
from .rules.rules import build_rule
from .streamers import Streamer

ROWS = 64  # canvases of one leave-one-out call


@dataclass
class Draft:
    """What a rule is given. A rule that runs the model adds to `forwards_B` and sets `confidence_BL`."""

    denoise: Denoise
    batch: Batch
    vocab: Vocab
    seed: int
    position_BL: Tensor  # bool, the positions of the draft: target positions that were given
    forwards_B: Tensor  # int64
    confidence_BL: Tensor  # fp32, probability of the draft's tokens; 1 where the model was not run


class DraftRule(Protocol):
    """Which positions of a draft are masked again, and in which rounds."""

    def __call__(self, draft: Draft) -> Iterator[Tensor]:
        """Yields bool BL, positions to mask, round after round. They are filled before the next round is drawn."""
        ...


@part
@dataclass(frozen=True)
class MaskRandom:
    """Masks floor(ratio * n) of a row's n draft positions, at random."""

    ratio: PositiveShare = 0.3

    def __call__(self, draft: Draft) -> Iterator[Tensor]:
        key = NoiseKey(draft.seed, stream="draft")
        score_BL = torch.ones(draft.position_BL.shape, dtype=torch.float64)
        for b, (index, position_L) in enumerate(
            zip(draft.batch.index_B.tolist(), draft.position_BL.cpu(), strict=True)
        ):
            score_BL[b, position_L] = torch.from_numpy(key.uniform(index, int(position_L.sum())))
        yield lowest(score_BL.to(draft.position_BL.device), draft.position_BL, self.ratio)


@part
@dataclass(frozen=True)
class MaskLeastConfident:
    """Masks the floor(ratio * n) of a row's n draft positions whose tokens the model, without them, finds least likely.

    probe: what stands at these positions then. "mask": the mask id at all of them, in one forward. "eos": EOS at all of
        them (as published; it is the canvas of an empty answer). "leave_one_out": the mask id at one position at a
        time, in n forwards.
    """

    ratio: PositiveShare = 0.3
    probe: Literal["mask", "eos", "leave_one_out"] = "mask"

    def __call__(self, draft: Draft) -> Iterator[Tensor]:
        draft.confidence_BL = probe(draft, self.probe)
        yield lowest(draft.confidence_BL, draft.position_BL, self.ratio)


@part
@dataclass(frozen=True)
class MaskChunks:
    """Masks round(1 / ratio) chunks of the draft from left to right, each whole while all others are visible.

    Chunks to the left have been predicted again, those to the right are as drafted; the last takes the remainder.
    """

    ratio: PositiveShare = 0.25

    def __call__(self, draft: Draft) -> Iterator[Tensor]:
        position_BL = draft.position_BL
        chunks = round(1 / self.ratio)
        size_B = (position_BL.sum(1) // chunks).clamp(min=1)
        chunk_BL = ((position_BL.cumsum(1) - 1) // size_B[:, None]).clamp(max=chunks - 1)
        for chunk in range(chunks):
            yield position_BL & (chunk_BL == chunk)


def lowest(score_BL: Tensor, position_BL: Tensor, ratio: float) -> Tensor:
    """Returns bool BL, the floor(ratio * n) positions of a row with the lowest scores; of equals the leftmost first."""
    score_BL = score_BL.masked_fill(~position_BL, torch.inf)
    rank_BL = score_BL.argsort(dim=1, stable=True).argsort(dim=1)
    count_B = (position_BL.sum(1) * ratio + 1e-6).long()  # 0.3 * 10 falls just below 3
    return (rank_BL < count_B[:, None]) & position_BL


def probe(draft: Draft, how: str) -> Tensor:
    """Returns fp32 BL, the probability of the draft's token at each of its positions; 1 elsewhere.

    how: one of `PROBES`.
    """
    batch, position_BL = draft.batch, draft.position_BL
    out_BL = torch.ones(position_BL.shape, device=position_BL.device)
    if how != "leave_one_out":
        fill = draft.vocab.mask_id if how == "mask" else draft.vocab.eos_id
        row_R = position_BL.any(1).nonzero().squeeze(1)
        draft.forwards_B[row_R] += 1
        predict_RL = position_BL[row_R]
        calls = [(batch.ids_BL[row_R].masked_fill(predict_RL, fill), predict_RL, row_R)]
    else:
        draft.forwards_B += position_BL.sum(1)
        row_P, position_P = position_BL.nonzero(as_tuple=True)
        calls = []
        for row_R, positions_R in zip(row_P.split(ROWS), position_P.split(ROWS), strict=True):
            predict_RL = torch.arange(position_BL.shape[1], device=position_BL.device) == positions_R[:, None]
            calls.append((batch.ids_BL[row_R].masked_fill(predict_RL, draft.vocab.mask_id), predict_RL, row_R))
    for ids_RL, predict_RL, row_R in calls:
        if not len(row_R):
            continue
        query = Query(ids_RL, predict_RL, row_R)
        logits_PV = draft.denoise(query).logits_PV.float()
        row_P, position_P = query.at()
        at_P = row_R[row_P], position_P
        if batch.allow_KV is not None and batch.allow_BL is not None:
            logits_PV = logits_PV.masked_fill(~batch.allow_KV[batch.allow_BL[at_P]], -torch.inf)
        out_BL[at_P] = confidence(logits_PV, batch.ids_BL[at_P])
        check_numbers(out_BL[at_P], *at_P)
    return out_BL


def rewrite(
    denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig, streamer: Streamer | None = None
) -> Generation:
    """Returns the canvas after all rounds of `config.draft`. What the rule does not mask keeps its token.

    An end id amid a draft takes a word out, so there is no early stop. The result's steps count the forwards of all
    rounds and of probes; kept positions have step 0 and, where the rule ran the model, its probability of their token.
    """
    config = generation_config(config)
    process_of(config)
    rule: DraftRule = build_rule(config.draft, "sampler.draft")
    once = replace(config, draft=None, early_stop=False)
    masked_BL = batch.target_BL & (batch.ids_BL == vocab.mask_id)
    zeros_B = torch.zeros(len(batch), dtype=torch.int64, device=batch.ids_BL.device)
    position_BL = batch.target_BL & ~masked_BL
    draft = Draft(
        denoise, batch, vocab, config.seed, position_BL, zeros_B, torch.ones_like(masked_BL, dtype=torch.float32)
    )
    ids_BL, step_BL = batch.ids_BL, torch.zeros_like(batch.ids_BL, dtype=torch.int32)
    confidence_BL, calls, checks = draft.confidence_BL, 0, 0
    for remasked_BL in rule(draft):
        round_ = replace(batch, ids_BL=ids_BL.masked_fill(remasked_BL, vocab.mask_id))
        watching = None if streamer is None else Round(streamer, calls)
        out = sample(denoise, round_, vocab, once, streamer=watching)
        new_BL = out.step_BL > 0
        before_B = draft.forwards_B
        step_BL = torch.where(new_BL, out.step_BL + before_B[:, None].int(), step_BL)
        confidence_BL = torch.where(new_BL, out.confidence_BL, confidence_BL)
        draft.forwards_B = before_B + out.forwards_B
        ids_BL, calls, checks = out.ids_BL, calls + out.calls, checks + out.checks
    kept_BL = position_BL & (step_BL == 0)
    if streamer is not None:
        streamer.put(ids_BL)
        streamer.end()
    return Generation(
        ids_BL=ids_BL,
        target_BL=batch.target_BL,
        step_BL=step_BL,
        confidence_BL=torch.where(kept_BL, draft.confidence_BL, confidence_BL),
        forwards_B=draft.forwards_B,
        calls=calls,
        checks=checks,
    )


@dataclass(frozen=True)
class Round:
    """The steps of one round, for a streamer of all rounds. before: the steps of those that are over."""

    streamer: Streamer
    before: int

    def put_draft(self, value: Tensor, **named: Any) -> None:
        self.streamer.put_draft(value=value, **{**named, "step": self.before + named.get("step", 0)})

    def dropped(self) -> Tensor | None:
        asked = getattr(self.streamer, "dropped", None)
        return None if asked is None else asked()

    def put(self, ids_BL: Tensor) -> None: ...

    def end(self) -> None: ...
