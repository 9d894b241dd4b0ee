"""Media of unequal length: padding changes nothing, slots stand for real features only, and CTC reads them out."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import Where, backbone

from mmdiff.canvas.batch import Batch, packed
from mmdiff.canvas.sample import Item, Media, Target, Text
from mmdiff.config.settings import StageConfig
from mmdiff.connectors.merge import FrameStack
from mmdiff.connectors.mlp import MLP
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.features import FeatureCache, fingerprint
from mmdiff.model.likelihood import bound
from mmdiff.objectives.ctc import CTC, collapse, emissions
from mmdiff.objectives.heads import WordHead
from mmdiff.training.held_out import UNUSED, evaluate_bound, swapped


class Ears(nn.Module):
    """(N, 3, F) -> (N, F / 2, 8); what fills a crop up is 7.0 behind its end, so that a leak shows."""

    width, tokens = 8, 20

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 2, 2)

    def read(self, data: Any) -> Item:
        crops = [torch.as_tensor(v) for v in (data if isinstance(data, list) else [data])]
        lengths = tuple(v.shape[-1] for v in crops)
        values = torch.stack([F.pad(v, (0, max(lengths) - v.shape[-1])) for v in crops])
        return Item(values, lengths=lengths, tokens=tuple(n // 2 for n in lengths))

    def forward(self, values_NCF: Tensor, length_N: Tensor) -> Tensor:
        behind_NF = torch.arange(values_NCF.shape[2]) >= length_N[:, None]
        assert not values_NCF.masked_select(behind_NF[:, None]).any(), "what fills up is zero on arrival"
        out: Tensor = self.conv(values_NCF.masked_fill(behind_NF[:, None], 7.0)).transpose(1, 2)
        return out


def model(connector: str = "mlp") -> MMDiff:
    torch.manual_seed(0)
    kind: Any = {"mlp": MLP(8, 32), "stack": FrameStack(8, 32, 3)}[connector]
    back = backbone()
    return MMDiff(back, {"audio": Ears()}, {"audio": kind}, {"audio": WordHead(width_in=8, vocab_size=back.vocab.size)})


def clip(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(3, frames, generator=torch.Generator().manual_seed(seed + 100 * frames))


def rows(m: MMDiff, clips: list[Any], words: str = "north east") -> Batch:
    ids = m.vocab.encode(words)
    return collate([[Media("audio", c), Text(m.vocab.encode("where")), Target(ids)] for c in clips], m.vocab, m.readers)


@pytest.mark.parametrize("connector", ["mlp", "stack"])
def test_a_row_does_not_see_how_its_batch_was_filled_up(connector: str) -> None:
    m = model(connector).eval()
    clips = [clip(4), clip(20), [clip(12), clip(6)], clip(9)]
    whole = bound(m, rows(m, clips)).nll_B
    for b, one in enumerate(clips):
        batch = rows(m, [one])
        batch.index_B[:] = b
        torch.testing.assert_close(bound(m, batch).nll_B, whole[b : b + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("connector", ["mlp", "stack"])
def test_slots_are_the_real_features_view_after_view(connector: str) -> None:
    m = model(connector).eval()
    batch = rows(m, [clip(4), [clip(12), clip(6)]])
    counts = [2, 6, 3] if connector == "mlp" else [1, 2, 1]
    assert batch.media["audio"].tokens == [2, 6, 3] and batch.media["audio"].crops == [1, 2]
    assert (batch.slots["audio"] >= 0).sum(1).tolist() == [counts[0], sum(counts[1:])]
    out_MD = m.encode(batch.media)["audio"]
    alone = [m.encode(rows(m, [c]).media)["audio"] for c in (clip(4), clip(12), clip(6))]
    torch.testing.assert_close(out_MD, torch.cat(alone), atol=1e-6, rtol=0)


def test_features_behind_the_end_are_zero_even_where_an_encoder_makes_nan_of_them() -> None:
    m = model()
    m.encoders["audio"].conv.forward = lambda x: F.conv1d(x, torch.ones(8, 3, 2), stride=2) / (x[:, :1, ::2] != 7.0)
    features = m.features("audio", rows(m, [clip(4), clip(8)]).media["audio"])
    assert features.shape == (2, 4, 8) and features.isfinite().all() and not features[0, 2:].any()


def test_cached_features_are_the_same_in_any_company(tmp_path: Path) -> None:
    m = model()
    m.encoders.requires_grad_(False)
    prints = {"audio": fingerprint(m.encoders["audio"])}
    cache = FeatureCache(tmp_path / "features.sqlite")
    first = rows(m, [clip(20), clip(4), [clip(12), clip(6)]])
    for batch in (first, rows(m, [clip(4)]), rows(m, [[clip(12), clip(6)], clip(20)])):
        filled = cache.fill(m, batch, prints).media["audio"]
        torch.testing.assert_close(filled.features_NTE, m.features("audio", batch.media["audio"]), atol=1e-6, rtol=0)
    assert (cache.hits, cache.misses) == (3, 3)
    short = cache.fill(m, rows(m, [clip(4)]), prints).media["audio"].features_NTE
    assert short is not None and short.shape == (1, 2, 8)  # kept without what filled its first batch up


def ctc_by_hand(log_p_TV: Tensor, labels: list[int], blank: int) -> float:
    """-log of the sum over all paths that collapse to the labels."""
    log_p_TV, total = log_p_TV.detach(), 0.0
    used = sorted({blank, *labels})
    for path in product(used, repeat=len(log_p_TV)):
        if [i for i, _ in groupby(path) if i != blank] == labels:
            total += float(sum(log_p_TV[t, i] for t, i in enumerate(path)).exp())
    return -float(torch.tensor(total).log())


def test_ctc_is_the_sum_over_all_paths_and_its_gradient_reaches_the_encoder() -> None:
    m = model()
    batch = rows(m, [clip(8), clip(14), [clip(4), clip(6)]])
    objective = CTC()
    plan = objective.plan(batch, NoiseKey(0), m.vocab)
    assert plan.counts == {"ctc": 6.0}
    term = objective.terms(m, plan)["ctc"]
    expected = 0.0
    for one in (clip(8), clip(14), [clip(4), clip(6)]):
        log_p_BTV, length_B = emissions(m, "audio", rows(m, [one]).media["audio"])
        expected += ctc_by_hand(log_p_BTV[0, : length_B[0]], m.vocab.encode("north east"), m.vocab.mask_id)
    assert float(term.value.detach()) == pytest.approx(expected, rel=1e-5)
    term.value.backward()
    assert m.encoders["audio"].conv.weight.grad is not None and m.encoders["audio"].conv.weight.grad.abs().sum() > 0


def test_ctc_of_slots_is_that_of_the_backbones_head_among_the_labels_of_the_batch() -> None:
    m = model()
    batch = rows(m, [clip(8), clip(14), [clip(4), clip(6)]])
    objective = CTC(read="slots")
    term = objective.terms(m, objective.plan(batch, NoiseKey(0), m.vocab))["ctc"]
    labels = m.vocab.encode("north east")
    known = [*sorted(labels), m.vocab.mask_id]
    expected = 0.0
    for one in (clip(8), clip(14), [clip(4), clip(6)]):
        slots_MD = m.encode(rows(m, [one]).media)["audio"]
        normal_MD = (slots_MD - slots_MD.mean(1, keepdim=True)) / (slots_MD.var(1, correction=0) + 1e-5).sqrt()[:, None]
        log_p_MK = (normal_MD @ m.backbone.model.get_output_embeddings().weight[known].T).log_softmax(-1)
        expected += ctc_by_hand(log_p_MK, [known.index(i) for i in labels], len(labels))
    assert float(term.value.detach()) == pytest.approx(expected, rel=1e-4)
    term.value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.connectors["audio"].parameters())


def test_ctc_of_slots_tells_labels_apart_from_other_ids_too() -> None:
    m = model()
    batch = rows(m, [clip(8), clip(14)])
    objective = CTC(read="slots", others=3)
    plan = objective.plan(batch, NoiseKey(0), m.vocab)
    again, later = (objective.plan(batch, NoiseKey(0, step), m.vocab) for step in (0, 1))
    assert len(plan.other_O) == 3 and torch.equal(plan.other_O, again.other_O)
    assert not torch.equal(plan.other_O, later.other_O) and set(plan.other_O.tolist()) <= set(m.vocab.text_ids.tolist())
    labels = m.vocab.encode("north east")
    known = [*sorted({*labels, *plan.other_O.tolist()}), m.vocab.mask_id]
    expected = 0.0
    for one in (clip(8), clip(14)):
        normal_MD = F.layer_norm(m.encode(rows(m, [one]).media)["audio"], (32,))
        log_p_MK = (normal_MD @ m.backbone.model.get_output_embeddings().weight[known].T).log_softmax(-1)
        expected += ctc_by_hand(log_p_MK, [known.index(i) for i in labels], len(known) - 1)
    assert float(objective.terms(m, plan)["ctc"].value.detach()) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ConfigError, match="^others: 3, expected 0 where features are read"):
        CTC(others=3)


def test_labels_that_do_not_fit_count_nothing_and_are_reported() -> None:
    m = model()
    batch = rows(m, [clip(2), clip(14)])  # one feature for two words
    term = CTC().terms(m, CTC().plan(batch, NoiseKey(0), m.vocab))["ctc"]
    alone = CTC().terms(m, CTC().plan(rows(m, [clip(14)]), NoiseKey(0), m.vocab))["ctc"]
    assert float(term.value.detach()) == pytest.approx(float(alone.value.detach()), rel=1e-6)
    assert [float(x) for x in term.sums["infeasible"]] == [1.0, 2.0]
    term.value.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters() if p.grad is not None)


def test_end_ids_are_no_labels_and_rows_without_sound_are_refused() -> None:
    m = model()
    eos = m.vocab.eos_id
    sample = [Media("audio", clip(14)), Target([*m.vocab.encode("north"), eos, eos])]
    assert CTC().plan(collate([sample], m.vocab, m.readers), NoiseKey(0), m.vocab).labels_S.tolist() == m.vocab.encode(
        "north"
    )
    with pytest.raises(DataError, match="one audio"):
        CTC().plan(collate([[Target([4])]], m.vocab), NoiseKey(0), m.vocab)


def test_collapse() -> None:
    assert collapse(torch.tensor([2, 4, 4, 2, 4, 5, 5, 2, 2]), 2) == [4, 4, 5]
    assert collapse(torch.tensor([2, 2]), 2) == []


def test_packed_is_what_is_real() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    assert packed(x, [1, 3]).tolist() == [[0, 1], [6, 7], [8, 9], [10, 11]]
    assert torch.equal(packed(x, None), x.flatten(0, 1))


class Clips:
    """A clip of 4 or 8 frames whose mean tells the word."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        answer = ["north", "east", "south"][index % 3]
        return {"image": clip(4 + 4 * (index % 2), index), "question": "where", "answer": answer}


def test_exchanged_media_are_scored_beside_a_rows_own() -> None:
    """What a model that listens loses; and a model that does not listen is reported."""
    m = model()
    m.encoders["image"], m.connectors["image"] = m.encoders.pop("audio"), m.connectors.pop("audio")
    figures = evaluate_bound(m, StageConfig(batch_size=4), Where(), Clips())
    assert figures["bound_per_token_swapped"] != figures["bound_per_token"]
    deaf = evaluate_bound(m, StageConfig(batch_size=4), Where(image=False), Clips())
    assert "bound_per_token_swapped" not in deaf
    with torch.no_grad():
        for p in m.connectors.parameters():
            p.zero_()
    same = evaluate_bound(m, StageConfig(batch_size=4), Where(), Clips())
    assert abs(same["bound_per_token_swapped"] / same["bound_per_token"] - 1) < UNUSED


def test_swapping_keeps_everything_but_the_media() -> None:
    samples = [[Media("audio", i), Text([i]), Media("audio", 10 + i)] for i in range(3)]
    out = swapped(samples)
    assert [[getattr(p, "data", getattr(p, "ids", None)) for p in s] for s in out] == [
        [1, [0], 11],
        [2, [1], 12],
        [0, [2], 10],
    ]
    assert swapped(samples[:1]) == [] and swapped([[Text([1])], [Text([2])]]) == []


def test_a_stage_whose_media_are_not_used_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step at no rate teaches nothing; 60 steps teach to look."""
    from toy import config

    from mmdiff.training.train import train

    monkeypatch.chdir(tmp_path)
    told = {}
    for name, steps, lr in (("deaf", 1, 1e-12), ("hears", 60, 1e-2)):
        stage = {"steps": steps, "lr": lr, "batch_size": 16, "eval": {"target": "toy.Corners", "n": 32, "seed": 5}}
        train(config(name, stage=stage))
        told[name] = "hardly used" in capsys.readouterr().err
    assert told == {"deaf": True, "hears": False}
