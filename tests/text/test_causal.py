"""Left to right: -log p of each token given those before it, from a forward of each prefix alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toy

from mmdiff.canvas.patterns import BlockCausal, Causal, Documents, Full
from mmdiff.canvas.sample import Break, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound, next_token
from mmdiff.tasks.text.causal import NextToken

ROWS: list[Sample] = [[Text([1]), Target([4, 5, 6, 7])], [Text([8, 4]), Target([5, 5]), Text([7]), Target([4])]]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_each_token_is_predicted_from_the_prefix_before_it(side: Any) -> None:
    m = toy.model(Causal(), image=False)
    nll_P, correct_P, row_P = next_token(m, collate(ROWS, m.vocab, side=side))
    expected = [*by_prefixes(m, [1, 4, 5, 6, 7], [1, 2, 3, 4]), *by_prefixes(m, [8, 4, 5, 5, 7, 4], [2, 3, 5])]
    torch.testing.assert_close(nll_P, torch.tensor(expected), atol=1e-5, rtol=0)
    assert row_P.tolist() == [0] * 4 + [1] * 3 and correct_P.dtype == torch.bool


def by_prefixes(m: MMDiff, ids: list[int], targets: list[int]) -> list[float]:
    """-log p of the tokens at `targets`, each from a forward of the ids before it and nothing else."""
    out = []
    for at in targets:
        batch = collate([[Text(ids[:at])]], m.vocab)
        h_1LD = m.hidden(batch.ids_BL, batch, {}, torch.zeros(1, dtype=torch.int64))
        out.append(-float(m.backbone.head(h_1LD[0, -1]).log_softmax(-1)[ids[at]]))
    return out


@torch.no_grad()
def test_documents_of_a_packed_row_are_predicted_as_rows_of_their_own() -> None:
    m = toy.model(Causal(), image=False)
    apart, _, _ = next_token(m, collate(ROWS, m.vocab))
    together, _, row_P = next_token(m, collate([[*ROWS[0], Break(), *ROWS[1]]], m.vocab))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert row_P.tolist() == [0] * 7


def test_the_loss_is_the_mean_over_targets_and_what_is_masked_is_not_scored() -> None:
    m = toy.model(Causal(), image=False)
    rows: list[Sample] = [[Text([1]), Target([4, m.vocab.mask_id, 6])]]
    batch = collate(rows, m.vocab)
    plan = NextToken().plan(batch, NoiseKey(0), m.vocab)
    term = NextToken().terms(m, plan)["next"]
    assert plan.counts == {"next": 2.0}
    assert torch.equal(term.value, next_token(m, batch)[0].sum()) and term.value.requires_grad


def test_attention_that_is_not_causal_is_refused() -> None:
    m = toy.model(image=False)
    for pattern in (Full(), BlockCausal(2)):
        m.attention = pattern
        with pytest.raises(ConfigError, match="under Causal only"):
            next_token(m, collate(ROWS, m.vocab))
    m.attention = Causal() & Documents()
    assert len(next_token(m, collate(ROWS, m.vocab))[0]) == 7


def test_a_document_that_begins_with_a_target_is_refused() -> None:
    m = toy.model(Causal(), image=False)
    for rows in ([Target([4, 5])], [Text([4]), Target([5]), Break(), Target([6])]):
        with pytest.raises(DataError, match="begins with a target"):
            next_token(m, collate([rows], m.vocab))


@torch.no_grad()
def test_the_bound_of_packed_documents_is_the_sum_of_their_bounds() -> None:
    """Counts are drawn over all targets of a row, so it is so in the mean over draws of which are masked."""
    m = toy.model(image=False)
    first, second = [Text([1]), Target([4, 5])], [Text([1]), Target([6])]
    packed = collate([[*first, Break(), *second]] * 600, m.vocab)
    apart = bound(m, collate([first, second], m.vocab), levels=8).nll_B
    exact = float(apart[1]) + mean(m, first)
    nll_B = bound(m, packed, levels=8).nll_B
    assert abs(float(nll_B.mean()) - exact) < 4 * float(nll_B.std()) / 600**0.5 + 1e-4


def mean(m: MMDiff, sample: Sample) -> float:
    """The bound of a sample with two targets, over both orders."""
    batch = collate([sample] * 600, m.vocab)
    return float(bound(m, batch, levels=8).nll_B.mean())
