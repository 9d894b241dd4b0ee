"""The verbs that sample sequences: `generate`, `infill` and `design`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mmdiff.commands.arguments import Output
from mmdiff.commands.cli import log
from mmdiff.protocols import Row

from .arguments import Binders, Infilling, NewSequences, Policies, Run, Sampling, one_file, only_overrides

if TYPE_CHECKING:
    from .results import Results

WINDOW = 256  # sequences that are sampled before they are on the disk: what an interrupted command does again
OPEN_POSITIONS, NO_POLICIES, SAMPLING = Infilling(), Policies(), Sampling()


def generate(run: Run, /, *words: str, new: NewSequences | None = None, sampling: Sampling = SAMPLING) -> Output:
    """Sample sequences of given lengths, from an empirical distribution of lengths, or after templates.

    Args:
        words: settings as dotted.key=value: sampler.steps=20, task.letters=...
    """
    from .results import Results
    from .rows import new_rows, peeked

    new = new or NewSequences()  # with none of its options, its error names which to give
    overrides, out = only_overrides(words), Results("--out", sampling.out)
    return _sampled(run, peeked(new_rows(new, sampling)), sampling, asdict(new), overrides, out)


def infill(
    run: Run,
    /,
    *words: str,
    infilling: Infilling = OPEN_POSITIONS,
    policies: Policies = NO_POLICIES,
    sampling: Sampling = SAMPLING,
) -> Output:
    """Sample parts of sequences: masked positions (_), ranges, a random share; or put their motif in a new scaffold.

    Args:
        words: a file of sequences; settings as dotted.key=value: sampler.steps=20, task.letters=...
    """
    from .inputs import content
    from .results import Results
    from .rows import infilled_rows, peeked

    (file, overrides), out = one_file(words), Results("--out", sampling.out)
    asked = {**content(file), **asdict(infilling), **asdict(policies)}
    rows = peeked(infilled_rows(file, infilling, policies, sampling, one_word=out.is_fasta))
    return _sampled(run, rows, sampling, asked, overrides, out)


def design(run: Run, /, *words: str, binders: Binders, sampling: Sampling = SAMPLING) -> Output:
    """Sample binders of a target, and the same for a shuffled target, to see what comes from it.

    Args:
        words: settings as dotted.key=value: sampler.steps=20, task.letters=...
    """
    from mmdiff.tasks.protein.design.control import bounds, control_file, control_rows, design_control

    from .inputs import open_session
    from .results import Results, design_row, fasta
    from .rows import binder_rows

    overrides, out = only_overrides(words), Results("--out", sampling.out)
    rows = binder_rows(binders, sampling)
    session = open_session(run, overrides, seed=sampling.seed)
    named = {"window": WINDOW, **sampling.arguments(asdict(binders), overrides)}
    both_sets = design_control(session, rows, seed=sampling.seed, out=out.lines, **named)
    own, wrong = map(list, both_sets)
    both_bounds = []
    for targets in (rows, control_rows(rows, seed=sampling.seed)):
        pairs = [{**record, "target": row["target"]} for record, row in zip(own, targets, strict=True)]
        both_bounds.append(bounds(session, pairs, tokens=sampling.tokens))
    gap = [shuffled - right for right, shuffled in zip(*both_bounds, strict=True)]
    both = [letters for one, other in zip(own, wrong, strict=True) for letters in _designed(one, other)]
    figures = {
        "bound_own_target": mean(both_bounds[0]),
        "bound_shuffled_target": mean(both_bounds[1]),
        "bound_difference": mean(gap),
        "bound_difference_se": stdev(gap) / len(gap) ** 0.5 if len(gap) > 1 else None,
        "identity_with_control": mean(float(a == b) for a, b in both) if both else None,
    }
    found = {**_counts(own), **figures}
    if out.lines is not None:
        found["control"] = str(control_file(out.lines))
    if figures["bound_difference"] < 2 * (figures["bound_difference_se"] or 0.0):
        log("the designs are no likelier given their target than given its residues shuffled: the model ignores it")
    return out.output(found, own, design_row, fasta)


def _sampled(
    run: str, rows: Iterator[Row], sampling: Sampling, asked: dict[str, Any], overrides: list[str], out: Results
) -> Output:
    """Run `design.generate` on rows, into the file the command names, or print FASTA."""
    from mmdiff.tasks.protein.design.generate import generate as sample

    from .inputs import open_session
    from .results import design_row, fasta

    session = open_session(run, overrides, seed=sampling.seed)
    records = sample(session, rows, out=out.lines, window=WINDOW, **sampling.arguments(asked, overrides))
    return out.output(_counts(records), records, design_row, fasta)


def _counts(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`count_records`, where `records` are to be the records themselves."""
    from mmdiff.tasks.protein.design.generate import count_records

    counts = count_records(records)
    return {"n": counts.pop("records"), **counts}


def _designed(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Both residues of every position that was sampled."""
    positions = zip(one["steps"], one["sequence"], other["sequence"], strict=True)
    return ((a, b) for step, a, b in positions if step)
