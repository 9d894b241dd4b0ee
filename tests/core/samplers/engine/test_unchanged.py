"""Rows that no step has changed are answered from the last one: the same tokens, and as few rows as the law says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from logit_tables import VOCAB, V
from toy import backbone

from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.samplers.links.caches import Dual
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.links.unchanged import Unchanged
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.editing import Editing
from mmdiff.samplers.processes.hybrid import Hybrid
from mmdiff.samplers.rules.maskgit import Remask
from mmdiff.samplers.rules.timed import Ancestral

TABLE_VV = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(0))


class Counted:
    """Logits that depend on all of a row; how many rows it has run, and how often it was called."""

    def __init__(self) -> None:
        self.rows = self.calls = 0

    def __call__(self, query: Query) -> Prediction:
        self.rows += len(query.row_R)
        self.calls += 1
        row_P, position_P = query.at()
        assert torch.equal(torch.stack([row_P, position_P]), query.predict_RL.nonzero().T)
        return Prediction(TABLE_VV[query.ids_RL.sum(1)[row_P] % V] + 0.01 * position_P[:, None])


RAGGED: list[Sample] = [
    [Text([3]), Target(length=8)],
    [Target(length=3), Text([4]), Target(length=4)],
    [Target(length=2)],
]


@pytest.mark.parametrize(
    "named",
    [
        {"select": Ancestral(), "steps": 30},
        {"select": Ancestral(), "steps": 24, "block_length": 4, "denoise": [Guidance(0.5)]},
        {"select": Ancestral(), "steps": 12, "revise": Remask(0.05)},
        {"process": Editing(0.3), "select": Ancestral(), "steps": 12},
        {"process": Hybrid(0.3), "steps": 12},
        {"process": Hybrid(0.0), "steps": 30},
        {"threshold": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True])
def test_nothing_changes_but_how_many_rows_are_run(named: dict[str, Any], last: bool) -> None:
    batch, links = collate(RAGGED, VOCAB), named.get("denoise", [])
    named = {"temperature": 1.0, "seed": 3, **named}
    plain, reused = Counted(), Counted()
    one = sample(plain, batch, VOCAB, generation_config(**named))
    with_it = [*links, Unchanged()] if last else [Unchanged(), *links]
    two = sample(reused, batch, VOCAB, generation_config(**{**named, "denoise": with_it}))
    assert one.ids_BL.tolist() == two.ids_BL.tolist() and one.step_BL.tolist() == two.step_BL.tolist()
    assert torch.equal(one.confidence_BL, two.confidence_BL) and one.forwards_B.tolist() == two.forwards_B.tolist()
    if named.get("steps") == 30 or links:
        assert reused.rows < 0.7 * plain.rows and reused.calls < plain.calls
    else:
        assert reused.rows <= plain.rows


@pytest.mark.parametrize(("length", "steps"), [(16, 16), (16, 64), (4, 32)])
def test_as_many_rows_are_run_as_steps_reveal_something(length: int, steps: int) -> None:
    """S (1 - (1 - 1/S)^L) on average (RADD). Of 2,000 rows the mean is off by 2 % with a chance below 1e-9."""
    rows, counted = 2_000, Counted()
    batch = collate([[Target(length=length)]] * rows, VOCAB)
    config = generation_config(
        select=Ancestral(), steps=steps, denoise=[Unchanged()], early_stop=False, temperature=1.0
    )
    sample(counted, batch, VOCAB, config)
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert counted.rows / rows == pytest.approx(expected, rel=0.02)


def test_what_a_draft_keeps_and_a_second_generation() -> None:
    torch.manual_seed(0)
    m = MMDiff(backbone()).eval()
    batch = collate([[Text([4, 5]), Target([4, 5, 6, 7, 8, 4])], [Text([6]), Target([7, 8, 4, 5])]], m.vocab)
    draft = {"target": "mmdiff.samplers.deliberation.MaskChunks", "ratio": 0.5}
    named: dict[str, Any] = dict(draft=draft, select=Ancestral(), steps=9, temperature=1.0)
    plain = m.generate(batch, **named)
    for _ in range(2):
        assert m.generate(batch, **named, denoise=[Unchanged()]).ids_BL.tolist() == plain.ids_BL.tolist()


def test_every_row_is_run_where_a_process_puts_something_new_beside_the_ids() -> None:
    class Beside(Hybrid):
        def beside(self, rows: Any, noise: Any) -> dict[str, torch.Tensor]:
            return {"latent": torch.zeros(*rows.ids_RL.shape, 1)}

    plain, reused = Counted(), Counted()
    for counted, links in ((plain, []), (reused, [Unchanged()])):
        config = generation_config(process=Beside(0.0), steps=30, denoise=links, temperature=1.0)
        sample(counted, collate(RAGGED, VOCAB), VOCAB, config)
    assert plain.rows == reused.rows


def test_it_does_not_go_together_with_a_cache() -> None:
    config = generation_config(denoise=[Dual(), Unchanged()])
    with pytest.raises(ConfigError, match="Dual and Unchanged: two caches cannot be combined"):
        sample(Counted(), collate(RAGGED, VOCAB), VOCAB, config)
