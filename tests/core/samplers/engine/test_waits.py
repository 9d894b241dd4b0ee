"""A step waits for the device once: what would make it wait is counted, on the CPU, operator by operator."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any

import pytest
import torch
from logit_tables import MASK, VOCAB, V
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.transitions import Gaussian
from mmdiff.objectives.extras.companion import Companion
from mmdiff.objectives.extras.sampler_layer import SamplerLayer
from mmdiff.samplers.grammars.pattern import Pattern
from mmdiff.samplers.links.classifier import Classifier
from mmdiff.samplers.links.contrastive import Contrastive
from mmdiff.samplers.links.energy import Resample
from mmdiff.samplers.links.greedy import Greedy
from mmdiff.samplers.links.verifier import Speculate, Verifier
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.companion import Augmented
from mmdiff.samplers.processes.editing import Editing
from mmdiff.samplers.processes.expanding import Expanding
from mmdiff.samplers.processes.hybrid import Hybrid
from mmdiff.samplers.processes.indel import InsertDelete
from mmdiff.samplers.processes.insertion import Insertion
from mmdiff.samplers.processes.joint import Joint
from mmdiff.samplers.processes.latent import Variational
from mmdiff.samplers.processes.matrix import Matrix
from mmdiff.samplers.processes.partial import Partial
from mmdiff.samplers.rules.hierarchical import Hierarchical
from mmdiff.samplers.rules.maskgit import RandomTopK, Remask
from mmdiff.samplers.rules.revise import RunningConfidence
from mmdiff.samplers.rules.select import Everything, Factor

WAITING = (
    "nonzero.default",
    "_local_scalar_dense",
    "masked_select",
    "bincount",
    "unique",
    "is_nonzero",
    "equal.default",
)
RAGGED: list[Sample] = [
    [Text([3]), Target(length=8)],
    [Target(length=4), Text([4]), Target(length=2)],
    [Target([0, MASK, MASK, 5, MASK, MASK])],
]


class Waits(TorchDispatchMode):
    """Operators whose result has a size, or a value, that the CPU must know; and copies to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        by_mask = "index.Tensor" in name or "index_put" in name
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype == torch.bool] if by_mask else []
        if any(word in name for word in WAITING) or masks:
            self.found.append(f"{name} at {''.join(traceback.format_stack(limit=9)[:-1])[-600:]}")
        return func(*args, **(kwargs or {}))


_TABLE = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(0))


class Answers:
    """A Denoise that waits for nothing itself: as many logits as positions are queried."""

    def __call__(self, query: Query) -> Prediction:
        row_P, position_P = query.at()
        logits_PV = _TABLE[query.ids_RL[row_P, position_P]] + 0.1 * position_P[:, None]
        return Prediction(logits_PV, logits_PV[:, :4] if query.hidden else None)

    def left_to_right(self, folder: str | None) -> Any:
        return Answers()

    def other(self, folder: str) -> Any:
        return Answers()

    def extra(self, name: str) -> Any:
        if name == "sampler":
            return SamplerLayer(width=4, heads=2).eval()
        return Companion(width=4, vocab_size=V, size=3)

    def embed(self, ids_P: Tensor) -> Tensor:
        return _TABLE[ids_P, :4]

    def logits(self, h_PD: Tensor) -> Tensor:
        return h_PD @ _TABLE[:4]


class Often:
    """A classifier: how often an id stands on a canvas."""

    def bind(self, *_: Any) -> Any:
        return lambda ids_NL, row_N: (ids_NL == 7).sum(1)


WORDS = replace(VOCAB, tokenizer=word_tokenizer([f"w{i}" for i in range(53)]))
WORDY = pytest.mark.needs("outlines_core")


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "steps": 3},
        {"threshold": 0.2, "block_length": 3, "eos_policy": "last"},
        {"remasking": "random", "temperature": 0.5, "temperature_end": 0.1},
        {"remasking": "mmdiff.samplers.rules.score.Margin", "confidence": "vocabulary"},
        {"remasking": "mmdiff.samplers.rules.score.NegativeEntropy", "end_rule": "at_once"},
        {"select": Factor(1.0), "schedule": "cosine", "guidance_scale": 1.0},
        {"select": Everything(), "revise": RunningConfidence(), "steps": 4},
        {"select": RandomTopK(), "revise": Remask(0.3), "steps": 5},
        {"select": Hierarchical(2), "block_length": 2},
        {"process": Hybrid(0.3), "temperature": 1.0, "steps": 4},
        {"process": Partial(), "temperature": 1.0, "block_length": 3, "eos_policy": "last"},
        {"process": Variational(per="block"), "block_length": 3},
        {"process": Joint(count=3), "temperature": 1.0, "eos_policy": "last"},
        {"process": Augmented(size=3, estimate="soft"), "block_length": 3, "steps": 4},
        {"process": Matrix(Gaussian(2.0)), "temperature": 1.0, "steps": 4},
        {"process": Editing(0.1), "threshold": 0.2},
        {"denoise": [Resample(candidates=3, low=0.0)], "temperature": 1.0, "block_length": 4},
        {"denoise": [Greedy(1, 3)], "block_length": 4, "temperature": 1.0},
        {"denoise": [Verifier(relative=0.4, mismatch="draft")], "block_length": 4},
        {"denoise": [Verifier(top_k=2)], "temperature": 1.0},
        {"denoise": [Contrastive(model="weak"), Classifier(Often(), candidates=3, chunk=5)], "temperature": 1.0},
        {"denoise": [Speculate()], "temperature": 1.0, "top_p": 0.9},
        {"process": InsertDelete(50, 51), "block_length": 4, "block_start": "row"},
        {"process": Expanding(50, 51, most=3), "waits": 2},
        {"process": Insertion(), "temperature": 1.0, "waits": 2},
        pytest.param({"constraint": Pattern("w[w1 ]*"), "steps": 3, "block_length": 2}, marks=WORDY),
        pytest.param({"constraint": Pattern("w[w1 ]*"), "process": Augmented(size=3)}, marks=WORDY),
        pytest.param({"constraint": Pattern("w[w1 ]*"), "temperature": 1.0, "temperature_end": 0.0}, marks=WORDY),
    ],
)
def test_a_step_waits_once_and_twice_where_the_canvas_grows(
    named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = dict(named)
    each = named.pop("waits", 1)
    vocab, rows = (WORDS, RAGGED[:2]) if "constraint" in named else (VOCAB, RAGGED)
    if isinstance(named.get("process"), Insertion):
        rows = [[Text([3]), *row] for row in rows]
    batch = collate(rows, vocab)
    waits, asked = Waits(), [0]
    config = generation_config(seed=1, **named)

    def counted(name: str) -> None:
        own = getattr(Tensor, name)

        def count(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            waits.copies += 1
            return own(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, count)

    class Timed(Answers):
        """Counting begins with the second call: what is done once per generation may wait."""

        def __call__(self, query: Any) -> Any:
            if asked[0] == 1:
                waits.found.clear()
                waits.copies = 0
            asked[0] += 1
            return super().__call__(query)

    for name in ("cpu", "tolist", "item", "__bool__", "__int__", "__float__"):
        counted(name)
    with waits:
        out = sample(Timed(), batch, vocab, config)
    assert not waits.found, waits.found[0]
    assert waits.copies == each * (out.calls - 1) > 0, "copies to the CPU after each step"


def test_the_counter_counts() -> None:
    with Waits() as waits:
        _ = torch.tensor([True, False]).nonzero()
        x = torch.arange(3)
        _ = x[x > 1]
        _ = bool((x > 1).any())
        x[torch.tensor([0])] = 1
    assert len(waits.found) >= 3
