"""Who sees whom: an attention pattern, declared over integers of positions, and its mask for every kind of attention.

A pattern is one relation, `sees(query, key)`, over what is known of two positions: their document, block and stream.
The patterns there are stand in `mmdiff.canvas.patterns`; `a & b` sees what both see.

Shape letters: R rows, L canvas length, K positions that may be seen (keys), Q positions that are run (queries), which
are among the K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor  # who asks for a family's facts need not wait for torch


@dataclass(frozen=True)
class Coordinates:
    """What a pattern looks at: int64 tensors of one shape, (R, K) of a forward; 0: the same for all positions.

    document: which of the documents of a packed row a position belongs to.
    block: blocks are in the order in which they are filled, and block-causal patterns see no later one.
    stream: 0: clean ids; 1, 2, ...: noised ids at the same positions, which nothing but their own stream sees.
    sample: the global number of the row's sample, for patterns that are drawn.
    """

    document: Tensor | int = 0
    block: Tensor | int = 0
    stream: Tensor | int = 0
    sample: Tensor | int = 0

    def at(self, *index: Tensor) -> Coordinates:
        """Returns the coordinates of some positions, `[index]` of every tensor."""
        own = (self.document, self.block, self.stream, self.sample)
        return Coordinates(*(v if isinstance(v, int) else v[index] for v in own))


class Pattern:
    """An attention pattern: a frozen dataclass that extends this, declared `saveable`. Most only number the blocks.

    exact_prefix: whether no position sees a later block, so that keys and values of finished blocks stay as they are
        whatever is written behind them: a cache may keep them and be exact.
    one_target_block: whether all targets are one block, behind all context, which then can be run once, alone.
    finished_is_context: whether a block of targets is attended to otherwise once it is finished: as context.
    drawn: whether it is random: a batch of training attends so (`Batch.attention`), a model does not.
    media: whether slots of media that follow each other are one block.
    """

    node: dict[str, Any]
    exact_prefix: bool = False
    one_target_block: bool = False
    finished_is_context: bool = False
    drawn: bool = False
    media: bool = False

    def sees(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        """Returns whether the one position sees the other, of any shapes that broadcast.

        Here: a position sees its own block in its own stream, and the clean ids of earlier blocks. In every pattern it
        sees those of its own coordinates, so that the softmax is over some position. True: all see all, and no mask is
        made; that is what operators make of coordinates that are 0.
        """
        own = (query.stream == key.stream) & (query.block == key.block)
        return own | ((key.stream == 0) & (key.block < query.block))

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        """Returns the block of each position of whole canvases, int64 (R, L); 0: the pattern looks at none.

        target_RL: bool. attend_RL: bool, False on padding, whose block is any.
        """
        return 0

    def __and__(self, other: Pattern) -> Pattern:
        return All((self, other))


@saveable
@dataclass(frozen=True)
class All(Pattern):
    """What every one of some patterns sees. Raises ConfigError where two of them number blocks: a position has one."""

    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        flat = [q for p in self.patterns for q in (p.patterns if isinstance(p, All) else (p,))]
        object.__setattr__(self, "patterns", tuple(flat))
        self.node["patterns"] = [p.node for p in flat]
        numbering = [p for p in flat if type(p).blocks is not Pattern.blocks]
        if len(numbering) > 1:
            raise ConfigError(f"attention: {numbering[0]} and {numbering[1]} both number blocks, expected one of them")

    @property
    def exact_prefix(self) -> bool:  # type: ignore[override]
        return any(p.exact_prefix for p in self.patterns)

    @property
    def one_target_block(self) -> bool:  # type: ignore[override]
        return any(p.one_target_block for p in self.patterns)

    @property
    def finished_is_context(self) -> bool:  # type: ignore[override]
        return any(p.finished_is_context for p in self.patterns)

    @property
    def media(self) -> bool:  # type: ignore[override]
        return any(p.media for p in self.patterns)

    def sees(self, query: Coordinates, key: Coordinates) -> Tensor | bool:
        seen: Tensor | bool = True
        for pattern in self.patterns:
            seen = seen & pattern.sees(query, key)
        return seen

    def blocks(self, target_RL: Tensor, attend_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor | int:
        found = (p.blocks(target_RL, attend_RL, document_RL) for p in self.patterns)
        return next((block for block in found if not isinstance(block, int)), 0)


@dataclass(frozen=True)
class Visibility:
    """A pattern over the positions of one forward.

    key: the coordinates (R, K) of all positions that may be seen, kept keys included.
    at_RQ: int64, where among the K the positions stand that are run now; None: they are the last ones.
    """

    pattern: Pattern
    key: Coordinates
    at_RQ: Tensor | None = None

    def mask(self, x_RQD: Tensor, attend_RK: Tensor | None, attention: str) -> Any:
        """Returns the mask in the form that the attention takes: bool or additive (R, 1, Q, K), or a BlockMask.

        A position always sees itself: padding may see nothing else, and a softmax over no position is not a number.
        Where the pattern sees everything, `attend_RK` is returned as it is, so that no mask of pairs is made.
        Raises ConfigError under a flash attention, which takes none.
        """
        if self.pattern.sees(self.key, self.key) is True:
            return attend_RK
        if "flash" in attention:
            raise ConfigError(f"attention {attention!r}: {self.pattern} needs sdpa, eager or flex_attention")
        import torch

        (rows, queries), device = x_RQD.shape[:2], x_RQD.device
        given = (attend_RK, self.key.document, self.key.block, self.key.stream)
        keys = next(v.shape[1] for v in given if v is not None and not isinstance(v, int))

        def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = query + (keys - queries) if self.at_RQ is None else self.at_RQ[row, query]
            seen = self.pattern.sees(self.key.at(row, own), self.key.at(row, key))
            if attend_RK is not None:
                seen = attend_RK[row, key].bool() & seen
            return seen | (own == key)

        if "flex" in attention:
            from torch.nn.attention.flex_attention import create_block_mask

            return create_block_mask(sees, rows, None, queries, keys, device=device, _compile=x_RQD.is_cuda)
        row_R, query_Q, key_K = (torch.arange(n, device=device) for n in (rows, queries, keys))
        seen_R1QK = sees(row_R[:, None, None, None], row_R, query_Q[:, None], key_K).expand(rows, 1, queries, keys)
        if "eager" in attention:
            return torch.where(seen_R1QK, x_RQD.new_zeros(()), torch.finfo(x_RQD.dtype).min)
        return seen_R1QK


def rank(mask_RL: Tensor, document_RL: Tensor | int = 0) -> Tensor:
    """Returns int64 (R, L): how many positions of `mask_RL` stand before each position, in its document."""
    if isinstance(document_RL, int):
        return mask_RL.long().cumsum(1) - mask_RL.long()
    import torch

    order_L = torch.arange(mask_RL.shape[1], device=mask_RL.device)
    before_RLL = (order_L[:, None] > order_L) & (document_RL[:, :, None] == document_RL[:, None])
    return (before_RLL & mask_RL[:, None]).sum(2)
