"""Ids as numbers of a few digits, which noise masks one by one (MDM-Prime, arXiv 2505.18495).

Shape letters: V vocabulary, P positions, N digits of an id.
"""

from __future__ import annotations

import torch
from torch import Tensor


def base_of(vocab_size: int, count: int) -> int:
    """Returns the smallest base in which `count` digits can name so many ids. It is also the digit that is masked."""
    base = max(2, round(vocab_size ** (1 / count)) - 1)
    while base**count < vocab_size:
        base += 1
    return base


def to_digits(ids: Tensor, base: int, count: int) -> Tensor:
    """Returns int64 (..., N), the digits of ids, the highest first."""
    power_N = base ** torch.arange(count - 1, -1, -1, device=ids.device)
    return ids[..., None] // power_N % base


def consistent(digits_PN: Tensor, vocab_size: int, base: int) -> Tensor:
    """Returns bool (P, V), the ids whose digits are those of a position wherever these are not masked."""
    count = digits_PN.shape[1]
    code_VN = to_digits(torch.arange(vocab_size, device=digits_PN.device), base, count)
    fits_PV = torch.ones(len(digits_PN), vocab_size, dtype=torch.bool, device=digits_PN.device)
    for n in range(count):
        digit_P1 = digits_PN[:, n, None]
        fits_PV &= (digit_P1 == base) | (code_VN[:, n] == digit_P1)
    return fits_PV
