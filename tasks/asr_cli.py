"""Speech recognition with a trained run: write clips down, mend drafts, count errors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arguments import Output, Verb, overrides_of
from ..cli import table
from ..errors import ConfigError, UserError, nearest
from ..protocols import Source

STRATEGIES = {
    "random": "mmdiff.samplers.drafts.Random",
    "low_confidence": "mmdiff.samplers.drafts.LowConfidence",
    "leave_one_out": "mmdiff.samplers.drafts.LowConfidence",
    "semi_autoregressive": "mmdiff.samplers.drafts.SemiAutoregressive",
}


def transcribe(args: argparse.Namespace) -> Output:
    """write down what is said in audio files, or in the rows of a manifest"""
    records, *_ = _run(args, draft=False)
    return {"records": records, **_written(args)}, "\n".join(f"{r['id']}\t{r['pred_text']}" for r in records)


def deliberate(args: argparse.Namespace) -> Output:
    """mend the transcripts of a first pass: --hypotheses FILE, or what the encoder's CTC head hears"""
    records, *_ = _run(args, draft=True)
    lines = [f"{r['id']}\t{r['first_pass']}\t->\t{r['pred_text']}" for r in records]
    return {"records": records, **_written(args)}, "\n".join(lines)


def evaluate(args: argparse.Namespace) -> Output:
    """count errors against a manifest's transcripts, of the first pass too where there is one; real-time factors"""
    from .asr_eval import figures, page

    draft = bool(args.hypotheses or args.strategy or args.first_pass)
    records, session, rows = _run(args, draft=draft)
    found = figures(session.task, records)
    if args.report:
        found["report"] = str(page(Path(args.report), session.task, rows, records, session.model.vocab, found))
    return table({**found, **_written(args)})


def _run(args: argparse.Namespace, *, draft: bool) -> tuple[list[dict[str, Any]], Any, Source]:
    from ..session import load
    from .transcribe import transcribe

    files, overrides = overrides_of(args.words)
    rows = _rows(args, files)
    hypotheses = getattr(args, "hypotheses", None)
    if hypotheses:
        from .hypotheses import WithHypotheses

        rows = WithHypotheses(rows, hypotheses, args.layout)
    if draft:
        overrides = [*_strategy(args), *overrides]
    session = load(args.run, *overrides, f"task.draft={'true' if draft else 'false'}")
    settings = {"run": str(args.run), "overrides": overrides, "draft": draft, "rows": args.manifest or files}
    if hypotheses:
        settings["hypotheses"] = hypotheses
    records = transcribe(
        session,
        rows,
        out=Path(args.out) if args.out else None,
        settings=settings,
        seconds=args.seconds,
        words=args.word_times,
        first=draft and not hypotheses and not _have_drafts(rows),
    )
    return records, session, rows


def _rows(args: argparse.Namespace, files: list[str]) -> Source:
    from .manifests import KaldiDir, Manifest

    if bool(args.manifest) == bool(files):
        raise UserError("give audio files, or one --manifest")
    if args.manifest:
        path = Path(args.manifest)
        return KaldiDir(str(path)) if path.is_dir() else Manifest(str(path))
    return Files(files)


class Files:
    """Rows of audio files, named by their paths."""

    def __init__(self, paths: list[str]) -> None:
        from ..encoders.audio import duration

        if len(set(paths)) < len(paths):
            raise UserError("the same audio file is given twice")
        self.rows = [{"audio": path, "id": path, "duration": duration(path), "where": path} for path in paths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]


def _have_drafts(rows: Source) -> bool:
    have = [rows[i].get("hypothesis") is not None for i in range(len(rows))]
    if any(have) and not all(have):
        raise UserError(f"{have.count(False)} of {len(have)} rows have no hypothesis; give all of them, or none")
    return all(have)


def _strategy(args: argparse.Namespace) -> list[str]:
    name = args.strategy or "low_confidence"
    if name not in STRATEGIES:
        raise UserError(f"--strategy: {name!r}{nearest(name, STRATEGIES)}")
    if args.ratio is not None and not 0 < args.ratio <= 1:
        raise ConfigError(f"--ratio: {args.ratio} is not a share above 0 and up to 1")
    words = [f"sampler.draft={STRATEGIES[name]}"]
    if name == "leave_one_out":
        words = [f"sampler.draft={{target: {STRATEGIES[name]}, probe: leave_one_out}}"]
    return words + ([f"sampler.draft.ratio={args.ratio}"] if args.ratio is not None else [])


def _written(args: argparse.Namespace) -> dict[str, Any]:
    return {"out": args.out} if args.out else {}


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, or a saved model")
    parser.add_argument(
        "words", metavar="AUDIO | key=value", nargs="*", default=[], help="files; task. and sampler. settings"
    )
    parser.add_argument("--manifest", help="JSON lines of audio and text, or a Kaldi folder, instead of files")
    parser.add_argument("--out", help="JSON lines, a record a row; an interrupted command goes on with them")
    parser.add_argument("--seconds", type=float, default=120.0, help="of sound in a batch (120)")
    parser.add_argument("--word-times", action="store_true", help="when each word was said, by the CTC head")


def _drafts(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("--hypotheses", help="first-pass transcripts: text, trn, JSON or JSON lines")
    parser.add_argument("--layout", help="of that file, where its name does not tell: lines, ids, trn or json")
    parser.add_argument("--strategy", help=f"{' | '.join(STRATEGIES)} (low_confidence)")
    parser.add_argument("--ratio", type=float, help="share of a draft that is opened at a time")


def _eval(parser: argparse.ArgumentParser) -> None:
    _drafts(parser)
    parser.add_argument("--first-pass", action="store_true", help="mend what the encoder's CTC head hears")
    parser.add_argument("--report", help="an HTML page of figures and examples")


VERBS = {
    "transcribe": Verb(transcribe, _common),
    "deliberate": Verb(deliberate, _drafts),
    "eval": Verb(evaluate, _eval),
}
