"""Speech recognition with a trained run: write clips down, mend drafts, choose among hypotheses, count errors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.commands.arguments import Output, Verb, overrides_of
from mmdiff.commands.cli import table
from mmdiff.errors import UserError, nearest
from mmdiff.protocols import Row, Source

if TYPE_CHECKING:
    from mmdiff.session import Session

    from .task import ASR

STRATEGIES = {
    "random": {"target": "mmdiff.samplers.deliberation.MaskRandom"},
    "low_confidence": {"target": "mmdiff.samplers.deliberation.MaskLeastConfident"},
    "leave_one_out": {"target": "mmdiff.samplers.deliberation.MaskLeastConfident", "probe": "leave_one_out"},
    "semi_autoregressive": {"target": "mmdiff.samplers.deliberation.MaskChunks"},
}


def transcribe(args: argparse.Namespace) -> Output:
    """write down what is said in audio files, or in the rows of a manifest"""
    out = _file("--out", args.out)
    rows, overrides = _rows(args)
    records = _transcribed(args, rows, _session(args, overrides, draft=False), out)
    return {"records": records, **_written(out)}, "\n".join(f"{r['id']}\t{r['pred_text']}" for r in records)


def deliberate(args: argparse.Namespace) -> Output:
    """mend the transcripts of a first pass: --hypotheses FILE, those of the manifest, or what the CTC head hears"""
    out = _file("--out", args.out)
    rows, overrides = _rows(args)
    session = _session(args, [*_strategy(args), *overrides], draft=True)
    records = _transcribed(args, rows, session, out, first=_hears(args, rows))
    return {"records": records, **_written(out)}, _mended(records)


def rescore(args: argparse.Namespace) -> Output:
    """choose among the hypotheses of another recogniser (`nbest`), by its scores and their likelihood"""
    from .rescoring import rescored

    out = _file("--out", args.out)
    rows, overrides = _rows(args)
    session = _session(args, overrides, draft=False)
    records = rescored(session, rows, out=out, settings=_settings(args, overrides), weight=args.weight)
    return {"records": records, **_written(out)}, _mended(records)


def evaluate(args: argparse.Namespace) -> Output:
    """count errors against a manifest's transcripts, of the first pass too where there is one; real-time factors"""
    from .evaluate import figures, page

    if not args.manifest:
        raise UserError("eval: give a --manifest, whose transcripts errors are counted against")
    out, report = _file("--out", args.out), _file("--report", args.report)
    rows, overrides = _rows(args)
    draft = bool(args.hypotheses or args.strategy or args.ratio is not None or args.first_pass)
    if args.standalone and not draft:
        raise UserError("--standalone compares with drafts: give --hypotheses, --strategy or --first-pass")
    session = _session(args, [*(_strategy(args) if draft else []), *overrides], draft=draft)
    records = _transcribed(args, rows, session, out, first=draft and _hears(args, rows))
    task: ASR = session.task  # type: ignore[assignment]  # any other has no `draft` to be set
    found = figures(task, records)
    if args.standalone:
        beside = out.with_name(f"{out.stem}.standalone{out.suffix}") if out else None
        alone = _transcribed(args, rows, _session(args, overrides, draft=False), beside)
        found["standalone"] = figures(task, [{**r, "first_pass": None} for r in alone])
    if report:
        found["report"] = str(page(report, task, rows, records, session.model.vocab, found))
    return table({**found, **_written(out)})


def _transcribed(
    args: argparse.Namespace, rows: Source, session: Session, out: Path | None, *, first: bool = False
) -> list[dict[str, Any]]:
    from .transcribe import transcribe

    _, overrides = overrides_of(args.words)
    settings = {**_settings(args, overrides), "draft": session.task.draft}  # type: ignore[attr-defined]
    return transcribe(
        session, rows, out=out, settings=settings, seconds=args.seconds, words=args.word_times, first=first
    )


def _session(args: argparse.Namespace, overrides: list[str], *, draft: bool) -> Session:
    from mmdiff.session import load

    return load(args.run, *overrides, f"task.draft={'true' if draft else 'false'}")


def _settings(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """What the results depend on, besides the model and its sampler."""
    files, _ = overrides_of(args.words)
    return {
        "rows": args.manifest or files,
        "hypotheses": getattr(args, "hypotheses", None),
        "overrides": overrides,
    }


def _rows(args: argparse.Namespace) -> tuple[Source, list[str]]:
    """The rows, and the overrides of the command line."""
    from .data.manifests import KaldiDir, Manifest

    files, overrides = overrides_of(args.words)
    if bool(args.manifest) == bool(files):
        raise UserError("give audio files, or one --manifest")
    rows: Source = Files(files)
    if args.manifest:
        source = KaldiDir if Path(args.manifest).is_dir() else Manifest
        rows = source(args.manifest, empty=True)
    if getattr(args, "hypotheses", None):
        from .data.hypotheses import WithHypotheses

        rows = WithHypotheses(rows, args.hypotheses, args.layout)
    return rows, overrides


class Files:
    """Rows of audio files, named by their paths."""

    def __init__(self, paths: list[str]) -> None:
        from mmdiff.encoders.media.audio import duration

        if twice := [path for path in paths if paths.count(path) > 1]:
            raise UserError(f"{twice[0]}: given {len(twice)} times")
        self.rows = [{"audio": path, "id": path, "duration": duration(path), "where": path} for path in paths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def _hears(args: argparse.Namespace, rows: Source) -> bool:
    """Whether the CTC head makes the drafts."""
    if args.first_pass and args.hypotheses:
        raise UserError("give --hypotheses, or --first-pass")
    have = [rows[i].get("hypothesis") is not None for i in range(len(rows))]
    if args.first_pass or not any(have):
        return True
    if not all(have):
        raise UserError(f"{have.count(False)} of {len(have)} rows have no hypothesis; give all of them, or none")
    return False


def _strategy(args: argparse.Namespace) -> list[str]:
    """Overrides that say how drafts are opened."""
    name = args.strategy or "low_confidence"
    if name not in STRATEGIES:
        raise UserError(f"--strategy: {name!r}{nearest(name, STRATEGIES)}")
    if args.ratio is not None and not 0 < args.ratio <= 1:
        raise UserError(f"--ratio: {args.ratio} is not a share above 0 and up to 1")
    node: Mapping[str, Any] = STRATEGIES[name] if args.ratio is None else {**STRATEGIES[name], "ratio": args.ratio}
    return [f"sampler.draft={{{', '.join(f'{key}: {value}' for key, value in node.items())}}}"]


def _file(option: str, path: str | None) -> Path | None:
    """The file an option names. What is wrong with it is said now, and not after the work."""
    if path is None:
        return None
    file = Path(path)
    if not path or file.is_dir():
        raise UserError(f"{option}: {path!r} is not the name of a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written ({error.strerror})") from None
    return file


def _written(out: Path | None) -> dict[str, Any]:
    return {"out": str(out)} if out else {}


def _mended(records: list[dict[str, Any]]) -> str:
    return "\n".join(f"{r['id']}\t{r['first_pass']}\t->\t{r['pred_text']}" for r in records)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, or a saved model")
    parser.add_argument(
        "words", metavar="AUDIO | key=value", nargs="*", default=[], help="files; task. and sampler. settings"
    )
    parser.add_argument("--manifest", help="JSON lines of audio and text, or a Kaldi folder, instead of files")
    parser.add_argument("--out", help="JSON lines, a record a row; an interrupted command goes on with them")


def _batches(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("--seconds", type=float, default=120.0, help="of sound in a batch (120)")
    parser.add_argument("--word-times", action="store_true", help="when each word was said, by the CTC head")


def _hypotheses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hypotheses", metavar="FILE", help="of a first pass: text, trn, JSON or JSON lines")
    parser.add_argument("--layout", help="of that file, where its name does not tell: lines, ids, trn or json")


def _drafts(parser: argparse.ArgumentParser) -> None:
    _batches(parser)
    _hypotheses(parser)
    parser.add_argument("--first-pass", action="store_true", help="mend what the encoder's CTC head hears")
    parser.add_argument("--strategy", help=f"{' | '.join(STRATEGIES)} (low_confidence)")
    parser.add_argument("--ratio", type=float, help="share of a draft that is opened at a time")


def _rescore(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    _hypotheses(parser)
    parser.add_argument("--weight", type=float, default=1.0, help="of the model beside the recogniser's scores (1)")


def _eval(parser: argparse.ArgumentParser) -> None:
    _drafts(parser)
    parser.add_argument("--standalone", action="store_true", help="count the errors without drafts too")
    parser.add_argument("--report", help="an HTML page of figures and examples")


VERBS = {
    "transcribe": Verb(transcribe, _batches),
    "deliberate": Verb(deliberate, _drafts),
    "rescore": Verb(rescore, _rescore),
    "eval": Verb(evaluate, _eval),
}
