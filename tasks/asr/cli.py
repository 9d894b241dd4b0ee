"""Speech recognition with a trained run: write clips down, mend drafts, choose among hypotheses, count errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter

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


def _help(text: str) -> Parameter:
    return Parameter(help=text)


# Options that several verbs take
Manifest: TypeAlias = Annotated[
    str | None, _help("JSON lines of audio and text, or a Kaldi folder, instead of audio files.")
]
Out: TypeAlias = Annotated[
    str | None, _help("the file of JSON lines, one record per row; an interrupted command resumes it.")
]
Seconds: TypeAlias = Annotated[float, _help("seconds of sound per batch.")]
WordTimes: TypeAlias = Annotated[bool, _help("adds when each word was said, by the CTC head.")]
Hypotheses: TypeAlias = Annotated[str | None, _help("a file of transcripts: text, trn, JSON or JSON lines.")]
Layout: TypeAlias = Annotated[
    str | None, _help("layout of --hypotheses where the name does not tell: lines, ids, trn or json.")
]
FirstPass: TypeAlias = Annotated[bool, _help("mends what the encoder's CTC head hears.")]
Strategy: TypeAlias = Annotated[str | None, _help(f"{' | '.join(STRATEGIES)} (default: low_confidence).")]
Ratio: TypeAlias = Annotated[float | None, _help("share of a draft that is masked again at a time.")]


def transcribe(
    run: str,
    /,
    *words: str,
    manifest: Manifest = None,
    out: Out = None,
    seconds: Seconds = 120.0,
    word_times: WordTimes = False,
) -> Output:
    """Write down what is said in audio files, or in the rows of a manifest.

    Args:
        run: a run folder, or a saved model.
        words: audio files, and settings of `task` and `sampler` as dotted.key=value.
    """
    file = _file("--out", out)
    rows, overrides, settings = _rows(words, manifest)
    session = _session(run, overrides, draft=False)
    records = _transcribed(session, rows, file, settings, seconds, word_times)
    return {"records": records, **_named(file)}, "\n".join(f"{r['id']}\t{r['pred_text']}" for r in records)


def deliberate(
    run: str,
    /,
    *words: str,
    manifest: Manifest = None,
    out: Out = None,
    seconds: Seconds = 120.0,
    word_times: WordTimes = False,
    hypotheses: Hypotheses = None,
    layout: Layout = None,
    first_pass: FirstPass = False,
    strategy: Strategy = None,
    ratio: Ratio = None,
) -> Output:
    """Mend the transcripts of a first pass: --hypotheses FILE, those of the manifest, or what the CTC head hears.

    Args:
        run: a run folder, or a saved model.
        words: audio files, and settings of `task` and `sampler` as dotted.key=value.
    """
    file = _file("--out", out)
    rows, overrides, settings = _rows(words, manifest, hypotheses, layout)
    session = _session(run, [*_draft(strategy, ratio), *overrides], draft=True)
    hears = _hears(rows, hypotheses, first_pass)
    records = _transcribed(session, rows, file, settings, seconds, word_times, first=hears)
    return {"records": records, **_named(file)}, _mended(records)


def rescore(
    run: str,
    /,
    *words: str,
    manifest: Manifest = None,
    out: Out = None,
    hypotheses: Hypotheses = None,
    layout: Layout = None,
    weight: float = 1.0,
) -> Output:
    """Choose among the hypotheses of another recogniser (`nbest`), by its scores and their likelihood.

    Args:
        run: a run folder, or a saved model.
        words: audio files, and settings of `task` and `sampler` as dotted.key=value.
        weight: weight of the model beside the recogniser's scores.
    """
    from .rescoring import rescored

    file = _file("--out", out)
    rows, overrides, settings = _rows(words, manifest, hypotheses, layout)
    session = _session(run, overrides, draft=False)
    records = rescored(session, rows, out=file, settings=settings, weight=weight)
    return {"records": records, **_named(file)}, _mended(records)


def evaluate(
    run: str,
    /,
    *words: str,
    manifest: Manifest = None,
    out: Out = None,
    seconds: Seconds = 120.0,
    word_times: WordTimes = False,
    hypotheses: Hypotheses = None,
    layout: Layout = None,
    first_pass: FirstPass = False,
    strategy: Strategy = None,
    ratio: Ratio = None,
    standalone: bool = False,
    report: str | None = None,
) -> Output:
    """Count errors against a manifest's transcripts, of the first pass too where there is one; real-time factors.

    Args:
        run: a run folder, or a saved model.
        words: settings of `task` and `sampler` as dotted.key=value.
        standalone: counts the errors without drafts too.
        report: an HTML page of figures and examples.
    """
    from .evaluate import figures, page

    if not manifest:
        raise UserError("eval: give a --manifest, whose transcripts errors are counted against")
    file, page_file = _file("--out", out), _file("--report", report)
    rows, overrides, settings = _rows(words, manifest, hypotheses, layout)
    draft = bool(hypotheses or strategy or ratio is not None or first_pass)
    if standalone and not draft:
        raise UserError("--standalone compares with drafts: give --hypotheses, --strategy or --first-pass")
    session = _session(run, [*(_draft(strategy, ratio) if draft else []), *overrides], draft=draft)
    hears = draft and _hears(rows, hypotheses, first_pass)
    records = _transcribed(session, rows, file, settings, seconds, word_times, first=hears)
    found = figures(session.task, records)
    if standalone:
        beside = file.with_name(f"{file.stem}.standalone{file.suffix}") if file else None
        without = _session(run, overrides, draft=False)
        alone = _transcribed(without, rows, beside, settings, seconds, word_times)
        found["standalone"] = figures(session.task, [{**r, "first_pass": None} for r in alone])
    if page_file:
        found["report"] = str(page(page_file, session.task, rows, records, session.model.vocab, found))
    return table({**found, **_named(file)})


VERBS: dict[str, Verb] = {
    "transcribe": transcribe,
    "deliberate": deliberate,
    "rescore": rescore,
    "eval": evaluate,
}


def _session(run: str, overrides: list[str], *, draft: bool) -> Session[ASR]:
    from mmdiff.session import load

    from .task import ASR

    return load(run, *overrides, f"task.draft={'true' if draft else 'false'}", task=ASR)


def _rows(
    words: Sequence[str], manifest: str | None, hypotheses: str | None = None, layout: str | None = None
) -> tuple[Source, list[str], dict[str, Any]]:
    """The rows, the overrides of the command line, and the settings that are kept beside the results."""
    from .data.kaldi import KaldiDir
    from .data.manifests import Manifest

    files, overrides = overrides_of(words)
    if bool(manifest) == bool(files):
        raise UserError("give audio files, or one --manifest")
    rows: Source = Files(files)
    if manifest:
        source = KaldiDir if Path(manifest).is_dir() else Manifest
        rows = source(manifest, empty=True)
    if hypotheses:
        from .data.hypotheses import WithHypotheses

        rows = WithHypotheses(rows, hypotheses, layout)
    return rows, overrides, {"rows": manifest or files, "hypotheses": hypotheses, "overrides": overrides}


def _transcribed(
    session: Session[ASR],
    rows: Source,
    out: Path | None,
    settings: Mapping[str, Any],
    seconds: float,
    words: bool,
    *,
    first: bool = False,
) -> list[dict[str, Any]]:
    from .transcribe import transcribe

    settings = {**settings, "draft": session.task.draft}
    return transcribe(session, rows, out=out, settings=settings, seconds=seconds, words=words, first=first)


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


def _hears(rows: Source, hypotheses: str | None, first_pass: bool) -> bool:
    """Whether the CTC head makes the drafts."""
    if first_pass and hypotheses:
        raise UserError("give --hypotheses, or --first-pass")
    have = [rows[i].get("hypothesis") is not None for i in range(len(rows))]
    if first_pass or not any(have):
        return True
    if not all(have):
        raise UserError(f"{have.count(False)} of {len(have)} rows have no hypothesis; give all of them, or none")
    return False


def _draft(strategy: str | None, ratio: float | None) -> list[str]:
    """Overrides that set how drafts are masked again."""
    name = strategy or "low_confidence"
    if name not in STRATEGIES:
        raise UserError(f"--strategy: {name!r}{nearest(name, STRATEGIES)}")
    if ratio is not None and not 0 < ratio <= 1:
        raise UserError(f"--ratio: {ratio} is not a share above 0 and up to 1")
    node: Mapping[str, Any] = STRATEGIES[name] if ratio is None else {**STRATEGIES[name], "ratio": ratio}
    return [f"sampler.draft={{{', '.join(f'{key}: {value}' for key, value in node.items())}}}"]


def _file(option: str, path: str | None) -> Path | None:
    """The file an option names. What is wrong with it raises now, and not after the work."""
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


def _named(out: Path | None) -> dict[str, Any]:
    return {"out": str(out)} if out else {}


def _mended(records: list[dict[str, Any]]) -> str:
    return "\n".join(f"{r['id']}\t{r['first_pass']}\t->\t{r['pred_text']}" for r in records)
