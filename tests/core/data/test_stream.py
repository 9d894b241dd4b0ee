"""The order of samples: a permutation an epoch, shares of a mixture, a function of the position alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import toy

from mmdiff.data.media_reader import MediaReader
from mmdiff.data.stream import CHUNK, OVERHEAD, Batches, Component, Stream, canvases, samples_of
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff


def stream(*sizes: tuple[int, float], seed: int = 0) -> Stream:
    parts = [Component(f"c{i}", toy.Corners(n, i), toy.Where(False), w) for i, (n, w) in enumerate(sizes)]
    return Stream(parts, seed=seed)


def test_each_epoch_is_another_permutation() -> None:
    found = [stream((50, 1.0)).locate(n)[1] for n in range(150)]
    epochs = [found[i : i + 50] for i in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert found != [stream((50, 1.0), seed=1).locate(n)[1] for n in range(150)]


def test_a_mixture_has_its_shares_and_each_part_its_epochs() -> None:
    mixed = stream((40, 1.0), (70, 3.0))
    n = 2 * CHUNK + 100
    found = [mixed.locate(i) for i in range(n)]
    share = Counter(c for c, _ in found)
    assert abs(share[0] / n - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    for part, size in ((0, 40), (1, 70)):
        rows = [row for c, row in found if c == part]
        for first in range(0, len(rows) - size, size):
            assert sorted(rows[first : first + size]) == list(range(size))


def test_neighbours_in_a_mixture_are_found_without_drawing_their_chunk_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two readers stand in neighbouring chunks, as at the edge of one."""
    mixed, drawn = stream((9000, 1.0), (7000, 2.0)), []
    choices = Stream._choices
    monkeypatch.setattr(Stream, "_choices", lambda self, chunk: drawn.append(chunk) or choices(self, chunk))
    for n in (*range(CHUNK - 50, CHUNK + 50), *range(CHUNK - 50, CHUNK + 50)):
        mixed.locate(n)
    assert drawn == [0, 0, 1]  # chunk 0 once more for the draws before chunk 1


def test_a_position_alone_decides() -> None:
    """Whoever asks in another order, or begins in the middle, finds the same."""
    n = CHUNK + 50
    forwards, again, late = stream((9, 1.0), (5, 2.0)), stream((9, 1.0), (5, 2.0)), stream((9, 1.0), (5, 2.0))
    expected = [forwards.locate(i) for i in range(n)]
    assert [again.locate(i) for i in reversed(range(n - 60, n))] == expected[: n - 61 : -1]
    assert late.locate(n - 1) == expected[-1]


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(12, 1, 1), (3, 2, 2), (1, 4, 3)])
def test_a_step_owns_its_neighbours_however_they_are_shared_out(batch: int, accumulate: int, world: int) -> None:
    for step in range(3):
        shares = [
            samples_of(step, micro, rank, batch=batch, accumulate=accumulate, world=world)
            for micro in range(accumulate)
            for rank in range(world)
        ]
        assert [n for share in shares for n in share] == list(range(12 * step, 12 * step + 12))


class Bad(toy.Corners):
    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        return row | {"image": "cat.jpg"} if index == 1 else row


class Named(toy.Patches):
    def read(self, data: Any) -> Any:
        if isinstance(data, str):
            raise DataError(f"{data}: cannot be read")
        return super().read(data)


def test_errors_name_component_and_row() -> None:
    """Also those of a picture, which is read after the task is done with the row."""
    model = MMDiff(toy.backbone(), {"image": Named()}, {"image": toy.Project(width_in=16, width_out=32)})
    one = Stream([Component("cats", Bad(2), toy.Where())], seed=0)
    with pytest.raises(DataError, match=r"^data cats row 1: cat.jpg: cannot be read$"):
        Batches(one, model.vocab, model.readers)[[0, 1]]
    with pytest.raises(DataError, match=r"^data cats row 8: cat.jpg: cannot be read$"):
        canvases([Bad(2)[0], Bad(2)[1]], toy.Where(), model.vocab, model.readers, first=7, name="cats")
    with pytest.raises(DataError, match=r"^row 0: media of kind 'image'|media of kind 'image'"):
        canvases([Bad(2)[0]], toy.Where(), model.vocab, {})
    with pytest.raises(DataError, match=r"^data.c0: no rows$"):
        stream((0, 1.0))
    with pytest.raises(ConfigError, match=r"^data.c0.weight: -1.0 is not above 0$"):
        stream((3, -1.0))
    with pytest.raises(ConfigError, match=r"^data.c0.weight: 0.0 is not above 0$"):
        stream((3, 0.0))


def test_batches_hold_the_positions_that_they_are_of() -> None:
    mixed = stream((9, 1.0), (5, 2.0))
    batch = Batches(mixed, toy.backbone().vocab, {})[[7, 3, 5]]
    assert batch.index_B.tolist() == [7, 3, 5]


def test_samples_that_are_kept_are_read_once_and_stay_the_same() -> None:
    class Counting(toy.Corners):
        asked = 0

        def __getitem__(self, index: int) -> dict[str, Any]:
            Counting.asked += 1
            return super().__getitem__(index)

    vocab, readers = toy.backbone().vocab, {"image": MediaReader(toy.Patches(), toy.Project(width_in=16, width_out=32))}
    one = OVERHEAD + 8 * 8 * 4  # bytes of a picture
    for keep, asked in ((0, 16), (8 * one, 8), (3 * one, 3 + 2 * 5)):
        Counting.asked = 0
        plain = Stream([Component("", toy.Corners(8), toy.Where())], seed=0)
        stream = Stream([Component("", Counting(8), toy.Where())], seed=0, cache_bytes=keep)
        for n in range(16):
            ours, theirs = stream.sample(n, vocab, readers), plain.sample(n, vocab, readers)
            assert torch.equal(ours[0].data.values, theirs[0].data.values) and ours[1:] == theirs[1:]
        assert Counting.asked == asked


class Lengths(toy.Corners):
    """Row i is as long as its number says."""

    def length(self, index: int) -> float:
        return float((index * 7) % self.n)


def rows_of(stream: Stream, first: int, n: int) -> list[int]:
    return [stream.locate(stream._bucketed(first + i))[1] for i in range(n)]


def test_buckets_deal_out_the_same_rows_in_batches_of_one_length() -> None:
    part = [Component("", Lengths(96), toy.Where())]
    plain, sorted_ = Stream(part, seed=0), Stream(part, seed=0, batch=8, bucket=4)
    for window in range(6):  # two epochs
        dealt = rows_of(sorted_, window * 32, 32)
        assert sorted(dealt) == sorted(plain.locate(window * 32 + i)[1] for i in range(32))
        lengths = [[part[0].rows.length(r) for r in dealt[b : b + 8]] for b in range(0, 32, 8)]  # type: ignore[attr-defined]
        spans = sorted((min(batch), max(batch)) for batch in lengths)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)), "batches do not overlap in length"
    firsts = {tuple(rows_of(sorted_, window * 32, 8)) for window in range(6)}
    shortest = {tuple(sorted(rows_of(sorted_, w * 32, 32), key=part[0].rows.length)[:8]) for w in range(6)}  # type: ignore[attr-defined]
    assert firsts != shortest, "which batch comes first is drawn"


def test_the_dealing_of_a_window_in_closed_form() -> None:
    """Ties in length keep the order of the stream; window n is dealt in the order of its own draws."""
    part = [Component("", Lengths(12), toy.Where())]
    part[0].rows.length = lambda i: float(i % 2)  # type: ignore[attr-defined]
    sorted_ = Stream(part, seed=4, batch=2, bucket=3)
    for window in range(4):
        places = range(6 * window, 6 * window + 6)
        odd = {n: sorted_.locate(n)[1] % 2 for n in places}
        in_order = [n for parity in (0, 1) for n in places if odd[n] == parity]
        draws = NoiseKey(4, stream="order").fold("bucket").uniform(window, 3)
        ranks = sorted(range(3), key=lambda b: draws[b])
        assert [sorted_._bucketed(n) for n in places] == [n for b in ranks for n in in_order[2 * b : 2 * b + 2]]


def test_a_place_in_a_bucket_does_not_depend_on_what_was_asked_before() -> None:
    part = [Component("a", Lengths(40), toy.Where(), 2.0), Component("b", Lengths(24), toy.Where(), 1.0)]
    whole = Stream(part, seed=3, batch=4, bucket=5)
    expected = [whole._bucketed(n) for n in range(60)]
    for n in (59, 3, 41, 20, 19):
        assert Stream(part, seed=3, batch=4, bucket=5)._bucketed(n) == expected[n] == whole._bucketed(n)
    vocab, readers = toy.backbone().vocab, {"image": MediaReader(toy.Patches(), toy.Project(width_in=16, width_out=32))}
    c, i = whole.locate(expected[7])
    sample = whole.sample(7, vocab, readers)
    assert torch.equal(sample[0].data.values[0], torch.as_tensor(part[c].rows[i]["image"]))


def test_rows_without_a_length_cannot_be_sorted() -> None:
    with pytest.raises(ConfigError, match="Corners does not say how long its rows are"):
        Stream([Component("a", toy.Corners(8), toy.Where())], seed=0, batch=2, bucket=2)
