"""Speech recognition with a trained run: transcribe clips, correct drafts, choose among hypotheses, count errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter

from mmdiff.commands.arguments import Output, Verb, overrides_of
from mmdiff.commands.cli import table
from mmdiff.errors import UserError, nearest
from mmdiff.files import make_folder, output_file
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

# Options of several verbs, in groups; Cyclopts lays out the fields of a group as options of their own

Strategy: TypeAlias = Annotated[
    str | None, Parameter(help=f"how the draft is masked: {' | '.join(STRATEGIES)} (default: low_confidence).")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Data:
    """The rows, and the file of the results.

    Args:
        manifest: rows instead of audio files: JSON lines, or a folder of Kaldi or of a split of LibriSpeech.
        out: the file of JSON lines, one record per row; an interrupted command resumes it.
    """

    manifest: str | None = None
    out: str | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Decoding:
    """How rows are transcribed.

    Args:
        seconds: seconds of sound per batch.
        word_times: add the time of each word, by the encoder's CTC head.
    """

    seconds: float = 120.0
    word_times: bool = False


@Parameter(name="*")
@dataclass(frozen=True)
class Hypotheses:
    """Transcripts of another recogniser.

    Args:
        hypotheses: a file of transcripts: text, trn, JSON or JSON lines.
        layout: layout of --hypotheses where the ending does not tell: lines, ids, trn or json.
    """

    hypotheses: str | None = None
    layout: str | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Drafts:
    """Where drafts come from, and how they are masked.

    Args:
        first_pass: correct the transcript of the encoder's CTC head.
        ratio: share of a draft that is masked again at a time.
    """

    first_pass: bool = False
    strategy: Strategy = None
    ratio: float | None = None

    def overrides(self) -> list[str]:
        """Returns the settings of the sampler. Raises UserError."""
        name = self.strategy or "low_confidence"
        if name not in STRATEGIES:
            raise UserError(f"--strategy: {name!r}{nearest(name, STRATEGIES)}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UserError(f"--ratio: {self.ratio} is not a share above 0 and up to 1")
        node: Mapping[str, Any] = {**STRATEGIES[name], **({} if self.ratio is None else {"ratio": self.ratio})}
        return [f"sampler.draft={{{', '.join(f'{key}: {value}' for key, value in node.items())}}}"]

    def by_head(self, work: Work) -> bool:
        """Whether the drafts are those of the CTC head. Raises UserError."""
        if self.first_pass and work.hypotheses:
            raise UserError("give --hypotheses, or --first-pass")
        have = [work.rows[i].get("hypothesis") is not None for i in range(len(work.rows))]
        if self.first_pass or not any(have):
            return True
        if not all(have):
            raise UserError(f"{have.count(False)} of {len(have)} rows have no hypothesis; give all of them, or none")
        return False


DATA, DECODING, HYPOTHESES, DRAFTS = Data(), Decoding(), Hypotheses(), Drafts()


def transcribe(run: str, /, *words: str, data: Data = DATA, decoding: Decoding = DECODING) -> Output:
    """Transcribe audio files, or the rows of a manifest.

    Args:
        run: a run folder, or a saved model.
        words: audio files, and settings of `task`, `sampler` and `rows` (of --manifest) as dotted.key=value.
    """
    work = Work(run, words, data)
    records = work.transcribed(work.session(), decoding)
    return {"records": records, **work.named}, "\n".join(f"{r['id']}\t{r['pred_text']}" for r in records)


def deliberate(
    run: str,
    /,
    *words: str,
    data: Data = DATA,
    decoding: Decoding = DECODING,
    hypotheses: Hypotheses = HYPOTHESES,
    drafts: Drafts = DRAFTS,
) -> Output:
    """Correct drafts: those of --hypotheses or of the manifest, or the transcripts of the encoder's CTC head.

    Args:
        run: a run folder, or a saved model.
        words: audio files, and settings of `task`, `sampler` and `rows` (of --manifest) as dotted.key=value.
    """
    work = Work(run, words, data, hypotheses)
    session = work.session(drafts)
    records = work.transcribed(session, decoding, first=drafts.by_head(work))
    return {"records": records, **work.named}, _corrections(records)


def rescore(
    run: str, /, *words: str, data: Data = DATA, hypotheses: Hypotheses = HYPOTHESES, weight: float = 1.0
) -> Output:
    """Choose among the hypotheses of another recogniser (`nbest`), by its scores and their likelihood.

    Args:
        run: a run folder, or a saved model.
        words: audio files, and settings of `task`, `sampler` and `rows` (of --manifest) as dotted.key=value.
        weight: weight of the model beside the recogniser's scores.
    """
    from .rescoring import rescored

    work = Work(run, words, data, hypotheses)
    records = rescored(work.session(), work.rows, out=work.out, settings=work.settings, weight=weight)
    return {"records": records, **work.named}, _corrections(records)


def evaluate(
    run: str,
    /,
    *words: str,
    data: Data = DATA,
    decoding: Decoding = DECODING,
    hypotheses: Hypotheses = HYPOTHESES,
    drafts: Drafts = DRAFTS,
    standalone: bool = False,
    report: str | None = None,
) -> Output:
    """Count errors against a manifest's transcripts, of the first pass too where there is one; real-time factors.

    Args:
        run: a run folder, or a saved model.
        words: settings of `task`, `sampler` and `rows` (of --manifest) as dotted.key=value.
        standalone: count the errors without drafts too.
        report: an HTML page of figures and examples.
    """
    from mmdiff.files import writable

    from .records import figures
    from .report import page

    if not data.manifest and not any(word.startswith("rows.target=") for word in words):
        raise UserError("eval: give a --manifest, whose transcripts errors are counted against")
    page_file = output_file("--report", report)
    make_folder("--report", page_file)
    work = Work(run, words, data, hypotheses)
    draft = bool(work.hypotheses) or drafts != DRAFTS
    if standalone and not draft:
        raise UserError("--standalone compares with drafts: give --hypotheses, --strategy or --first-pass")
    session = work.session(drafts if draft else None)
    records = work.transcribed(session, decoding, first=draft and drafts.by_head(work))
    found = figures(session.task, records)
    if standalone:
        alone = work.transcribed(work.session(), decoding, beside="standalone")
        found["standalone"] = figures(session.task, [{**r, "first_pass": None} for r in alone])
    if page_file:
        with writable(page_file):
            found["report"] = str(page(page_file, session.task, work.rows, records, session.model.vocab, found))
    return table({**found, **work.named})


VERBS: dict[str, Verb] = {
    "transcribe": transcribe,
    "deliberate": deliberate,
    "rescore": rescore,
    "eval": evaluate,
}


class Work:
    """What every verb works on: a run, rows, and the file of the results. Raises UserError before any of it is done.

    settings: those that are kept beside the results.
    """

    def __init__(self, run: str, words: Sequence[str], data: Data, hypotheses: Hypotheses = HYPOTHESES) -> None:
        from mmdiff.config.load import parsed

        from .data.layouts import speech_rows

        self.run, self.hypotheses = run, hypotheses.hypotheses
        self.out = output_file("--out", data.out)
        make_folder("--out", self.out)
        self.named = {"out": str(self.out)} if self.out else {}
        paths, overrides = overrides_of(words)
        arguments = dict(parsed(word.removeprefix("rows.")) for word in overrides if word.startswith("rows."))
        if bool(paths) == bool(data.manifest or "target" in arguments):
            raise UserError("give audio files, or one --manifest")
        if paths and arguments:
            raise UserError(f"rows.{next(iter(arguments))}: a setting of a --manifest, and there are audio files")
        self.rows: Source = _clips(paths) if paths else speech_rows(data.manifest, arguments)
        if hypotheses.hypotheses:
            from .data.hypotheses import WithHypotheses

            self.rows = WithHypotheses(self.rows, hypotheses.hypotheses, hypotheses.layout)
        self.settings = {"rows": data.manifest or paths, "hypotheses": self.hypotheses, "overrides": overrides}
        self.overrides = [word for word in overrides if not word.startswith("rows.")]

    def session(self, drafts: Drafts | None = None) -> Session[ASR]:
        """Returns the session that corrects drafts, or without them one that transcribes from nothing."""
        from mmdiff.session import load

        from .task import ASR

        draft = [] if drafts is None else drafts.overrides()
        return load(self.run, *draft, *self.overrides, f"task.draft={str(drafts is not None).lower()}", task=ASR)

    def transcribed(
        self, session: Session[ASR], decoding: Decoding, *, first: bool = False, beside: str | None = None
    ) -> list[dict[str, Any]]:
        """Returns the records of all rows. beside: what is put in front of the ending of the file of the results."""
        from .transcribe import transcribe

        out = self.out
        if out and beside:
            out = out.with_name(f"{out.stem}.{beside}{out.suffix}")
        settings = {**self.settings, "draft": session.task.draft}
        seconds, words = decoding.seconds, decoding.word_times
        return transcribe(session, self.rows, out=out, settings=settings, seconds=seconds, words=words, first=first)


def _clips(paths: list[str]) -> list[Row]:
    """Returns rows of audio files, named by their paths."""
    from mmdiff.encoders.media.audio import duration

    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"{twice[0]}: given {len(twice)} times")
    return [{"audio": path, "id": path, "duration": duration(path), "where": path} for path in paths]


def _corrections(records: list[dict[str, Any]]) -> str:
    return "\n".join(f"{r['id']}\t{r['first_pass']}\t->\t{r['pred_text']}" for r in records)
