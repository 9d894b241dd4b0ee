"""SparseD: all blocks are dense attention, fewer are those that were paid most, and rows do not know of each other.

Shape letters: H heads, L canvas length, N blocks, K positions of keys, D width of a head.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import batch_of, model, samples

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.patterns import BlockCausal
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.samplers.links.caches import Dual
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.links.sparse import SparseD, _Choices
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config

INDEX = [8, 3, 5, 4]


def run(m: MMDiff, *links: Any, rows: list[Sample] | None = None, index: list[int] = INDEX, **named: Any) -> Generation:
    batch = batch_of(m, samples() if rows is None else rows, index)
    return m.generate(batch, seed=1, early_stop=False, denoise=list(links), **named)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_all_blocks_are_dense_attention(attention: str) -> None:
    m = model()
    m.backbone.model.set_attn_implementation(attention)
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():  # a kernel is compiled for minutes
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        warnings.filterwarnings("ignore", "_compile flag on create_block_mask")  # transformers', of padded rows
        for links, named in (([], {"block_length": 4, "temperature": 1.0}), ([Guidance(1.0)], {"steps": 4})):
            dense = run(m, *links, **named)
            all_blocks, some = (run(m, SparseD(select, 0.1, 2), *links, **named) for select in (1.0, 0.4))
            assert dense.ids_BL.tolist() == all_blocks.ids_BL.tolist()
            assert torch.allclose(dense.confidence_BL, all_blocks.confidence_BL, atol=1e-6)
            assert not torch.allclose(dense.confidence_BL, some.confidence_BL, atol=1e-3)
    assert m.backbone.model.config._attn_implementation == attention


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("select", [0.3, 0.6])
def test_what_is_kept_is_what_was_paid_most(attention: str, select: float) -> None:
    """Chosen again in numpy from the weights that transformers returns, and masked by hooks on the layers."""
    m = model(image=False)
    m.backbone.model.set_attn_implementation(attention)
    size, mask = 2, m.vocab.mask_id
    batch = collate([[Text([4, 5, 6, 7, 8, 4, 5]), Target([mask] * 6)]], m.vocab)
    block_L = np.array([0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6])
    asked: list[tuple[Query, Tensor]] = []
    denoise = m.denoiser(batch)

    class Heard:
        model = m

        def __call__(self, query: Query) -> Prediction:
            out = denoise(query)
            asked.append((query, out.logits_PV.clone()))
            return out

    sample(Heard(), batch, m.vocab, generation_config(denoise=[SparseD(select, 0.4, size)], early_stop=False, steps=6))
    assert len(asked) == 6  # int(6 * .4) + 1 = 3 of them dense
    layers = m.backbone.model.model.layers
    weights: list[Tensor] = []
    m.backbone.model.set_attn_implementation("eager")
    hooks = [layer.self_attn.register_forward_hook(lambda _, __, out: weights.append(out[1])) for layer in layers]
    m.denoiser(batch)(asked[2][0])
    for hook in hooks:
        hook.remove()
    m.backbone.model.set_attn_implementation("sdpa")
    keep: list[Tensor] = []
    for weights_1HLL in weights:
        seen = np.zeros(weights_1HLL[0].shape, dtype=bool)
        for h, weights_LL in enumerate(weights_1HLL[0].numpy()):
            for query in range(7):
                paid_N = [weights_LL[np.ix_(block_L == query, block_L == key)].sum() for key in range(7)]
                best = [*np.argsort(paid_N[:4])[::-1][: int(np.ceil(4 * select))]]
                best += [*(4 + np.argsort(paid_N[4:])[::-1][: int(np.ceil(3 * select))])]
                seen[h][np.ix_(block_L == query, np.isin(block_L, best))] = True
        keep.append(torch.from_numpy(seen)[None])
    assert any(not seen.all() for seen in keep)
    for step, (query, logits_PV) in enumerate(asked):
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: (args, {**kwargs, "attention_mask": seen}), with_kwargs=True
            )
            for layer, seen in zip(layers, keep, strict=True)
        ]
        masked_PV = m.denoiser(batch)(query).logits_PV
        for hook in hooks:
            hook.remove()
        dense_PV = m.denoiser(batch)(query).logits_PV
        right, wrong = (dense_PV, masked_PV) if step < 3 else (masked_PV, dense_PV)
        assert torch.allclose(logits_PV, right, atol=1e-4) and not torch.allclose(logits_PV, wrong, atol=1e-3)


def test_a_planted_block_is_kept_and_neither_context_nor_targets_starve() -> None:
    """Two ragged rows, whose needles lie elsewhere: one head looks for one in the context, one in the targets."""
    m = model(image=False)
    mask = m.vocab.mask_id
    batch = collate([[Text([4] * 12), Target([mask] * 9)], [Text([4] * 8), Target([mask] * 6)]], m.vocab)
    choices = _Choices(batch, size=3, select=0.25)
    assert choices.count_B2.tolist() == [[4, 3], [3, 2]] and choices.n == 7
    for b, (context, target) in enumerate([(2, 5), (1, 5)]):  # blocks; targets are counted from 4
        query_1HLD, key_1HLD = torch.zeros(2, 1, 2, 21, 4).unbind()
        query_1HLD[..., 0] = 1.0
        for h, needle in enumerate((context, target)):
            key_1HLD[0, h, (choices.block_BL[b] == needle) & batch.attend_BL[b], 0] = 5.0
        choices.keep, choices.row_R = [], torch.tensor([b])
        choices.slots, choices.index_R = np.array([b]), torch.tensor([0])
        choices.chooses_R = torch.tensor([True])
        choices.choose(query_1HLD, key_1HLD, 1.0)
        own = [n for n in range(7) if n in choices.block_BL[b][batch.attend_BL[b]]]
        kept_HNN = choices.keep[0][0][:, own]
        assert kept_HNN[0, :, context].all() and kept_HNN[1, :, target].all()
        assert (kept_HNN[..., :4].sum(-1) == 1).all() and (kept_HNN[..., 4:].sum(-1) == 1).all()  # a quarter of each


def test_a_row_is_the_same_alone_and_in_a_batch_and_a_new_generation_chooses_anew() -> None:
    m = model()
    link, named = SparseD(0.5, 0.2, 2), {"block_length": 4, "temperature": 0.7}
    together = run(m, link, Guidance(0.5), **named)
    for b, row in enumerate(samples()):
        alone = run(m, Guidance(0.5), link, rows=[row], index=[INDEX[b]], **named)  # it is nearest, wherever listed
        assert alone.targets()[0] == together.targets()[b]
        assert torch.allclose(
            alone.confidence_BL[0][alone.target_BL[0]],
            together.confidence_BL[b][together.target_BL[b]],
            atol=1e-4,
        )
    batch = batch_of(m, samples()[1:2], [3])
    config = generation_config(temperature=1.0, early_stop=False, denoise=[link], seed=2)
    wrapped = link.wrap(m.denoiser(batch), batch, m.vocab)
    plain = generation_config(temperature=1.0, early_stop=False, seed=2)
    first, again = (sample(wrapped, batch, m.vocab, plain) for _ in range(2))
    fresh = sample(m.denoiser(batch), batch, m.vocab, config)
    assert first.confidence_BL.tolist() == again.confidence_BL.tolist() == fresh.confidence_BL.tolist()


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    m = model(image=False)
    rows: list[Sample] = [[Text([4]), Target(length=2)]]
    for named, message in (
        ({"denoise": [SparseD(), Dual()]}, "SparseD and Dual: two caches"),
        ({"denoise": [SparseD()], "prefix_cache": True}, "two caches"),
        ({"denoise": [SparseD()], "compile": "eager"}, "compiled layers, expected sampler.compile=none"),
        ({"denoise": [{"target": "mmdiff.samplers.links.sparse.SparseD", "select": 0}]}, "select"),
    ):
        with pytest.raises(ConfigError, match=message):
            m.generate(batch_of(m, rows), **named)
    with pytest.raises(ConfigError, match="expected full attention"):
        run(model(BlockCausal(2), image=False), SparseD(), rows=rows, index=[0])
    with pytest.raises(ConfigError, match="expected a model's Denoise"):
        SparseD().wrap(lambda query: Prediction(torch.zeros(1, 1)), batch_of(m, rows), m.vocab)
