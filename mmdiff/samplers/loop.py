"""The sampler: one loop for generation, infilling and drafts, over any rows in one batch.

Shape letters: B samples, L canvas length, R rows still open, P wanted positions of a step, N written ones that are scored
again, Q both, K blocks or allow-sets, V vocabulary.

A step: plan (the current block of each row) -> denoise -> ban ids -> propose -> score -> select -> commit -> revise ->
stop. Rows are independent of each other: each has its own block, step, noise and end, whatever it is batched with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.protocols import Denoise

from .constraints import allowed
from .guidance import guided
from .noise import StepNoise
from .options import generation_config
from .result import Generation
from .rules.propose import confidence, propose
from .rules.rules import Rules, rules_of
from .rules.state import Proposal, State, Written
from .stopping import spans, stop
from .streamers import Streamer
from .unmask_schedule import SHARES


@torch.no_grad()
def sample(
    denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig, *, streamer: Streamer | None = None
) -> Generation:
    """Write every open place of the canvas: the target positions that hold the mask id. All other positions stay as they are.

    Raises ConfigError for a value of `config` that cannot be, a position where no id may be written, and a `select` rule
    that commits nothing.
    """
    config = generation_config(config)
    if config.draft is not None:
        raise ConfigError(
            "sampler.draft: one pass of the loop writes no draft, see mmdiff.samplers.deliberation.rewrite"
        )
    rules = rules_of(config)
    out = _start(batch, vocab)
    if config.guidance_scale:
        denoise = guided(denoise, batch, vocab.mask_id, config.guidance_scale)
    end_E = torch.tensor(sorted({vocab.eos_id, *vocab.end_ids}), device=out.ids_BL.device)
    late_E = end_E if config.eos_policy == "last" else end_E[:0]
    allow_KV, allow_BL = allowed(batch, vocab, config)
    sample_B = batch.index_B if len(batch.index_B) else torch.arange(len(batch), device=out.ids_BL.device)
    span_BL = spans(batch.target_BL, allow_BL)
    may_end_BL = _may_end(batch, vocab.eos_id) if config.early_stop else None

    block_BL, steps_BK = plan(out.open(vocab.mask_id), batch.target_BL, config.steps, config.block_length)
    taken_BK, start_BK = torch.zeros_like(steps_BK), torch.zeros_like(steps_BK)
    beyond = steps_BK.shape[1]
    while True:
        # 1. Plan: the first block of a row that has open positions is its current one; rows without any are finished.
        block_B = torch.where(out.open(vocab.mask_id), block_BL, beyond).amin(1)
        row_R = (block_B < beyond).nonzero().squeeze(1)
        if not len(row_R):
            break
        block_R = block_B[row_R]
        here_RL = block_BL[row_R] == block_R[:, None]
        predict_RL = here_RL & out.open(vocab.mask_id)[row_R]
        open_R, at_R = predict_RL.sum(1), (row_R, block_R)
        taken_BK[at_R] += 1
        start_BK[at_R] = torch.where(taken_BK[at_R] == 1, open_R, start_BK[at_R])
        state = State(
            batch.target_BL[row_R],
            here_RL & batch.target_BL[row_R],
            out.step_BL[row_R],
            out.confidence_BL[row_R],
            taken_BK[at_R],
            steps_BK[at_R],
        )
        quota_R = SHARES[config.schedule](open_R, start_BK[at_R], state)
        out.forwards_B[row_R] += 1
        out.calls += 1

        # 2. Denoise the wanted positions, take away what may not stand there, and propose.
        again_RL = here_RL & (state.step_RL > 0) if rules.again else None
        asked_RL = predict_RL if again_RL is None else predict_RL | again_RL
        row_Q, position_Q = asked_RL.nonzero(as_tuple=True)
        logits_QV = denoise(out.ids_BL[row_R], asked_RL, row_R).float()
        allow_QV = allow_KV[0] if len(allow_KV) == 1 else allow_KV[allow_BL[row_R[row_Q], position_Q]]
        logits_QV = logits_QV.masked_fill(~allow_QV, -torch.inf)
        row_P, position_P, logits_PV, now_RL = row_Q, position_Q, logits_QV, None
        if again_RL is not None:
            predict_Q = predict_RL[row_Q, position_Q]
            now_RL = _now(logits_QV[~predict_Q], out.ids_BL[row_R], again_RL, late_E)
            row_P, position_P, logits_PV = row_Q[predict_Q], position_Q[predict_Q], logits_QV[predict_Q]
        at_P = row_R[row_P], position_P
        draws = StepNoise(config.seed, sample_B[row_R], out.forwards_B[row_R], open_R)
        end = config.temperature_end
        ids_P = propose(logits_PV, config.temperature if end is None else state.between(config.temperature, end), draws)

        # 3. Score, select, commit.
        late_P = torch.isin(ids_P, late_E)
        logits_PV.index_fill_(1, late_E, -torch.inf)
        confidence_P = confidence(logits_PV, ids_P).masked_fill(late_P, 0.0)
        proposal = Proposal(row_P, position_P, ids_P, confidence_P, quota_R, draws, state)
        score_P = rules.score(logits_PV, proposal).masked_fill(late_P, -torch.inf)
        keep_P = rules.select(score_P, proposal)
        _check_select(keep_P, proposal, rules)
        if streamer is not None:
            streamer.put_draft(out.ids_BL.index_put(at_P, ids_P), out.calls)
        kept = row_R[row_P[keep_P]], position_P[keep_P]
        out.ids_BL[kept] = ids_P[keep_P]
        out.confidence_BL[kept] = confidence_P[keep_P]
        out.step_BL[kept] = out.forwards_B[kept[0]].int()

        # 4. Revise while the block has steps left, so that every block ends; then stop rows that have ended.
        if rules.revise is not None:
            written_RL = here_RL & (out.step_BL[row_R] > 0)
            written = Written(written_RL, out.confidence_BL[row_R], open_R, quota_R, state, now_RL)
            opened_RL = rules.revise(written) & written_RL & (state.step_R < state.steps_R)[:, None]
            opened = row_R[opened_RL.nonzero()[:, 0]], opened_RL.nonzero()[:, 1]
            out.ids_BL[opened], out.step_BL[opened], out.confidence_BL[opened] = vocab.mask_id, 0, 0.0
        if may_end_BL is not None:
            stop(out, vocab, end_E, span_BL, may_end_BL)
    if streamer is not None:
        streamer.put(out.ids_BL)
        streamer.end()
    return out


def plan(open_BL: Tensor, target_BL: Tensor, steps: int | None, block_length: int | None) -> tuple[Tensor, Tensor]:
    """block_BL, the block of each target position, and steps_BK, the steps each block of a row is given.

    A block is `block_length` target positions of a row, counted in row order wherever they lie. Blocks without an open
    position take no steps.
    """
    rank_BL = (target_BL.cumsum(1) - 1).clamp(min=0)
    length = block_length or target_BL.shape[1]
    block_BL = rank_BL // length
    count_BK = torch.zeros(len(open_BL), -(-target_BL.shape[1] // length), dtype=torch.int64, device=open_BL.device)
    count_BK.scatter_add_(1, block_BL, open_BL.long())
    if steps is None:
        return block_BL, count_BK
    busy_BK = count_BK > 0
    share_B = (steps // busy_BK.sum(1).clamp(min=1)).clamp(min=1)
    return block_BL, busy_BK * share_B[:, None]


def _start(batch: Batch, vocab: Vocab) -> Generation:
    open_BL = batch.target_BL & (batch.ids_BL == vocab.mask_id)
    return Generation(
        ids_BL=batch.ids_BL.clone(),
        target_BL=batch.target_BL,
        step_BL=torch.zeros_like(batch.ids_BL, dtype=torch.int32),
        confidence_BL=(~open_BL).float(),
        forwards_B=torch.zeros(len(batch), dtype=torch.int64, device=batch.ids_BL.device),
    )


def _may_end(batch: Batch, eos_id: int) -> Tensor:
    """Positions that EOS may fill behind an end. It is not proposed by the model, so what is suppressed does not count."""
    if batch.allow_KV is None or batch.allow_BL is None:
        return torch.ones_like(batch.target_BL)
    return batch.allow_KV[batch.allow_BL, eos_id]


def _now(logits_NV: Tensor, ids_RL: Tensor, again_RL: Tensor, late_E: Tensor) -> Tensor:
    """fp32 RL: the present probability of what is written where it was asked for, 1 elsewhere and for ids held back."""
    ids_N = ids_RL[again_RL]
    sure_N = confidence(logits_NV.index_fill(1, late_E, -torch.inf), ids_N).masked_fill(torch.isin(ids_N, late_E), 1.0)
    return torch.ones_like(again_RL, dtype=torch.float32).masked_scatter(again_RL, sure_N)


def _check_select(keep_P: Tensor, proposal: Proposal, rules: Rules) -> None:
    kept_R = torch.bincount(proposal.row_P[keep_P], minlength=len(proposal.quota_R))
    if not kept_R.all():
        name = type(rules.select).__qualname__
        raise ConfigError(
            f"sampler.select: {name} committed nothing in a row with open positions; expected at least one"
        )
