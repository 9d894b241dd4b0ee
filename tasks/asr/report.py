"""A page about recognised speech: error rates, and utterances to look at, listen to and compare word by word.

One file that needs nothing else: sound and pictures are inside it.

Shape letters: S samples, C mel channels, T frames.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.encoders.media.audio import read_waveform
from mmdiff.encoders.media.mel import RANGE, SILENCE, LogMel
from mmdiff.errors import require
from mmdiff.evaluation.page import Number, Table, data_uri, evenly, image_uri, render
from mmdiff.evaluation.page import marked as marked_by
from mmdiff.protocols import Row, Source

from .metrics import align, word_errors
from .task import ASR
from .words import Word

RATE, HOP = 16000, 160  # Hz; samples of a column of a spectrogram
PLAYED = 10.0  # seconds; a longer clip cannot be played, for each second takes 43 kB of the page
SHOWN = 24  # utterances of a page about one set
WIDTH = 2000  # columns of a spectrogram at most
LAST = 0.96  # share of the clip
SECOND = 55  # CSS pixels at least, so that its words can be read
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)  # seconds between them

Outcome = Literal["corrected", "worse", "wrong", "right"]
OUTCOMES: Mapping[Outcome, str] = {"corrected": "corrected", "worse": "made worse", "wrong": "wrong", "right": "right"}

Cell = tuple[str, str | None]  # operation and word; an empty operation where a transcript adds no words
NOTHING: Cell = ("", None)


@dataclass(frozen=True)
class Example:
    """An utterance and its transcripts.

    audio: as `read_waveform` takes it; None where there was none.
    text, first_pass, prediction: as errors are counted, so cased and normalised. first_pass: None where there was none.
    canvas: (token, step, probability) of each target position, in order; step 0: left as it was.
    draft: the token of each of these positions before generation; None for a masked position.
    words: with their times, where these are known.
    """

    audio: Any
    text: str
    first_pass: str | None
    prediction: str
    canvas: Sequence[tuple[str, int, float]]
    draft: Sequence[str | None]
    words: Sequence[Word] = ()


def write_asr_report(
    file: Path,
    *,
    title: str,
    table: Table,
    examples: Mapping[str, Sequence[Example]],
    notes: Sequence[str] = (),
    curves: str | None = None,
    plots: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page. Returns its file.

    table: row -> column -> figure, less is better; text is shown as it is and is never the best of its column.

    examples: heading -> utterances. curves: a data URI, see `mmdiff.evaluation.report.curves`. plots: (heading, data
    URI). Raises DataError for sound that cannot be read.
    """
    columns, rows = marked(table)
    cards = {name: sorted(map(card, some), key=_first) for name, some in examples.items()}
    outcomes = [one["outcome"] for some in cards.values() for one in some]
    return render(
        file,
        "mmdiff.tasks.asr",
        "report.html",
        title=title,
        notes=notes,
        columns=columns,
        rows=rows,
        curves=curves,
        plots=plots,
        examples=cards,
        outcomes={key: (label, outcomes.count(key)) for key, label in OUTCOMES.items() if key in outcomes},
    )


def marked(table: Table) -> tuple[list[str], dict[str, list[tuple[str, bool]]]]:
    """Returns columns, and row -> (figure as shown, whether it is the lowest) of each column; a dash for no figure."""
    return marked_by(table, percent)


def percent(figure: Number) -> str:
    """Returns a figure in percent with two digits; a text stays as it is."""
    return figure if isinstance(figure, str) else f"{figure:.2f}"


def card(example: Example) -> dict[str, Any]:
    """Returns what the page shows of an example: errors before and after, words below each other, the canvas."""
    after = word_errors(example.text, example.prediction)
    before = None if example.first_pass is None else word_errors(example.text, example.first_pass)
    hypotheses = [example.prediction] if example.first_pass is None else [example.first_pass, example.prediction]
    boxes = boxes_of(example.canvas, example.draft)
    out: dict[str, Any] = {
        "outcome": outcome(None if before is None else before.total, after.total),
        "before": before,
        "after": after,
        "columns": list(side_by_side(example.text, hypotheses)),
        "positions": boxes,
        "states": Counter(box["state"] for box in boxes),
        "drafted": any(token is not None for token in example.draft),
        "steps": sorted({box["step"] for box in boxes if box["step"]}),
    }
    if example.audio is not None:
        wave_S = read_waveform(example.audio, RATE)
        seconds = len(wave_S) / RATE
        out |= {
            "seconds": seconds,
            "spectrogram": spectrogram(wave_S),
            "sound": sound(wave_S) if seconds <= PLAYED else None,
            "least": round(seconds * SECOND),
            "ticks": ticks(seconds),
            "words": example.words,
        }
    return out


def outcome(before: int | None, after: int) -> Outcome:
    """Returns what became of a transcript. before, after: word errors; None where there was no first pass."""
    if before is None or before == after:
        return "wrong" if after else "right"
    return "corrected" if after < before else "worse"


def side_by_side(reference: str, hypotheses: Sequence[str]) -> Iterator[tuple[str | None, list[Cell]]]:
    """Yields columns that put one reference and several transcripts below each other.

    Each is a word of the reference, or None where some transcript adds words, and the cell of each transcript.
    """
    cells = [_cells(reference, text) for text in hypotheses]
    words = reference.split()
    for column in sorted({column for of_one in cells for column in of_one}):
        i, is_word = column
        yield words[i] if is_word else None, [of_one.get(column, NOTHING) for of_one in cells]


def _cells(reference: str, hypothesis: str) -> dict[tuple[int, bool], Cell]:
    """Returns (i, True) -> operation and word at word i of the reference; (i, False) -> words added before it."""
    out: dict[tuple[int, bool], Cell] = {}
    i = 0
    for op, _, word in align(reference, hypothesis):
        if op == "insert":
            added = out.get((i, False), NOTHING)[1]
            out[i, False] = op, f"{added} {word}" if added else word
        else:
            out[i, True] = op, word
            i += 1
    return out


def boxes_of(canvas: Sequence[tuple[str, int, float]], draft: Sequence[str | None]) -> list[dict[str, Any]]:
    """Returns the state of each position: kept, confirmed (masked, then the same), changed, or filled (no draft)."""
    out = []
    for i, ((token, step, confidence), was) in enumerate(zip(canvas, draft, strict=True)):
        state = "kept" if not step else "filled" if was is None else "confirmed" if token == was else "changed"
        found = f"committed at step {step}" if step else "not masked"
        title = f"position {i + 1}: {state}, {found}, p = {confidence:.3g}"
        out.append({"token": token, "was": was, "step": step, "state": state, "title": title, "p": f"{confidence:.2f}"})
    return out


def spectrogram(wave_S: Tensor) -> str:
    """Returns log-mel power as a PNG data URI: low frequencies at the bottom, the whole clip, 80 dB of range."""
    from matplotlib import colormaps
    from PIL import Image

    mel_CT = LogMel(rate=RATE, hop=HOP)(wave_S)[:, : max(1, len(wave_S) // HOP)]
    floor = max(float(mel_CT.max()) - RANGE / 4, SILENCE)
    shade_CT = ((mel_CT - floor) / (RANGE / 4)).clamp(0, 1).flip(0).numpy()
    image = Image.fromarray(colormaps["magma"](shade_CT, bytes=True)[..., :3])
    return image_uri(image.resize((min(image.width, WIDTH), image.height), Image.Resampling.BOX))


def sound(wave_S: Tensor) -> str:
    """Returns a WAV data URI, 16 bit; samples beyond full scale are clipped."""
    require("soundfile", "audio")
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, wave_S.numpy(), RATE, format="WAV", subtype="PCM_16")
    return data_uri(buffer.getvalue(), "audio/wav")


def ticks(seconds: float) -> list[tuple[str, float]]:
    """Returns (label, share of the clip): round numbers of seconds, ten at most, with space for each label."""
    apart = next((tick for tick in TICKS if seconds / tick < 10), math.ceil(seconds / 10))
    shares = [(f"{i * apart:g}", i * apart / seconds) for i in range(10)]
    return [(label, share) for label, share in shares if share <= LAST]


def _first(one: Mapping[str, Any]) -> tuple[int, int]:
    """The key by which changed utterances come first, and of them those that changed most."""
    before = one["after"] if one["before"] is None else one["before"]
    return list(OUTCOMES).index(one["outcome"]), -abs(before.total - one["after"].total)


# From records to the page


def example(task: ASR, row: Row, record: Mapping[str, Any], vocab: Vocab) -> Example:
    """Returns what the page shows of one utterance, whose draft is the first pass of the record, if there was one."""
    row = {**row, "hypothesis": record.get("first_pass")}
    first = record.get("first_pass")
    return Example(
        audio=row.get("audio"),
        text=task.pair(row, "")[0],
        first_pass=None if first is None else task.pair(row, first)[1],
        prediction=task.pair(row, record["pred_text"])[1],
        canvas=record["canvas"],
        draft=drafted(task, row, vocab),
        words=[Word(**word) for word in record.get("words", ())],
    )


def drafted(task: ASR, row: Row, vocab: Vocab) -> list[str | None]:
    """Returns the token at each target position before generation; None for a masked position."""
    (target,) = [p for p in task.prompt(row, vocab) if isinstance(p, Target)]
    if target.ids is None:
        return [None] * target.length
    return [None if i == vocab.mask_id else vocab.piece(i) for i in target.ids]


def page(
    file: Path, task: ASR, rows: Source, records: Sequence[Mapping[str, Any]], vocab: Vocab, found: Mapping[str, Any]
) -> Path:
    """Write the page of one set of rows and its figures `found`, with those of `standalone` beside them."""
    table = {"first pass": {"WER %": 100 * found["first_pass"]["wer"]}} if "first_pass" in found else {}
    ways = {"standalone": found.get("standalone"), "result": found}
    table |= {way: {"WER %": 100 * of["wer"], "CER %": 100 * of["cer"]} for way, of in ways.items() if of}
    numbered = [{"index": i, **record} for i, record in enumerate(records)]
    shown = [example(task, rows[r["index"]], r, vocab) for r in evenly(numbered, SHOWN)]
    speed = ", ".join(f"{name} {value:.4f}" for name, value in found["rtf"].items())
    notes = [f"{len(records)} utterances, {found['words']} words. Seconds of work per second of sound: {speed}."]
    return write_asr_report(file, title="Transcripts", table=table, examples={"utterances": shown}, notes=notes)
