"""What holds of every rule: a row is the same alone and in a batch, and no rule waits for the device.

The list below must name every part of the rules' folder and every schedule; so must docs/sampling.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from imports import declared
from logit_tables import by_query
from paths import ROOT
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.adaptive import BestOfRuns, EntropyBound, EntropyThreshold, MeanThreshold
from mmdiff.samplers.rules.hierarchical import Hierarchical
from mmdiff.samplers.rules.maskgit import DrawnOrder, RandomTopK, Remask
from mmdiff.samplers.rules.revise import Backtrack, Reroute, Restart, RunningConfidence
from mmdiff.samplers.rules.score import (
    Credit,
    EarlyEnds,
    LeftToRight,
    Listed,
    LowConfidence,
    Margin,
    NegativeEntropy,
    Random,
)
from mmdiff.samplers.rules.select import Everything, Factor, Quota, Threshold
from mmdiff.samplers.rules.spaced import Dilated, MinimumGap
from mmdiff.samplers.rules.timed import Ancestral, FirstHitting, ReMDM
from mmdiff.samplers.unmask_schedule import UNMASK_SCHEDULES, Shifted

WORDS, MASK, EOS = 9, 9, 10
VOCAB = Vocab(tokenizer=None, size=11, mask_id=MASK, eos_id=EOS, pad_id=EOS, slot_id=MASK)
RAGGED: list[Sample] = [
    [Text([1, 2, 3]), Target(length=18)],
    [Text([1]), Target(length=4), Text([2]), Target(length=2)],
    [Target([MASK, 3, MASK, MASK, 2, MASK, MASK, MASK, 4])],
]
SCORES = [LowConfidence(), Random(), Margin(), NegativeEntropy(), LeftToRight(), Listed([4, 0, 2]), EarlyEnds(),
          EarlyEnds(progress="positions", score=Margin()), Credit(tokens=2)]  # fmt: skip
SELECTS = [Quota(), Threshold(0.3), Threshold(0.3, "quota"), Factor(0.9), Everything(), RandomTopK(), DrawnOrder(0.2),
           MeanThreshold(), BestOfRuns(0.5, 0.2), Dilated(), Dilated(3, skip=0.3), MinimumGap(Everything(), 3),
           MinimumGap(Threshold(0.2), stride=4), Ancestral(), Ancestral(0.01), FirstHitting(2),
           Hierarchical(3, 2)]  # fmt: skip
BY_ENTROPY = [EntropyThreshold(1.5), EntropyBound(1.0), MinimumGap(EntropyBound(2.0))]
REVISES = [RunningConfidence(), Remask(0.3, drop=0.2), Reroute(), Reroute(only_worse=True), Backtrack(), Backtrack(4),
           Restart(), ReMDM("cap", 0.3), ReMDM("rescale", 0.5), ReMDM("conf", 1.0)]  # fmt: skip
MATRIX: list[dict[str, Any]] = [
    *({"remasking": rule} for rule in SCORES),
    *({"select": rule} for rule in SELECTS),
    *({"select": rule, "remasking": "entropy"} for rule in BY_ENTROPY),
    *({"revise": rule} for rule in REVISES),
    *({"schedule": word} for word in UNMASK_SCHEDULES),
    {"schedule": Shifted(2.0), "remasking": "margin"},
    {"remasking": EarlyEnds(), "revise": Restart(), "schedule": "ascending"},
    {"remasking": Credit(), "threshold": 0.4, "revise": Remask(0.2)},
    {"remasking": "random", "select": Ancestral(), "revise": Restart()},
]


def test_every_rule_is_in_the_matrix() -> None:
    parts = {
        one for one in declared() if one.__module__.startswith(("mmdiff.samplers.rules", "mmdiff.samplers.unmask"))
    }
    listed = {type(rule) for rule in [*SCORES, *SELECTS, *BY_ENTROPY, *REVISES, Shifted()]}
    assert parts == listed
    page = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
    assert not {one for one in parts if f"`{one.__module__}.{one.__qualname__}`" not in page}


def denoiser(batch: Batch) -> Any:
    """Logits of a row's target positions from the ids on them, wherever they lie on the canvas."""
    generator = torch.Generator().manual_seed(0)
    own_NV = 2 * torch.randn(64, VOCAB.size, generator=generator)
    seen_NVV = 0.7 * torch.randn(64, VOCAB.size, VOCAB.size, generator=generator)

    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        logits = []
        for ids_L, predict_L, target_L in zip(ids_RL, predict_RL, batch.target_BL[row_R], strict=True):
            ids = ids_L[target_L].tolist()
            mood_V = sum(seen_NVV[n, i] for n, i in enumerate(ids))
            logits.append((own_NV[: len(ids)] + mood_V)[predict_L[target_L]])
        return torch.cat(logits)

    return denoise


def write(samples: list[Sample], index: list[int], side: Any = "right", **named: Any) -> Generation:
    batch = collate(samples, VOCAB, index=index, side=side)
    return sample(denoiser(batch), batch, VOCAB, generation_config(**{"temperature": 0.7, "seed": 1, **named}))


@pytest.mark.parametrize("named", MATRIX, ids=str)
def test_a_row_is_the_same_alone_and_in_a_batch(named: dict[str, Any]) -> None:
    for more in ({}, {"steps": 7, "block_length": 6, "eos_policy": "last"}):
        together = write(RAGGED, [8, 3, 5], **named, **more)
        padded = write(RAGGED, [8, 3, 5], "left", **named, **more)
        assert padded.targets() == together.targets()
        for b, (row, name) in enumerate(zip(RAGGED, [8, 3, 5], strict=True)):
            alone = write([row], [name], **named, **more)
            assert alone.targets()[0] == together.targets()[b]
            assert steps(alone, 0) == steps(together, b) == steps(padded, b)
            assert int(alone.forwards_B[0]) == int(together.forwards_B[b]) == alone.calls
            assert MASK not in alone.targets()[0] and alone.calls <= 3 * len(alone.targets()[0])


def steps(out: Generation, row: int) -> list[int]:
    return out.step_BL[row][out.target_BL[row]].tolist()


class Waits(TorchDispatchMode):
    """Names what makes the host wait for the device, while a rule runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        bools = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in _indices(name, args))
        if bools or name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique_dim", "_unique2",
                             "repeat_interleave", "is_nonzero", "equal", "masked_scatter"):  # fmt: skip
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _indices(name: str, args: Any) -> Iterator[Any]:
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        yield from args[1]


class Watched:
    """A rule that is run under `Waits`."""

    def __init__(self, rule: Any, waits: Waits) -> None:
        self.rule, self.waits = rule, waits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def __call__(self, *args: Any) -> Any:
        with self.waits:
            return self.rule(*args)


@pytest.mark.parametrize("named", MATRIX, ids=str)
def test_no_rule_waits_for_the_device(named: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdiff.samplers import loop
    from mmdiff.samplers.rules.rules import Rules, rules_of

    waits = Waits()

    def watched(config: Any) -> Rules:
        rules = rules_of(config)
        parts = {name: part and Watched(part, waits) for name, part in vars(rules).items()}
        return Rules(**parts)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "rules_of", watched)
    write(RAGGED, [8, 3, 5], **named)
    once = 2 * isinstance(named.get("select"), Hierarchical)  # it looks once whether its groups divide the rows
    assert waits.found == ["_local_scalar_dense"] * once


def test_a_wait_is_seen() -> None:
    waits, x = Waits(), torch.tensor([True, False])
    for wait in (lambda: x[x], lambda: bool(x.any()), lambda: x.nonzero(), lambda: x.sum().item()):
        before = len(waits.found)
        with waits:
            wait()
        assert len(waits.found) == before + 1
