"""The text is the likeliest of the language, or drawn by its law."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import pytest
import torch
from logit_tables import Table
from torch import Tensor

from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.samplers.grammars.pattern import Pattern
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config

pytestmark = pytest.mark.needs("outlines_core")


WORDS = Vocab(word_tokenizer(["a", "b", "c"]), 7, mask_id=2, eos_id=1, pad_id=0, slot_id=0)
LANGUAGE = "a( (b a|c))*( b)?"


def language(length: int) -> Tensor:
    """All strings of the language of so many words, filled up with EOS."""
    strings = []
    for words in itertools.product([4, 5, 6, 1], repeat=length):
        n = words.index(1) if 1 in words else length
        text = " ".join(" abc"[i - 3] for i in words[:n])
        if all(i == 1 for i in words[n:]) and re.fullmatch(LANGUAGE, text):
            strings.append(words)
    return torch.tensor(strings)


@pytest.mark.parametrize("length", [1, 4, 6])
def test_the_proposal_is_the_likeliest_string(length: int) -> None:
    strings = language(length)
    for seed in range(20):
        logits_BLV = 3 * torch.randn(1, length, 7, generator=torch.Generator().manual_seed(seed))
        score = logits_BLV[0, torch.arange(length), strings].sum(1)
        batch = collate([[Target(length=length)]], WORDS)
        config = generation_config(constraint=Pattern(LANGUAGE), steps=1, early_stop=False)
        out = sample(Table(logits_BLV), batch, WORDS, config)
        assert out.ids_BL[0].tolist() == strings[score.argmax()].tolist()
        allowed = [i for i in range(7) if i not in (WORDS.mask_id, WORDS.slot_id)]
        p = logits_BLV[0][:, allowed].softmax(-1)
        at = torch.tensor([allowed.index(i) for i in out.ids_BL[0].tolist()])
        assert torch.allclose(out.confidence_BL[0], p.gather(1, at[:, None]).squeeze(1), atol=1e-6)


@pytest.mark.parametrize(("temperature", "given"), [(1.0, None), (0.5, None), (1.0, (2, 5))])
def test_a_drawn_string_has_the_law_of_the_marginals_given_the_language(
    temperature: float, given: tuple[int, int] | None
) -> None:
    length, n = 5, 4000
    strings = language(length)
    ids = [WORDS.mask_id] * length
    if given is not None:
        ids[given[0]] = given[1]
        strings = strings[strings[:, given[0]] == given[1]]
    logits_LV = torch.randn(length, 7, generator=torch.Generator().manual_seed(3))
    free = [t for t in range(length) if given is None or t != given[0]]
    score = sum(logits_LV[t, strings[:, t]].double() for t in free)
    law = (score / temperature).softmax(0)
    batch = collate([[Target(ids)]] * n, WORDS)
    config = generation_config(constraint=Pattern(LANGUAGE), steps=1, early_stop=False, temperature=temperature)
    out = sample(Table(logits_LV.expand(n, -1, -1)), batch, WORDS, config)
    seen = Counter(map(tuple, out.targets()))
    assert len(strings) > 3 and seen.keys() <= set(map(tuple, strings.tolist()))
    for words, p in zip(strings.tolist(), law.tolist(), strict=True):
        assert abs(seen[tuple(words)] / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_a_block_is_drawn_by_its_own_law_among_those_that_can_be_completed() -> None:
    """However many ways there are to go on, a later block counts for nothing but that there is one."""
    length, n = 6, 4000
    strings = language(length)
    logits_LV = torch.randn(length, 7, generator=torch.Generator().manual_seed(4))
    halves = strings[:, :3].unique(dim=0)
    law = logits_LV[torch.arange(3), halves].sum(1).softmax(0)
    config = generation_config(constraint=Pattern(LANGUAGE), steps=2, block_length=3, early_stop=False, temperature=1.0)
    batch = collate([[Target(length=length)]] * n, WORDS)
    out = sample(Table(logits_LV.expand(n, -1, -1)), batch, WORDS, config)
    assert {tuple(words) for words in out.targets()} <= set(map(tuple, strings.tolist()))
    seen = Counter(tuple(words[:3]) for words in out.targets())
    for words, p in zip(halves.tolist(), law.tolist(), strict=True):
        assert abs(seen[tuple(words)] / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-9
