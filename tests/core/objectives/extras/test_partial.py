"""Tokens as digits that are masked one by one: codes, one digit as plain masking, the exact law, the filter."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from oracle import WORDS, Chain, distance
from torch import Tensor

from mmdiff import check
from mmdiff.canvas.patterns import BlockCausal, Full, PrefixCausal
from mmdiff.canvas.query import Prediction, Query
from mmdiff.diffusion.digits import base_of, consistent, to_digits
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.extras.digits import DigitEmbeddings
from mmdiff.objectives.extras.partial import PartialDenoise
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.partial import Partial
from mmdiff.samplers.rules.timed import Ancestral
from tests.core.objectives.extras.pairs import KEY, WIDTH, longer, model_with, pairs, sampled

MASK_ID = 2  # of a tokenizer of words


def model(count: int = 2, attention: Any = None) -> MMDiff:
    def made(vocab_size: int) -> dict[str, DigitEmbeddings]:
        return {"digits": DigitEmbeddings(width=WIDTH, vocab_size=vocab_size, mask_id=MASK_ID, count=count)}

    return model_with(made, attention=attention)


@pytest.mark.parametrize(
    ("count", "base", "unused"), [(2, 225, 368), (3, 37, 396), (4, 15, 368), (6, 7, 67392), (8, 4, 15279)]
)
def test_the_codes_of_a_vocabulary_are_those_of_the_paper(count: int, base: int, unused: int) -> None:
    assert base_of(50257, count) == base and base**count - 50257 == unused
    ids = torch.arange(50257)
    digits = to_digits(ids, base, count)
    assert int(digits.min()) == 0 and int(digits.max()) < base
    assert torch.equal((digits * base ** torch.arange(count - 1, -1, -1)).sum(1), ids)


def test_every_base_is_the_smallest() -> None:
    for size, count in product(range(3, 700, 7), (1, 2, 3, 5)):
        base = base_of(size, count)
        assert base**count >= size and (base == 2 or (base - 1) ** count < size)


def test_what_agrees_with_revealed_digits() -> None:
    digits = torch.tensor([[4, 4], [1, 4], [4, 0], [3, 1], [3, 3]])
    fits = consistent(digits, 14, 4)
    assert fits[0].all() and fits[1].nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    assert fits[2].nonzero()[:, 0].tolist() == [0, 4, 8, 12] and fits[3].nonzero()[:, 0].tolist() == [13]
    assert not fits[4].any()  # 15 is the code of no id


@pytest.mark.parametrize("attention", [Full(), PrefixCausal()])
def test_one_digit_is_masked_diffusion(attention: Any) -> None:
    one, plain = model(1, attention).eval(), model_with(attention=attention).eval()
    table = plain.backbone.model.get_input_embeddings().weight
    with torch.no_grad():
        one.extras["digits"].digits.weight.copy_(torch.cat([table, table[MASK_ID : MASK_ID + 1]]))  # type: ignore[union-attr, operator]
    for copies in (1, 2):
        batch = pairs(one.vocab, 8)
        objective, denoise = PartialDenoise(Partial(count=1), Denoise(copies=copies)), Denoise(copies=copies)
        plan, other = objective.plan(batch, KEY, one.vocab), denoise.plan(batch, KEY, one.vocab)
        assert torch.equal(plan.ids_RL, other.ids_RL) and plan.counts == other.counts
        ours, theirs = objective.terms(one, plan)["denoise"].value, denoise.terms(plain, other)["denoise"].value
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # summed in another order
    for options in ({}, {"block_length": 2, "eos_policy": "last"}, {"steps": 3, "confidence": "vocabulary"}):
        ids_BL, spy = sampled(one, longer(one), process=Partial(count=1), **options)
        plain_BL, other_spy = sampled(plain, longer(one), select=Ancestral(), **options)
        assert torch.equal(ids_BL, plain_BL)
        assert all(torch.equal(a, b) for a, b in zip(spy.seen, other_spy.seen, strict=True))


class Watched:
    """A Denoise that keeps its queries, of another or of fixed logits."""

    def __init__(self, logits: Any) -> None:
        self.logits, self.queries = logits, list[Query]()

    def __call__(self, query: Query) -> Prediction:
        self.queries.append(query)
        return Prediction(self.logits(query))


def test_each_digit_is_revealed_by_itself_at_the_rate_of_its_step() -> None:
    """After steps 1 and 2 of 4: a quarter of all digits, then a half; both digits of a token, the product."""
    bed, rows = Chain(4), 3000
    digits = Watched(lambda query: torch.zeros(int(query.predict_RL.sum()), bed.vocab.size))
    config = generation_config(temperature=1.0, steps=4, early_stop=False, process=Partial(), seed=1)
    sample(digits, bed.canvas(rows), bed.vocab, config)
    base = base_of(bed.vocab.size, 2)
    first, second = (query.extras["digits"] != base for query in digits.queries[1:3])
    pending = [query.predict_RL for query in digits.queries[1:3]]
    for shown, left, p in ((first, pending[0], 1 / 4), (second, pending[1], 1 / 2)):
        total = 4 * rows
        committed = 1 - float(left.sum()) / total
        assert committed == pytest.approx(p * p, abs=4 * 0.5 / total**0.5)
        for n in range(2):
            share = float(shown[left][:, n].sum()) / total
            assert share == pytest.approx(p * (1 - p), abs=4 * 0.5 / total**0.5)


def test_tokens_agree_with_digits_that_were_revealed_earlier() -> None:
    one = model().eval()
    batch = longer(one)
    ids_BL, spy = sampled(one, batch, process=Partial(), steps=8)
    base, partly = base_of(one.vocab.size, 2), 0
    final_BLN = to_digits(ids_BL, base, 2)
    known = torch.zeros_like(final_BLN, dtype=torch.bool)
    for query in spy.queries:
        shown = (query.extras["digits"] != base) & query.predict_RL[..., None]
        known[query.row_R] &= ~query.predict_RL[..., None] | shown  # what was revealed stays so
        assert torch.equal(query.extras["digits"][shown], final_BLN[query.row_R][shown])
        partly += int(shown.any())
    assert partly > 3 and not (ids_BL[batch.target_BL] == one.vocab.mask_id).any()


def exact(bed: Chain) -> Any:
    """The exact law of a word given all revealed digits, its own included, over sequences of the bed."""
    base = base_of(bed.vocab.size, 2)
    words_SL = torch.tensor(list(product(range(WORDS), repeat=bed.length)))
    digits_SLN, p_S = to_digits(words_SL, base, 2), bed.joint.flatten()

    def logits(query: Query) -> Tensor:
        masked_RL = (query.ids_RL == bed.vocab.mask_id)[..., None]
        seen_RLN = torch.where(masked_RL, query.extras["digits"], to_digits(query.ids_RL, base, 2))
        unique, back_R = seen_RLN.flatten(1).unique(dim=0, return_inverse=True)
        seen = unique.view(-1, 1, bed.length, 2)
        weight_US = ((seen == base) | (seen == digits_SLN)).all(-1).all(-1) * p_S
        word_SLV = torch.nn.functional.one_hot(words_SL, bed.vocab.size).double()
        p_ULV = torch.einsum("us,slv->ulv", weight_US / weight_US.sum(1, keepdim=True), word_SLV)
        return p_ULV[back_R][query.predict_RL].log().float()

    return logits


def test_with_the_exact_model_the_samples_approach_the_data() -> None:
    bed, rows, far = Chain(4, 0.8), 4000, {}
    for steps in (1, 2, 32):
        config = generation_config(temperature=1.0, steps=steps, early_stop=False, process=Partial(), seed=2)
        out = sample(Watched(exact(bed)), bed.canvas(rows), bed.vocab, config)
        far[steps] = distance(bed.joint, bed.law(out.ids_BL))
    assert far[32] < bed.floor(bed.joint, rows) + 0.03 < far[2] < far[1]
    plain = generation_config(temperature=1.0, steps=1, early_stop=False, seed=2)
    out = sample(bed, bed.canvas(rows), bed.vocab, plain)
    independent = distance(bed.joint, bed.law(out.ids_BL))
    assert far[1] == pytest.approx(independent, abs=0.03)  # one step draws tokens, whatever their digits


def test_a_position_is_embedded_by_the_digits_that_it_shows() -> None:
    one = model()
    digits: Any = one.extras["digits"]
    base, ids_RL = digits.base, torch.tensor([[5, MASK_ID, MASK_ID, MASK_ID]])
    given = torch.tensor([[[base, base], [1, base], [base, 0], [base, base]]])
    x_RLD = one.embedded(ids_RL, {}, {}, None, {"digits": given})
    halves = digits.digits.weight.view(2, base + 1, WIDTH // 2)
    shown = [divmod(5, base), (1, base), (base, 0), (base, base)]
    exact = torch.stack([torch.cat([halves[0, high], halves[1, low]]) for high, low in shown])
    assert torch.equal(x_RLD[0], exact)
    assert torch.equal(one.embedded(ids_RL, {}, {}, None)[0, 1:], exact[[3, 3, 3]])  # nothing is given


def test_the_loss_is_over_ids_that_agree_with_what_is_seen() -> None:
    one = model()
    objective = PartialDenoise(denoise=Denoise(copies=2))
    plan = objective.plan(pairs(one.vocab, 10), replace(KEY, batch=10), one.vocab)
    noised, base, total, partly = plan, base_of(one.vocab.size, 2), torch.zeros(()), 0
    h_RLD = one.hidden(noised.ids_RL, plan.batch, {}, noised.row_R, extras={"digits": plan.drawn["digits"]})
    for row, position in noised.masked_RL.nonzero().tolist():
        seen, truth = plan.drawn["digits"][row, position].tolist(), int(plan.batch.ids_BL[row % 10, position])
        ids = [
            i for i in range(one.vocab.size) if all(s in (base, d) for s, d in zip(seen, divmod(i, base), strict=True))
        ]
        assert truth in ids and base in seen
        partly += seen != [base, base]
        log_p = one.backbone.head(h_RLD[row, position])[ids].log_softmax(0)
        total = total - log_p[ids.index(truth)] * noised.weight_R[row]
    assert partly > 3 and torch.allclose(objective.terms(one, plan)["denoise"].value, total, rtol=1e-5)
    count_R = (plan.drawn["digits"] == base).flatten(1).sum(1) - 2 * (~noised.masked_RL).sum(1)
    assert torch.allclose(noised.weight_R, 4 / count_R)  # of four digits, so many are masked


@pytest.mark.parametrize("attention", [PrefixCausal(), BlockCausal(2)])
def test_kept_keys_and_values_are_exact_beside_digits(attention: Any) -> None:
    one = model(attention=attention).eval()
    options: dict[str, Any] = {"process": Partial(), "block_length": 2, "steps": 12}
    ids_BL, kept = sampled(one, longer(one), **options)
    other_BL, whole = sampled(one, longer(one), step=False, **options)
    assert torch.equal(ids_BL, other_BL)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept.seen, whole.seen, strict=True))


@pytest.mark.parametrize("denoise", [[], [Guidance(0.5)]])
def test_a_row_is_what_it_is_alone(denoise: Any) -> None:
    one = model().eval()
    batch, options = longer(one), {"process": Partial(), "block_length": 3, "denoise": denoise}
    ids_BL, _ = sampled(one, batch, **options)
    for row in range(3):
        alone_BL, _ = sampled(one, longer(one, row), **options)
        assert torch.equal(alone_BL[0, -6:], ids_BL[row, batch.target_BL[row]])


def test_a_context_that_guidance_masks_shows_no_digits() -> None:
    one = model().eval()
    batch = longer(one)
    _, spy = sampled(one, batch, process=Partial(), denoise=[Guidance(0.5)])
    bare = [query.ids_RL.chunk(2)[1] for query in spy.queries]
    context = (batch.attend_BL & ~batch.target_BL)[spy.queries[0].row_R.chunk(2)[0]]
    assert (bare[0][context] == one.vocab.mask_id).all()
    assert (spy.queries[0].extras["digits"].chunk(2)[1][context] == base_of(one.vocab.size, 2)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": Partial("other")}, "model.extras.other: the model has no such extra"),
        ({"process": Partial(count=3)}, "process.count: 3, expected 2"),
        ({"process": Partial(), "select": Ancestral()}, "sampler.select: Partial has a way of its own"),
    ],
)
def test_what_does_not_fit_is_one_line(options: Any, message: str) -> None:
    one = model()
    with pytest.raises(ConfigError, match=message):
        one.generate(longer(one), **options)
    if "select" not in options:
        objective = PartialDenoise(options["process"])
        with pytest.raises(ConfigError, match=message):
            objective.terms(one, objective.plan(pairs(one.vocab, 4), KEY, one.vocab))
    with pytest.raises(ConfigError, match="extras.digits: DigitEmbeddings has no method `grow`"):
        one.grow(["zebra"])
    with pytest.raises(ConfigError, match="a width of 30 is no multiple of count 4"):
        DigitEmbeddings(width=30, vocab_size=20, mask_id=2, count=4)


def test_a_configuration_trains_and_samples_with_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process = {"target": "mmdiff.samplers.processes.partial.Partial", "count": 2}
    objective = {"target": "mmdiff.objectives.extras.partial.PartialDenoise", "process": process}
    rules = [{"match": "backbone.model.model.embed_tokens", "train": False}, {"match": "*"}]
    config = toy.config(image=False, stage={"objective": objective, "params": rules})
    config.model.extras["digits"] = {"target": "mmdiff.objectives.extras.digits.DigitEmbeddings"}
    config.sampler.process = process
    config.eval.data["all"] = {"target": "toy.Corners", "n": 4}
    result = check(config)
    assert result["loss"]["only"] > 0 and result["forwards"] == [2, 2]
