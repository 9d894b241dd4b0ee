"""Digit embeddings: a token is embedded by its digits, of which some may be masked (MDM-Prime, arXiv 2505.18495).

Shape letters: R rows, L canvas length, D backbone width, N digits of an id.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.config.saveable import saveable
from mmdiff.diffusion.digits import base_of, to_digits
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast0, AtLeast1


@saveable
class DigitEmbeddings(nn.Module):
    """Embeds an id by its digits, D / count numbers each, side by side, in the place of the backbone's own embedding.

    A masked position is embedded by the digits that it is given, all of them masked where it is given none.

    count: digits of an id. width (D), vocab_size and mask_id come from the model at build time. The vocabulary cannot
    grow, for every id would have other digits.
    Raises ConfigError for a width that the count does not divide.
    """

    node: dict[str, Any]  # set by @saveable

    def __init__(self, *, width: AtLeast1, vocab_size: AtLeast1, mask_id: AtLeast0, count: AtLeast1 = 2) -> None:
        super().__init__()
        if width % count:
            raise ConfigError(f"model.extras: a width of {width} is no multiple of count {count}")
        self.count, self.base, self.mask_id = count, base_of(vocab_size, count), mask_id
        self.digits = nn.Embedding(count * (self.base + 1), width // count)
        nn.init.normal_(self.digits.weight, std=0.02)

    def embed(self, x_RLD: Tensor, ids_RL: Tensor, values_RL: Tensor | None) -> Tensor:
        """Returns the embeddings. values_RL: int64 (R, L, N), digits of masked positions, `base` where masked."""
        masked_RL1 = (ids_RL == self.mask_id)[..., None]
        given_RLN: Tensor | int = self.base if values_RL is None else values_RL
        if values_RL is not None and values_RL.shape[2] != self.count:
            raise ConfigError(f"process.count: {values_RL.shape[2]}, expected {self.count}, that of the model's digits")
        digits_RLN = torch.where(masked_RL1, given_RLN, to_digits(ids_RL, self.base, self.count))
        first_N = torch.arange(self.count, device=ids_RL.device) * (self.base + 1)
        embedded_RLD: Tensor = self.digits(digits_RLN + first_N).flatten(2)
        return embedded_RLD.to(x_RLD.dtype)
