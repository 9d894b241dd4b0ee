"""Energy resampling: the share of valid pairs, the law it approaches, and that a row is the same in any batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from logit_tables import by_query
from oracle import Both, Chain, distance
from torch import Tensor
from toy import batch_of, model, samples

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.query import Query, StepInfo
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.samplers.links.energy import Candidate, Energies, Reader, Resample
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.hybrid import Hybrid

TEN, ROWS = 10, 4_000
PAIRS = Vocab(tokenizer=None, size=TEN + 2, mask_id=TEN, eos_id=TEN + 1, pad_id=TEN + 1, slot_id=TEN)


class Pairs:
    """(k, k + 1 mod 10), k uniform: exact conditionals, and those from left to right."""

    @by_query
    def __call__(self, ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        other_RL = ids_RL.flip(1)
        step_L = torch.tensor([-1, 1])
        known_RLV = torch.nn.functional.one_hot((other_RL + step_L) % TEN, TEN + 2).float()
        out_RLV = torch.where((other_RL == TEN)[..., None], torch.ones(TEN + 2), known_RLV)
        out_RLV[..., TEN:] = 0
        return out_RLV.log()[predict_RL]

    def left_to_right(self, folder: str | None) -> Any:
        @by_query
        def read(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
            before_RL = torch.stack([torch.full_like(ids_RL[:, 0], TEN), ids_RL[:, 0]], 1)
            return self.__call__.__wrapped__(self, before_RL.flip(1), predict_RL, row_R)  # type: ignore[attr-defined]

        return read


def pairs(k: int, **named: Any) -> Generation:
    batch = collate([[Target(length=2)]] * ROWS, PAIRS)
    link = [Resample(candidates=k)] if k else []
    config = generation_config(temperature=1.0, steps=1, early_stop=False, seed=5, denoise=link, **named)
    return sample(Pairs(), batch, PAIRS, config)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_with_the_exact_energy_one_of_k_candidates_is_valid(k: int) -> None:
    out = pairs(k)
    first_B, second_B = out.ids_BL.T
    valid, share = float(((first_B + 1) % TEN == second_B).double().mean()), 1 - 0.9**k
    assert abs(valid - share) < 4.5 * math.sqrt(share * (1 - share) / ROWS)
    assert out.calls == 1 and out.checks == (0 if k == 1 else k)
    if k == 1:
        assert torch.equal(out.ids_BL, pairs(0).ids_BL), "that of a sampler without an energy"


def test_the_law_is_that_of_the_energy_once_candidates_are_many() -> None:
    """All four words at once: the product of the marginals is far from the chain, which 64 candidates restore."""
    bed, found = Chain(4, 0.8), {}
    read = Both(bed, bed)
    for k in (1, 64):
        config = generation_config(
            temperature=1.0, steps=1, early_stop=False, denoise=[Resample(candidates=k)], top_k=4 if k == 1 else None
        )
        found[k] = distance(bed.joint, bed.law(sample(read, bed.canvas(2_000), bed.vocab, config).ids_BL))
    assert found[64] < bed.floor(bed.joint, 2_000) + 0.03 < 0.3 < found[1]


def test_the_window_is_the_share_that_is_still_masked() -> None:
    bed = Chain(4, 0.8)
    for low, high, checks in [(0.0, 1.0, 12), (0.4, 1.0, 9), (0.5, 0.8, 6), (0.0, 0.3, 3), (0.8, 0.9, 0)]:
        link = Resample(candidates=3, low=low, high=high)  # shares of 1, 3/4, 1/2 and 1/4
        config = generation_config(temperature=1.0, early_stop=False, denoise=[link])
        out = sample(Both(bed, bed), bed.canvas(3), bed.vocab, config)
        assert (out.checks, out.calls) == (checks, 4), (low, high)


class Sum:
    """An energy of its own: the sum of a row's ids, and nothing else."""

    def bind(self, denoise: Any, batch: Batch, vocab: Vocab) -> Energies:
        def energy(candidate: Candidate) -> Tensor:
            target_RL = batch.target_BL[candidate.query.row_R]
            return (candidate.ids_RL * target_RL).sum(1).double()

        return energy


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    "named",
    [
        {"steps": 2},
        {"block_length": 3, "denoise": [Guidance(0.5), Resample(Sum(), 4, temperature=5.0)]},
        {"threshold": 0.2, "top_p": 0.9, "block_length": 4, "denoise": [Resample(candidates=3, low=0.0)]},
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(named: dict[str, Any], shift: int) -> None:
    m = model()
    m.backbone.facts = type(m.backbone.facts)(**{**vars(m.backbone.facts), "shift": shift})
    named = {"denoise": [Resample(candidates=3)], "temperature": 1.0, "early_stop": False, "seed": 1, **named}
    together = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), **named)
    plain = m.generate(batch_of(m, samples(), [8, 3, 5, 4]), **{**named, "denoise": named["denoise"][:-1]})
    assert together.ids_BL.tolist() != plain.ids_BL.tolist()
    for b in range(4):
        alone = m.generate(batch_of(m, [samples()[b]], [[8, 3, 5, 4][b]]), **named)
        assert alone.targets()[0] == together.targets()[b]


@pytest.mark.parametrize("shift", [0, 1])
def test_a_reader_scores_a_canvas_as_the_causal_model_does_one_by_one(shift: int) -> None:
    """Against a forward per position, behind which everything is masked: an infilling whose last gap stays masked."""
    m = model()
    m.backbone.facts = type(m.backbone.facts)(**{**vars(m.backbone.facts), "shift": shift})
    causal = MMDiff(m.backbone, dict(m.encoders), dict(m.connectors), attention=Causal()).eval()
    batch = batch_of(m, samples(), [8, 3, 5, 4])
    mask = m.vocab.mask_id
    ids_BL = torch.where(
        batch.target_BL & (batch.ids_BL == mask), 4 + torch.arange(batch.ids_BL.shape[1]) % 5, batch.ids_BL
    )
    left_BL = torch.zeros_like(batch.target_BL)
    left_BL[:, -2] = True  # a later block
    ids_BL = ids_BL.masked_fill(left_BL, mask)
    none = torch.zeros(4, dtype=torch.int64)
    info = StepInfo(0, none.numpy() + range(4), *[none.numpy()] * 6, none, *[none.numpy()] * 3)  # type: ignore[arg-type]
    query = Query(batch.ids_BL, left_BL, torch.arange(4), batch=batch, step=info)
    mu_R = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    energy_R = Reader().bind(m.denoiser(batch), batch, m.vocab)(Candidate(ids_BL, query, left_BL, mu_R))
    for b in range(4):
        one = batch_of(m, [samples()[b]])  # a row alone: nothing stands before its first position
        ids_L, features, log_p = ids_BL[b, -one.ids_BL.shape[1] :], causal.encode(one.media), 0.0
        for position in range(int(one.target_BL[0].long().argmax()), len(ids_L) - 2):
            shown_L, here_L = ids_L.clone(), torch.zeros_like(ids_L, dtype=torch.bool)
            shown_L[position:], here_L[position] = mask, True
            h = causal.hidden(shown_L[None], one, features, torch.tensor([0]))
            logits = causal.backbone.head(causal.gather(h, *here_L[None].nonzero(as_tuple=True))).detach()
            if "image" not in one.slots or one.slots["image"][0, position] < 0:
                log_p += float(logits.double().log_softmax(-1)[0, ids_L[position]])
        assert float(energy_R[b]) == pytest.approx(float(mu_R[b]) - log_p, abs=2e-4)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"temperature": 0.0}, "sampler.temperature: at 0 all candidates"),
        ({"denoise": [Resample(), Guidance(1.0)]}, "Resample chooses among proposals, expected as the last"),
        ({"denoise": [Resample(), Resample()]}, "Resample chooses among proposals"),
        ({"denoise": [Resample(low=0.8, high=0.2)]}, "sampler.denoise.low: 0.8 is above high=0.2"),
        ({"denoise": [Resample(Guidance())]}, "sampler.denoise.energy: Guidance has no `bind`"),
        ({"denoise": [Resample(Reader("nowhere"))]}, "sampler.denoise.energy.model: nowhere: neither a saved model"),
        ({"denoise": [Resample(Reader(3))]}, "sampler.denoise.energy.model: 3 is neither"),
        ({"process": Hybrid()}, "sampler.denoise: Hybrid proposes no tokens"),
        ({"denoise": [{"target": "mmdiff.samplers.links.energy.Resample", "candidates": 0}]}, "candidates"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(named: dict[str, Any], message: str) -> None:
    m = model(image=False)
    with pytest.raises(ConfigError) as raised:
        m.generate(batch_of(m, samples()[2:3]), **{"temperature": 1.0, "denoise": [Resample()], **named})
    assert message in str(raised.value) and "\n" not in str(raised.value)
