"""A causal model that verifies what was drafted: Guided Diffusion (arXiv 2505.21467), and lossless speculation.

A step drafts all pending positions of the block. A model that reads from left to right then judges all of them in one
forward, and the draft is committed up to where it disagrees.

Shape letters: B samples, R rows of a step, L canvas length, P predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.draw import draw
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, PositiveShare
from mmdiff.protocols import Denoise
from mmdiff.samplers.step import Offer, Proposer, Step

from .reading import check_order, left_to_right

WHERE = "sampler.denoise"


@part
@dataclass(frozen=True)
class Verifier:
    """Commits the draft from left to right while the verifier agrees, and at least one token.

    model: the folder of a saved model or finished run with the same vocabulary, or, in Python, a model; None: the model
        itself, read from left to right.
    top_k: it agrees with its so many likeliest ids. probability: with ids to which it gives that much. relative: with
        ids that are so many times as likely as its likeliest. None of them: with its likeliest id only.
    mismatch: the token at the first position where it disagrees: `verifier`, its likeliest, as in speculative decoding
        and the published code; `draft`: the draft ends before it, and is committed there only if nothing else is (as
        the paper has it).
    """

    model: Any = None
    top_k: AtLeast1 | None = None
    probability: PositiveShare | None = None
    relative: PositiveShare | None = None
    mismatch: Literal["verifier", "draft"] = "verifier"

    def proposer(self, denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Proposer:
        given = [name for name in ("top_k", "probability", "relative") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{WHERE}.{given[1]}: {given[0]} says already when a verifier agrees; expected one")
        check_order(config, "Verifier")
        if config.constraint is not None and self.mismatch == "verifier":
            raise ConfigError(f"{WHERE}.mismatch: a verifier's token may leave the grammar; expected draft")
        read = left_to_right(denoise, self.model, batch, WHERE)

        def verified(step: Step, logits_PV: Tensor) -> Offer:
            ids_P = step.propose(logits_PV)
            own_PV = judged(read, step, ids_P)
            own_P = own_PV.argmax(-1)
            wrong_P = ~self._agrees(own_PV, own_P, ids_P)
            before_P = rejected_before(step, wrong_P)
            if self.mismatch == "verifier":
                return Offer(torch.where(wrong_P, own_P, ids_P), before_P == 0)
            first_P = rejected_before(step, torch.ones_like(wrong_P)) == 0
            return Offer(ids_P, ((before_P == 0) & ~wrong_P) | first_P)

        return verified

    def _agrees(self, own_PV: Tensor, own_P: Tensor, ids_P: Tensor) -> Tensor:
        """Returns bool (P,), whether the verifier would have taken these ids."""
        logit_P = own_PV.gather(1, ids_P[:, None]).squeeze(1)
        if self.top_k is not None:
            edge_P = own_PV.topk(min(self.top_k, own_PV.shape[1]), dim=-1).values[:, -1]
            return (logit_P >= edge_P) & (logit_P > -torch.inf)
        if self.probability is not None:
            return (logit_P - own_PV.logsumexp(1)).exp() >= self.probability
        if self.relative is not None:
            return (logit_P - own_PV.amax(1)).exp() >= self.relative
        return ids_P == own_P


@part
@dataclass(frozen=True)
class Speculate:
    """Speculative sampling (arXiv 2211.17192) with the diffusion model's draft: the law is that of the causal model.

    At temperature 0 the text is what the causal model decodes greedily from left to right, token for token, in as many
    forwards as it disagrees with the draft; above, it is a sample of that model at this temperature, `top_k` and
    `top_p` (self-speculation: a model that is trained both ways, as Eso-LM and Nemotron-Labs-Diffusion).

    A drafted id x is kept with probability min(1, p(x) / q(x)), q its law in the draft; the first that is not is drawn
    anew in proportion to max(0, p - q).

    model: as in `Verifier`; None: the model itself, read from left to right.
    """

    model: Any = None

    def proposer(self, denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Proposer:
        check_order(config, "Speculate")
        if config.constraint is not None:
            raise ConfigError("sampler.constraint: Speculate has the law of the causal model; use Verifier")
        if config.temperature_end is not None:
            raise ConfigError("sampler.temperature_end: Speculate has one law for all steps; leave it out")
        read = left_to_right(denoise, self.model, batch, WHERE)

        def speculated(step: Step, logits_PV: Tensor) -> Offer:
            ids_P = step.propose(logits_PV)
            q_PV, p_PV = step.law(logits_PV), step.law(judged(read, step, ids_P))
            q_P, p_P = (law_PV.gather(1, ids_P[:, None]).squeeze(1) for law_PV in (q_PV, p_PV))
            wrong_P = step.noise.uniform("accept") * q_P >= p_P
            rest_PV = (p_PV - q_PV).clamp(min=0)
            rest_PV = torch.where(rest_PV.sum(1, keepdim=True) > 0, rest_PV, p_PV)  # p = q: nothing is drawn anew
            ones_P = torch.ones(len(ids_P), device=ids_P.device)
            anew_P = draw(rest_PV.log(), ones_P, step.noise.uniform("anew"))
            return Offer(torch.where(wrong_P, anew_P, ids_P), rejected_before(step, wrong_P) == 0)

        return speculated


def judged(read: Callable[..., Any], step: Step, ids_P: Tensor) -> Tensor:
    """Returns the verifier's logits (P, V) of the predicted positions of a step on which `ids_P` stand."""
    ids_RL = step.rows.ids_RL.index_put(step.work.at_P, ids_P)
    query = replace(step.query, ids_RL=ids_RL, predict_RL=step.work.predict_RL, at_P=step.work.at_P)
    logits_PV = read(query).logits_PV.float()
    step.state.count_call(logits_PV)
    return step.settings.allowed.ban(logits_PV, step.at_P, own=True)


def rejected_before(step: Step, wrong_P: Tensor) -> Tensor:
    """Returns int64 (P,), how many positions before it, in its row, are marked."""
    wrong_RL = torch.zeros_like(step.work.predict_RL).index_put(step.work.at_P, wrong_P)
    before_RL = wrong_RL.cumsum(1) - wrong_RL.long()
    return before_RL[step.work.at_P]
