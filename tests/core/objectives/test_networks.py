"""Networks in place of the backbone: who may depend on whom, bounds without bias, generation by the one sampler.

Partitions (PGM), an encoder with a decoder of blocks (E2D2), anchors (ADLM). Shape letters: B samples, L positions,
R rows, D width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import VOCAB, Oracle, canvas
from torch import Tensor

from mmdiff.canvas.patterns import BlockCausal, PrefixCausal
from mmdiff.canvas.sample import Break, Media, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount, Levels
from mmdiff.diffusion.token_rates import write_counts
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.model.likelihood.elbo import AnyOrder
from mmdiff.model.likelihood.estimates import estimate
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.networks.anchored import AnchoredDenoise, Anchors
from mmdiff.objectives.networks.blocks import BlockDecoder
from mmdiff.objectives.networks.partition import Partition, PartitionDenoise
from mmdiff.objectives.noising.change import Complement
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from tests.core.objectives.extras.pairs import empty, fit, model_with, pairs, valid

KEY = NoiseKey(7, step=2, stream="s", batch=4)


def model(attention: Any = None, media: bool = True, **extras: Any) -> MMDiff:
    torch.manual_seed(0)
    encoders = {"image": toy.Patches()} if media else {}
    connectors = {"image": toy.Project(width_in=16, width_out=32)} if media else {}
    out = MMDiff(toy.backbone(), encoders, connectors, extras=extras, attention=attention)
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(2)
    return out.eval()


def words(*lengths: int, image: bool = True, prompt: int = 2) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [
        [
            *([Media("image", rng.normal(size=(1, 8, 8)).astype(np.float32))] if image else []),
            Text(rng.integers(4, 9, prompt).tolist()),
            Target(rng.integers(4, 9, n).tolist()),
        ]
        for n in lengths
    ]


# Partitions ----------------------------------------------------------------------------------------------------------


def moved_by(states: Any, batch: Any, row: int, position: int) -> Tensor:
    """Bool (L,), where the states of a row move when one of its clean ids changes."""
    before = states(batch)
    ids = batch.ids_BL.clone()
    ids[row, position] = 4 + (ids[row, position] - 3) % 5
    after = states(replace(batch, ids_BL=ids))
    return (after - before)[row].abs().amax(-1) > 1e-6


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_token_moves_the_other_group_alone(side: Any) -> None:
    """Not itself, nor its own group; the context moves all targets, and no target the context."""
    m = model(partition=Partition(width=32))
    network: Any = m.extras["partition"]
    batch = collate(words(5, 3), m.vocab, m.readers, side=side)
    plan = PartitionDenoise().plan(batch, KEY, m.vocab)
    plan.masked_RL[:] = batch.target_BL & (batch.position_ids_BL % 2 == 0)  # both groups have members

    def states(one: Any) -> Tensor:
        return network.both(m, replace(plan, batch=one))

    for row, position in batch.target_BL.nonzero().tolist():
        other_L = batch.target_BL[row] & (plan.masked_RL[row] != plan.masked_RL[row, position])
        assert torch.equal(moved_by(states, batch, row, position), other_L)
    texts = (batch.attend_BL & ~batch.target_BL & (batch.slots["image"] < 0)).nonzero().tolist()
    for row, position in texts:
        assert bool(moved_by(states, batch, row, position)[batch.target_BL[row]].all())


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_masked_group_is_what_a_generation_sees(side: Any) -> None:
    """One pass of both groups gives, of the masked one, the states of a canvas with masks, rows of any length."""
    m = model(partition=Partition(width=32))
    network: Any = m.extras["partition"]
    batch = collate(words(5, 3, 1), m.vocab, m.readers, side=side)
    plan = PartitionDenoise(Denoise(levels=ExactCount(none=True))).plan(batch, KEY, m.vocab)
    both = network.both(m, plan)
    alone = m.hidden(plan.ids_RL, batch, m.encode(batch.media), plan.row_R)
    torch.testing.assert_close(both[plan.masked_RL], alone[plan.masked_RL], rtol=1e-4, atol=1e-5)
    others = plan.scored_RL & ~plan.masked_RL
    ids_RL = batch.ids_BL.masked_fill(others, m.vocab.mask_id)
    mirrored = m.hidden(ids_RL, batch, m.encode(batch.media), plan.row_R)
    torch.testing.assert_close(both[others], mirrored[others], rtol=1e-4, atol=1e-5)


def test_documents_of_a_packed_row_predict_themselves_only() -> None:
    m = model(partition=Partition(width=32), media=False)
    first, second = words(4, 3, image=False)
    packed = collate([[*first, Break(), *second]], m.vocab)
    masked = packed.target_BL & (packed.position_ids_BL % 2 == 0)
    ids = packed.ids_BL.masked_fill(masked, m.vocab.mask_id)
    whole = m.hidden(ids, packed, {}, torch.arange(1))
    for n, one in enumerate((first, second)):
        alone = collate([one], m.vocab)
        here = packed.segment_BL[0] == n
        states = m.hidden(ids[:, here], alone, {}, torch.arange(1))
        torch.testing.assert_close(states[0][masked[0, here]], whole[0, here][masked[0, here]], rtol=1e-4, atol=1e-5)


def runs_of(m: MMDiff) -> list[int]:
    """A list that gets the number of positions of every run of the backbone."""
    out, run = list[int](), m.backbone.hidden
    m.backbone.hidden = lambda x, *rest: (out.append(x.shape[1]), run(x, *rest))[1]  # type: ignore[method-assign]
    return out


def test_nothing_is_encoded_of_a_canvas_of_masks() -> None:
    """And the backbone sees as many positions as are there, never a mask."""
    m = model(partition=Partition(width=32), media=False)
    lengths = runs_of(m)
    batch = collate([[Target(length=6)], [Text([4]), Target(length=5)]], m.vocab)
    out = m.generate(batch, steps=3, early_stop=False)
    assert not bool((out.ids_BL == m.vocab.mask_id).any())
    assert lengths == [1, 3, 5]  # the context of one row, then what is committed, besides
    alone = m.generate(collate([[Text([4]), Target(length=5)]], m.vocab, index=[1]), steps=3, early_stop=False)
    assert alone.targets()[0] == out.targets()[1]


def partition_z(levels: Levels, halved: bool = True, rows: int = 12_000) -> float:
    """The loss of one partition per row by the exact conditionals of a joint distribution, against -log p."""
    oracle, x = Oracle.random(), (2, 0, 1, 1)
    objective = PartitionDenoise(Denoise(levels=levels))
    plan = objective.plan(canvas([x] * rows), NoiseKey(3, batch=rows), VOCAB)
    loss_R = torch.zeros(rows, dtype=torch.float64)
    for group_RL in (plan.masked_RL, plan.scored_RL & ~plan.masked_RL):
        ids_RL = plan.batch.ids_BL.masked_fill(group_RL, VOCAB.mask_id)
        h_RLD = oracle.hidden(ids_RL, plan.batch, {}, plan.row_R)
        nll_RL = -h_RLD.gather(2, plan.batch.ids_BL[..., None])[..., 0]
        loss_R += (nll_RL * plan.weight_RL * group_RL).nan_to_num(0, 0, 0).sum(1)
    loss_R = loss_R if halved else 2 * loss_R
    return float((loss_R.mean() - oracle.nll(x)) / (loss_R.std() / rows**0.5))


@pytest.mark.parametrize("levels", [Bernoulli(), ExactCount(none=True, stratified=False)])
def test_both_directions_are_an_unbiased_bound(levels: Levels) -> None:
    assert abs(partition_z(levels)) < 3.5


def test_the_check_of_bias_sees_a_group_that_is_never_empty() -> None:
    """Of counts from 1 on, the mirrored weights are those of no bound."""
    assert abs(partition_z(ExactCount(stratified=False))) > 5


def test_it_is_the_loss_of_complements() -> None:
    """The same partitions as `Complement` makes, of an ordinary objective, in twice the passes."""
    m = model(partition=Partition(width=32), media=False)
    batch = collate(words(5, 3, image=False), m.vocab)
    levels = Bernoulli()
    mine, pair = PartitionDenoise(Denoise(levels=levels)), Denoise(levels=levels, changes=[Complement()])
    one, two = mine.plan(batch, KEY, m.vocab), pair.plan(batch, KEY, m.vocab)
    own = mine.terms(m, one)["denoise"].value / one.counts["denoise"]
    both = pair.terms(m, two)["denoise"].value / two.counts["denoise"]
    torch.testing.assert_close(own, both, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pairs_are_learnt_and_generated_from_masks() -> None:
    m, objective = (
        model_with(lambda size: {"partition": Partition(width=32)}),
        PartitionDenoise(Denoise(levels=ExactCount(none=True))),
    )
    fit(m, [(objective, 3e-3, 150), (objective, 1e-3, 50)])
    out = m.generate(empty(100, m.vocab), steps=2, temperature=1.0, early_stop=False)
    found, nats = valid(out.ids_BL), float(bound(m, pairs(m.vocab, 40)).nll_B.mean())
    print(f"valid {found:.2f}, {nats:.2f} nats of {np.log(10):.2f}")
    assert found > 0.9 and np.log(10) - 0.05 < nats < np.log(10) + 0.4


# An encoder and a decoder of blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_block_sees_itself_and_clean_earlier_ones(size: int, side: Any) -> None:
    """No path from a clean id of its own block or a later one; all earlier ones and the context are seen."""
    m = model(BlockCausal(size, "targets"), media=False, decoder=BlockDecoder(width=32))
    batch = collate(words(4, 3, image=False), m.vocab, side=side)
    noised = batch.ids_BL.masked_fill(batch.target_BL, m.vocab.mask_id)
    block = torch.where(batch.target_BL, batch.target_BL.cumsum(1).sub(1) // size, -1)

    def states(one: Any) -> Tensor:
        return m.hidden_copies(noised, one, {}, 1, blockwise=True)

    for row, position in batch.attend_BL.nonzero().tolist():
        moved_L = moved_by(states, batch, row, position) & batch.target_BL[row]
        assert torch.equal(moved_L, batch.target_BL[row] & (block[row] > block[row, position]))


def test_a_generation_is_what_training_saw() -> None:
    """States of the current block, of a canvas whose earlier blocks are finished, are those of one training pass."""
    m = model(BlockCausal(2, "targets"), decoder=BlockDecoder(width=32))
    batch = collate(words(4, 4), m.vocab, m.readers, side="left")
    features = m.encode(batch.media)
    noised = batch.ids_BL.masked_fill(batch.target_BL & (batch.position_ids_BL % 2 == 0), m.vocab.mask_id)
    copies = m.hidden_copies(noised, batch, features, 1, blockwise=True)
    last = batch.target_BL & (batch.target_BL.flip(1).cumsum(1).flip(1) <= 2)
    ids = torch.where(last, noised, batch.ids_BL)
    alone = m.hidden(ids, batch, features, torch.arange(2))
    torch.testing.assert_close(alone[last], copies[last], rtol=1e-4, atol=1e-5)


def test_the_encoder_is_run_once_per_finished_block() -> None:
    m = model(BlockCausal(2, "targets"), media=False, decoder=BlockDecoder(width=32))
    calls = runs_of(m)
    batch = collate([[Text([4]), Target(length=6)]] * 3, m.vocab, side="left")
    out = m.generate(batch, steps=6, block_length=2, temperature=1.0, early_stop=False)
    assert out.calls == 6 and len(calls) == 3
    kept: Any = {}
    again = collate([[Text([4]), Target(out.targets()[0][:4] + [m.vocab.mask_id] * 2)]], m.vocab)
    for _ in range(2):
        states = m.hidden(again.ids_BL, again, {}, torch.arange(1), None, kept)
    torch.testing.assert_close(states, m.hidden(again.ids_BL, again, {}, torch.arange(1)))
    other = again.ids_BL.clone()
    other[0, 1] = 4 + (other[0, 1] - 3) % 5
    moved = m.hidden(other, again, {}, torch.arange(1), None, kept)
    torch.testing.assert_close(moved, m.hidden(other, again, {}, torch.arange(1)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_is_kept_is_what_would_be_encoded_again(size: int) -> None:
    """Rows of unequal context, which finish blocks at steps of their own, with a picture: the same tokens."""
    m = model(BlockCausal(size, "targets"), decoder=BlockDecoder(width=32))
    rows = [[*sample[:-1], Target(length=6)] for sample in (*words(1, 1), *words(1, prompt=5))]
    batch = collate(rows, m.vocab, m.readers, side="left")
    options = generation_config(block_length=size, temperature=1.0, early_stop=False, threshold=0.3)
    denoise = m.denoiser(batch, restrict=True)

    def forgetful(query: Any) -> Any:
        denoise.of_network.clear()  # type: ignore[attr-defined]
        return denoise(query)

    kept, again = m.generate(batch, generation_config=options), sample(forgetful, batch, m.vocab, options)
    assert torch.equal(kept.ids_BL, again.ids_BL) and torch.equal(kept.step_BL, again.step_BL)
    torch.testing.assert_close(kept.confidence_BL, again.confidence_BL, rtol=1e-4, atol=1e-5)


def test_blocks_are_learnt_by_the_objective_of_blocks() -> None:
    m = model_with(lambda size: {"decoder": BlockDecoder(width=32, layers=1)}, attention=BlockCausal(1, "targets"))
    fit(m, [(BlockDenoise(BlockCausal(1, "targets")), 1e-2, 120)])
    out = m.generate(empty(100, m.vocab), steps=2, block_length=1, temperature=1.0, early_stop=False)
    nats = float(bound(m, pairs(m.vocab, 40)).nll_B.mean())
    print(f"valid {valid(out.ids_BL):.2f}, {nats:.2f} nats of {np.log(10):.2f}")
    assert valid(out.ids_BL) > 0.9 and np.log(10) - 0.05 < nats < np.log(10) + 0.3


# Anchors -------------------------------------------------------------------------------------------------------------


def counts(tmp_path: Path, m: MMDiff, common: list[int]) -> str:
    path = str(tmp_path / "counts.safetensors")
    write_counts(path, [i for i in common for _ in range(9)], m.vocab.size)
    return path


def test_untrained_anchors_are_the_backbone_and_trained_ones_are_not(tmp_path: Path) -> None:
    m = model(anchors=Anchors(width=32), media=False)
    plain = MMDiff(m.backbone).eval()
    batch = collate(words(5, 3, image=False), m.vocab)
    assert torch.equal(bound(m, batch).nll_B, bound(plain, batch).nll_B)
    objective = AnchoredDenoise(counts(tmp_path, m, [4]), gamma=0.0)
    plan = objective.plan(batch, KEY, m.vocab)
    terms, base = objective.terms(m, plan), Denoise()
    expected = base.terms(plain, base.plan(batch, KEY, m.vocab))["denoise"].value
    torch.testing.assert_close(terms["denoise"].value, expected)
    assert terms["anchor"].coefficient == 0
    with torch.no_grad():
        m.extras["anchors"].out[1].weight.add_(0.1)  # type: ignore[index, operator, union-attr]
    assert not torch.equal(bound(m, batch).nll_B, bound(plain, batch).nll_B)


def test_only_rare_ids_are_anchors(tmp_path: Path) -> None:
    m = model(anchors=Anchors(width=32), media=False)
    batch = collate(words(5, 3, image=False), m.vocab)
    objective = AnchoredDenoise(counts(tmp_path, m, [4, 5, 6]), rare=5, denoise=Denoise(levels=ExactCount(full=1.0)))
    plan = objective.plan(batch, KEY, m.vocab)
    expected_RL = plan.masked_RL & (batch.ids_BL > 6)
    assert torch.equal(plan.drawn["anchor"], expected_RL) and bool(expected_RL.any())
    value = objective.terms(m, plan)["anchor"].value
    plain = MMDiff(m.backbone).eval()
    h_RLD = plain.hidden(plan.ids_RL, batch, {}, plan.row_R)
    nll_P = plain.score(h_RLD, batch, expected_RL).nll_P
    torch.testing.assert_close(value, (nll_P * plan.weight_RL[expected_RL]).sum())
    other = AnchoredDenoise(objective.counts, rare=9, denoise=objective.denoise).plan(batch, KEY, m.vocab)
    assert torch.equal(other.drawn["anchor"], plan.masked_RL)


def test_anchors_do_not_change_what_a_bound_is(tmp_path: Path) -> None:
    """A network over the whole canvas is a model like any other: rows of any company, all orders, generation."""
    m = model(anchors=Anchors(width=32), media=False, attention=PrefixCausal())
    with torch.no_grad():
        m.extras["anchors"].out[1].weight.normal_()  # type: ignore[index, operator, union-attr]
    rows = words(4, 1, 3, image=False)
    whole = estimate(m, collate(rows, m.vocab, index=[3, 4, 5], side="left"), AnyOrder()).nll_B
    for b, row in enumerate(rows):
        alone = estimate(m, collate([row], m.vocab, index=[3 + b]), AnyOrder()).nll_B
        torch.testing.assert_close(alone[0], whole[b], rtol=1e-4, atol=1e-5)


def test_pairs_are_learnt_with_anchors(tmp_path: Path) -> None:
    m = model_with(lambda size: {"anchors": Anchors(width=32, layers=1)}, layers=1)
    fit(m, [(AnchoredDenoise(counts(tmp_path, m, []), gamma=0.1), 5e-3, 150)])
    out = m.generate(empty(100, m.vocab), steps=2, temperature=1.0, early_stop=False)
    print(f"valid {valid(out.ids_BL):.2f}")
    assert valid(out.ids_BL) > 0.9


# All of them ---------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Any, Any]] = {
    "partition": (Partition, None),
    "decoder": (BlockDecoder, BlockCausal(2, "targets")),
    "anchors": (Anchors, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_model_is_the_model(name: str, tmp_path: Path) -> None:
    kind, attention = NETWORKS[name]
    m = model(attention, **{name: kind(width=32, layers=1)})
    with torch.no_grad():
        for p in m.extras.parameters():
            p.add_(0.1)
    m.save_pretrained(tmp_path / "model")
    batch = collate(words(4, 2), m.vocab, m.readers)
    again = MMDiff.from_pretrained(tmp_path / "model")
    assert torch.equal(bound(again, batch).nll_B, bound(m, batch).nll_B)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="partition and anchors are networks, expected one of them"):
        both = model(media=False, partition=Partition(width=32), anchors=Anchors(width=32))
        bound(both, collate([[Target([4])]], both.vocab))
    with pytest.raises(ConfigError, match=r"a width of 32 is no multiple of heads 5"):
        Partition(width=32, heads=5)
    with pytest.raises(ConfigError, match=r"objective\.denoise\.denominator: masked, expected tokens"):
        PartitionDenoise(Denoise(denominator="masked"))
    plain = model(media=False)
    batch = collate([[Target([4, 5])]], plain.vocab)
    with pytest.raises(ConfigError, match=r"model\.extras\.partition: the model has no Partition"):
        PartitionDenoise().terms(plain, PartitionDenoise().plan(batch, KEY, plain.vocab))
    with pytest.raises(ConfigError, match=r"model\.attention: Full\(\), expected blocks"):
        bound(model(media=False, decoder=BlockDecoder(width=32)), batch)
    m = model(PrefixCausal(), media=False, partition=Partition(width=32))
    with pytest.raises(ConfigError, match="keys and values of Partition cannot be kept"):
        m.generate(collate([[Target(length=4)]], m.vocab), denoise=["mmdiff.samplers.links.caches.Prefix"])
