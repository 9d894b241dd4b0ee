"""Ways to write a chunk, by name: the steps at which they write what, over whatever settings there were."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from logit_tables import by_query
from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import UserError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.tasks.vla.strategies import STRATEGIES, strategy

MASK = 8
VOCAB = Vocab(tokenizer=None, size=10, mask_id=MASK, eos_id=9, pad_id=9, slot_id=MASK)
OTHER = GenerationConfig(
    steps=3, schedule="cosine", block_length=5, temperature=2.0, temperature_end=1.0, remasking="random",
    revise={"target": "mmdiff.samplers.rules.maskgit.Remask", "threshold": 1.0}, select={"target": "no.such.rule"},
    draft={"target": "no.such.rule"}, seed=1,
)  # fmt: skip
"""Settings that would change every strategy, did it leave them standing."""


@by_query
def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(int((ids_RL[0] * torch.arange(1, ids_RL.shape[1] + 1)).sum()))
    return torch.randn(*ids_RL.shape, VOCAB.size, generator=generator)[predict_RL]


def chunk(name: str, over: GenerationConfig, actions: int = 5, dims: int = 4) -> Generation:
    batch = collate([[Target(length=actions * dims, allow=((0, 8),))]], VOCAB)
    return sample(denoise, batch, VOCAB, generation_config(over, **strategy(name, actions, dims)))


FORWARDS = {
    "one_shot": 1,
    "low_confidence": 10,
    "hierarchical": 10,
    "cosine": 12,
    "time_ordered": 10,
    "remask": 12,
    "sampled": 20,
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_name_means_the_same_over_any_settings(name: str) -> None:
    out = chunk(name, GenerationConfig(seed=1))
    again = chunk(name, OTHER)
    assert out.ids_BL.tolist() == again.ids_BL.tolist() and out.step_BL.tolist() == again.step_BL.tolist()
    assert out.calls == FORWARDS[name] and not (out.ids_BL == MASK).any()
    json.dumps(strategy(name, 5, 4))  # it can stand in a file


def test_steps_are_those_of_the_papers() -> None:
    plain = GenerationConfig(seed=1)
    table = {name: chunk(name, plain).step_BL.view(5, 4) for name in STRATEGIES}
    share = {name: torch.bincount(step_KD.flatten())[1:].tolist() for name, step_KD in table.items()}
    assert share["low_confidence"] == share["hierarchical"] == share["time_ordered"] == [2] * 10
    assert share["sampled"] == [1] * 20
    assert share["cosine"] == [1, 1, 1, 1, 1, 1, 2, 2, 3, 2, 3, 2]  # floor(20 cos(pi s/24)) are left
    assert table["time_ordered"].sort(1).values.tolist() == [[2 * k + 1] * 2 + [2 * k + 2] * 2 for k in range(5)]
    pairs = table["hierarchical"].sort(1).values
    assert (pairs[:, 0] + 1 == pairs[:, 3]).all() and sorted(pairs[:, 0].tolist()) == [1, 3, 5, 7, 9]
    assert pairs[:, 0].tolist() != [1, 3, 5, 7, 9]  # in order of confidence, not of time


def test_one_number_an_action_is_one_iteration() -> None:
    named: dict[str, Any] = strategy("hierarchical", 5, 1)
    assert named["steps"] == 5 and chunk("hierarchical", GenerationConfig(), 5, 1).calls == 5


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match='did you mean "hierarchical"'):
        strategy("hierachical", 5, 4)
