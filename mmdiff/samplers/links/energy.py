"""Energy resampling (EDLM, arXiv 2410.21357): of several proposals for all predicted positions, a likely one is taken.

A step draws k candidates of the whole rest from the model's marginals, which know nothing of each other, and picks one
with weights softmax(-E); it is then committed in part, as any proposal. With enough candidates that is a sample of
mu exp(-E) / Z.

Shape letters: B samples, R rows of a step, L canvas length, K candidates, P predicted positions, N scored positions,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Query
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.diffusion.draw import draw
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Positive, Share
from mmdiff.protocols import Denoise
from mmdiff.samplers.step import Offer, Proposer, Step

from .reading import left_to_right


@dataclass(frozen=True)
class Candidate:
    """Canvases on which the predicted positions are filled. Those of later blocks still hold the mask id.

    query: what the model was asked: rows, positions, seed and step. left_RL: bool, positions that are still masked.
    log_p_R: float64, log-probability of what was drawn, under the product of the marginals.
    """

    ids_RL: Tensor
    query: Query
    left_RL: Tensor
    log_p_R: Tensor


Energies = Callable[[Candidate], Tensor]
"""candidate -> energy (R,) in nats, +inf for what is impossible. It must not wait for the device."""


class Energy(Protocol):
    """A node of `Resample.energy`."""

    def bind(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Energies:
        """Returns the energy of canvases of `batch`. denoise: of the model that generates. Raises ConfigError."""
        ...


@part
@dataclass(frozen=True)
class Reader:
    """E = log mu(x) - log p(x), p the probability that a causal model gives the whole canvas from left to right.

    Of a canvas, all that stands from its first target position on is scored, text behind a gap included, up to the
    first position that is still masked.

    model: the folder of a saved model or finished run with the same vocabulary; None: the model itself.
    """

    model: Any = None

    def bind(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Energies:
        read = left_to_right(denoise, self.model, batch, "sampler.denoise.energy")
        scored_BL = batch.attend_BL & (batch.target_BL.cumsum(1) > 0)
        for slot_BL in batch.slots.values():
            scored_BL = scored_BL & (slot_BL < 0)
        scored = scored_BL.cpu().numpy()

        def energy(candidate: Candidate) -> Tensor:
            query, ids_RL = candidate.query, candidate.ids_RL
            assert query.step is not None
            scored_RL = scored[query.step.row_R]
            at_2N = torch.from_numpy(np.stack(scored_RL.nonzero())).to(ids_RL.device, non_blocking=True)
            at_N = (at_2N[0], at_2N[1])
            predict_RL = torch.zeros_like(candidate.left_RL).index_put(at_N, at_2N.new_ones((), dtype=torch.bool))
            asked = replace(query, ids_RL=ids_RL, predict_RL=predict_RL, at_P=at_N, step=None, fresh=None)
            logits_NV = read(asked).logits_PV.float()
            log_p_N = logits_NV.gather(1, ids_RL[at_N][:, None]).squeeze(1) - logits_NV.logsumexp(1)
            log_p_RL = torch.zeros(ids_RL.shape, dtype=torch.float64, device=ids_RL.device)
            log_p_RL = log_p_RL.index_put(at_N, log_p_N.double())
            whole_RL = candidate.left_RL.cumsum(1) == 0
            return candidate.log_p_R - torch.where(whole_RL, log_p_RL, 0.0).sum(1)

        return energy


@part
@dataclass(frozen=True)
class Resample:
    """Draws `candidates` proposals and takes one with weights softmax(-energy / temperature).

    energy: node of the energy. low, high: it does so while the share of the block's positions that are still masked
    lies between them, the step's own included (1 at the first); at other steps, the first candidate is taken, which is
    that of a sampler without an energy.
    """

    energy: Any = field(default_factory=Reader)
    candidates: AtLeast1 = 2
    temperature: Positive = 1.0
    low: Share = 0.4
    high: Share = 1.0

    def proposer(self, denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Proposer:
        if not config.temperature and not config.temperature_end:
            raise ConfigError("sampler.temperature: at 0 all candidates of Resample are the same; expected above 0")
        if self.low > self.high:
            raise ConfigError(f"sampler.denoise.low: {self.low} is above high={self.high}")
        if not callable(getattr(self.energy, "bind", None)):
            raise ConfigError(f"sampler.denoise.energy: {type(self.energy).__qualname__} has no `bind`")
        energy: Energies = self.energy.bind(denoise, batch, vocab)
        return lambda step, logits_PV: Offer(self._drawn(step, logits_PV, energy))

    def _drawn(self, step: Step, logits_PV: Tensor, energy: Energies) -> Tensor:
        share_R = step.work.predicted_R / np.maximum(step.work.start_R, 1)
        inside_R = (share_R >= self.low) & (share_R <= self.high)
        first_P = step.propose(logits_PV)
        if self.candidates == 1 or not inside_R.any():
            return first_P
        rows, at_P = step.rows, step.work.at_P
        log_law_PV = step.law(logits_PV).log().clamp(min=-1e9)  # a grammar may want what the model rules out
        left_RL = rows.pending_RL & ~step.work.predict_RL
        ids_KP, energy_KR = [first_P], []
        for k in range(1, self.candidates):
            ids_KP.append(replace(step, noise=step.noise.fold(f"candidate{k}")).propose(logits_PV))
        for ids_P in ids_KP:
            log_p_RL = torch.zeros(rows.ids_RL.shape, dtype=torch.float64, device=ids_P.device)
            log_p_RL = log_p_RL.index_put(at_P, log_law_PV.gather(1, ids_P[:, None]).squeeze(1))
            candidate = Candidate(rows.ids_RL.index_put(at_P, ids_P), step.query, left_RL, log_p_RL.sum(1))
            energy_KR.append(energy(candidate).double())
            step.state.count_call(-energy_KR[-1])
        weight_RK = -torch.stack(energy_KR, 1) / self.temperature
        none_R1 = (weight_RK == -torch.inf).all(1, keepdim=True)  # all are impossible: the first is as good as any
        weight_RK = torch.where(none_R1 & (torch.arange(self.candidates, device=none_R1.device) == 0), 0.0, weight_RK)
        ones_R = torch.ones(len(weight_RK), device=weight_RK.device)
        pick_R = draw(weight_RK, ones_R, step.noise.row_uniform("energy"))
        pick_R = pick_R * torch.from_numpy(inside_R).to(pick_R.device, non_blocking=True)
        return torch.stack(ids_KP, 1).gather(1, pick_R[at_P[0]][:, None]).squeeze(1)
