"""Noise by a matrix of transitions (D3PM): over the few ids that all target positions may hold.

Shape letters: B samples, L canvas length, P positions, N ids, S states (N, or N + 1 with the mask), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, allow_sets
from mmdiff.canvas.generation import GenerationState
from mmdiff.canvas.vocab import Vocab
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.diffusion.transitions import Spectrum, Uniform, spectrum
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.samplers.blocks import positions
from mmdiff.samplers.step import Settings, Step

from .hybrid import pick, times

ROUNDING = 1e-12
"""Probabilities up to this are taken for 0: an id that may not stand there, and the mask at the last step, stay out."""


@dataclass(frozen=True)
class States:
    """ids_S: the id of each state, the mask last where it is one. state_V: the state of each id that is one, else 0.
    ids: how many states are not the mask."""

    spectrum: Spectrum
    ids_S: Tensor
    state_V: Tensor
    ids: int

    @classmethod
    def of(cls, batch: Batch, vocab: Vocab, transition: Any) -> States:
        """Returns the states of the target positions of a batch.

        Raises ConfigError where these may hold different ids, or more than the matrix has (`transitions.MOST`).
        """
        allow_KV, allow_BL = allow_sets(batch, vocab)
        sets = allow_KV[allow_BL[batch.target_BL].unique()].unique(dim=0)
        if len(sets) != 1:
            raise ConfigError(f"process: Matrix needs one allow-set for all target positions, these have {len(sets)}")
        ids_N = sets[0].nonzero().squeeze(1)
        found = spectrum(transition, tuple(ids_N.tolist()), batch.ids_BL.device)
        ids_S = torch.cat([ids_N, ids_N.new_tensor([vocab.mask_id])]) if found.masks else ids_N
        state_V = torch.zeros(vocab.size, dtype=torch.int64, device=ids_N.device)
        state_V[ids_S] = torch.arange(len(ids_S), device=ids_N.device)
        return cls(found, ids_S, state_V, len(ids_N))


@part
@dataclass(frozen=True)
class Matrix:
    """D3PM's noise (arXiv 2107.03006) in continuous time; the steps of a block are even ones from time 1 to 0.

    A step draws every position of the block anew from the posterior; tokens are committed at the last. Positions hold
    the ids of one allow-set, few enough for a dense matrix, or plain text of a small vocabulary.

    transition: node of the kind of noise (mmdiff.diffusion.transitions): `Uniform`, `Masking`, `Gaussian`,
        `Neighbours`.
    given: what the model's law of a token is given: `others`, all positions but its own, the optimum of the bound
        (mmdiff.objectives.replacing.hybrid); or `all`, its own noised id included, that of plain cross-entropy.
    """

    transition: Any = field(default_factory=Uniform)
    given: Literal["others", "all"] = "others"

    bounded = True  # it takes the steps it was given, whatever is committed

    @property
    def masks(self) -> bool:
        """Whether noise ever puts the mask id at a position."""
        return bool(getattr(self.transition, "masks", True))

    def __post_init__(self) -> None:
        if not callable(getattr(self.transition, "rates", None)):
            raise ConfigError(f"process.transition: {self.transition!r:.80} has no `rates`, expected a transition")

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        states = States.of(state.batch, settings.vocab, self.transition)
        settings.kept["matrix"] = states
        if states.spectrum.masks:  # at time 1 every token is the mask
            return
        at_P = positions(state.pending_BL, int(noise.count_R.sum()))
        state.ids_BL = state.ids_BL.index_put(at_P, states.ids_S[(noise.uniform("start") * states.ids).floor().long()])

    def live(self, state: GenerationState) -> Tensor:
        return state.pending_BL

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return None

    def advance(self, step: Step) -> None:
        states: States = step.settings.kept["matrix"]
        rows, at_P = step.rows, step.work.at_P
        p_PN = step.law(step.logits_QV[:, states.ids_S[: states.ids]])
        now_P = states.state_V[rows.ids_RL[at_P]]
        weight_PS = states.spectrum.posterior(p_PN, now_P, *times(step), own=self.given == "all")
        weight_PS = torch.where(weight_PS > ROUNDING, weight_PS, 0.0)
        state_P = pick(weight_PS, step.noise.uniform("token"))
        ids_P = states.ids_S[state_P]
        confidence_P = torch.nn.functional.pad(p_PN, (0, 1)).gather(1, state_P[:, None]).squeeze(1)
        last_P = (rows.step_R >= rows.steps_R)[at_P[0]]
        step.state.ids_BL = step.state.ids_BL.index_put(step.at_P, ids_P)
        step.state.commit(step.at_P, last_P, ids_P, confidence_P)
