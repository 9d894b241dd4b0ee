"""The attention patterns: full, by document, causal, partly causal, prefix-causal, block-causal, causal context.

All but `Documents` and `PartlyCausal` are one relation, `Pattern.sees`, over different numberings of the positions.
With streams it is also that of noised copies that stand behind one context, and of the rows of 2L positions of block
diffusion, noisy and clean (BD3LM, arXiv 2503.09573).

Shape letters: R rows, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mmdiff.config.saveable import saveable
from mmdiff.diffusion.keys import WORD_32, mixed
from mmdiff.parts.ranges import AtLeast0, AtLeast1, Share

from .pattern import Coordinates, Pattern, Visibility, rank

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch


@saveable
@dataclass(frozen=True)
class Full(Pattern):
    """Every position sees every other (LLaDA, Dream, ESM): the canvas is one block."""


@saveable
@dataclass(frozen=True)
class Documents(Pattern):
    """A position sees its own document: rows that are packed of several. Every model's pattern is multiplied by it."""

    def sees(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        return query.document == key.document


@saveable
@dataclass(frozen=True)
class Causal(Pattern):
    """A position sees itself and those before it: every position is a block."""

    exact_prefix = True

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        return rank(attend_RL, document_RL)


@saveable
@dataclass(frozen=True)
class PartlyCausal(Pattern):
    """Causal, and every later position is seen with probability `share`: half way from causal to full attention.

    DiffuLLaMA's attention mask annealing (arXiv 2410.17891, section 3.3) raises the share from step to step
    (`mmdiff.training.annealing`). Each pair of positions of a sample has one draw, a hash of `draw`, the sample, the
    document and the two positions; so a greater share adds pairs and takes none away, and padding changes nothing.
    """

    share: Share
    draw: AtLeast0 = 0

    drawn = True

    def sees(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        if self.share >= 1:
            return True
        row = mixed(mixed(mixed(self.draw) + query.sample) + query.document)
        later = mixed(mixed(row + query.block) + key.block) < round(self.share * (WORD_32 + 1))
        return super().sees(query, key) | later

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        return rank(attend_RL, document_RL)


@saveable
@dataclass(frozen=True)
class PrefixCausal(Pattern):
    """The context, all positions that are not targets, sees itself only; targets see everything."""

    exact_prefix = True
    one_target_block = True

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        return target_RL.long()


@saveable
@dataclass(frozen=True)
class CausalContext(Pattern):
    """The context is causal; targets see all of it and each other (DiffusionGemma, Nemotron-Labs-Diffusion).

    size: target positions per block, at most. A block sees what stands before it and itself; one that is finished is
        context, and causal, for the next. None: all targets are one block, which sees all context.
    media: whether slots that follow each other, those of a picture, see each other too (DiffusionGemma).
    """

    size: AtLeast1 | None = None
    media: bool = False

    exact_prefix = True

    @property
    def one_target_block(self) -> bool:  # type: ignore[override]
        return self.size is None

    @property
    def finished_is_context(self) -> bool:  # type: ignore[override]
        return self.size is not None

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        if self.size is None:
            return rank(attend_RL & ~target_RL, document_RL).masked_fill(target_RL, target_RL.shape[1])
        import torch

        number_RL, own_RL = rank(attend_RL, document_RL), rank(target_RL, document_RL)
        first_RL = rank(target_RL) - own_RL % self.size  # which of the row's targets its block begins with
        number_RN = torch.full_like(number_RL, number_RL.shape[1]).scatter_reduce(
            1, first_RL.where(target_RL, 0), number_RL.where(target_RL, number_RL.shape[1]), "amin"
        )
        return torch.where(target_RL, number_RN.gather(1, first_RL.where(target_RL, 0)), number_RL)


@saveable
@dataclass(frozen=True)
class BlockCausal(Pattern):
    """A position sees its own block in both directions, and all earlier blocks.

    size: positions per block.
    start: where blocks are counted from. row: from the first position that is not padding, context and targets alike,
        so that a block may hold the end of the one and the beginning of the other (LLaDA2, SDAR, Fast-dLLM v2).
        targets: all context is one block, the first, wherever it stands; the targets are cut into blocks behind it
        (BD3LM with a prompt, E2D2).
    """

    size: AtLeast1
    start: Literal["row", "targets"] = "row"

    exact_prefix = True

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        if self.start == "row":
            return rank(attend_RL, document_RL) // self.size
        import torch

        return torch.where(target_RL, 1 + rank(target_RL, document_RL) // self.size, 0)


def blocks_of(pattern: Pattern, batch: Batch) -> Tensor | int:
    """Returns the block of each position of a batch, as `Pattern.blocks`; with `media`, a run of slots is one."""
    block = pattern.blocks(batch.target_BL, batch.attend_BL, batch.segment_BL if batch.packed else 0)
    if isinstance(block, int) or not batch.slots or not pattern.media:
        return block
    import torch

    slot_BL = torch.stack([slot_BL >= 0 for slot_BL in batch.slots.values()]).any(0)
    begins_BL = slot_BL & ~torch.nn.functional.pad(slot_BL, (1, 0))[:, :-1]
    first_BL = block.where(begins_BL, 0).cummax(1).values  # blocks of context rise along a row
    return torch.where(slot_BL, first_BL, block)


def block_numbers(pattern: Pattern, batch: Batch) -> Tensor:
    """Returns int64 (B, L), the number of each position's block among all blocks of all documents of the batch.

    Within a row they are in the order of documents, then of blocks.
    """
    import torch

    document, block = batch.segment_BL if batch.packed else 0, blocks_of(pattern, batch)
    row_B1 = torch.arange(len(batch), device=batch.ids_BL.device)[:, None]
    code = torch.stack([torch.as_tensor(v).expand(batch.ids_BL.shape) for v in (row_B1, document, block)], -1)
    block_N: Tensor = code.flatten(0, 1).unique(dim=0, return_inverse=True)[1]
    return block_N.view(batch.ids_BL.shape)


def visibility(pattern: Pattern, batch: Batch, row_R: Tensor) -> Visibility:
    """Returns who sees whom on whole canvases of `batch`, of which row r is the row `row_R[r]`.

    pattern: the model's; that of the batch goes before.
    """
    pattern = batch.attention or pattern
    document, block = batch.segment_BL if batch.packed else 0, blocks_of(pattern, batch)
    sample = batch.index_B[:, None].expand(batch.ids_BL.shape) if pattern.drawn else 0
    return Visibility(pattern & Documents(), Coordinates(document, block, sample=sample).at(row_R))
