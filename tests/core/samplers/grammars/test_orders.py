"""The text is of the language in any order of unmasking, whatever the model says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from logit_tables import Table

from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.config import sampler_nodes
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.deliberation import MaskRandom, rewrite
from mmdiff.samplers.grammars.pattern import Pattern
from mmdiff.samplers.grammars.scaffold import scaffold, text_of
from mmdiff.samplers.grammars.schema import Schema
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.select import Everything
from tests.core.samplers.grammars.grammar_texts import PERSON, Noise, filled, is_person, texts

pytestmark = pytest.mark.needs("outlines_core")


ORDERS: dict[str, dict[str, Any]] = {
    "low_confidence": {"steps": 6},
    "random": {"remasking": "random", "steps": 5, "temperature": 1.0},
    "blocks": {"block_length": 16, "steps": 10, "temperature": 0.7},
    "threshold": {"threshold": 0.1},
    "revise": {"steps": 6, "select": Everything(), "revise": RunningConfidence()},
    "late ends": {"steps": 6, "eos_policy": "last", "temperature": 1.0},
    "at once": {"steps": 6, "end_rule": "at_once", "temperature": 1.0},
    "cooling": {"steps": 6, "temperature": 1.5, "temperature_end": 0.0},
    "no ends": {"steps": 4, "eos_policy": "suppress"},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["vocab", "pieces"])
def test_every_text_is_valid_in_any_order(order: str, name: str, request: pytest.FixtureRequest) -> None:
    vocab = request.getfixturevalue(name)
    targets = [Target(length=n) for n in (80, 66, 72)]
    out = filled(vocab, *targets, grammar=Schema(PERSON), **ORDERS[order])
    assert all(map(is_person, texts(vocab, out)))
    assert not (out.ids_BL == vocab.mask_id).any()
    if name == "vocab":
        row = filled(vocab, targets[0], grammar=Schema(PERSON), **ORDERS[order])  # alone, as in the batch
        assert row.targets()[0] == out.targets()[0] and row.forwards_B[0] == out.forwards_B[0]


def test_the_text_is_valid_whatever_the_model_says(vocab: Vocab) -> None:
    """Also where it gives no id of the language a probability at all."""
    logits_BLV = torch.full((1, 74, vocab.size), -torch.inf)
    logits_BLV[..., vocab.encode("~")] = 0.0
    for temperature in (0.0, 1.0):
        out = filled(
            vocab,
            Target(length=72),
            grammar=Schema(PERSON),
            denoise=Table(logits_BLV),
            steps=4,
            temperature=temperature,
        )
        assert is_person(texts(vocab, out)[0])


def test_a_draft_is_written_again_within_the_language(vocab: Vocab) -> None:
    draft = vocab.encode('{"name":"ant","age":7,"tall":true,"kind":"ant","marks":[1]}') + [vocab.eos_id] * 8
    batch = collate([[Text([1, 2]), Target(draft)]] * 3, vocab)
    config = generation_config(constraint=Schema(PERSON), draft=MaskRandom(0.6), temperature=1.0, steps=4)
    out = rewrite(Noise(vocab), batch, vocab, config)
    assert all(map(is_person, texts(vocab, out))) and (out.step_BL > 0).any()


def test_without_the_path_the_text_is_not_valid(vocab: Vocab) -> None:
    """The test above can fail: what each position likes best is no person."""
    with pytest.raises(ValueError):
        is_person(texts(vocab, filled(vocab, Target(length=96), grammar=None, steps=6))[0])


def test_given_ids_and_a_fixed_suffix_stay(vocab: Vocab) -> None:
    gap = [vocab.mask_id]
    ids = gap * 30 + vocab.encode('"age": 42,') + gap * 40 + vocab.encode("[3]}")
    out = filled(vocab, Target(ids), grammar=Schema(PERSON), steps=5, temperature=1.0)
    given = torch.tensor(ids)
    assert (out.ids_BL[0, 2:] == given)[given != vocab.mask_id].all()
    text = texts(vocab, out)[0]
    assert is_person(text) and json.loads(text)["age"] == 42 and json.loads(text)["marks"] == [3]


def test_a_scaffold_is_filled_and_its_gaps_are_of_unknown_length(vocab: Vocab) -> None:
    null = "<|start_header_id|>"
    grammar = Schema(PERSON, null=null)
    ids = scaffold(grammar, vocab, gap=8)
    out = filled(vocab, Target(ids), Target(ids), grammar=grammar, steps=4, temperature=1.0, early_stop=False)
    read = [text_of(row, vocab, null) for row in out.targets()]
    assert all(map(is_person, read)) and len(set(map(len, read))) > 0
    logits_BLV = torch.zeros(1, len(ids) + 2, vocab.size)
    logits_BLV[..., vocab.tokenizer.convert_tokens_to_ids(null)] = 50.0  # a model that would say nothing at all
    out = filled(vocab, Target(ids), grammar=grammar, steps=4, denoise=Table(logits_BLV))
    value = json.loads(text_of(out.targets()[0], vocab, null))
    assert value["name"] == "" and value["marks"] == []
    with pytest.raises(ConfigError, match="null.*ends an answer; set early_stop"):
        filled(vocab, Target(ids), grammar=Schema(PERSON, null="<|eot_id|>"))


def test_allow_sets_hold_as_well(vocab: Vocab) -> None:
    """Two targets of a row, each a text of its own; one has an allow-set, here that of digits and EOS."""
    zero = vocab.encode("0")[0]
    allow = ((zero, zero + 10), (vocab.eos_id, vocab.eos_id + 1))
    batch = collate([[Target(length=7, allow=allow), Target(length=5), Text([1]), Target(length=4)]] * 2, vocab)
    config = generation_config(constraint=Pattern("[0-9]+|[a-z]+"), temperature=1.0, block_length=4)
    out = sample(Noise(vocab), batch, vocab, config)
    for ids in out.targets():
        first, second, third = (vocab.decode(vocab.until_end(part)) for part in (ids[:7], ids[7:12], ids[12:]))
        assert re.fullmatch("[0-9]+", first)
        assert re.fullmatch("[0-9]+|[a-z]+", second) and re.fullmatch("[0-9]+|[a-z]+", third)


def test_a_configuration_names_it(vocab: Vocab) -> None:
    node = {"target": "mmdiff.samplers.grammars.schema.Schema", "schema": PERSON, "spaces": "none"}
    out = filled(vocab, Target(length=90), grammar=node, steps=3)
    assert is_person(texts(vocab, out)[0]) and '"age": ' not in texts(vocab, out)[0]
    assert sampler_nodes({"constraint": node}) == {"constraint": node}  # what the gate of saved folders looks at
