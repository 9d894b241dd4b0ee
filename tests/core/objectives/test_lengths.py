"""Objectives that change the length of a canvas: nothing is lost from what they take off, losses by hand, and models
that fill gaps of unknown length.

Shape letters: B samples, L canvas length, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.objectives.replacing.expanding import ExpandingLoss
from mmdiff.objectives.replacing.insertion import InsertionLoss
from mmdiff.samplers.processes.expanding import Expanding
from mmdiff.samplers.processes.insertion import Insertion

COUNT, BOS, END, EXPAND = 7, "bos", "end", "<expand>"
PAIRS = [(a, b) for a in range(COUNT - 2) for b in range(a + 2, COUNT)]


def new_model() -> MMDiff:
    torch.manual_seed(0)
    words = [*(f"w{i}" for i in range(COUNT)), BOS, END, EXPAND]
    return MMDiff(new_backbone(tokenizer=word_tokenizer(words), hidden_size=48, layers=2, heads=2))


def row(model: MMDiff, a: int, b: int, masked: int = 0) -> Sample:
    """`bos a [all words between] b end`; with `masked`, so many masked positions between."""
    encode = model.vocab.encode
    between: Target = Target(length=masked) if masked else Target(encode(" ".join(f"w{i}" for i in range(a + 1, b))))
    return [Text(encode(f"{BOS} w{a}")), between, Text(encode(f"w{b} {END}"))]


def batches(model: MMDiff, step: int, size: int = 32) -> Any:
    g = torch.Generator().manual_seed(step)
    samples = [row(model, *PAIRS[i]) for i in torch.randint(len(PAIRS), (size,), generator=g)]
    batch = collate(samples, model.vocab, index=range(step * size, (step + 1) * size))
    return batch, NoiseKey(0, step, "x", batch=size)


def learnt(objective: Any, steps: int) -> MMDiff:
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        plan = objective.plan(*batches(model, step), model.vocab)
        terms = objective.terms(model, plan)
        loss = torch.stack([term.value / max(plan.counts[name], 1) for name, term in terms.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimizer.step()
    return model.eval()


def right(model: MMDiff, masked: int, process: Any) -> int:
    """How many of the 15 gaps are filled with exactly the words that belong there."""
    batch = collate([row(model, *pair, masked) for pair in PAIRS], model.vocab)
    out = model.generate(batch, early_stop=False, process=process)
    want = [" ".join(f"w{i}" for i in range(a + 1, b)) for a, b in PAIRS]
    return sum(model.vocab.decode(ids) == text for ids, text in zip(out.targets(), want, strict=True))


def test_insertion_loses_nothing_and_every_count_is_as_likely() -> None:
    model = new_model()
    encode = model.vocab.encode
    text: Sample = [Text(encode(BOS)), Target(encode("w1 w2 w3")), Text(encode("w4")), Target(encode("w5"))]
    batch = collate([text] * 1500, model.vocab)
    plan = InsertionLoss().plan(batch, NoiseKey(1, 0, "x", batch=1500), model.vocab)
    for b in range(200):
        kept = plan.batch.ids_BL[b][plan.batch.attend_BL[b]].tolist()
        behind: dict[int, list[int]] = {}
        for at, token in zip(plan.gap_N[plan.row_N == b].tolist(), plan.id_N[plan.row_N == b].tolist(), strict=True):
            behind.setdefault(at, []).append(token)
            assert plan.gap_BL[b, at]
        whole = [token for at, own in enumerate(kept) for token in [own, *behind.get(at, [])]]
        assert whole == batch.ids_BL[b].tolist()
    counts = Counter(plan.count_B.tolist())
    assert all(abs(counts[k] - 300) < 5 * (1500 * 0.2 * 0.8) ** 0.5 for k in range(5)) and len(counts) == 5
    assert plan.counts == {"insert": 1500 - counts[0], "stop": 1500}


@pytest.mark.parametrize("chunk", [3, 4096])
def test_the_insertion_loss_by_hand(chunk: int) -> None:
    """One softmax over all positions and words of a row, from whole logits; and the same for each row alone."""
    model = new_model()
    model.logit_chunk = chunk
    batch, key = batches(model, 0, 8)
    plan = InsertionLoss().plan(batch, key, model.vocab)
    terms = InsertionLoss().terms(model, plan)
    h_BLD = model.hidden(plan.batch.ids_BL, plan.batch, {}, torch.arange(8))
    logits_BLV = model.backbone.head(h_BLD).float().detach()
    words = torch.tensor([i for i in model.vocab.text_ids if i != model.vocab.eos_id])
    want = stop = 0.0
    for b in range(8):
        missing = [(int(g), int(t)) for r, g, t in zip(plan.row_N, plan.gap_N, plan.id_N, strict=True) if r == b]
        p_LV = torch.zeros_like(logits_BLV[b])
        at = plan.gap_BL[b].nonzero()
        joint = logits_BLV[b, at, words].flatten().softmax(0).view(len(at), -1)
        p_LV[at, words] = joint
        want -= sum(float(p_LV[g, t].log()) for g, t in missing) / max(len(missing), 1)
        stop -= float(torch.nn.functional.logsigmoid(logits_BLV[b, 0, model.vocab.eos_id] * (-1 if missing else 1)))
    assert float(terms["insert"].value.detach()) == pytest.approx(want, rel=1e-5)
    assert float(terms["stop"].value.detach()) == pytest.approx(stop, rel=1e-5)
    terms["insert"].value.backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize("merge", [0.0, 0.4, 1.0])
def test_expanding_keeps_what_is_visible_and_merges_neighbours(merge: float) -> None:
    model = new_model()
    encode, mask = model.vocab.encode, model.vocab.mask_id
    expand, eos = encode(EXPAND)[0], model.vocab.eos_id
    text: Sample = [Text(encode(BOS)), Target(encode("w0 w1 w2 w3")), Text(encode("w4")), Target(encode("w5 w6"))]
    batch = collate([text] * 500, model.vocab)
    objective = ExpandingLoss(EXPAND, merge=merge, falling=0.0, surplus=2, weight="even")
    plan = objective.plan(batch, NoiseKey(1, 0, "x", batch=500), model.vocab)
    added: Counter[int] = Counter()
    merged = 0
    for b in range(500):
        here_L = plan.batch.attend_BL[b]
        seen, label = plan.ids_RL[b][here_L].tolist(), plan.batch.ids_BL[b][here_L].tolist()
        extra = label.count(eos)
        added[extra] += 1
        assert label[len(label) - extra :] == [eos] * extra
        rest, expands = batch.ids_BL[b].tolist(), 0
        for noised, token in zip(seen[: len(seen) - extra], label, strict=False):
            assert noised in (mask, token)
            if token == expand:
                expands += 1
                continue
            gone = rest.index(token)  # the text has every word once
            assert gone >= 2 * expands and (expands or not gone)
            del rest[: gone + 1]
            merged, expands = merged + expands, 0
        assert len(rest) >= 2 * expands and (expands or not rest)
        merged += expands
        assert float(plan.weight_RL[b][plan.masked_RL[b]].sum()) == pytest.approx(
            seen.count(mask) - extra + (extra > 0)
        )
    assert set(added) == {0, 1, 2} and (merged > 0) == (merge > 0)
    assert plan.counts["denoise"] == pytest.approx(float(plan.weight_RL[plan.masked_RL].sum()))


@pytest.mark.slow
def test_gaps_of_unknown_length_are_filled() -> None:
    """15 gaps of 1 to 5 words; the number of masked positions says little, or nothing, of it."""
    assert right(learnt(InsertionLoss(), 150), 6, Insertion()) >= 14
    model = learnt(ExpandingLoss(EXPAND, falling=0.0, surplus=3, weight="even"), 400)
    assert min(right(model, masked, Expanding(EXPAND, most=12)) for masked in (1, 6)) >= 12
    fixed = learnt(ExpandingLoss(EXPAND, merge=0.0, surplus=0, weight="even"), 150)
    assert right(fixed, 3, Expanding(EXPAND, most=12)) <= 5


def test_refusals() -> None:
    model = new_model()
    batch = collate([[Target(model.vocab.encode("w1 w2"))]], model.vocab)
    with pytest.raises(DataError, match="insertion: a row begins with a target"):
        InsertionLoss().plan(batch, NoiseKey(0), model.vocab)
    with pytest.raises(ConfigError, match="objective.expand: the tokenizer has no '<grow>'"):
        ExpandingLoss("<grow>").plan(batch, NoiseKey(0), model.vocab)
