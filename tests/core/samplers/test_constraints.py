"""Which ids the sampler may commit: allow-sets, suppressed ids and tokens, and how a sequence may end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from logit_tables import EOS, EOT, MASK, SLOT, VOCAB, ByContext, Table, V, likely

from mmdiff.backbones.load import toy_backbone
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_eos_last_commits_end_ids_after_all_others(temperature: float, remasking: str) -> None:
    likeliest, sure = [EOS, 1, EOT, 2, EOS, 3], [[80.0, 40.0, 80.0, 40.0, 80.0, 40.0]]
    named: dict[str, Any] = dict(temperature=temperature, remasking=remasking, early_stop=False)
    batch = collate([[Target(length=6)]], VOCAB)
    out = sample(likely(likeliest, sure=sure), batch, VOCAB, generation_config(eos_policy="last", **named))
    ends = torch.tensor([True, False] * 3)
    assert out.ids_BL[0].tolist() == likeliest  # it may be committed, at any temperature ...
    assert out.step_BL[0][ends].min() > out.step_BL[0][~ends].max()  # ... after everything else
    assert (out.confidence_BL[0][ends] == 0).all()
    out = sample(likely(likeliest, sure=sure), batch, VOCAB, generation_config(eos_policy="suppress", **named))
    assert not torch.isin(out.ids_BL, torch.tensor([EOS, EOT])).any()


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_only_allowed_ids_are_committed(temperature: float) -> None:
    rows: list[Sample] = [[Target(length=9, allow=((3, 5), (40, 41))), Target(length=9)]] * 4
    batch = collate(rows, VOCAB)
    logits_BLV = torch.randn(4, 18, V, generator=torch.Generator().manual_seed(0))
    logits_BLV[:, :, [MASK, SLOT, 50]] = 30.0
    table = Table(logits_BLV)
    out = sample(
        table, batch, VOCAB, GenerationConfig(temperature=temperature, suppress_ids=[50, 40], early_stop=False)
    )
    assert set(out.ids_BL[:, :9].unique().tolist()) == {3, 4}
    assert not torch.isin(out.ids_BL[:, 9:], torch.tensor([MASK, SLOT, 50, 40])).any()
    # confidence is the probability among the allowed ids
    p = logits_BLV[0, 0, [3, 4]].softmax(-1)[out.ids_BL[0, 0] - 3]
    assert float(out.confidence_BL[0, 0]) == pytest.approx(float(p), abs=1e-6)
    with pytest.raises(ConfigError, match="row 0, position 0"):
        sample(table, batch, VOCAB, GenerationConfig(suppress_ids=[3, 4, 40]))
    with pytest.raises(ConfigError, match="99"):
        sample(table, batch, VOCAB, GenerationConfig(suppress_ids=[99]))


def test_tokens_are_suppressed_by_their_spelling() -> None:
    vocab = toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab
    turn = vocab.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    logits_BLV = torch.zeros(1, 4, vocab.size)
    logits_BLV[..., [65, vocab.eos_id, turn]] = torch.tensor([1.0, 2.0, 3.0])  # the likeliest is the last

    def generated(*tokens: str) -> list[int]:
        config = GenerationConfig(suppress_tokens=list(tokens), early_stop=False)
        return sample(Table(logits_BLV), collate([[Target(length=4)]], vocab), vocab, config).ids_BL[0].tolist()

    assert generated() == [turn] * 4
    assert generated("<|eot_id|>") == [vocab.eos_id] * 4
    assert generated("<|eot_id|>", "<|endoftext|>") == [65] * 4
    with pytest.raises(ConfigError, match=r"suppress_tokens: the tokenizer has no '<\|eot\|>' \(did you mean"):
        generated("<|eot|>")


def test_an_end_that_is_also_the_slot_can_be_committed() -> None:
    """LLaDA's padding, which stands where pictures go, is its end of sequence."""
    vocab = toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab
    assert vocab.slot_id == vocab.eos_id
    logits_BLV = torch.zeros(1, 4, vocab.size)
    logits_BLV[..., vocab.eos_id] = 9.0
    out = sample(Table(logits_BLV), collate([[Target(length=4)]], vocab), vocab, GenerationConfig(steps=4))
    assert out.ids_BL[0].tolist() == [vocab.eos_id] * 4 and int(out.forwards_B[0]) == 1  # it stops early


def test_a_turn_ends_although_eos_is_suppressed() -> None:
    """LLaDA-V's settings: its answers end in <|eot_id|>, and EOS is never proposed."""
    vocab = toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab
    turn = vocab.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    logits_BLV = torch.zeros(1, 5, vocab.size)
    logits_BLV[0, [0, 1, 2, 3, 4], [65, turn, 66, 66, 66]] = torch.tensor([9.0, 8.0, 3.0, 2.0, 1.0])
    config = GenerationConfig(suppress_tokens=["<|endoftext|>"])
    out = sample(Table(logits_BLV), collate([[Target(length=5)]], vocab), vocab, config)
    assert out.ids_BL[0].tolist() == [65, turn, *[vocab.eos_id] * 3] and int(out.forwards_B[0]) == 2


def test_padding_rows_of_the_embedding_table_are_never_committed() -> None:
    vocab = Vocab(word_tokenizer(["a", "b"]), 12, mask_id=2, eos_id=1, pad_id=0, slot_id=3, ranges={"bin": (8, 10)})
    logits_BLV = torch.zeros(1, 4, 12)
    logits_BLV[..., 7], logits_BLV[..., 10], logits_BLV[..., 9], logits_BLV[..., 5] = 9.0, 8.0, 7.0, 6.0
    batch = collate([[Target(length=2), Target(length=2, allow=((10, 11),))]], vocab)
    assert sample(Table(logits_BLV), batch, vocab, GenerationConfig()).ids_BL[0].tolist() == [5, 5, 10, 10]


def test_words_behind_an_end_id_are_no_part_of_the_answer() -> None:
    """The model is surest of EOS at place 2, then of a word at place 4, then of one at place 1 (Whisper-LLaDA)."""
    batch = collate([[Target(length=6)]], VOCAB)
    ids, sure = [8, EOS, 9, 11, 12, 13], [[7.0, 9.0, 5.0, 8.0, 4.0, 3.0]]
    out = sample(likely(ids, sure=sure), batch, VOCAB, generation_config())
    assert out.ids_BL.tolist() == [[8, EOS, EOS, EOS, EOS, EOS]] and out.calls == 3
    assert out.step_BL.tolist() == [[3, 1, 3, 3, 3, 3]]
    once = sample(likely(ids, sure=sure), batch, VOCAB, generation_config(end_rule="at_once"))
    assert once.ids_BL.tolist() == out.ids_BL.tolist() and once.step_BL.tolist() == [[2, 1, 1, 1, 1, 1]]
    given = collate([[Target([MASK, MASK, 20, MASK])]], VOCAB)  # what was given stays
    out = sample(likely([8, EOS, 0, 9], sure=[[7.0, 9.0, 1.0, 8.0]]), given, VOCAB, generation_config())
    assert out.ids_BL.tolist() == [[8, EOS, 20, EOS]]


def test_at_once_the_schedule_of_the_blocks_start_holds() -> None:
    """LLaDA-V: positions are committed as if the answer were as long as the canvas, so that it ends in fewer steps."""
    batch = collate([[Target(length=12)]], VOCAB)
    sure = [[9.0 - 0.1 * i for i in range(12)]]
    sure[0][6] = 20.0
    ids = list(range(20, 26)) + [EOS] + list(range(30, 35))
    out = sample(likely(ids, sure=sure), batch, VOCAB, generation_config(end_rule="at_once", steps=6))
    assert [int((out.step_BL == s).sum()) for s in (1, 2, 3, 4)] == [1 + 6, 2, 2, 1]  # two a step, not one
    assert out.ids_BL[0].tolist() == list(range(20, 26)) + [EOS] * 6 and out.calls == 4


def test_confidence_over_the_whole_vocabulary_counts_banned_ids() -> None:
    table = torch.zeros(1, 2, V)
    table[0, 0, 5], table[0, 0, MASK] = 3.0, 6.0  # would rather write the mask
    table[0, 1, 6] = 2.5
    batch = collate([[Target(length=2)]], VOCAB)
    ours = sample(Table(table.clone()), batch, VOCAB, generation_config())
    theirs = sample(Table(table.clone()), batch, VOCAB, generation_config(confidence="vocabulary"))
    assert ours.step_BL.tolist() == [[1, 2]] and theirs.step_BL.tolist() == [[2, 1]]
    assert ours.targets() == theirs.targets() == [[5, 6]]
    p = table[0].softmax(-1)
    assert theirs.confidence_BL[0].tolist() == pytest.approx([float(p[0, 5]), float(p[1, 6])], abs=1e-6)


def published_stop(ids: list[int], start: int, block: int, per_step: int, denoise: ByContext) -> tuple[list[int], int]:
    """LLaDA-V's loop over a list: the tokens before the stop, and the forwards."""
    ids, stop, calls = list(ids), len(ids), 0
    for end in range(start + block, len(ids) + 1, block):
        while MASK in ids[:stop][:end]:
            logits_LV = denoise.row(tuple(ids))
            logits_LV[:, [MASK, VOCAB.slot_id]] = -torch.inf
            sure_L, token_L = logits_LV.softmax(-1).max(-1)
            calls += 1
            masked = sorted((i for i in range(min(stop, end)) if ids[i] == MASK), key=lambda i: -float(sure_L[i]))
            for i in masked[:per_step]:
                ids[i] = int(token_L[i])
            stop = next((i for i in range(start, len(ids)) if ids[i] in (EOS, EOT)), stop)
    return ids[start:stop], calls


def test_what_stands_behind_a_stop_is_seen_until_the_end() -> None:
    """`before`: the tokens and forwards of LLaDA-V's loop; `at_once` shows the model EOS there instead, and differs."""
    other = 0
    for seed in range(12):
        denoise = ByContext(seed, bonus={EOS: 5.0})
        batch = collate([[Text([1, 2, 3]), Target(length=12)], [Text([4]), Target(length=12)]], VOCAB)
        named = {"block_length": 6, "steps": 6}
        out = sample(denoise, batch, VOCAB, generation_config(end_rule="before", **named))
        at_once = sample(denoise, batch, VOCAB, generation_config(end_rule="at_once", **named))
        for b, start in enumerate((3, 1)):
            ids = [1, 2, 3] if b == 0 else [4]
            want, calls = published_stop(ids + [MASK] * 12, start, 6, 2, denoise)
            assert VOCAB.until_end(out.targets()[b]) == want
            assert set(out.targets()[b][len(want) + 1 :]) <= {EOS}
            assert int(out.forwards_B[b]) == calls
            other += VOCAB.until_end(at_once.targets()[b]) != want
    assert other
