"""Text with a trained run: fill the gaps of a file, rewrite it, embed texts, find a fact in a long text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmdiff.commands.arguments import AtLeast1, Output, PositiveShare, Verb, overrides_of
from mmdiff.errors import DataError, UserError, shown
from mmdiff.files import aside, make_folder, output_file, unreadable, write_text

if TYPE_CHECKING:
    from mmdiff.session import Session

    from .task import PlainText

STRATEGIES = {"low_confidence": "MaskLeastConfident", "random": "MaskRandom", "chunks": "MaskChunks"}


def infill(
    run: str, file: str, /, *words: str, length: AtLeast1 = 16, out: str | None = None, show: bool = False
) -> Output:
    """Fill the gaps of a file of text or code: `<gap>`, or `<gap:8>` for 8 masked positions. All else stays as it is.

    Args:
        run: a run, a checkpoint in it or a saved model.
        file: the file with gaps.
        words: settings as dotted.key=value.
        length: masked positions of a `<gap>`.
        out: the file of the result (default: it is printed).
        show: show the gaps on stderr as they are filled.
    """
    from .infill import fill, pieces_of

    result, pieces = output_file("--out", out), pieces_of(_read(file), length)
    found = fill(_session(run, words), pieces, show=show)
    return _result({"text": found.text, "gaps": found.gaps, "forwards": found.forwards}, result)


def rewrite(
    run: str,
    file: str,
    /,
    *words: str,
    strategy: Literal["low_confidence", "random", "chunks"] = "low_confidence",
    ratio: PositiveShare = 0.3,
    rounds: AtLeast1 = 1,
    out: str | None = None,
    show: bool = False,
) -> Output:
    """Rewrite a draft, text or code: a part of it is masked again and predicted anew.

    Args:
        run: a run, a checkpoint in it or a saved model.
        file: the draft.
        words: settings as dotted.key=value.
        strategy: what is masked: the tokens that the model finds least likely, any, or one stretch after the other.
        ratio: the share that is masked at a time.
        rounds: how often, each time from what came of the last.
        out: the file of the result (default: it is printed).
        show: show the draft on stderr as it changes.
    """
    from .infill import rewritten

    result = output_file("--out", out)
    rule = f"{{target: mmdiff.samplers.deliberation.{STRATEGIES[strategy]}, ratio: {ratio}}}"
    session = _session(run, (f"sampler.draft={rule}", *words))
    found = rewritten(session, _read(file), rounds=rounds, show=show)
    return _result({"text": found.text, "changed": found.gaps, "forwards": found.forwards}, result)


def embed(
    run: str,
    documents: str,
    /,
    *words: str,
    out: str,
    pooling: Literal["mean", "last", "first"] = "mean",
    length: AtLeast1 = 512,
    field: str = "text",
) -> Output:
    """Embed documents: a row of an .npy file per document, float32, in their order.

    Args:
        run: a run, a checkpoint in it or a saved model, of any task.
        documents: a file or a pattern, see `mmdiff.tasks.text.data.documents`.
        words: settings as dotted.key=value.
        out: the .npy file.
        pooling: the mean of the states of all tokens, or the state of the last or the first one.
        length: tokens of a document that are read; the rest is left out.
        field: the column or field of the text.
    """
    import numpy as np

    from mmdiff.evaluation.embed import embed_texts
    from mmdiff.session import load

    from .data.documents import Documents

    settings = _settings(words)
    file = output_file("--out", out)
    if file is None or file.suffix != ".npy":
        raise UserError(f"--out: {shown(out)!r} does not end in .npy")
    texts = []
    for row in Documents(documents, field):
        if not row["text"] and pooling != "first":
            raise DataError(f"{row['where']}: an empty text, whose states cannot be pooled")
        texts.append(str(row["text"]))
    vectors_ND = embed_texts(load(run, *settings).model, texts, pooling=pooling, length=length)
    make_folder("--out", file)
    with aside(file) as part:
        np.save(part, vectors_ND)
    shape = list(vectors_ND.shape)
    return {"out": out, "shape": shape}, f"{out}: {shape[0]} x {shape[1]}"


def needle(run: str, /, *words: str, batch_size: AtLeast1 = 1) -> Output:
    """Ask for a fact that is hidden in a long text: the share of right answers by length of the text and depth.

    Args:
        run: a run, a checkpoint in it or a saved model, of any task.
        words: settings as dotted.key=value; those of `rows` are arguments of `mmdiff.tasks.text.data.needle.Needles`,
            `rows.lengths=[512,1024]` say.
        batch_size: rows per batch.
    """
    from dataclasses import replace

    from mmdiff.commands.cli import table
    from mmdiff.config import build, parsed
    from mmdiff.evaluation.evaluate import evaluate
    from mmdiff.session import load

    from .data.needle import Needles, grid
    from .task import PlainText

    settings = _settings(words)
    of_rows = [setting.removeprefix("rows.") for setting in settings if setting.startswith("rows.")]
    session = load(run, "sampler.temperature=0", *(one for one in settings if not one.startswith("rows.")))
    node = {"target": "mmdiff.tasks.text.data.needle.Needles", "tokenizer": session.model.vocab.tokenizer}
    rows: Needles = build({**node, **dict(map(parsed, of_rows))}, where="rows")
    _, records = evaluate(replace(session, task=PlainText()), rows, name="needle", batch_size=batch_size)
    found = grid(rows, records)
    lines = {f"{length} tokens": {f"depth {d:g}": share for d, share in own.items()} for length, own in found.items()}
    whole = sum(record["scores"]["exact_match"] for record in records) / len(records)
    by_length = {str(n): {f"{d:g}": share for d, share in own.items()} for n, own in found.items()}
    return {"found": whole, "by_length": by_length, "records": records}, table(lines)[1]


VERBS: dict[str, Verb] = {"infill": infill, "rewrite": rewrite, "embed": embed, "needle": needle}


def _settings(words: tuple[str, ...]) -> list[str]:
    others, overrides = overrides_of(words)
    if others:
        raise UserError(f"{shown(others[0])!r} is not a setting, dotted.key=value")
    return overrides


def _session(run: str, words: tuple[str, ...]) -> Session[PlainText]:
    settings = _settings(words)
    from mmdiff.session import load

    from .task import PlainText

    return load(run, *settings, task=PlainText)


def _read(file: str) -> str:
    if fault := unreadable(Path(file)):
        raise DataError(f"{shown(file)}: cannot be read ({fault})")
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(file)}: not UTF-8 at byte {error.start}") from None


def _result(found: dict[str, object], out: Path | None) -> Output:
    text = str(found["text"])
    if out is None:
        return found, text
    make_folder("--out", out)
    write_text(out, text)
    return {**found, "out": str(out)}, str(out)
