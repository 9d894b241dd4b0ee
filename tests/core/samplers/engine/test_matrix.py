"""Batch = single rows, token for token, whatever is combined: every cache, rule, process, grammar, draft, attention.

The axes hold every part of the samplers and every attention pattern (a part that none of them holds fails a test), so a
new part is combined with all others unasked. What cannot be combined is listed in REFUSED; all else must work. Every
pair of levels is run; every three of them is under the mark `slow`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations, islice, product
from typing import Any

import pytest
import torch
from imports import declared
from torch import Tensor, nn
from toy import Patches, Project

from mmdiff.backbones import new_backbone
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.pattern import All, Pattern
from mmdiff.canvas.patterns import BlockCausal, CausalContext, Documents, Full, PartlyCausal
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.diffusion.transitions import Gaussian, Masking
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.objectives.extras.companion import Companion
from mmdiff.objectives.extras.digits import DigitEmbeddings
from mmdiff.objectives.extras.latent import Latent
from mmdiff.objectives.extras.sampler_layer import SamplerLayer
from mmdiff.samplers import deliberation as drafts
from mmdiff.samplers import unmask_schedule as schedules
from mmdiff.samplers.grammars import ebnf, pattern, schema
from mmdiff.samplers.links import caches, energy, verifier
from mmdiff.samplers.links.classifier import Classifier
from mmdiff.samplers.links.contrastive import Contrastive
from mmdiff.samplers.links.greedy import Greedy
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.links.sparse import SparseD
from mmdiff.samplers.processes.absorbing import Absorbing
from mmdiff.samplers.processes.companion import Augmented
from mmdiff.samplers.processes.editing import Editing
from mmdiff.samplers.processes.expanding import Expanding
from mmdiff.samplers.processes.hybrid import Hybrid, Renoising
from mmdiff.samplers.processes.indel import InsertDelete
from mmdiff.samplers.processes.insertion import Insertion
from mmdiff.samplers.processes.inversion import Inverted
from mmdiff.samplers.processes.latent import Variational
from mmdiff.samplers.processes.matrix import Matrix
from mmdiff.samplers.rules import adaptive, hierarchical, maskgit, revise, score, select, spaced, timed

Combination = dict[str, int]
"""Axis -> which of its levels. A partial one lacks axes."""


def covering(
    axes: Mapping[str, Sequence[Any]], strength: int, refused: Callable[[Combination], bool]
) -> Iterator[Combination]:
    """Yields combinations that are not refused and hold, all together, every group of `strength` levels that can be.

    A covering design, made greedily and without chance: the same axes give the same combinations.
    refused: whether a combination, whole or partial, cannot be, whatever its missing axes are. Of levels that serve
    equally the first is taken, so the rest of a combination is what it is by default.
    """
    names = sorted(axes)
    left = {
        group
        for some in combinations(names, strength)
        for levels in product(*(range(len(axes[name])) for name in some))
        if not refused(dict(group := tuple(zip(some, levels, strict=True))))
    }
    order = list(axes)
    for group in sorted(left, key=lambda group: (-sum(level for _, level in group), group)):
        if group not in left:
            continue
        row = dict(group)
        for name in sorted(axes, key=lambda name: (-len(axes[name]), order.index(name))):
            if name not in row:
                row[name] = _best(name, len(axes[name]), row, left, strength, refused)
        assert not refused(row), f"{group} can be, but no combination with it"
        left -= set(combinations([(name, row[name]) for name in names], strength))
        yield {name: row[name] for name in axes}


def _best(
    name: str,
    levels: int,
    row: Combination,
    left: set[tuple[tuple[str, int], ...]],
    strength: int,
    refused: Callable[[Combination], bool],
) -> int:
    """Returns the level that covers most with what the row holds already; 0 where all are refused."""
    others = list(combinations(row.items(), strength - 1))
    best, most = 0, -1
    for level in range(levels):
        if refused({**row, name: level}):
            continue
        gained = sum(tuple(sorted((*group, (name, level)))) in left for group in others)
        if gained > most:
            best, most = level, gained
    return best


pytestmark = pytest.mark.needs("outlines_core", "lark")

TRUE, FALSE, NULL, MORE, LESS = "true", "false", "void", "more", "less"
TOKENS = word_tokenizer([TRUE, FALSE, NULL, "north", "east", "south", MORE, LESS])


@dataclass(frozen=True)
class Likes:
    """A classifier that likes one id."""

    def bind(self, *given: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda ids_NL, row_N: 0.5 * (ids_NL == 7).sum(1)


# Arguments of parts that need some, or that are worth more than one level; every other part is made without any.
ARGUMENTS: dict[Any, list[dict[str, Any]]] = {
    All: [{"patterns": (CausalContext(), Documents())}],
    BlockCausal: [{"size": 3}, {"size": 4, "start": "targets"}],
    caches.Prefix: [{}, {"refresh": 2}],
    caches.Dual: [{}, {"refresh": 3}],
    caches.Vicinity: [{"before": 2, "after": 1}],
    SparseD: [{"size": 2, "select": 0.5, "skip": 0.1}],
    Greedy: [{"window": 1, "refresh": 3}],
    caches.Delayed: [{"refresh": 2}, {"refresh": 100}],
    Guidance: [{"scale": 1.5}, {"scale": 0.5, "media": 1.0}],
    Classifier: [{"classifier": Likes(), "candidates": 3}],
    Inverted: [{"keep": 0.05, "keep_end": 0.0}],
    Expanding: [{"expand": MORE, "delete": LESS, "most": 3}, {"expand": MORE, "most": 2, "rest": True}],
    InsertDelete: [{"delete": LESS, "split": MORE, "most": 3}],
    Variational: [{"size": 3}],
    Augmented: [{"size": 3}],
    Editing: [{"threshold": 0.2, "most": 2}],
    Hybrid: [{"uniform": 0.0}, {"uniform": 0.3, "given": "all"}, {"uniform": 1.0}],
    Renoising: [{"stable": 0, "confident": 9.0}, {"confident": 1.0}],
    Matrix: [{"transition": Masking(), "given": "all"}, {"transition": Gaussian(2.0)}],
    ebnf.Ebnf: [{"grammar": f'start: WORD (" " WORD)*\nWORD: "{TRUE}" | "{FALSE}" | "north"', "null": NULL}],
    pattern.Pattern: [{"pattern": f"({TRUE}|{FALSE}|north)( ({TRUE}|east))*", "null": NULL}],
    pattern.Choices: [{"choices": [TRUE, f"{TRUE} {FALSE}", "north east south"], "null": NULL}],
    schema.Schema: [{"schema": {"type": "boolean"}, "null": NULL}],
    adaptive.EntropyThreshold: [{"threshold": 1.0}],
    adaptive.EntropyBound: [{"bound": 1.0}],
    adaptive.BestOfRuns: [{"threshold": 0.5, "low": 0.2}],
    hierarchical.Hierarchical: [{"size": 3, "iterations": 2}],
    maskgit.DrawnOrder: [{"temperature": 0.2}],
    maskgit.Remask: [{"threshold": 0.3, "drop": 0.2}],
    revise.Reroute: [{}, {"only_worse": True}],
    score.Listed: [{"positions": [4, 0, 2]}],
    score.EarlyEnds: [{}, {"progress": "positions", "score": score.Margin()}],
    score.Credit: [{"tokens": 2}],
    select.Threshold: [{"threshold": 0.4}, {"threshold": 0.4, "least": "quota"}],
    select.Factor: [{"factor": 0.9}],
    spaced.Dilated: [{}, {"skip": 0.3}],
    spaced.MinimumGap: [{"select": select.Everything()}, {"select": timed.Ancestral()}],
    timed.ReMDM: [{"kind": "cap", "eta": 0.3}, {"kind": "rescale", "eta": 0.5}, {"kind": "conf", "eta": 1.0}],
    timed.FirstHitting: [{}, {"count": 2}],
    verifier.Verifier: [{}, {"top_k": 3, "mismatch": "draft"}],
    drafts.MaskRandom: [{"ratio": 0.5}],
    drafts.MaskLeastConfident: [{"ratio": 0.5}],
    drafts.MaskChunks: [{"ratio": 0.5}],
}
OF_METHOD = {
    "advance": "process",
    "regular": "constraint",
    "proposer": "choice",
    "bind": None,
}  # an energy: of a choice
OF_FIRST_ARGUMENT = {"logits_PV": "score", "score_P": "select", "committed": "revise", "draft": "draft"}
FIELDS = {"score": "remasking", "schedule": "schedule", "select": "select", "revise": "revise", "draft": "draft",
          "process": "process", "constraint": "constraint"}  # fmt: skip


def axis_of(part: Any) -> str | None:
    """The axis that a part belongs to, by what it can do; None for what is no part of a sampler."""
    if isinstance(part, type) and issubclass(part, Pattern):
        return "attention"
    if not part.__module__.startswith("mmdiff.samplers."):
        return None
    for method, axis in OF_METHOD.items():
        if hasattr(part, method):
            return axis
    if hasattr(part, "wrap"):
        return "cache" if hasattr(part, "keeps") else "link"
    if part.__module__ == schedules.__name__:
        return "schedule"
    return OF_FIRST_ARGUMENT[list(inspect.signature(part.__call__).parameters)[1]]


@cache
def axes() -> Mapping[str, Sequence[Any]]:
    """Axis -> its levels; the first of each is what a configuration has that does not mention it."""
    out: dict[str, list[Any]] = {"attention": [Full()]}
    for part in declared():
        if (axis := axis_of(part)) is not None and part not in (Full, Documents, Absorbing, PartlyCausal):
            made = [part(**arguments) for arguments in ARGUMENTS.get(part, [{}])]
            out.setdefault(axis, [None]).extend(made)
    out["schedule"] += ["cosine", "ascending"]
    return out | {
        "outside": [True, False],  # whether links stand around the cache, or the cache around them
        "media": [False, True],
        "shift": [0, 1],
        "side": ["left", "right"],
        "block": [{}, {"block_length": 3}, {"block_length": 4}, {"block_length": 3, "block_start": "row"}],
        "steps": [None, 4],
        "draw": [{}, {"temperature": 0.8}, {"temperature": 1.0, "temperature_end": 0.0, "top_k": 4}],
        "ends": [{"early_stop": False}, {}, {"end_rule": "at_once"}, {"end_rule": "before"}, {"eos_policy": "last"},
                 {"eos_policy": "suppress", "confidence": "vocabulary"}],
    }  # fmt: skip


def is_a(kind: Any) -> Callable[[Any], bool]:
    return lambda level: isinstance(level, kind)


def given(level: Any) -> bool:
    return level is not None


def proposes_nothing(level: Any) -> bool:
    return given(level) and not getattr(level, "proposes", False)


def has(field: str) -> Callable[[Any], bool]:
    return lambda level: field in level


def by_entropy(level: Any) -> bool:
    return getattr(level, "of_score", None) is not None


def refuses(field: str) -> Callable[[Any], bool]:
    """Of a process: whether it declares that it has no use for a field; most rules, where its steps are bounded."""
    rules = ("remasking", "schedule", "select", "revise")

    def meant(level: Any) -> bool:
        bounded = getattr(level, "bounded", False) and not getattr(level, "ruled", False)
        return field in getattr(level, "refuses", ()) or bounded and field in rules

    return meant


TO_THE_RIGHT = verifier.Verifier, verifier.Speculate

# What cannot be combined: axes, what of each is meant, and what the refusal says. All else must work.
REFUSED: list[tuple[dict[str, Callable[[Any], bool]], str]] = [
    *(
        ({"process": refuses(FIELDS[rule]), rule: given}, f"sampler.{FIELDS[rule]}: ")
        for rule in FIELDS
        if rule != "process"
    ),
    *(
        ({"process": refuses(field), axis: has(field)}, f"sampler.{field}: ")
        for axis, field in (
            ("block", "block_length"),
            ("block", "block_start"),
            ("draw", "temperature"),
            ("draw", "temperature_end"),
            ("ends", "eos_policy"),
            ("ends", "end_rule"),
        )
    ),
    *(({"process": refuses("denoise"), axis: given}, "sampler.denoise: ") for axis in ("cache", "link", "choice")),
    ({"process": refuses("steps"), "steps": given}, "sampler.steps: "),
    ({"process": is_a(Inverted), "steps": lambda level: level is None}, "sampler.steps: Inverted"),
    (
        {"process": is_a(Renoising), "ends": lambda level: level.get("eos_policy") == "last"},
        "sampler.eos_policy: last",
    ),
    ({"process": is_a(InsertDelete), "block": lambda level: not level}, "sampler.block_length: InsertDelete"),
    *(
        ({"choice": is_a(TO_THE_RIGHT), rule: given}, "commits from left to right")
        for rule in ("score", "schedule", "select", "revise")
    ),
    ({"choice": is_a(TO_THE_RIGHT), "ends": lambda level: level.get("eos_policy") == "last"}, "sampler.eos_policy"),
    *(({"cache": is_a(Greedy), rule: given}, "judges positions by logits") for rule in ("revise", "process")),
    ({"cache": is_a(SparseD), "attention": lambda level: not isinstance(level, Full)}, "expected full attention"),
    ({"link": is_a(Contrastive), "media": lambda level: not level}, "Contrastive leaves media out"),
    ({"choice": given, "process": proposes_nothing}, "proposes no tokens"),
    ({"choice": is_a(energy.Resample), "draw": lambda level: not level}, "sampler.temperature: at 0 all candidates"),
    ({"choice": is_a(verifier.Speculate), "constraint": given}, "Speculate has the law of the causal model"),
    ({"choice": is_a(verifier.Speculate), "draw": has("temperature_end")}, "one law for all steps"),
    ({"choice": lambda level: level == verifier.Verifier(), "constraint": given}, "may leave the grammar"),
    ({"process": proposes_nothing, "constraint": given}, "sampler.constraint: "),
    ({"constraint": given, "draw": has("top_k")}, "top_k and top_p could leave no text"),
    ({"select": by_entropy, "score": lambda level: not isinstance(level, score.NegativeEntropy)}, "sampler.remasking"),
    (
        {
            "select": is_a(hierarchical.Hierarchical),
            "block": lambda level: level.get("block_length") == 4 or "block_start" in level,
        },
        "a block cuts a group of 3",
    ),
]


def refusals(chosen: Combination) -> list[str]:
    return [
        message
        for one, message in REFUSED
        if all(axis in chosen and means(axes()[axis][chosen[axis]]) for axis, means in one.items())
    ]


def refused(chosen: Combination) -> bool:
    return bool(refusals(chosen))


@cache
def model(attention: Pattern, media: bool, shift: int) -> MMDiff:
    """In double precision, so that no two logits are equal but for the order in which a sum was taken."""
    torch.manual_seed(0)
    backbone = new_backbone(
        tokenizer=TOKENS, hidden_size=16, layers=2, heads=2, dtype="float64", rope_in_fp32=False, init_std=0.3
    )
    backbone.facts = replace(backbone.facts, shift=shift)
    parts: dict[str, nn.Module] = {"image": Patches().double()} if media else {}
    connectors: dict[str, nn.Module] = {"image": Project(width_in=16, width_out=16).double()} if media else {}
    digits = DigitEmbeddings(width=16, vocab_size=backbone.vocab.size, mask_id=backbone.vocab.mask_id)
    nn.init.normal_(digits.digits.weight, std=0.3)
    extras: dict[str, nn.Module] = {
        "digits": digits.double(),
        "sampler": SamplerLayer(width=16).double(),
        "latent": Latent(width=16, size=3).double(),
        "companion": Companion(width=16, vocab_size=backbone.vocab.size, size=3).double(),
    }
    return MMDiff(backbone, parts, connectors, extras=extras, attention=attention).eval()


def rows(m: MMDiff, media: bool, bos: bool = False, whole: bool = False) -> list[Sample]:
    """Ragged: a context and a target, two spans, given words in a target with nothing before it, unless there must be
    something (bos); the first and last with a picture. whole: the targets are given."""
    image = [Media("image", torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3)))] if media else []
    true, null = m.vocab.encode(f"{TRUE} {NULL}")
    mask = true if whole else m.vocab.mask_id
    return [
        [*image, Text([7, 8, 9, 8]), Target([mask] * 6)],
        [Text([8]), Target([mask] * 3), Text([7, 9]), Target([mask] * 3)],
        [*image, *([Text([9])] if bos else []), Target([mask, mask, true, mask, mask, null])],
    ]


def write(m: MMDiff, samples: Sequence[Sample], index: list[int], side: str, named: dict[str, Any]) -> Generation:
    read = [read_media(sample, m.readers) for sample in samples]
    batch: Batch = collate(read, m.vocab, m.readers, index=index, side=side)  # type: ignore[arg-type]
    return m.generate(batch, seed=1, **named)


def settings(level: Mapping[str, Any]) -> dict[str, Any]:
    links = [level["cache"], level["link"]] if level["outside"] else [level["link"], level["cache"]]
    links.append(level["choice"])
    named = {field: level[axis] for axis, field in FIELDS.items() if level[axis] is not None}
    named |= level["block"] | level["draw"] | level["ends"]
    return named | {"steps": level["steps"], "denoise": [link for link in links if link is not None]}


def levels(chosen: Combination) -> dict[str, Any]:
    return {axis: axes()[axis][number] for axis, number in chosen.items()}


def check(chosen: Combination, *, every: bool = False) -> None:
    """every: all rows are also run alone, else two of the three, by turns."""
    level = levels(chosen)
    m = model(level["attention"], level["media"], level["shift"])
    process, index = level["process"], [8, 3, 5]
    samples = rows(m, level["media"], isinstance(process, Insertion), isinstance(process, Inverted))
    run = partial(write, m, side=level["side"], named=settings(level))
    together = run(samples, index)
    assert not (together.ids_BL[together.target_BL] == m.vocab.mask_id).any()
    for b, sample in enumerate(samples):
        if not every and b == sum(chosen.values()) % len(samples):
            continue
        alone = run([sample], [index[b]])
        at_L, own_L = together.target_BL[b], alone.target_BL[0]
        assert alone.targets()[0] == together.targets()[b], (b, level)
        assert alone.step_BL[0][own_L].tolist() == together.step_BL[b][at_L].tolist(), (b, level)
        assert int(alone.forwards_B[0]) == int(together.forwards_B[b]), (b, level)
        assert torch.allclose(alone.confidence_BL[0][own_L], together.confidence_BL[b][at_L], atol=1e-5), (b, level)


def design(strength: int) -> Iterator[Combination]:
    return covering(axes(), strength, refused)


def named(chosen: Combination) -> str:
    """What of a combination is not as by default."""
    return " ".join(f"{axis}={axes()[axis][n]}" for axis, n in chosen.items() if n) or "default"


def test_every_part_of_a_sampler_is_on_an_axis() -> None:
    assert {
        "cache",
        "link",
        "choice",
        "process",
        "constraint",
        "score",
        "select",
        "revise",
        "schedule",
        "draft",
    } < axes().keys()
    held = {type(level) for levels in axes().values() for level in levels}
    missing = {part for part in declared() if axis_of(part) is not None} - held
    # a part of every pattern, what `None` is, and what only training has
    assert missing == {Documents, Absorbing, PartlyCausal}


def test_the_design_holds_every_pair_that_can_be() -> None:
    small = {"a": [0, 1, 2], "b": [0, 1], "c": [0, 1]}
    found = list(covering(small, 2, lambda row: row.get("a") == 2 and row.get("b") == 1))
    pairs = {(x, row[x], y, row[y]) for row in found for x in row for y in row if x < y}
    assert len(pairs) == 3 * 2 + 3 * 2 + 2 * 2 - 1 and len(found) < 3 * 2 * 2 - 2
    assert ("a", 2, "b", 1) not in pairs
    assert len(list(covering(small, 3, lambda row: False))) == 12


THREES = 12
EVERY = 6  # of the pairs, one in so many is tried by `make test`, and the others are slow tests
PAIRS = [pytest.param(one, marks=[pytest.mark.slow] * (n % EVERY > 0)) for n, one in enumerate(design(2))]


@pytest.mark.parametrize("chosen", PAIRS, ids=lambda one: named(one))
def test_a_row_is_the_same_alone_and_in_a_batch(chosen: Combination) -> None:
    check(chosen)


def test_a_choice_reads_no_noise_beside_the_text() -> None:
    """One of the threes: beside a row that begins with a target, another Denoise reads than for a row alone."""
    a = axes()
    process = next(i for i, level in enumerate(a["process"]) if isinstance(level, Augmented))
    choice = next(i for i, level in enumerate(a["choice"]) if isinstance(level, energy.Resample))
    check(dict.fromkeys(a, 0) | {"process": process, "choice": choice, "shift": 1, "draw": 1}, every=True)


@pytest.mark.slow
def test_so_is_it_with_three_levels() -> None:
    """Of the combinations that hold every three levels one in `THREES`: every pair has a test of its own above."""
    for chosen in islice(design(3), 0, None, THREES):
        check(chosen)


@pytest.mark.parametrize("one", [one for one, _ in REFUSED], ids="-".join)
def test_what_cannot_be_combined_is_refused_in_one_sentence(one: dict[str, Callable[[Any], bool]]) -> None:
    (a, of_a), (b, of_b) = one.items()
    pairs = [(i, j) for i, x in enumerate(axes()[a]) if of_a(x) for j, y in enumerate(axes()[b]) if of_b(y)]
    assert pairs
    for i, j in pairs:
        chosen = dict.fromkeys(axes(), 0) | {a: i, b: j}
        m = model(levels(chosen)["attention"], False, 0)
        for samples in (rows(m, False), rows(m, False)[:1]):
            with pytest.raises(ConfigError) as raised:
                write(m, samples, list(range(len(samples))), "left", settings(levels(chosen)))
            message = str(raised.value)
            assert any(known in message for known in refusals(chosen)) and "\n" not in message
