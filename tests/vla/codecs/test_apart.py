"""Codes apart: those of the inner codec, in a range for each dimension, and canvases that confine positions to them."""

from __future__ import annotations

import numpy as np
import pytest

from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config import build
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.codecs.apart import Apart, spans
from mmdiff.tasks.vla.codecs.bins import DCTBins, QuantileBins, UniformBins
from mmdiff.tasks.vla.codecs.normalise import Normaliser, Statistics
from mmdiff.tasks.vla.task import VLA

K, D = 4, 3
STATISTICS = Statistics.of(np.random.default_rng(0).uniform(-1, 1, (500, D)), ("dx", "dy", "gripper"))


def bound(codec: Apart) -> Apart:
    return codec.bind(STATISTICS, Normaliser(STATISTICS, "quantile"))


@pytest.mark.parametrize("inner", [UniformBins(8), QuantileBins(8)])
def test_codes_are_the_inner_ones_and_their_dimension(inner: UniformBins | QuantileBins) -> None:
    codec, plain = bound(Apart(inner)), inner.bind(STATISTICS, Normaliser(STATISTICS, "quantile"))
    assert codec.size == 24 and codec.tokens(K, D) == 12 and codec.steps(K, D) == (K, D)
    x_KD = np.random.default_rng(1).uniform(-1, 1, (K, D))
    codes = codec.encode(x_KD)
    assert (codes // 8).reshape(K, D).tolist() == [[0, 1, 2]] * K
    assert (codes % 8).tolist() == plain.encode(x_KD).tolist()
    assert np.array_equal(codec.decode(codes, K, D), plain.decode(codes % 8, K, D))
    assert all(low <= code < high for code, (low, high) in zip(codes, codec.ranges(K, D), strict=True))
    again = build(codec.node, where="codec").bind(STATISTICS, Normaliser(STATISTICS, "quantile"))
    assert again.encode(x_KD).tolist() == codes.tolist()


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="code"):
        bound(Apart(UniformBins(8))).decode([0] * 12, K, D)  # dimension 1 has 8..15
    with pytest.raises(DataError, match=r"codes of shape \(3,\), expected \(12,\)"):
        bound(Apart()).decode([0] * 3, K, D)
    with pytest.raises(ConfigError, match="codec.inner: DCTBins has no code for each entry; expected bins"):
        bound(Apart(DCTBins(7, 2))).tokens(K, D)


def test_runs_of_positions_that_may_hold_the_same() -> None:
    assert list(spans(UniformBins(8), 2, 3)) == [(slice(0, 6), (0, 8))]
    found = list(spans(bound(Apart(UniformBins(8))), 1, 3))
    assert found == [(slice(0, 1), (0, 8)), (slice(1, 2), (8, 16)), (slice(2, 3), (16, 24))]
    one = Statistics.of(np.linspace(-1, 1, 50)[:, None], ("x",))
    assert list(spans(Apart().bind(one, Normaliser(one, "none")), 5, 1)) == [(slice(0, 5), (0, 32))]


def test_a_canvas_confines_every_position_to_its_dimension() -> None:
    vocab = Vocab(
        tokenizer=word_tokenizer(["reach"]),
        size=60,
        mask_id=2,
        eos_id=1,
        pad_id=0,
        slot_id=2,
        ranges={"action": (10, 34)},
    )
    task = VLA(
        {"a": {"action": STATISTICS}},
        chunk=2,
        codec=Apart(UniformBins(8)),
        state="none",
        cameras=0,
        prompt="{instruction}",
    )
    action = np.random.default_rng(2).uniform(-0.9, 0.9, (2, D))
    row = {"instruction": "reach", "action": action}
    targets = [part for part in task.sample(row, vocab) if isinstance(part, Target)]
    assert [part.allow for part in targets] == [((10, 18),), ((18, 26),), ((26, 34),)] * 2
    ids = [i for part in targets for i in part.ids or ()]
    assert np.abs(np.array(task.parse(ids, vocab)) - action).max() < 0.15
    masked = [part.ids for part in task.prompt({"instruction": "reach"}, vocab) if isinstance(part, Target)]
    assert masked == [[2]] * 6
