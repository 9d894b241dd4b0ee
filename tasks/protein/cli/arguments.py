"""What the protein verbs take on the command line; what they do is in `protein_cli.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmdiff.commands.arguments import overrides_of
from mmdiff.errors import UserError

if TYPE_CHECKING:
    from mmdiff.tasks.protein.design.generate import Guard


def generate(parser: argparse.ArgumentParser) -> None:
    _writes(parser, "key=value")
    parser.add_argument("--length", help="100, 50-400, 50,60,70-80, or a FASTA file whose lengths are drawn")
    parser.add_argument("--template", help="residues and open places: MKT___G[10-20]{ILV}AA")
    parser.add_argument("--prefix", type=word, default="sample-", help="of the ids (sample-)")


def infill(parser: argparse.ArgumentParser) -> None:
    _writes(parser, "FILE | key=value", n=1)
    parser.add_argument("--open", metavar="16-35,52-71", help="residues that are written again")
    parser.add_argument("--keep", metavar="16-35,52-71", help="residues that stay, all others are written")
    parser.add_argument("--share", type=share, help="this share of the residues, drawn, is written again")
    parser.add_argument("--window", type=whole(1), help="... within a window of so many residues, put anywhere")
    parser.add_argument(
        "--scaffold", metavar="16-35,52-71", help="a motif, counted from 1, put anywhere into a new sequence"
    )
    parser.add_argument("--length", help="of that sequence: 100 or 80-120")
    parser.add_argument("--keep-gaps", action="store_true", help="the motif's segments stay as far apart as they are")
    _policies(parser)


def design(parser: argparse.ArgumentParser) -> None:
    _writes(parser, "key=value")
    parser.add_argument("--target", required=True, help="residues, or a FASTA file whose first sequence is taken")
    parser.add_argument("--length", help="of the binders: 80, 60-90 or a FASTA file whose lengths are drawn")
    parser.add_argument("--template", help="as for generate")
    parser.add_argument(
        "--binder", help="a known binder, residues or a FASTA file, of which a --share is written again"
    )
    parser.add_argument("--share", type=share, help="of the residues of --binder")
    parser.add_argument("--window", type=whole(1), help="... within a window of so many residues, put anywhere")
    parser.add_argument("--prefix", type=word, default="binder-", help="of the ids (binder-)")


def score(parser: argparse.ArgumentParser) -> None:
    _common(parser, "FILE | key=value")
    parser.add_argument("--methods", help="bound,pseudo_perplexity; of mutants wt_marginal,masked_marginal,... (all)")
    parser.add_argument(
        "--levels", type=whole(1), default=16, help="numbers of masked residues the bound is taken at (16)"
    )
    parser.add_argument("--per-residue", action="store_true", help="log p of each residue given all others")
    parser.add_argument("--control", help="shuffled_target: the same for shuffled targets, of pairs")
    parser.add_argument(
        "--scan", metavar="FILE", help="mutants with measurements: ProteinGym's or DeepSequence's columns"
    )
    parser.add_argument("--mutants", help="instead of a file: 'A1P A1P:D2N'")
    parser.add_argument("--wild-type", help="residues or a FASTA file; where the scan does not tell it")
    parser.add_argument("--offset", type=int, help="number of the wild type's first residue (1)")
    parser.add_argument("--column", help="of the scan's measurements (all)")
    parser.add_argument("--alignment", help="of the wild type's family, for the baseline of its columns")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--out", help=".csv, .tsv or .jsonl, also .gz; an interrupted command goes on, but for mutants")
    _policies(parser)


def embed(parser: argparse.ArgumentParser) -> None:
    _common(parser, "FILE | key=value")
    parser.add_argument("--out", required=True, help="a folder, or a file ending in .safetensors or .npz")
    parser.add_argument("--pool", default="mean", help="mean, max, std, cls, several by commas; or residue (mean)")
    parser.add_argument("--layer", type=int, default=-1, help="0 the embedding table, then a layer each (-1, the last)")
    parser.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    parser.add_argument("--format", help="of a folder's parts: safetensors or npz (safetensors)")
    _policies(parser)


def probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", metavar="EMBEDDINGS", help="what `mmdiff protein embed` wrote")
    parser.add_argument("labels", metavar="LABELS", help="CSV of id,label[,group], or FASTA of a letter a residue")
    parser.add_argument("--sequences", help="the sequences, for baselines and clusters")
    parser.add_argument(
        "--identity", type=share_or_0, default=0.5, help="--sequences this alike are in one fold (0.5; 0: off)"
    )
    parser.add_argument("--folds", type=whole(2), default=5)
    parser.add_argument("--seed", type=whole(0), default=0)


def evaluate(parser: argparse.ArgumentParser) -> None:
    _common(parser, "FILE | key=value")
    parser.add_argument("--train", help="the sequences the model has seen: for novelty and baselines")
    parser.add_argument("--limit", type=whole(1), help="held-out sequences (all)")
    parser.add_argument("--aligned", action="store_true", help="columns of an alignment; told by the task else")
    parser.add_argument("--samples", type=whole(1), default=300, help="sequences that are written (300)")
    parser.add_argument("--motif", help="residues and open places (_): its residues must stay")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--report", help="the page (RUN/protein/, or protein-FILE/; without a run: none)")


# Values ---------------------------------------------------------------------------------------------------------------


def whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least {least}")
        return value

    return read


def share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a share above 0 and up to 1")
    return value


def share_or_0(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a share from 0 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def word(text: str) -> str:
    if not text or len(text.split()) != 1 or text != text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}, expected one word, as the id of a FASTA record is")
    return text


def policy(args: argparse.Namespace) -> dict[str, str]:
    given = {name: getattr(args, name) for name in ("lower", "gaps", "unknown")}
    return {name: value for name, value in given.items() if value is not None}


def guard(args: argparse.Namespace) -> Guard | None:
    from mmdiff.tasks.protein.design.generate import GUARD

    return None if args.no_guard else replace(GUARD, tries=args.tries)


def one_file(args: argparse.Namespace) -> tuple[Path, list[str]]:
    """The one file of sequences among the words, and the settings."""
    files, overrides = _words(args)
    if len(files) != 1:
        raise UserError(f"give one file of sequences, not {' and '.join(files) if files else 'none'}")
    return Path(files[0]), overrides


def only_overrides(args: argparse.Namespace) -> list[str]:
    files, overrides = _words(args)
    if files:
        raise UserError(f"unknown argument {files[0]!r}, expected settings (sampler.steps=20)")
    return overrides


def file_or_none(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    files, overrides = _words(args)
    return one_file(args) if files else (None, overrides)


def needs(args: argparse.Namespace, names: Sequence[str], what: str, given: bool) -> None:
    """Refuse the options `names` unless what they go with is `given`: they would do nothing."""
    for name in names:
        if getattr(args, name) not in (None, False) and not given:
            raise UserError(f"--{name.replace('_', '-')} goes with {what}")


def _words(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    files, overrides = overrides_of(args.words)
    for text in files:
        if "=" in text and not Path(text).exists():
            raise UserError(f"{text!r}: expected a setting by its dotted key, as in sampler.steps=20")
    return files, overrides


# Options of several verbs ---------------------------------------------------------------------------------------------


def _common(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("run", metavar="RUN", help="a run, a saved model, or a backbone: a folder or hub id")
    parser.add_argument(
        "words", metavar=words, nargs="*", default=[], help="sequences; settings: sampler.steps=20, task.letters=..."
    )
    parser.add_argument(
        "--tokens", type=whole(1), help="places of a batch, padding counted (1024 on a CPU); changes no result"
    )


def _writes(parser: argparse.ArgumentParser, words: str, n: int = 10) -> None:
    _common(parser, words)
    each = " a record" if n == 1 else ""
    parser.add_argument("--n", type=whole(1), default=n, help=f"sequences{each} ({n})")
    parser.add_argument("--out", help=".fasta, .csv, .tsv or .jsonl, also .gz; an interrupted command goes on")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--allow", default="", metavar="10:AVL,12-15:^C", help="letters by position")
    parser.add_argument("--forbid", default="", metavar="CM", help="letters that are written nowhere")
    parser.add_argument("--trajectory", action="store_true", help="the sequence after every step, of every record")
    parser.add_argument("--no-guard", action="store_true", help="keep sequences that repeat themselves")
    parser.add_argument("--tries", type=whole(1), default=4, help="how often such a one is written at most (4)")


def _policies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lower", help="lower case: upper, drop or refuse (upper; of .a3m: drop)")
    parser.add_argument("--gaps", help="'-' and '.': keep, drop or refuse (drop; of .a3m: keep)")
    parser.add_argument("--unknown", help="letters besides the 20: keep, x or refuse (keep)")
