"""Keys and values of whole canvases, in the form that transformers' attention layers take.

Shape letters: S slots (a canvas each), H heads of keys, L canvas length, N positions of a forward, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Memory(Cache):
    """A buffer (S, H, L + 1, D) of keys and values per layer, written in place.

    `whole` sets it to take in whole canvases of some slots: attention then sees what is run. `part` sets it for a
    forward of some positions of all slots: their keys and values are written where they stand, and attention sees the
    buffer. The column behind the canvas takes what fills up rows of fewer positions. Keys are kept rotated, so they
    keep the position ids that they were run at. Memory grows with layers x S x L.
    """

    def __init__(self, layers: int, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.slot_R: Tensor | None = None  # of a whole forward: the slots of its rows; None: all
        self.at_SN: Tensor | None = None  # of a forward of some positions: where they stand
        self.ragged = False  # whether at_SN has positions behind the canvas
        self.buffers = [_Layer(self) for _ in range(layers)]
        super().__init__(layers=[*self.buffers])

    def whole(self, slot_R: Tensor | None) -> None:
        self.slot_R, self.at_SN = slot_R, None

    def part(self, at_SN: Tensor, *, ragged: bool) -> None:
        self.at_SN, self.ragged = at_SN, ragged

    def keep(self, slot_R: Tensor) -> None:
        """Leave out all slots but these, in this order."""
        self.slots = len(slot_R)
        for layer in self.buffers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[slot_R], layer.values[slot_R]


@dataclass(frozen=True)
class Whole:
    """Takes in keys and values of whole canvases. slot_R: the slots of its rows; None: all."""

    keys: Tensor
    values: Tensor
    slot_R: Tensor | None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if self.slot_R is None:
                buffer[:, :, : states.shape[2]] = states
            else:
                buffer[self.slot_R, :, : states.shape[2]] = states
        return key_states, value_states


@dataclass(frozen=True)
class Part:
    """Takes in keys and values of some positions, and gives those of all. at_SN: where they stand, the column behind
    the canvas where there are fewer. ragged: whether that column is seen; a mask leaves it out."""

    keys: Tensor
    values: Tensor
    at_SN: Tensor
    ragged: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer.scatter_(2, self.at_SN[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]), states)
        if self.ragged:
            return self.keys, self.values
        return self.keys[:, :, :-1], self.values[:, :, :-1]


class _Layer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, owner: Memory) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, width = key_states.shape
        shape = self.owner.slots, heads, self.owner.length + 1, width
        self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(*shape[:3], value_states.shape[3])
        self.is_initialized = True

    def now(self) -> Whole | Part:
        """Returns what takes in the keys and values of a forward: nothing but tensors, for a graph."""
        assert self.keys is not None and self.values is not None
        if self.owner.at_SN is None:
            return Whole(self.keys, self.values, self.owner.slot_R)
        return Part(self.keys, self.values, self.owner.at_SN, self.owner.ragged)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.now().update(key_states, value_states)

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        part = self.owner.at_SN is not None
        return (self.owner.length + self.owner.ragged if part else query_length), 0

    def get_max_length(self) -> int:
        return -1
