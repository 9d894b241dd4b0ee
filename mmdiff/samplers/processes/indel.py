"""Token editing that also deletes and inserts within a block of fixed length (LLaDA2.2).

Shape letters: B samples, R rows of a step, L canvas length, Q queried positions, V vocabulary, M steps that a block may
take.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.generation import GenerationState
from mmdiff.diffusion.draw import confidence
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, Share
from mmdiff.samplers.step import Settings, Step

EMPTY = -1  # in the record of what was written


@part
@dataclass(frozen=True)
class InsertDelete:
    """LLaDA2.2's decoding: every step may commit, replace, delete and insert tokens of the current block.

    A masked position is committed where the probability of its likeliest token is above `threshold`; at least 1 + m
    are, m being the masked positions that an edit made; all of them once none is left that the block began with. A
    committed token is replaced where another is likelier than `edit`. A `delete` that is committed takes its position
    away: what follows moves up, and a masked position is added at the block's end. A `split` puts a masked position
    before the token that stood there: what follows moves down, and what is moved out of the block is lost. Both are
    tokens by spelling or id. A block in a state that it has been in takes its least likely change otherwise: the
    likeliest token that was not written there. It ends when a step changes nothing, or `most` steps after the last of
    its own masked positions was committed, without further deletions and insertions.

    Given tokens stay where they are, and tokens move between them only. Needs `sampler.block_length`.
    """

    delete: str | AtLeast0
    split: str | AtLeast0
    threshold: Share = 0.5
    edit: Share = 0.0
    most: AtLeast0 = 16

    bounded = True
    refuses = ("constraint", "draft", "steps", "temperature", "eos_policy", "end_rule")

    def start(self, state: GenerationState, settings: Settings, noise: StepNoise) -> None:
        if settings.config.block_length is None:
            raise ConfigError("sampler.block_length: InsertDelete edits blocks of a fixed length, expected a number")
        self._ids(settings)
        steps = settings.config.block_length + self.most + 1
        state.extras["own"] = state.pending_BL  # masked positions that the block began with, wherever they are now
        state.extras["free"] = state.pending_BL  # whatever is not given
        state.extras["done"] = torch.zeros_like(state.pending_BL)
        state.extras["after"] = torch.zeros_like(state.ids_BL)  # steps since the last own one was committed
        for name in ("seen", "written"):  # canvases before each step of the block, and what the step wrote
            state.extras[name] = torch.full_like(state.ids_BL, EMPTY)[..., None].repeat(1, 1, steps)

    def live(self, state: GenerationState) -> Tensor:
        begun_BL = state.extras["seen"][..., 0] != EMPTY  # a block that an end id filled never begins
        return state.extras["free"] & ~state.extras["done"] & (begun_BL | state.pending_BL)

    def judged(self, state: GenerationState, settings: Settings) -> Tensor | None:
        return state.extras["free"]

    def advance(self, step: Step) -> None:
        work, rows = step.work, step.rows
        extras = {name: work.rows(values, step.row_R) for name, values in step.state.extras.items()}
        here_RL, own_RL = extras["free"] & work.in_block_RL, extras["own"]
        masked_RL = rows.pending_RL & here_RL
        began_R = (own_RL & masked_RL).any(1)
        after_RL = extras["after"] + (here_RL & ~began_R[:, None])
        last_R = ((after_RL * here_RL).amax(1) > self.most) | (rows.step_R >= extras["seen"].shape[2])
        ids_RL, confidence_RL = self._likeliest(step, last_R)
        commit_RL = self._committed(confidence_RL, masked_RL, own_RL & masked_RL, last_R)
        edit_RL = here_RL & ~masked_RL & (ids_RL != rows.ids_RL) & (confidence_RL > self.edit)
        write_RL = commit_RL | edit_RL
        ids_RL = self._otherwise(step, extras, ids_RL, confidence_RL, write_RL & (ids_RL != rows.ids_RL), ~last_R)
        at_M = rows.step_R[:, None, None] - 1 == torch.arange(extras["seen"].shape[2], device=ids_RL.device)
        for name, values_RL in (("seen", rows.ids_RL), ("written", torch.where(write_RL, ids_RL, EMPTY))):
            values_RLM = torch.where(at_M, values_RL[..., None], extras[name])
            self._put(step, name, torch.where(here_RL[..., None], values_RLM, extras[name]))
        self._put(step, "after", after_RL)
        ends_R = last_R | ~write_RL.any(1)
        self._put(step, "done", extras["done"] | (here_RL & ends_R[:, None]))
        self._move(step, here_RL, own_RL, write_RL, ids_RL, confidence_RL)

    def _likeliest(self, step: Step, last_R: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ids and fp32 (R, L), the likeliest tokens and their probabilities; no edit at the last step."""
        at_Q, rows = step.work.at_Q, step.rows
        ids_Q = step.logits_QV.argmax(-1)
        confidence_Q = confidence(step.judged_QV, ids_Q)
        edits = torch.tensor(self._ids(step.settings), device=ids_Q.device)
        words_Q = step.logits_QV.index_fill(1, edits, -torch.inf).argmax(-1)
        ids_Q = torch.where(last_R[at_Q[0]], words_Q, ids_Q)
        confidence_RL = torch.zeros(rows.ids_RL.shape, device=ids_Q.device).index_put(at_Q, confidence_Q)
        return rows.ids_RL.index_put(at_Q, ids_Q), confidence_RL

    def _committed(self, confidence_RL: Tensor, masked_RL: Tensor, own_RL: Tensor, last_R: Tensor) -> Tensor:
        """Returns bool (R, L), the masked positions that are committed."""
        least_R = 1 + masked_RL.sum(1) - own_RL.sum(1)
        above_RL = masked_RL & (confidence_RL > self.threshold)
        order_RL = torch.where(masked_RL, confidence_RL, -1.0).argsort(dim=1, descending=True, stable=True)
        first_RL = masked_RL & (order_RL.argsort(dim=1) < least_R[:, None])
        some_RL = torch.where((above_RL.sum(1) >= least_R)[:, None], above_RL, first_RL)
        return torch.where((own_RL.any(1) & ~last_R)[:, None], some_RL, masked_RL)

    def _otherwise(
        self,
        step: Step,
        extras: dict[str, Tensor],
        ids_RL: Tensor,
        confidence_RL: Tensor,
        change_RL: Tensor,
        may_R: Tensor,
    ) -> Tensor:
        """Returns the ids, with another one at the least likely change of rows whose block has been as it is now."""
        here_RL = extras["free"] & step.work.in_block_RL
        same_RM = ((extras["seen"] == step.rows.ids_RL[..., None]) | ~here_RL[..., None]).all(1)
        again_R = same_RM.any(1) & change_RL.any(1) & may_R
        at_R = torch.where(change_RL, confidence_RL, torch.inf).argmin(1)
        index_R = torch.arange(len(at_R), device=at_R.device)
        index_RL = torch.zeros_like(ids_RL).index_put(
            step.work.at_Q, torch.arange(len(step.logits_QV), device=ids_RL.device)
        )
        logits_RV = step.logits_QV[index_RL[index_R, at_R]]
        tried_RM = extras["written"][index_R, at_R]
        floor_RM = torch.where(tried_RM == EMPTY, 0.0, -torch.inf)
        logits_RV = logits_RV.scatter_add(1, tried_RM.clamp(min=0), floor_RM.to(logits_RV))
        other_R = torch.where(again_R, logits_RV.argmax(1), ids_RL[index_R, at_R])
        return ids_RL.index_put((index_R, at_R), other_R)

    def _move(
        self, step: Step, here_RL: Tensor, own_RL: Tensor, write_RL: Tensor, ids_RL: Tensor, confidence_RL: Tensor
    ) -> None:
        """Write the tokens, then carry deletions and insertions out between given tokens, and blocks' ends."""
        delete, split = self._ids(step.settings)
        rows, mask_id, length = step.rows, step.settings.vocab.mask_id, ids_RL.shape[1]
        now_R1 = rows.forward_R[:, None].int()
        split_RL = write_RL & (ids_RL == split)
        new_RL = torch.where(write_RL & ~split_RL, ids_RL, rows.ids_RL)
        values = {
            "ids": new_RL,
            "step": torch.where(write_RL & ~split_RL, now_R1, rows.step_RL),
            "sure": torch.where(write_RL & ~split_RL, confidence_RL, rows.confidence_RL),
            "own": own_RL,
        }
        count_RL = (1 - (write_RL & (ids_RL == delete)).long() + split_RL.long()) * here_RL
        at_L = torch.arange(length, device=ids_RL.device)
        first_RL = torch.where(here_RL, -1, at_L).cummax(1).values + 1  # where the run of free positions begins
        before_RL = count_RL.cumsum(1) - count_RL
        run_RL = before_RL.gather(1, first_RL.clamp(max=length - 1))
        to_RL = first_RL + before_RL - run_RL + split_RL.long()
        end_RL = torch.where(here_RL, length, at_L).flip(1).cummin(1).values.flip(1)
        to_RL = torch.where(here_RL & (count_RL > 0) & (to_RL < end_RL), to_RL, length)
        empty = {"ids": mask_id, "step": 0, "sure": 0.0, "own": False}
        moved = {}
        for name, values_RL in values.items():
            out_RL = torch.where(here_RL, empty[name], values_RL).to(values_RL.dtype)
            spare_RL = torch.cat([out_RL, out_RL[:, :1]], 1).scatter(1, to_RL, values_RL)
            moved[name] = spare_RL[:, :-1]
        state = step.state
        pending_RL = torch.where(here_RL, moved["ids"] == mask_id, rows.pending_RL)
        self._put(step, "own", moved["own"])
        for field, values_RL in (
            ("ids_BL", moved["ids"]),
            ("step_BL", moved["step"]),
            ("confidence_BL", moved["sure"]),
            ("pending_BL", pending_RL),
        ):
            old = getattr(state, field)
            setattr(state, field, values_RL if step.work.every else old.index_copy(0, step.row_R, values_RL))

    def _put(self, step: Step, name: str, values_RL: Tensor) -> None:
        old = step.state.extras[name]
        step.state.extras[name] = values_RL if step.work.every else old.index_copy(0, step.row_R, values_RL)

    def _ids(self, settings: Settings) -> tuple[int, int]:
        where = "sampler.process"
        return settings.vocab.id_of(self.delete, f"{where}.delete"), settings.vocab.id_of(self.split, f"{where}.split")
