"""Options that several verbs of `mmdiff protein` share, or that belong together: one frozen dataclass per group.

Cyclopts lays the fields of a group out as options of their own (`Parameter(name="*")`); the docstring is their help.
What depends on two options is checked where a group is made. The fields of `NewSequences`, `Infilling`, `Binders` and
`Policies` are recorded beside the results, so that an interrupted command is resumed with the same ones only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter
from cyclopts.validators import Number

from mmdiff.commands.arguments import AtLeast0, AtLeast1, overrides_of
from mmdiff.errors import UserError, short


def _one_word(type_: Any, value: str) -> None:
    if len(value.split()) != 1 or value != value.strip():
        raise ValueError("Expected one word, as the id of a FASTA record is.")


Levels: TypeAlias = Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))]
Samples: TypeAlias = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000_000))]
AtLeast2: TypeAlias = Annotated[int, Parameter(validator=Number(gte=2))]
ShareAbove0: TypeAlias = Annotated[float, Parameter(validator=Number(gt=0, lte=1))]
Run: TypeAlias = Annotated[str, Parameter(help="a run, a saved model, or a backbone: a folder or hub id.")]
Tokens: TypeAlias = Annotated[
    int | None,
    Parameter(
        validator=Number(gte=1),
        help="token budget of a batch, padding counted (1024 on a CPU); changes no result.",
    ),
]
Word: TypeAlias = Annotated[str, Parameter(validator=_one_word)]
Letters: TypeAlias = Annotated[str, Parameter(allow_leading_hyphen=True)]  # a gap is one


@Parameter(name="*")
@dataclass(frozen=True)
class Policies:
    """What becomes of letters in input files.

    Args:
        lower: lower case: upper, drop or refuse (upper; of .a3m: drop).
        gaps: "-" and ".": keep, drop or refuse (drop; of .a3m: keep).
        unknown: letters besides the 20: keep, x or refuse (keep).
    """

    lower: str | None = None
    gaps: str | None = None
    unknown: str | None = None

    def given(self) -> dict[str, str]:
        """The policies that differ from the file format's own."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class Sampling:
    """How sequences are sampled, and where they go.

    Args:
        out: a file ending in .fasta, .csv, .tsv or .jsonl, also .gz; an interrupted command is resumed.
        seed: seed of the sampler and of all that is drawn.
        allow: letters by position, as in 10:AVL,12-15:^C.
        forbid: letters that are sampled nowhere, as in CM.
        trajectory: with every record, its sequence after each step.
        no_guard: keep sequences that repeat themselves.
        tries: how often such a sequence is sampled at most.
    """

    out: str | None = None
    seed: AtLeast0 = 0
    allow: str = ""
    forbid: Letters = ""
    trajectory: bool = False
    no_guard: bool = False
    tries: AtLeast1 = 4
    tokens: Tokens = None

    def arguments(self, asked: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
        """Arguments of `design.generate.generate`. asked: what else the rows are made of."""
        from mmdiff.tasks.protein.design.guard import GUARD

        guard = None if self.no_guard else replace(GUARD, tries=self.tries)
        rows = {**asked, "seed": self.seed, "allow": self.allow, "forbid": self.forbid}
        settings = {"rows": rows, "overrides": overrides}
        return {"guard": guard, "trajectory": self.trajectory, "tokens": self.tokens, "settings": settings}


@Parameter(name="*")
@dataclass(frozen=True)
class NewSequences:
    """Sequences without an input.

    Args:
        length: 100, 50-400, 50,60,70-80, or a FASTA file whose lengths are drawn.
        template: residues and masked positions, as in MKT___G[10-20]{ILV}AA.
        prefix: first part of the ids.
        n: number of sequences.
    """

    length: str | None = None
    template: str | None = None
    prefix: Word = "sample-"
    n: AtLeast1 = 10

    def __post_init__(self) -> None:
        if bool(self.length) == bool(self.template):
            raise UserError("give a --length (100, 50-400, or a FASTA file with such lengths), or a --template")


@Parameter(name="*")
@dataclass(frozen=True)
class Infilling:
    """Which residues of a given sequence are sampled. With none of these options: its masked positions (_).

    Args:
        masked: residues that are sampled, as in 16-35,52-71.
        keep: residues that stay, as in 16-35,52-71; all others are sampled.
        share: this share of the residues, drawn at random, is sampled.
        window: the drawn residues lie within a window of this length, put anywhere.
        scaffold: a motif, as in 16-35,52-71, counted from 1, put anywhere into a new sequence.
        length: length of that sequence, 100 or 80-120.
        keep_gaps: the motif's segments stay as far apart as they are.
        n: number of sequences per record.
    """

    masked: str | None = None
    keep: str | None = None
    share: ShareAbove0 | None = None
    window: AtLeast1 | None = None
    scaffold: str | None = None
    length: str | None = None
    keep_gaps: bool = False
    n: AtLeast1 = 1

    def __post_init__(self) -> None:
        ways = [name for name in ("masked", "keep", "share", "scaffold") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise UserError(f"--{ways[0]} and --{ways[1]}: give one of them")
        refuse_without(self.share, "--share", window=self.window)
        refuse_without(self.scaffold, "--scaffold", keep_gaps=self.keep_gaps or None)
        if (self.scaffold is None) != (self.length is None):
            raise UserError("--scaffold takes the motif's ranges, --length the new sequence's, as in 80-120: give both")


@Parameter(name="*")
@dataclass(frozen=True)
class Binders:
    """Binders of one target.

    Args:
        target: residues, or a FASTA file whose first sequence is taken.
        length: length of the binders, 80, 60-90, or a FASTA file whose lengths are drawn.
        template: residues and masked positions, as for generate.
        binder: a known binder, residues or a FASTA file, of which a --share is sampled anew.
        share: this share of the residues of --binder.
        window: the drawn residues lie within a window of this length, put anywhere.
        prefix: first part of the ids.
        n: number of binders.
    """

    target: str
    length: str | None = None
    template: str | None = None
    binder: str | None = None
    share: ShareAbove0 | None = None
    window: AtLeast1 | None = None
    prefix: Word = "binder-"
    n: AtLeast1 = 10

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.length, self.template, self.binder)) != 1:
            raise UserError("give one of --length, --template, or --binder with --share")
        if (self.binder is None) != (self.share is None):
            raise UserError("--share is how much of the --binder is sampled anew: give both or neither")
        refuse_without(self.share, "--share", window=self.window)


@Parameter(name="*")
@dataclass(frozen=True)
class Mutants:
    """Mutants of one wild type, instead of sequences.

    Args:
        scan: a file of mutants with measurements, with ProteinGym's or DeepSequence's columns.
        mutants: mutants in place of a file, as in "A1P A1P:D2N".
        wild_type: residues or a FASTA file; needed where the scan does not hold it.
        offset: number of the wild type's first residue (1).
        column: column of the scan's measurements (all).
        alignment: a file of the wild type's family, for the baseline of its columns.
    """

    scan: str | None = None
    mutants: str | None = None
    wild_type: str | None = None
    offset: int | None = None
    column: str | None = None
    alignment: str | None = None

    def __post_init__(self) -> None:
        if self.scan is not None and self.mutants is not None:
            raise UserError("--scan and --mutants: give one of them")
        for_scans = {"column": self.column, "alignment": self.alignment}
        if not self.given:
            refuse_without(None, "--scan or --mutants", wild_type=self.wild_type, offset=self.offset, **for_scans)
        refuse_without(self.scan, "--scan", **for_scans)
        if self.mutants is not None and self.wild_type is None:
            raise UserError("--mutants goes with the --wild-type, residues or a FASTA file")
        if self.mutants is not None and not self.mutants.split():
            raise UserError("--mutants: none, expected as in 'A1P A1P:D2N'")

    @property
    def given(self) -> bool:
        """Whether mutants are asked for, and no sequences."""
        return self.scan is not None or self.mutants is not None


def refuse_without(needed: Any, what: str, **options: Any) -> None:
    """Refuse options that are given where what they go with is not: they would do nothing."""
    for name, value in options.items():
        if value is not None and needed is None:
            raise UserError(f"--{name.replace('_', '-')} goes with {what}")


def file_or_none(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of sequences among the words, if there is one, and the settings."""
    files, overrides = overrides_of(words)
    for text in files:
        try:
            is_there = Path(text).exists()
        except OSError as error:
            raise UserError(f"{short(text, 60)}: {error.strerror}, expected a file of sequences") from None
        if "=" in text and not is_there:
            raise UserError(f"{short(repr(text), 60)}: expected a setting by its dotted key, as in sampler.steps=20")
    if len(files) > 1:
        raise UserError(f"give one file of sequences, not {short(' and '.join(files))}")
    return Path(files[0]) if files else None, overrides


def one_file(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The one file of sequences among the words, and the settings."""
    file, overrides = file_or_none(words)
    if file is None:
        raise UserError("give one file of sequences, not none")
    return file, overrides


def only_overrides(words: Sequence[str]) -> list[str]:
    """The settings, where nothing else is expected."""
    file, overrides = file_or_none(words)
    if file is not None:
        raise UserError(f"unknown argument {str(file)!r}, expected settings (sampler.steps=20)")
    return overrides
