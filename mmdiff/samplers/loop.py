"""The sampler: one loop for generation, infilling and drafts, over any rows in one batch.

Shape letters: B samples, J blocks of a row, L canvas length, R rows that still have masked positions, P predicted
positions of a step (the masked ones of each row's current block), S committed positions that are scored again, Q
positions whose logits are computed (P and S), V vocabulary, K allow-sets, X end ids.

A step: plan (the current block of each row) -> denoise -> ban ids -> propose -> score -> select -> commit -> revise ->
stop. Rows are independent of each other: each has its own block, step, noise and end, whatever it is batched with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Denoise

from .constraints import allowed
from .guidance import guided
from .noise import StepNoise
from .options import generation_config
from .result import Generation
from .rules.propose import confidence, propose
from .rules.rules import Rules, rules_of
from .rules.state import Committed, Proposal, State
from .stopping import spans, stop
from .streamers import Streamer
from .unmask_schedule import UNMASK_SCHEDULES


@torch.no_grad()
def sample(
    denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig, *, streamer: Streamer | None = None
) -> Generation:
    """Fill every masked position of the canvas: the target positions that hold the mask id. All others keep their ids.

    Returns the finished canvas with its step map; `batch` is left as it is. Raises ConfigError for an impossible value
    of `config`, for a position that no id is allowed at, and for a `select` rule that commits nothing.
    """
    config = generation_config(config)
    if config.draft is not None:
        raise ConfigError(
            "sampler.draft: `sample` fills a canvas once; mmdiff.samplers.deliberation.rewrite improves a draft"
        )
    rules = rules_of(config)
    out = _start(batch, vocab)
    if config.guidance_scale:
        denoise = guided(denoise, batch, vocab.mask_id, config.guidance_scale)
    end_ids_X = torch.tensor(sorted({vocab.eos_id, *vocab.end_ids}), device=out.ids_BL.device)
    late_ids_X = end_ids_X if config.eos_policy == "last" else end_ids_X[:0]  # committed after all other ids
    allow_KV, allow_BL = allowed(batch, vocab, config)
    sample_B = batch.index_B if len(batch.index_B) else torch.arange(len(batch), device=out.ids_BL.device)
    span_BL = spans(batch.target_BL, allow_BL)
    may_end_BL = _may_end(batch, vocab.eos_id) if config.early_stop else None

    block_BL, steps_BJ = plan(out.masked(vocab.mask_id), batch.target_BL, config.steps, config.block_length)
    steps_taken_BJ, n_start_BJ = torch.zeros_like(steps_BJ), torch.zeros_like(steps_BJ)
    n_blocks = steps_BJ.shape[1]
    while True:
        # 1. Plan: a row's current block is its first one with masked positions; a row without any is finished.
        block_B = torch.where(out.masked(vocab.mask_id), block_BL, n_blocks).amin(1)
        row_R = (block_B < n_blocks).nonzero().squeeze(1)
        if not len(row_R):
            break
        current = row_R, block_B[row_R]  # index of (B, J)
        in_block_RL = block_BL[row_R] == block_B[row_R, None]
        predict_RL = in_block_RL & out.masked(vocab.mask_id)[row_R]
        n_masked_R = predict_RL.sum(1)
        steps_taken_BJ[current] += 1
        n_start_BJ[current] = torch.where(steps_taken_BJ[current] == 1, n_masked_R, n_start_BJ[current])
        state = State(
            target_RL=batch.target_BL[row_R],
            block_RL=in_block_RL & batch.target_BL[row_R],
            step_RL=out.step_BL[row_R],
            confidence_RL=out.confidence_BL[row_R],
            step_R=steps_taken_BJ[current],
            steps_R=steps_BJ[current],
        )
        quota_R = UNMASK_SCHEDULES[config.schedule](n_masked_R, n_start_BJ[current], state)
        out.forwards_B[row_R] += 1
        out.calls += 1

        # 2. Denoise the predicted positions, ban the ids that are not allowed there, and propose.
        rescore_RL = in_block_RL & (state.step_RL > 0) if rules.rescore else None
        queried_RL = predict_RL if rescore_RL is None else predict_RL | rescore_RL
        row_Q, position_Q = queried_RL.nonzero(as_tuple=True)
        logits_QV = denoise(out.ids_BL[row_R], queried_RL, row_R).float()
        if not bool((logits_QV < torch.inf).all()):  # NaN, too; -inf is an id that may not stand there
            raise DataError("the model's logits are not finite: its weights, or the numbers of a row, are too large")
        allow_QV = allow_KV[0] if len(allow_KV) == 1 else allow_KV[allow_BL[row_R[row_Q], position_Q]]
        logits_QV = logits_QV.masked_fill(~allow_QV, -torch.inf)
        row_P, position_P, logits_PV, rescored_RL = row_Q, position_Q, logits_QV, None
        if rescore_RL is not None:
            predict_Q = predict_RL[row_Q, position_Q]
            rescored_RL = _rescored(logits_QV[~predict_Q], out.ids_BL[row_R], rescore_RL, late_ids_X)
            row_P, position_P, logits_PV = row_Q[predict_Q], position_Q[predict_Q], logits_QV[predict_Q]
        noise = StepNoise(config.seed, sample_B[row_R], out.forwards_B[row_R], n_masked_R)
        first, last = config.temperature, config.temperature_end
        ids_P = propose(logits_PV, first if last is None else state.between(first, last), noise)

        # 3. Score, select, commit.
        late_P = torch.isin(ids_P, late_ids_X)
        logits_PV.index_fill_(1, late_ids_X, -torch.inf)
        confidence_P = confidence(logits_PV, ids_P).masked_fill(late_P, 0.0)
        proposal = Proposal(row_P, position_P, ids_P, confidence_P, quota_R, noise, state)
        score_P = rules.score(logits_PV, proposal).masked_fill(late_P, -torch.inf)
        commit_P = rules.select(score_P, proposal)
        _check_select(commit_P, proposal, rules)
        committed_at = row_R[row_P[commit_P]], position_P[commit_P]
        out.ids_BL[committed_at] = ids_P[commit_P]
        out.confidence_BL[committed_at] = confidence_P[commit_P]
        out.step_BL[committed_at] = out.forwards_B[committed_at[0]].int()

        # 4. Revise, while the block has steps left (so that every block ends); then fill up what an end id has ended.
        if rules.revise is not None:
            committed_RL = in_block_RL & (out.step_BL[row_R] > 0)
            committed = Committed(committed_RL, out.confidence_BL[row_R], n_masked_R, quota_R, state, rescored_RL)
            remasked_RL = rules.revise(committed) & committed_RL & (state.step_R < state.steps_R)[:, None]
            row, position = remasked_RL.nonzero(as_tuple=True)
            remasked_at = row_R[row], position
            out.ids_BL[remasked_at], out.step_BL[remasked_at], out.confidence_BL[remasked_at] = vocab.mask_id, 0, 0.0
        if may_end_BL is not None:
            stop(out, vocab, end_ids_X, span_BL, may_end_BL)
        if streamer is not None:
            streamer.put_draft(out.ids_BL.clone(), out.calls)
    if streamer is not None:
        streamer.put(out.ids_BL)
        streamer.end()
    return out


def plan(masked_BL: Tensor, target_BL: Tensor, steps: int | None, block_length: int | None) -> tuple[Tensor, Tensor]:
    """Returns block_BL, the block of each target position, and steps_BJ, the steps that each block of a row is given.

    A block is `block_length` target positions of a row, counted in row order wherever they lie. A block without masked
    positions takes no steps. steps: for the whole row; None: one step per masked position.
    """
    rank_BL = (target_BL.cumsum(1) - 1).clamp(min=0)
    length = block_length or target_BL.shape[1]
    block_BL = rank_BL // length
    n_masked_BJ = torch.zeros(
        len(masked_BL), -(-target_BL.shape[1] // length), dtype=torch.int64, device=masked_BL.device
    )
    n_masked_BJ.scatter_add_(1, block_BL, masked_BL.long())
    if steps is None:
        return block_BL, n_masked_BJ
    has_masked_BJ = n_masked_BJ > 0
    steps_each_B = (steps // has_masked_BJ.sum(1).clamp(min=1)).clamp(min=1)
    return block_BL, has_masked_BJ * steps_each_B[:, None]


def _start(batch: Batch, vocab: Vocab) -> Generation:
    masked_BL = batch.target_BL & (batch.ids_BL == vocab.mask_id)
    return Generation(
        ids_BL=batch.ids_BL.clone(),
        target_BL=batch.target_BL,
        step_BL=torch.zeros_like(batch.ids_BL, dtype=torch.int32),
        confidence_BL=(~masked_BL).float(),
        forwards_B=torch.zeros(len(batch), dtype=torch.int64, device=batch.ids_BL.device),
    )


def _may_end(batch: Batch, eos_id: int) -> Tensor:
    """Returns bool BL, the positions that EOS may fill behind an end id. Bans do not apply: it is not proposed."""
    if batch.allow_KV is None or batch.allow_BL is None:
        return torch.ones_like(batch.target_BL)
    return batch.allow_KV[batch.allow_BL, eos_id]


def _rescored(logits_SV: Tensor, ids_RL: Tensor, rescore_RL: Tensor, late_ids_X: Tensor) -> Tensor:
    """Returns fp32 RL, this step's probability of the committed ids at `rescore_RL`; 1 elsewhere and for late ids."""
    ids_S = ids_RL[rescore_RL]
    confidence_S = confidence(logits_SV.index_fill(1, late_ids_X, -torch.inf), ids_S)
    confidence_S = confidence_S.masked_fill(torch.isin(ids_S, late_ids_X), 1.0)
    return torch.ones_like(rescore_RL, dtype=torch.float32).masked_scatter(rescore_RL, confidence_S)


def _check_select(commit_P: Tensor, proposal: Proposal, rules: Rules) -> None:
    n_committed_R = torch.bincount(proposal.row_P[commit_P], minlength=len(proposal.quota_R))
    if not n_committed_R.all():
        name = type(rules.select).__qualname__
        raise ConfigError(
            f"sampler.select: {name} committed nothing in a row with masked positions; expected at least one"
        )
