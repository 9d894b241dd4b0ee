"""Texts that a grammar holds a model to, which says nothing but noise."""

from __future__ import annotations

import json
from typing import Any

import torch

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.samplers.grammars.automaton import ByteAutomaton
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tall": {"type": "boolean"},
        "kind": {"enum": ["ant", "bée", '"']},
        "marks": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    },
    "required": ["name", "age", "tall", "kind", "marks"],
}


def is_person(text: str) -> bool:
    value = json.loads(text)
    assert list(value) == PERSON["required"]
    assert isinstance(value["name"], str) and isinstance(value["tall"], bool)
    assert type(value["age"]) is int and 0 <= value["age"] <= 120
    assert value["kind"] in PERSON["properties"]["kind"]["enum"]
    assert len(value["marks"]) <= 3 and all(type(mark) in (int, float) for mark in value["marks"])
    return True


class Noise:
    """A Denoise whose logits are noise, other at every call, the same for a row whatever it is batched with."""

    def __init__(self, vocab: Vocab, seed: int = 0, scale: float = 4.0) -> None:
        self.size, self.seed, self.scale = vocab.size, seed, scale

    def __call__(self, query: Query) -> Prediction:
        assert query.step is not None
        out = []
        for row, forward, predict_L in zip(
            query.row_R.tolist(), query.step.forward_R.tolist(), query.predict_RL, strict=True
        ):
            made = torch.Generator().manual_seed(1000 * self.seed + 100 * row + int(forward))
            out.append(self.scale * torch.randn(int(predict_L.sum()), self.size, generator=made))
        return Prediction(torch.cat(out))


def filled(vocab: Vocab, *targets: Target, grammar: Any, denoise: Any = None, **named: Any) -> Generation:
    batch = collate([[Text([1, 2]), target] for target in targets], vocab)
    return sample(denoise or Noise(vocab), batch, vocab, generation_config(constraint=grammar, **named))


def texts(vocab: Vocab, out: Generation) -> list[str]:
    return [vocab.decode(vocab.until_end(ids)) for ids in out.targets()]


def runs(letters: ByteAutomaton, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = letters.next_SB[state, byte]
    return bool(letters.accepts_S[state])
