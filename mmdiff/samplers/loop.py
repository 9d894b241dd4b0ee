"""The sampler: one loop for generation, infilling and drafts, for every noise process, over any rows in one batch.

Shape letters: B samples, J blocks of a row, L canvas length, R rows that have work, P predicted positions of a step
(the live ones of each row's current block), Q queried positions (P, and committed ones that are judged again), V
vocabulary, X end ids.

A step: plan (the current block of each row) -> denoise -> ban ids -> advance the noise process (for absorbing noise:
propose -> score -> select -> commit -> revise) -> stop. Rows are independent of each other: each has its own block,
step, noise and end, whatever it is batched with.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation, GenerationState
from mmdiff.canvas.query import Query, StepInfo
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Denoise, NoiseProcess

from .blocks import Blocks, Work
from .grammars.allowed import Allowed
from .grammars.constraint import Constraint
from .links.chain import chained
from .options import generation_config
from .processes.absorbing import Absorbing
from .rules.rules import build_rule, rules_of
from .rules.state import State
from .step import Settings, Step
from .stopping import Stopping
from .streamers import Streamer


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
    process, model = process_of(config), denoise
    if getattr(process, "masks", True):
        _ = vocab.noise_id  # there must be one
    denoise, proposer = chained(model, batch, vocab, config)
    end_ids_X = torch.tensor(sorted({vocab.eos_id, *vocab.end_ids}), device=batch.ids_BL.device)
    allowed = Allowed.of(batch, vocab, config)
    state = GenerationState.of(batch, vocab)
    settings = Settings(
        config=config,
        rules=rules_of(config),
        vocab=vocab,
        allowed=allowed,
        end_ids_X=end_ids_X,
        late_ids_X=end_ids_X if config.eos_policy == "last" else end_ids_X[:0],
        constraint=Constraint.of(state, vocab, config, allowed),
        proposer=proposer,
        model=model,
    )
    proposes = getattr(process, "proposes", False)
    if settings.constraint is not None and not proposes:
        raise ConfigError(f"sampler.constraint: {type(process).__qualname__} replaces tokens; expected absorbing noise")
    if proposer is not None and not proposes:
        raise ConfigError(f"sampler.denoise: {type(process).__qualname__} proposes no tokens; expected absorbing noise")
    sample_B = (batch.index_B if len(batch.index_B) else torch.arange(len(batch))).cpu().numpy()
    _start(process, state, settings, sample_B)
    each = getattr(process, "steps", None)
    if each is not None and config.steps is not None:
        raise ConfigError(f"sampler.steps: sampler.process.steps gives every block {each}, expected one of the two")
    blocks = Blocks(state, config.steps, config.block_length, config.block_start, each)
    settings, stop = _laid(state, settings)
    wrong = torch.zeros((), dtype=torch.bool, device=batch.ids_BL.device)  # logits not finite: read a step later
    dropped = getattr(streamer, "dropped", None)
    while True:
        live_BL = process.live(state)
        if dropped is not None and (dropped_B := dropped()) is not None:
            live_BL = live_BL & ~dropped_B.to(live_BL.device)[:, None]
        work, was_wrong = blocks.next(state, live_BL, process.judged(state, settings), wrong)
        if was_wrong:
            raise DataError("the model's logits are not finite: its weights, or the numbers of a row, are too large")
        if not len(work.row_R):
            break
        if not getattr(process, "bounded", False):
            _check_progress(blocks, work, settings, getattr(process, "growth", 0))
        step, logits_QV = _asked(denoise, process, state, settings, blocks, work, sample_B)
        wrong = ~(logits_QV < torch.inf).all()  # NaN, too; -inf is an id that may not stand there
        process.advance(step)
        if state.wrong is not None:
            wrong = wrong | state.wrong
        if state.moved is not None:
            blocks.relayout(state, work, state.moved)
            settings, stop = _laid(state, settings)
        if stop is not None:
            stop(state, process.live(state))
        if streamer is not None:
            streamer.put_draft(value=state.ids_BL, step=state.calls, state=state)
    if stop is not None:
        stop.finish(state)
    if streamer is not None:
        streamer.put(state.ids_BL)
        streamer.end()
    return state.result()


def _asked(
    denoise: Denoise,
    process: NoiseProcess,
    state: GenerationState,
    settings: Settings,
    blocks: Blocks,
    work: Work,
    sample_B: np.ndarray,
) -> tuple[Step, Tensor]:
    """Asks for the logits of a step. Returns the step, and the logits as the model gave them."""
    config, device = settings.config, state.ids_BL.device
    forward_R = blocks.taken_BJ[work.row_R].sum(1)
    given_R = blocks.steps_BJ[work.row_R].sum(1)
    columns = np.stack([work.row_R, work.step_R, work.steps_R, work.start_R, forward_R, given_R])
    row_R, step_R, steps_R, start_R, forward, row_steps_R = torch.from_numpy(columns).to(device, non_blocking=True)
    state.forwards_B = forward if work.every else state.forwards_B.index_copy(0, row_R, forward)
    state.calls += 1
    rows = State(
        target_RL=work.rows(state.batch.target_BL, row_R),
        block_RL=work.in_block_RL & work.rows(state.batch.target_BL, row_R),
        ids_RL=work.rows(state.ids_BL, row_R),
        pending_RL=work.rows(state.pending_BL, row_R),
        step_RL=work.rows(state.step_BL, row_R),
        confidence_RL=work.rows(state.confidence_BL, row_R),
        step_R=step_R,
        steps_R=steps_R,
        n_start_R=start_R,
        forward_R=forward,
        row_R=row_R,
        row_steps_R=row_steps_R,
        end_ids_X=settings.end_ids_X,
        n_rows=len(state.ids_BL),
        extras=state.extras,
    )
    info = StepInfo(
        seed=config.seed,
        row_R=work.row_R,
        copy_R=np.zeros_like(work.row_R),
        block_R=work.block_R,
        step_R=work.step_R,
        forward_R=forward_R,
        recent_R=work.recent_R,
        block_BL=blocks.block_BL,
        recent_RL=work.recent_RL,
        queried_R=work.queried_R,
        changed_R=work.changed_R,
        given_R=given_R,
    )
    noise = StepNoise(config.seed, sample_B[work.row_R], forward_R, work.predicted_R, device)
    beside = getattr(process, "beside", None)
    query = Query(
        rows.ids_RL,
        work.query_RL,
        row_R,
        batch=state.batch,
        step=None if getattr(process, "keeps_nothing", False) else info,
        at_P=work.at_Q,
        hidden=getattr(process, "hidden", False),
        extras=beside(rows, noise) if beside else {},
    )
    prediction = denoise(query)
    raw_QV = prediction.logits_PV.float()
    row_Q, position_Q = work.at_Q
    at_Q = (row_Q if work.every else row_R[row_Q]), position_Q
    whole = config.confidence == "vocabulary"
    logits_QV = settings.allowed.ban(raw_QV, at_Q, own=not whole)
    n_predicted_R = work.predict_RL.sum(1)
    step = Step(
        state=state,
        settings=settings,
        rows=rows,
        work=work,
        row_R=row_R,
        quota_R=settings.rules.schedule(n_predicted_R, start_R, rows),
        noise=noise,
        logits_QV=logits_QV,
        judged_QV=raw_QV if whole else logits_QV,
        query=query,
        hidden_QD=prediction.hidden_PD,
    )
    return step, logits_QV


def process_of(config: GenerationConfig) -> NoiseProcess:
    """Returns the noise process. Raises ConfigError for what is none, and for settings that it has no use for."""
    if config.process is None:
        return Absorbing()
    process: NoiseProcess = build_rule(config.process, "sampler.process", "start", "live", "judged", "advance")
    name = type(process).__qualname__
    usual = GenerationConfig()
    refused = getattr(process, "refuses", ())
    if getattr(process, "bounded", False) and not getattr(process, "ruled", False):
        refused = ("remasking", "schedule", "threshold", "select", "revise", *refused)
    for field in refused:
        if getattr(config, field) != getattr(usual, field):
            raise ConfigError(f"sampler.{field}: {name} has a way of its own, expected {getattr(usual, field)!r}")
    return process


def _start(process: NoiseProcess, state: GenerationState, settings: Settings, sample_B: np.ndarray) -> None:
    pending_B = state.pending_BL.sum(1).cpu().numpy()
    step_B = np.zeros(len(sample_B), dtype=np.int64)
    noise = StepNoise(settings.config.seed, sample_B, step_B, pending_B, state.ids_BL.device)
    process.start(state, settings, noise)


def _laid(state: GenerationState, settings: Settings) -> tuple[Settings, Stopping | None]:
    """Returns the settings, and what ends a span, for the canvas as it is laid out now."""
    state.moved, config = None, settings.config
    settings = replace(settings, allowed=settings.allowed.relayout(state.batch))
    if not config.early_stop:
        return settings, None
    ids_X, vocab = settings.end_ids_X, settings.vocab
    return settings, Stopping.of(state.batch, settings.allowed.allow_BL, vocab, ids_X, config.end_rule)


def _check_progress(blocks: Blocks, work: Work, settings: Settings, growth: int) -> None:
    """Raises ConfigError for a `select` rule that would go on for ever. growth: what the process may insert per row."""
    rules = settings.rules
    may_wait = bool(getattr(rules.select, "may_wait", False))
    if rules.revise is None and blocks.stuck(work, may_wait, growth):
        raise ConfigError(
            f"sampler.select: {type(rules.select).__qualname__} committed nothing in a row with masked positions; "
            + ("it took more steps than the block was given" if may_wait else "expected at least one")
        )
