"""Contrastive and classifier guidance: laws that are known exactly, and that a row is the same in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from logit_tables import VOCAB, Table, V, asked
from oracle import SEQUENCES, WORDS, Chain, distance
from torch import Tensor
from toy import batch_of, model, samples

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.links.caches import Dual
from mmdiff.samplers.links.classifier import Classifier, LogProbability
from mmdiff.samplers.links.contrastive import Contrastive
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config

MASK, ROWS = WORDS, 8_000


class Weak:
    """A model, as far as Contrastive looks at one."""

    def __init__(self, denoise: Any) -> None:
        self.denoise = denoise

    def denoiser(self, batch: Batch) -> Any:
        return self.denoise


def table(*p: float) -> Table:
    """One position, whose first ids have these probabilities."""
    logits = torch.full((1, 1, V), -torch.inf)
    logits[0, 0, : len(p)] = torch.tensor(p).log()
    return Table(logits)


ONE = collate([[Target(length=1)]], VOCAB)
QUERY = (torch.tensor([[VOCAB.mask_id]]), torch.tensor([[True]]), torch.tensor([0]))


def law(link: Any, denoise: Any) -> Tensor:
    return asked(link.wrap(denoise, ONE, VOCAB), *QUERY).double().softmax(-1)[0, :4]


def test_the_contrast_is_p_squared_over_q_among_what_is_plausible() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.7, 0.1, 0.1, 0.1])
    strong, weak = table(*p.tolist()), Weak(table(*q.tolist()))
    for weight, cut, kept in [(1.0, 0.0, 4), (0.5, 0.2, 3), (2.0, 0.5, 2), (3.0, 1.0, 1)]:
        expected = (p ** (1 + weight) / q**weight).double()
        expected[kept:] = 0
        assert torch.allclose(law(Contrastive(weight, cut, weak), strong), expected / expected.sum(), atol=1e-6)
    assert torch.allclose(law(Contrastive(0.0, 0.0, weak), strong), p.double(), atol=1e-6)
    sure = Weak(table(1.0))  # the weak model rules three ids out, which are not infinitely likely
    assert asked(Contrastive(1.0, 0.0, sure).wrap(strong, ONE, VOCAB), *QUERY)[0, :4].isfinite().all()


def test_where_no_plausible_id_may_stand_the_strong_model_decides() -> None:
    strong, weak = table(0.9, 0.06, 0.04), Weak(table(0.1, 0.8, 0.1))
    batch = collate([[Target(length=1, allow=((1, 3),))]] * 4_000, VOCAB)
    config = generation_config(temperature=1.0, early_stop=False, denoise=[Contrastive(1.0, 0.1, weak)])
    strong.logits_BLV = strong.logits_BLV.expand(4_000, -1, -1)
    weak.denoise.logits_BLV = weak.denoise.logits_BLV.expand(4_000, -1, -1)
    ids_B = sample(strong, batch, VOCAB, config).ids_BL[:, 0]
    assert abs(float((ids_B == 1).double().mean()) - 0.6) < 4.5 * (0.24 / 4_000) ** 0.5 and set(ids_B.tolist()) == {
        1,
        2,
    }


def test_without_media_it_is_guidance_of_media() -> None:
    m = model()
    named: dict[str, Any] = {"early_stop": False, "block_length": 3, "temperature": 0.7, "seed": 2}
    for first in ([], [Dual()]):
        one, two, plain = (
            m.generate(batch_of(m, samples(), [8, 3, 5, 4]), denoise=[*first, *link], **named).ids_BL.tolist()
            for link in ([Contrastive(0.8, 0.0)], [Guidance(0.0, 0.8)], [])
        )
        assert one == two != plain


# Classifiers ----------------------------------------------------------------------------------------------------------


class Exact:
    """p(c | the words that are seen) of a chain and a table p(c | x), (WORDS, ..., WORDS)."""

    def __init__(self, bed: Chain, class_p: Tensor) -> None:
        self.bed, self.class_p = bed, class_p

    def bind(self, denoise: Any, batch: Batch, vocab: Vocab) -> LogProbability:
        sequences_SL = torch.tensor(SEQUENCES)[:, : self.bed.length].unique(dim=0)
        p_S = self.bed.joint[tuple(sequences_SL.T)]
        c_S = self.class_p[tuple(sequences_SL.T)]

        def log_p(ids_NL: Tensor, row_N: Tensor) -> Tensor:
            fits_NS = ((ids_NL[:, None] == sequences_SL) | (ids_NL[:, None] == MASK)).all(-1).double()
            return ((fits_NS @ (p_S * c_S)) / (fits_NS @ p_S)).log()

        return log_p


def opinions(length: int) -> Tensor:
    return torch.rand([WORDS] * length, generator=torch.Generator().manual_seed(3), dtype=torch.float64).pow(3) + 0.01


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_one_position_has_p_times_the_class_to_the_scale(scale: float) -> None:
    bed, class_p = Chain(1, 0.8), opinions(1)
    bed.joint = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    bed.conditionals = lambda ids: bed.joint[None]  # type: ignore[method-assign]
    link = Classifier(Exact(bed, class_p), scale, candidates=WORDS)
    query = (torch.tensor([[MASK]]), torch.tensor([[True]]), torch.tensor([0]))
    found = asked(link.wrap(bed, bed.canvas(1), bed.vocab), *query).double().softmax(-1)[0, :WORDS]
    expected = bed.joint * class_p**scale
    assert torch.allclose(found, expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize("remasking", ["random", "left_to_right"])
def test_one_position_per_step_samples_the_law_given_the_class(remasking: str) -> None:
    bed, class_p = Chain(4, 0.8), opinions(4)
    given = bed.joint * class_p / (bed.joint * class_p).sum()
    config = generation_config(
        temperature=1.0, early_stop=False, remasking=remasking, denoise=[Classifier(Exact(bed, class_p), chunk=1_000)]
    )
    out = sample(bed, bed.canvas(ROWS), bed.vocab, config)
    assert distance(given, bed.law(out.ids_BL)) <= bed.floor(given, ROWS) < distance(given, bed.joint)


def test_few_candidates_leave_the_other_ids_their_share() -> None:
    """Of three ids one is tried; the others have p(c | canvas as it is), which is the mean of p(c | x) over p."""
    bed, class_p = Chain(2, 0.8), opinions(2)
    link, p = Classifier(Exact(bed, class_p), 1.0, candidates=1), torch.tensor([0.1, 0.8, 0.1], dtype=torch.float64)
    query = (torch.tensor([[0, MASK]]), torch.tensor([[False, True]]), torch.tensor([0]))
    found = asked(link.wrap(bed, bed.canvas(1), bed.vocab), *query).double().softmax(-1)[0, :WORDS]
    expected = p * torch.stack([(p * class_p[0]).sum(), class_p[0, 1], (p * class_p[0]).sum()])
    assert torch.allclose(found, expected / expected.sum(), atol=1e-6)


class Counts:
    """log p(c | canvas) rises with how often an id stands on it, and with the row's number."""

    def bind(self, denoise: Any, batch: Batch, vocab: Vocab) -> LogProbability:
        return lambda ids_NL, row_N: 2.0 * (ids_NL == 7).sum(1) + batch.index_B[row_N] * (ids_NL == 5).sum(1)


@pytest.mark.parametrize(
    "link", [Classifier(Counts(), 1.5, candidates=4, chunk=7), Contrastive(1.0, 0.1), Contrastive(0.5, 0.3, "weak")]
)
@pytest.mark.parametrize("named", [{"block_length": 3, "temperature": 0.7}, {"threshold": 0.3}])
def test_a_row_is_the_same_alone_and_in_a_batch(
    link: Any, named: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    m, weak = model(), model()
    for p in weak.backbone.parameters():
        p.data.mul_(0.9)
    weak.save_pretrained("weak")
    named = {"early_stop": False, "seed": 1, "denoise": [link, Dual()], **named}
    together = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), **named)
    plain = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), **{**named, "denoise": [Dual()]})
    assert not torch.allclose(together.confidence_BL, plain.confidence_BL)
    for b in (0, 3):
        alone = m.generate(batch_of(m, [samples()[b]], [[8, 3, 5, 4][b]]), **named)
        assert alone.targets()[0] == together.targets()[b]


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([Contrastive()], "Contrastive leaves media out where it has no model; there are none"),
        ([Dual(), Contrastive(model="weak")], "sampler.denoise.model: a weak model stands beside the model itself"),
        ([Contrastive(model="nowhere")], "sampler.denoise.model: nowhere: neither a saved model nor"),
        ([Contrastive(model=3)], "sampler.denoise.model: 3 is neither a folder nor a model"),
        ([Classifier(Guidance())], "sampler.denoise.classifier: Guidance has no `bind`"),
        ([{"target": "mmdiff.samplers.links.contrastive.Contrastive", "cut": 2}], "sampler.denoise[0].cut=2"),
        ([{"target": "mmdiff.samplers.links.classifier.Classifier"}], 'needs "classifier"'),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(links: list[Any], message: str) -> None:
    m = model(image=False)
    with pytest.raises(ConfigError) as raised:
        m.generate(collate([[Text([4]), Target(length=2)]], m.vocab), denoise=links)
    assert message in str(raised.value) and "\n" not in str(raised.value)
