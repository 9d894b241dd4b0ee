"""Deliberation: which positions of a draft are remasked, what is counted, and that a perfect denoiser corrects it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import by_query
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.protocols import Denoise
from mmdiff.samplers.deliberation import Draft, MaskChunks, MaskLeastConfident, MaskRandom, lowest, rewrite

WORDS = "a b c d e f g h i j k l".split()
TOKENIZER = word_tokenizer(WORDS)
VOCAB = Vocab(tokenizer=TOKENIZER, size=16, mask_id=2, eos_id=1, pad_id=0, slot_id=2)
NAMES = {"random": MaskRandom, "low": MaskLeastConfident, "chunks": MaskChunks}


def ids(text: str) -> list[int]:
    return VOCAB.encode(text)


def canvas(drafts: Sequence[str], index: Sequence[int] | None = None) -> Batch:
    """Drafts of any length behind one word of context, left padded; `-` is EOS."""
    samples = [[Text(ids("a")), Target([1 if w == "-" else ids(w)[0] for w in d.split()])] for d in drafts]
    return collate(samples, VOCAB, side="left", index=index)


class Oracle:
    """Knows the truth: the true token of each target position is likely, by a chance of its own; keeps every canvas."""

    def __init__(self, batch: Batch, truths: Sequence[str], sure: Sequence[Sequence[float]] | None = None) -> None:
        self.truth_BL = batch.ids_BL.clone()
        self.sure_BL = torch.full(batch.ids_BL.shape, 0.9)
        for b, truth in enumerate(truths):
            self.truth_BL[b, batch.target_BL[b]] = canvas([truth]).ids_BL[0, 1:]
            if sure is not None:
                self.sure_BL[b, batch.target_BL[b]] = torch.tensor(sure[b])
        self.seen: list[Tensor] = []
        self.rows: list[list[int]] = []

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        self.seen.append(ids_RL.clone())
        self.rows.append(row_R.tolist())
        p_PV = torch.full((int(predict_RL.sum()), VOCAB.size), 1e-9)
        p_P = self.sure_BL[row_R][predict_RL]
        p_PV += ((1 - p_P) / VOCAB.size)[:, None]
        p_PV[torch.arange(len(p_PV)), self.truth_BL[row_R][predict_RL]] += p_P
        return p_PV.log()


def run(denoise: Denoise, batch: Batch, name: str, **fields: Any) -> Any:
    ratio = {k: fields.pop(k) for k in ("ratio", "probe") if k in fields}
    return rewrite(denoise, batch, VOCAB, GenerationConfig(draft=NAMES[name](**ratio), **fields))


def texts(out: Any) -> list[str]:
    return [" ".join("-" if i == 1 else VOCAB.decode([i]) for i in row) for row in out.targets()]


def test_the_lowest_of_a_row_are_found_whatever_lies_between() -> None:
    score = torch.tensor([[0.5, 0.1, 0.9, 0.1, 0.3], [0.2, 0.2, 0.2, 0.2, 0.2]])
    position = torch.tensor([[True, True, False, True, True], [False, True, True, True, True]])
    assert lowest(score, position, 0.5).tolist() == [
        [False, True, False, True, False],
        [False, True, True, False, False],
    ]
    assert lowest(score, position, 0.24).sum() == 0  # floor(0.96)
    for n in range(1, 40):  # floor(r n) in exact arithmetic, not in binary floats
        for tenths in range(1, 11):
            count = lowest(torch.rand(1, n), torch.ones(1, n, dtype=torch.bool), tenths / 10).sum()
            assert int(count) == tenths * n // 10


def test_low_confidence_opens_what_the_model_would_not_have_said() -> None:
    batch = canvas(["b k c d - -", "l b c"])
    oracle = Oracle(batch, ["b e c d - -", "a b c"])
    out = run(oracle, batch, "low", ratio=0.34)
    assert texts(out) == ["b e c d - -", "a b c"]
    remasked = [(s[t] > 0).tolist() for s, t in zip(out.step_BL, out.target_BL, strict=True)]
    assert remasked[0] == [True, True, False, False, False, False]  # floor(2.04) = 2: the wrong word, then the leftmost
    assert remasked[1] == [True, False, False]
    # one probe and one forward per masked position
    assert out.forwards_B.tolist() == [3, 2] and out.calls == 2
    assert out.step_BL[0][out.target_BL[0]].tolist() == [2, 3, 0, 0, 0, 0]
    kept = out.confidence_BL[0][out.target_BL[0]][2:]
    torch.testing.assert_close(kept, torch.full((4,), 0.9 + 0.1 / 16), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("probe", "fill", "forwards"), [("mask", 2, 1), ("eos", 1, 1), ("leave_one_out", 2, 4)])
def test_probes_see_what_they_say(probe: str, fill: int, forwards: int) -> None:
    batch = canvas(["b c d e", "b c"])
    oracle = Oracle(batch, ["b c d e", "b c"])
    out = run(oracle, batch, "low", ratio=0.01, probe=probe)  # floor(0.04) = 0: nothing is remasked
    assert texts(out) == ["b c d e", "b c"] and out.calls == 0
    assert out.forwards_B.tolist() == [forwards, min(forwards, 2)]
    given = batch.ids_BL
    for seen, rows in zip(oracle.seen, oracle.rows, strict=True):
        changed = seen != given[rows]
        assert (seen[changed] == fill).all()
        if probe == "leave_one_out":
            assert changed.sum(1).tolist() == [1] * 6 and rows == [0, 0, 0, 0, 1, 1]
        else:
            assert torch.equal(changed, batch.target_BL[rows])


def test_probing_with_one_position_out_uses_the_other_words() -> None:
    """A denoiser that copies its left neighbour: what leave-one-out finds likely depends on the draft."""

    @by_query
    def copies(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        row_P, position_P = predict_RL.nonzero(as_tuple=True)
        return torch.nn.functional.one_hot(ids_RL[row_P, position_P - 1], VOCAB.size).float() * 9

    batch = canvas(["b b c c"])  # behind "a": only the second b and the second c are copies
    ones = torch.ones(batch.ids_BL.shape)
    draft = Draft(copies, batch, VOCAB, 0, batch.target_BL, torch.zeros(1, dtype=torch.int64), ones)
    (remasked,) = MaskLeastConfident(0.5, "leave_one_out")(draft)
    assert remasked[0].tolist() == [False, True, False, True, False]


def test_random_positions_depend_on_the_sample_alone() -> None:
    drafts = ["b c d e f g h i j k", "b c d e f", "b c d e f g h i j k"]
    batch = canvas(drafts)
    out = run(Oracle(batch, drafts), batch, "random", ratio=0.3)
    remasked = [(s[t] > 0).tolist() for s, t in zip(out.step_BL, out.target_BL, strict=True)]
    assert [sum(o) for o in remasked] == [3, 1, 3] and remasked[0] != remasked[2]
    alone = canvas(drafts[2:], index=[2])
    again = run(Oracle(alone, drafts[2:]), alone, "random", ratio=0.3)
    assert (again.step_BL[0][again.target_BL[0]] > 0).tolist() == remasked[2]
    counts = np.zeros(10)
    many = canvas(drafts[:1] * 400)
    counts = (run(Oracle(many, drafts[:1] * 400), many, "random", ratio=0.3).step_BL[:, 1:] > 0).float().mean(0)
    assert (counts - 0.3).abs().max() < 0.1  # each position alike: 4 standard errors


def test_chunks_are_written_from_left_to_right_with_the_rest_in_sight() -> None:
    batch = canvas(["l l l l l l l", "l l l"])
    oracle = Oracle(batch, ["b c d e f g h", "b c d"])
    out = run(oracle, batch, "chunks", ratio=0.25, steps=1)
    assert texts(out) == ["b c d e f g h", "b c d"]
    # seven positions in four chunks: 1, 1, 1, 4; three positions: one each, the fourth round has nothing to do
    assert out.step_BL[0][out.target_BL[0]].tolist() == [1, 2, 3, 4, 4, 4, 4]
    assert out.step_BL[1][out.target_BL[1]].tolist() == [1, 2, 3]
    assert out.forwards_B.tolist() == [4, 3] and out.calls == 4
    rows = [s[r.index(0)][1:].tolist() for s, r in zip(oracle.seen, oracle.rows, strict=True)]
    m, l_ = 2, ids("l")[0]
    assert rows[1] == [ids("b")[0], m, l_, l_, l_, l_, l_]
    assert rows[3] == [*ids("b c d"), m, m, m, m]


def test_an_end_amid_a_draft_takes_one_word_out_and_no_more() -> None:
    batch = canvas(["b k c d"])
    out = run(Oracle(batch, ["b - c d"]), batch, "chunks", ratio=1.0)
    assert texts(out) == ["b - c d"]


def test_empty_positions_of_a_draft_are_filled_too() -> None:
    samples = [[Text(ids("a")), Target([*ids("b c"), 2, 2])]]
    batch = collate(samples, VOCAB, side="left")
    out = run(Oracle(batch, ["b c d e"]), batch, "low", ratio=0.5)
    assert texts(out) == ["b c d e"]


def test_a_batch_is_its_rows() -> None:
    """Unequal drafts, drawn tokens: each row as when it is alone."""
    rng = np.random.default_rng(0)
    drafts = [" ".join(rng.choice(WORDS, size=n)) for n in (3, 9, 1, 6)]
    truths = [" ".join(rng.choice(WORDS, size=len(d.split()))) for d in drafts]
    sure = [rng.uniform(0.1, 0.6, len(d.split())).tolist() for d in drafts]
    for name in NAMES:
        batch = canvas(drafts)
        whole = run(Oracle(batch, truths, sure), batch, name, ratio=0.5, temperature=1.0, seed=3)
        for b in range(4):
            alone = canvas([drafts[b]], index=[b])
            one = run(Oracle(alone, [truths[b]], [sure[b]]), alone, name, ratio=0.5, temperature=1.0, seed=3)
            assert texts(one)[0] == texts(whole)[b]
            assert one.forwards_B[0] == whole.forwards_B[b]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": "mmdiff.samplers.deliberation.MaskLeastConfident", "ratio": 0}, "above 0"),
        ({"target": "mmdiff.samplers.deliberation.MaskLeastConfident", "probe": "masked"}, 'did you mean "mask"'),
        ({"target": "mmdiff.samplers.deliberation.MaskLeastConfidant"}, 'did you mean "MaskLeastConfident"'),
        ({"target": "mmdiff.samplers.deliberation.MaskRandom", "share": 0.3}, "share"),
    ],
)
def test_bad_rules_are_named(node: Any, message: str) -> None:
    batch = canvas(["b c"])
    with pytest.raises(ConfigError, match=message):
        rewrite(Oracle(batch, ["b c"]), batch, VOCAB, GenerationConfig(draft=node))
