"""Verifiers and speculation against what is known exactly: agreement, greedy decoding, the law, and ragged batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import WORDS, Both, Chain, Turned, distance
from toy import batch_of, model, samples

from mmdiff.backbones import new_backbone
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.samplers.links.energy import Reader, Resample
from mmdiff.samplers.links.verifier import Speculate, Verifier
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.maskgit import Remask

MASK = WORDS


def ids_of(asked: Any, bed: Chain, rows: int = 1, ids: list[int] | None = None, **named: Any) -> Generation:
    config = generation_config(early_stop=False, **named)
    return sample(asked, bed.canvas(rows, ids), bed.vocab, config)


def test_a_verifier_of_the_same_chain_accepts_what_it_would_have_written() -> None:
    """First draft 0 0 0 ...: the second word is wrong; then all the rest is right."""
    bed = Chain(8)
    out = ids_of(Both(bed, bed), bed, denoise=[Verifier()])
    assert out.ids_BL.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert (out.calls, out.checks) == (2, 2) and out.step_BL.tolist() == [[1, 1, 2, 2, 2, 2, 2, 2]]
    drawn = ids_of(Both(bed, bed), bed, 400, temperature=1.0, denoise=[Verifier(mismatch="draft")], seed=3)
    # of a pair behind a committed word: a drafted first is the verifier's likeliest in 0.9, else it is taken anyway
    again = ids_of(Both(bed, bed), bed, 400, temperature=1.0, denoise=[Verifier(mismatch="draft")], seed=3)
    assert torch.equal(drawn.ids_BL, again.ids_BL) and float(drawn.forwards_B.double().mean()) < 8


def test_the_share_accepted_is_the_rate_of_agreement() -> None:
    """Two positions behind a given word; the draft draws both from their marginals."""
    bed, rows = Chain(3, 0.8), 4_000
    out = ids_of(Both(bed, bed), bed, rows, [0, MASK, MASK], temperature=1.0, denoise=[Verifier(mismatch="draft")])
    both_B = out.forwards_B == 1  # the first agrees with p = 0.8, the second with what 0.8 * 0.8 + 2 * 0.1 * 0.1 say
    second = 0.8 * 0.8 + 2 * 0.1 * 0.1
    # the verifier's likeliest second word is the first plus 1, and both were drawn apart
    expected = 0.8 * second  # first: 1, second: 2 with its marginal given 0
    sigma = (expected * (1 - expected) / rows) ** 0.5
    assert abs(float(both_B.double().mean()) - expected) < 4.5 * sigma


def test_a_verifier_that_never_agrees_leaves_one_token_per_forward() -> None:
    bed, other = Chain(8), Turned(8)
    given = [0, *[MASK] * 7]
    plain = ids_of(bed, bed, 1, given, remasking="left_to_right")
    out = ids_of(Both(bed, other), bed, 1, given, denoise=[Verifier(mismatch="draft")])
    assert out.ids_BL.tolist() == plain.ids_BL.tolist() and out.step_BL.tolist() == plain.step_BL.tolist()
    own = ids_of(other, bed, 1, given, remasking="left_to_right")
    assert ids_of(Both(bed, other), bed, 1, given, denoise=[Verifier()]).ids_BL.tolist() == own.ids_BL.tolist()
    assert own.ids_BL.tolist() != plain.ids_BL.tolist()


@pytest.mark.parametrize(
    ("rule", "forwards"),
    [
        ({"top_k": 1}, 2),
        ({"top_k": 3}, 1),
        ({"probability": 0.04}, 1),
        ({"probability": 0.06}, 2),
        ({"relative": 0.05}, 1),
        ({"relative": 0.06}, 2),
    ],
)
def test_rules_of_agreement(rule: dict[str, Any], forwards: int) -> None:
    """The draft 0 0 0 ... has 0.05 at every wrong word, a share of 0.0556 of the likeliest."""
    bed = Chain(8)
    assert ids_of(Both(bed, bed), bed, denoise=[Verifier(**rule)]).calls == forwards


# Speculation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("named", [{}, {"block_length": 3}, {"block_length": 4, "suppress_ids": [5]}])
def test_at_temperature_0_it_is_the_models_own_greedy_decoding(named: dict[str, Any], shift: int) -> None:
    m = model()
    m.backbone.facts = replace(m.backbone.facts, shift=shift)
    causal = MMDiff(m.backbone, dict(m.encoders), dict(m.connectors), attention=Causal()).eval()
    named = {"early_stop": False, **named}
    each = [(row, [index]) for row, index in zip(samples(), [8, 3, 5, 4], strict=True)]
    alone = [causal.generate(batch_of(m, [row], index), remasking="left_to_right", **named) for row, index in each]
    out = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), denoise=[Speculate()], **named)
    assert out.targets() == [plain.targets()[0] for plain in alone]
    assert out.calls <= max(plain.calls for plain in alone)
    other = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), denoise=[Speculate(causal)], **named)
    assert other.targets() == out.targets()
    assert m.generate(batch_of(m, samples(), [8, 3, 5, 4]), **named).targets() != out.targets()


def test_it_takes_fewer_forwards_where_the_draft_is_good() -> None:
    bed = Chain(8)
    out = ids_of(Both(bed, bed), bed, 1, [0, *[MASK] * 7], denoise=[Speculate()])
    assert out.ids_BL.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]] and (out.calls, out.checks) == (1, 1)


@pytest.mark.parametrize("verifies", [Chain(4, 0.7), Turned(4, 0.6)], ids=["same", "other"])
@pytest.mark.parametrize("named", [{}, {"block_length": 3}])
def test_drawn_it_has_the_law_of_the_causal_model(verifies: Chain, named: dict[str, Any]) -> None:
    bed, rows = Chain(4, 0.9), 20_000
    out = ids_of(Both(bed, verifies), bed, rows, temperature=1.0, denoise=[Speculate()], seed=2, **named)
    assert distance(verifies.joint, bed.law(out.ids_BL)) <= bed.floor(verifies.joint, rows)
    assert float(out.forwards_B.double().mean()) < 4


def test_temperature_top_k_and_allow_sets_are_those_of_the_causal_model() -> None:
    """One word is drawn: p^2 normalised, and nothing beyond the two likeliest or the allow-set."""
    bed, verifies, rows = Chain(2, 0.5), Turned(2, 0.6), 20_000
    p = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64) ** 2
    for named, law in [
        ({"temperature": 0.5}, p / p.sum()),
        ({"temperature": 1.0, "top_k": 1}, torch.tensor([0.0, 0, 1])),
    ]:
        out = ids_of(Both(bed, verifies), bed, rows, [0, MASK], denoise=[Speculate()], **named)
        found = torch.bincount(out.ids_BL[:, 1], minlength=3).double() / rows
        assert distance(found, law) < 0.015
    batch = collate([[Text([0]), Target(length=1, allow=((0, 2),))]] * rows, bed.vocab)
    config = generation_config(temperature=1.0, early_stop=False, denoise=[Speculate()])
    found = torch.bincount(sample(Both(bed, verifies), batch, bed.vocab, config).ids_BL[:, 1], minlength=3) / rows
    assert distance(found, torch.tensor([0.5, 0.5, 0.0])) < 0.015


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    "named",
    [
        {"denoise": [Speculate()], "temperature": 1.0},
        {"denoise": [Speculate()], "temperature": 0.7, "block_length": 3, "top_p": 0.9, "early_stop": True},
        {"denoise": [Verifier(top_k=3)], "temperature": 1.0, "block_length": 4},
        {"denoise": [Verifier(relative=0.3, mismatch="draft")], "guidance_scale": 0.5},
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(named: dict[str, Any], shift: int) -> None:
    m = model()
    m.backbone.facts = replace(m.backbone.facts, shift=shift)
    named = {"early_stop": False, "seed": 1, **named}
    together = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), **named)
    for b in range(4):
        alone = m.generate(batch_of(m, [samples()[b]], [[8, 3, 5, 4][b]]), **named)
        assert alone.targets()[0] == together.targets()[b]
        assert int(alone.forwards_B[0]) == int(together.forwards_B[b])


def test_a_model_is_given_by_its_folder(tmp_path: Path) -> None:
    m, causal = model(image=False), model(Causal(), image=False)
    for p in causal.backbone.parameters():
        p.data.mul_(1.1)
    causal.save_pretrained(tmp_path / "verifier")
    node = {"target": "mmdiff.samplers.links.verifier.Speculate", "model": str(tmp_path / "verifier")}
    named: dict[str, Any] = {"early_stop": False, "block_length": 4}
    rows = samples()[1:3]
    out = m.generate(batch_of(m, rows, [3, 5]), denoise=[node], **named)
    plain = causal.generate(batch_of(m, rows, [3, 5]), remasking="left_to_right", **named)
    assert out.targets() == plain.targets()
    with pytest.raises(ConfigError, match="does not read image as this model does"):
        pictured = model()
        pictured.generate(batch_of(pictured, samples(), [8, 3, 5, 4]), denoise=[node], **named)
    words = new_backbone(tokenizer=word_tokenizer(["other", "words"]), hidden_size=32, layers=1, heads=2)
    MMDiff(words).save_pretrained(tmp_path / "words")
    with pytest.raises(ConfigError, match="sampler.denoise.model: .*its ids stand for other tokens"):
        m.generate(batch_of(m, rows, [3, 5]), denoise=[{**node, "model": str(tmp_path / "words")}])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"denoise": [Verifier(top_k=2, relative=0.5)]}, "denoise.relative: top_k says already"),
        ({"denoise": [Verifier()], "remasking": "margin"}, "sampler.remasking: Verifier commits from left to right"),
        ({"denoise": [Verifier()], "threshold": 0.5}, "sampler.threshold: Verifier"),
        ({"denoise": [Speculate()], "revise": Remask(0.5)}, "sampler.revise: Speculate"),
        ({"denoise": [Speculate()], "eos_policy": "last"}, "sampler.eos_policy: Speculate"),
        ({"denoise": [Speculate()], "temperature_end": 0.5}, "sampler.temperature_end: Speculate"),
        ({"denoise": [Speculate()], "constraint": "a.B"}, "sampler.constraint: Speculate"),
        ({"denoise": [Verifier()], "constraint": "a.B"}, "sampler.denoise.mismatch: a verifier's token"),
        ({"denoise": [Verifier("nowhere")]}, "sampler.denoise.model: nowhere: neither a saved model nor"),
        ({"denoise": [Verifier(), Verifier()]}, "Verifier chooses among proposals"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_sentence(named: dict[str, Any], message: str) -> None:
    m = model(image=False)
    with pytest.raises(ConfigError) as raised:
        m.generate(batch_of(m, samples()[2:3]), **named)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("link", [Verifier, Speculate, lambda m: Resample(Reader(m))])
def test_logits_of_the_other_model_that_are_no_numbers_are_refused(link: Any) -> None:
    m, broken = model(image=False), model(image=False)
    for p in broken.backbone.parameters():
        p.data.fill_(torch.nan)
    with pytest.raises(DataError, match="logits are not finite"):
        m.generate(batch_of(m, samples()[1:2]), denoise=[link(broken)], temperature=1.0)


def test_a_denoise_that_cannot_be_read_so_is_refused() -> None:
    bed = Chain(2)
    with pytest.raises(ConfigError, match="Chain cannot read a canvas from left to right"):
        ids_of(bed, bed, denoise=[Verifier()])
