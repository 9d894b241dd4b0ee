"""An encoder with its connector, as data processes use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmdiff.canvas.sample import Item


@dataclass(frozen=True)
class MediaReader:
    """An encoder and its connector as data processes use them, see `mmdiff.protocols.Reader`."""

    encoder: Any
    connector: Any

    def read(self, data: object) -> Item:
        item: Item = self.encoder.read(data)
        return item

    def slots(self, item: Item) -> int:
        if not item.tokens:
            return int(self.connector.slots(self.encoder.tokens, item))
        crops = [Item(value[None], item.layout) for value in item.values]
        return sum(int(self.connector.slots(n, crop)) for n, crop in zip(item.tokens, crops, strict=True))

    def grid(self, item: Item, before: int | None) -> tuple[int, int] | None:
        found = getattr(self.encoder, "grid_of", None)
        return None if found is None else found(item, before)
