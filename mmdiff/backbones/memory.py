"""Keys and values of positions that are not run again, in the form that transformers' attention layers take.

Shape letters: R rows, H heads of keys, C positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Memory(Cache):
    """What one forward computed for its positions, for later forwards of other positions that attend to them.

    A new one takes in what it is given; `chosen` returns one that is only read: each layer then attends to what is kept
    and, behind it, to its own positions. Keys are kept rotated, so they keep the position ids that they were run at.
    """

    def __init__(self, layers: int) -> None:
        self.positions = [_Layer() for _ in range(layers)]
        super().__init__(layers=[*self.positions])

    def chosen(self, row_R: Tensor, position_RC: Tensor | None = None) -> Memory:
        """Returns the memory of the rows `row_R`, and of the positions `position_RC` of each; None: all positions."""
        out = Memory(len(self.positions))
        for new, old in zip(out.positions, self.positions, strict=True):
            assert old.keys is not None and old.values is not None
            keys, values = old.keys[row_R], old.values[row_R]
            if position_RC is not None:
                at = position_RC[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
                keys, values = keys.gather(2, at), values.gather(2, at)
            new.keep(keys, values)
        return out


class _Layer(CacheLayerMixin):
    kept = False  # whether it is only read

    def keep(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.is_initialized, self.kept = keys, values, True, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.kept or self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)

    def get_seq_length(self) -> int:
        return int(self.keys.shape[2]) if self.kept and self.keys is not None else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1
