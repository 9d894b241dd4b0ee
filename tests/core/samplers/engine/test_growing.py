"""Canvases that grow and shrink: layouts against lists, DreamOn's and LLaDA2.2's decoding against plain loops over
lists, insertion against the law it draws from."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from logit_tables import EOS, MASK, VOCAB, ByContext, V
from torch import Tensor

from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.relayout import relayout
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.expanding import Expanding
from mmdiff.samplers.processes.indel import InsertDelete
from mmdiff.samplers.processes.insertion import Insertion

EXPAND, DELETE, SPLIT = 50, 51, 52
RAGGED: list[Sample] = [
    [Text([3, 4]), Target(length=5), Text([5])],
    [Text([1]), Target(length=2), Text([6, 7]), Target(length=3)],
    [Target([2, MASK, 9, MASK, MASK, MASK])],
    [Text([7]), Target(length=9)],
]


def run(samples: list[Sample], denoise: Any, index: list[int] | None = None, side: Any = "right", **named: Any) -> Any:
    batch = collate(samples, VOCAB, index=index, side=side)
    return sample(denoise, batch, VOCAB, generation_config(**{"early_stop": False, **named}))


def rows_of(out: Any) -> list[tuple[list[int], list[int], int]]:
    """The targets of each row with their steps, and the row's forwards."""
    found = []
    for b in range(len(out.ids_BL)):
        here_L = out.target_BL[b]
        found.append((out.ids_BL[b, here_L].tolist(), out.step_BL[b, here_L].tolist(), int(out.forwards_B[b])))
    return found


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_new_layout_is_what_lists_give(side: Any) -> None:
    allowed: list[Sample] = [[Text([3]), Target([1, 2, 3], allow=((0, 9),)), Target([20], allow=((20, 30),))], *RAGGED]
    batch = collate(allowed, VOCAB, side=side)
    g = torch.Generator().manual_seed(1)
    keep_BL = torch.rand(batch.ids_BL.shape, generator=g) > 0.3
    after_BL = torch.randint(0, 3, batch.ids_BL.shape, generator=g)
    laid, moved = relayout(batch, keep_BL, after_BL, mask_id=MASK, pad_id=EOS)
    assert batch.allow_BL is not None and laid.allow_BL is not None
    for b in range(len(batch)):
        rows = []
        for position in batch.attend_BL[b].nonzero().squeeze(1).tolist():
            own = int(batch.allow_BL[b, position])
            if keep_BL[b, position]:
                rows.append((int(batch.ids_BL[b, position]), bool(batch.target_BL[b, position]), own, False))
            rows += [(MASK, True, own, True)] * int(after_BL[b, position])
        n = len(rows)
        at = slice(0, n)
        found = zip(
            laid.ids_BL[b, at].tolist(),
            laid.target_BL[b, at].tolist(),
            laid.allow_BL[b, at].tolist(),
            moved.new_BK[b, at].tolist(),
            strict=True,
        )
        assert list(found) == rows
        assert laid.attend_BL[b].tolist() == [True] * n + [False] * (laid.ids_BL.shape[1] - n)
        assert laid.position_ids_BL[b, at].tolist() == list(range(n))
        assert not laid.target_BL[b, n:].any() and int(moved.inserted_B[b]) == sum(new for *_, new in rows)
    assert laid.padded == (not bool(laid.attend_BL.all()))


def dreamon(ids: list[int], free: list[bool], denoise: ByContext, most: int, rest: bool) -> list[int]:
    """DreamOn's loop over a list: one token per forward, by confidence; its expansions and deletions."""
    ids, used = list(ids), 0
    while MASK in ids:
        logits_LV = denoise.row(tuple(ids))
        logits_LV[:, MASK] = -torch.inf
        logits_LV[:, VOCAB.slot_id] = -torch.inf
        if used >= most:
            logits_LV[:, EXPAND] = -torch.inf
        masked = [i for i, token in enumerate(ids) if token == MASK]
        sure_L, token_L = logits_LV.softmax(-1).max(-1)
        best = max(masked, key=lambda i: float(sure_L[i]))
        token = int(token_L[best])
        if token == EXPAND:
            ids[best : best + 1] = [MASK, MASK]
            free[best : best + 1] = [True, True]
            used += 1
        elif token == DELETE:
            gone = [best]
            if rest:
                end = next((i for i in range(best, len(free)) if not free[i]), len(free))
                gone += [i for i in range(best + 1, end) if ids[i] == MASK]
            for i in reversed(gone):
                del ids[i], free[i]
        else:
            ids[best] = token
    return ids


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_dreamon_equals_its_loop_over_lists(rest: bool, side: Any) -> None:
    """Texts, lengths and budgets as a loop over lists has them: each row of a ragged batch alone."""
    grown = deleted = 0
    for seed in range(6):
        denoise = ByContext(seed, bonus={EXPAND: 5.0, DELETE: 4.5})
        process = Expanding(EXPAND, DELETE, most=4, rest=rest)
        out = run(RAGGED, denoise, side=side, process=process)
        batch = collate(RAGGED, VOCAB)
        for b in range(len(RAGGED)):
            n = int(batch.attend_BL[b].sum())
            want = dreamon(batch.ids_BL[b, :n].tolist(), batch.target_BL[b, :n].tolist(), denoise, 4, rest)
            found = out.ids_BL[b, : len(want)].tolist()
            assert found == want, (seed, b)
            grown += len(want) > n
            deleted += len(want) < n
    assert grown and deleted


@pytest.mark.parametrize(
    "named",
    [
        {"temperature": 1.0, "top_p": 0.9},
        {"threshold": 0.3, "block_length": 2},
        {"steps": 4, "remasking": "entropy"},
        {"steps": 3, "schedule": "cosine", "guidance_scale": 0.5},
        {"early_stop": True, "temperature": 0.7},
    ],
)
@pytest.mark.parametrize(
    "process", [Expanding(EXPAND, DELETE, most=5), Expanding(EXPAND, most=3, rest=True), Insertion(0.9)]
)
def test_rows_that_grow_do_not_depend_on_their_batch(named: dict[str, Any], process: Any) -> None:
    samples = RAGGED
    if isinstance(process, Insertion):
        named = {k: v for k, v in named.items() if k in ("temperature", "top_p", "guidance_scale")}
        samples = [s for s in RAGGED if not isinstance(s[0], Target)] + [[Target([2, MASK, 9, MASK, MASK])]]
    denoise = ByContext(3, bonus={EXPAND: 5.0, DELETE: 3.0, EOS: 2.0})
    together = rows_of(run(samples, denoise, process=process, **named))
    for b, row in enumerate(samples):
        assert rows_of(run([row], denoise, index=[b], process=process, **named)) == [together[b]]
    lengths = [sum(p.length for p in row if isinstance(p, Target)) for row in samples]
    assert [len(ids) for ids, *_ in together] != lengths


def test_steps_are_in_proportion_where_a_canvas_grows() -> None:
    """A block of 4 positions in 2 steps commits two per step, also after it has grown."""

    class Grow:
        def __call__(self, query: Query) -> Prediction:
            row_P, position_P = query.at()
            out = torch.zeros(len(row_P), V)
            out[:, 5] = 2.0
            if query.step is not None and int(query.step.forward_R[0]) == 1:
                out[:, EXPAND] = 9.0
            return Prediction(out)

    out = run([[Text([1]), Target(length=4)]], Grow(), steps=2, process=Expanding(EXPAND, DELETE))
    assert out.targets() == [[5] * 6]
    assert int(out.forwards_B) == 4 and Counter(out.step_BL[out.target_BL].tolist()) == {2: 2, 3: 2, 4: 2}


def test_growing_is_refused_where_it_cannot_be() -> None:
    row: list[Sample] = [[Text([1]), Target(length=3)]]
    with pytest.raises(ConfigError, match=r"sampler.process.expand: 99 does not fit a vocabulary of 61"):
        run(row, ByContext(), process=Expanding(99))
    with pytest.raises(ConfigError, match=r"sampler.process.expand: the tokenizer has no '<expand>'"):
        run(row, ByContext(), process=Expanding("<expand>"))
    with pytest.raises(ConfigError, match=r"sampler.steps: Insertion has a way of its own, expected None"):
        run(row, ByContext(), process=Insertion(), steps=3)
    with pytest.raises(ConfigError, match=r"sampler.block_length: InsertDelete edits blocks of a fixed length"):
        run(row, ByContext(), process=InsertDelete(DELETE, SPLIT))
    with pytest.raises(DataError, match=r"row 0 begins with a masked position"):
        run([[Target(length=3)]], ByContext(), process=Insertion())


def test_insertion_draws_from_one_softmax_over_positions_and_tokens() -> None:
    """The law of two insertions into one gap, against the sum over both orders."""
    n, words = 20_000, (1, 2)

    def table(ids: tuple[int, ...]) -> Tensor:
        g = torch.Generator().manual_seed(sum((i + 1) * 7**k for k, i in enumerate(ids)))
        out_LV = torch.full((len(ids), V), -torch.inf)
        out_LV[:, list(words)] = torch.randn(len(ids), 2, generator=g)
        out_LV[0, EOS] = -9.0  # it never ends by itself
        return out_LV

    class Denoise:
        def __call__(self, query: Query) -> Prediction:
            assert query.batch is not None
            canvases, back_R = query.ids_RL.unique(dim=0, return_inverse=True)
            tables = torch.stack([table(tuple(c.tolist())) for c in canvases])
            return Prediction(tables[back_R][query.predict_RL])

    exact: dict[tuple[int, int], float] = defaultdict(float)
    # behind the 3 only, for the 4 is context behind the gap
    first_LV = table((3, 4))[:1].index_fill(1, torch.tensor([EOS]), -torch.inf).softmax(-1)
    for a in words:
        second_N = table((3, a, 4))[:2].index_fill(1, torch.tensor([EOS]), -torch.inf).flatten().softmax(0)
        for b in words:
            exact[b, a] += float(first_LV[0, a] * second_N[b])
            exact[a, b] += float(first_LV[0, a] * second_N[V + b])
    rows: list[Sample] = [[Text([3]), Target(length=2), Text([4])]] * n
    out = run(rows, Denoise(), temperature=1.0, process=Insertion(gap_top_p=1.0), seed=5)
    found = Counter(tuple(row) for row in out.targets())
    assert sum(exact.values()) == pytest.approx(1)
    for pair, p in exact.items():
        assert found[pair] / n == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n)), pair


def indel(
    ids: list[int], given: list[bool], denoise: ByContext, whole: list[int], at: int, process: InsertDelete
) -> list[int]:
    """LLaDA2.2's decoding of one block, as its engine does it, over lists (given tokens before the rest of a block)."""
    ids, n = list(ids), len(ids)
    own, after = [t == MASK for t in ids], 0
    seen: set[tuple[int, ...]] = set()
    written: dict[int, set[int]] = {}
    for step in itertools.count(1):
        canvas = whole[:at] + ids + whole[at + n :]
        logits_LV = denoise.row(tuple(canvas))[at : at + n]
        logits_LV[:, [MASK, VOCAB.slot_id]] = -torch.inf
        sure_L, token_L = logits_LV.softmax(-1).max(-1)
        x, p = token_L.tolist(), sure_L.tolist()
        masked = [t == MASK for t in ids]
        own_left = sum(o and m for o, m in zip(own, masked, strict=True))
        write = [False] * n
        if any(masked):
            if own_left:
                need = 1 + sum(masked) - own_left
                high = [m and q > process.threshold for m, q in zip(masked, p, strict=True)]
                if sum(high) >= need:
                    write = high
                else:
                    order = sorted((i for i in range(n) if masked[i]), key=lambda i: -p[i])
                    for i in order[:need]:
                        write[i] = True
            else:
                write = list(masked)
        force = False
        if own_left == 0:
            after += 1
            force = after > process.most
        if force := force or step == 4 + process.most + 1:  # the engine's bound on the steps of a block
            write = list(masked)
            words_LV = logits_LV.clone()
            words_LV[:, [DELETE, SPLIT]] = -torch.inf
            x = [int(words_LV[i].argmax()) if x[i] in (DELETE, SPLIT) else x[i] for i in range(n)]
        for i in range(n):
            if not masked[i] and not given[i] and p[i] > process.edit and x[i] != ids[i]:
                write[i] = True
        if not any(write):
            return ids
        if tuple(ids) in seen and not force:
            changing = [i for i in range(n) if write[i] and x[i] != ids[i]]
            if changing:
                i = min(changing, key=lambda i: p[i])
                logits_LV[i, list(written.get(i, ()))] = -torch.inf
                x[i] = int(logits_LV[i].argmax())
        seen.add(tuple(ids))
        for i in range(n):
            if write[i]:
                written.setdefault(i, set()).add(x[i])
        tokens, track = [], []
        for i in range(n):
            token = x[i] if write[i] else ids[i]
            if token == DELETE:
                continue
            if token == SPLIT:
                tokens += [MASK, ids[i]]
                track += [False, own[i]]
            else:
                tokens.append(token)
                track.append(own[i])
        ids = (tokens + [MASK] * n)[:n]
        own = (track + [False] * n)[:n]
        if force:
            return ids
    raise AssertionError


@pytest.mark.parametrize("threshold, edit", [(0.5, 0.0), (0.9, 0.6)])
def test_insertions_and_deletions_in_a_block_equal_the_published_loop(threshold: float, edit: float) -> None:
    """Blocks counted over the row, so that the first holds the end of the context; every row of a ragged batch."""
    rows: list[Sample] = [
        [Text([3, 4]), Target(length=10)],
        [Text([1]), Target(length=7)],
        [Text([5, 6, 7, 8, 9]), Target(length=4)],
    ]
    process, edited = InsertDelete(DELETE, SPLIT, threshold, edit, most=5), 0
    for seed in range(8):
        denoise = ByContext(seed, sharp=2.5, bonus={DELETE: 2.5, SPLIT: 2.5})
        out = run(rows, denoise, process=process, block_length=4, block_start="row")
        batch = collate(rows, VOCAB)
        for b in range(len(rows)):
            n = int(batch.attend_BL[b].sum())
            whole, target = batch.ids_BL[b, :n].tolist(), batch.target_BL[b, :n].tolist()
            for at in range(0, n, 4):
                given = [not t for t in target[at : at + 4]]
                if not all(given):
                    whole[at : at + 4] = indel(whole[at : at + 4], given, denoise, whole, at, process)
            assert out.ids_BL[b, :n].tolist() == whole, (seed, b)
            edited += int(out.forwards_B[b]) > sum(target)
        for b, row in enumerate(rows):
            alone = run([row], denoise, process=process, block_length=4, block_start="row")
            assert rows_of(alone) == [rows_of(out)[b]]
    assert edited > 4


def test_given_tokens_stay_where_they_are_while_others_move() -> None:
    row: list[Sample] = [[Target([MASK, MASK, 7, MASK, MASK, MASK, 8, MASK])]]
    denoise = ByContext(2, bonus={DELETE: 4.0, SPLIT: 4.0})
    out = run(row, denoise, process=InsertDelete(DELETE, SPLIT, most=4), block_length=8)
    ids = out.ids_BL[0].tolist()
    assert ids[2] == 7 and ids[6] == 8 and not {MASK, DELETE, SPLIT} & set(ids)
    assert int(out.forwards_B) > 6


def test_blocks_counted_over_the_row_begin_in_the_context() -> None:
    order: list[list[int]] = []

    class Spy(ByContext):
        def __call__(self, query: Query) -> Prediction:
            order.append(sorted(query.at()[1].tolist()))
            return super().__call__(query)

    run([[Text([1, 2, 3]), Target(length=6)]], Spy(), block_length=4, block_start="row", steps=3)
    assert order == [[3], [4, 5, 6, 7], [8]]
