"""What stands in a row: a field that a task does not read is refused, for the model would be blind to it.

    {"img": "cat.jpg", "question": "What is it?"}    unknown field 'img' (did you mean "image"?)

A task says which fields it reads by an attribute `fields`. A row that a person writes may have these and `EXTRA` only.
Rows of files may have more, as published sets do, but nothing that looks like a field they lack.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from mmdiff.errors import DataError, nearest
from mmdiff.protocols import Row

EXTRA = frozenset(
    """id question_id image_id audio_id text_id speaker speaker_id where kind type answer_type source category dataset
    split topic language lang model duration objects voice rate pitch snr noise row description""".split()
)
"""Fields that any row may have, though no task reads them: names, and what a report groups rows by."""

OTHER_NAMES: Mapping[str, Collection[str]] = {
    "image": ("img", "pic", "picture", "photo", "photograph", "image_path", "image_file", "pixel_value", "frame"),
    "audio": ("sound", "wav", "mp3", "flac", "clip", "speech", "recording", "audio_filepath", "audio_path", "waveform"),
    "protein": ("sequence", "seq"),
    "question": ("prompt", "query", "instruction", "ask"),
    "answer": ("reply", "response", "label", "target", "output"),
    "text": ("transcript", "transcription", "sentence"),
    "hypothesis": ("hyp", "hypo", "draft", "first_pass"),
    "options": ("choices", "candidate"),
    "conversations": ("messages", "turn", "dialogue", "dialog", "chat"),
    "tools": ("function",),
    "offset": ("start", "begin", "start_time"),
    "instruction": ("prompt", "command", "goal", "task", "language_instruction"),
    "state": ("proprio", "qpos", "agent_pos", "observation.state"),
    "action_is_pad": ("is_pad", "pad", "padding", "padded", "action_mask"),
    "given": ("prefix", "inpaint"),
    "dataset": ("unnorm_key",),
}
"""What people call a field, in the singular."""

ENDINGS = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"),
}
DEPTH = 64  # of lists and mappings in a row; no field needs a tenth


def check_row(row: Row, fields: Collection[str] | None, *, strict: bool = False) -> None:
    """Raise DataError for a field that is not read, and for text that is none.

    fields: those that the task reads; None: it does not say. strict: only these and `EXTRA` may be there; a row that
    says `where` it comes from was checked by its reader, and may have more.
    """
    if fault := fault_of(row, fields, strict=strict):
        raise DataError(": ".join(filter(None, fault)))


def fault_of(row: Row, fields: Collection[str] | None, *, strict: bool = False) -> tuple[str, str] | None:
    """Returns the kind of fault and its details, None where there is none. The arguments are those of `check_row`."""
    for name, value in row.items():
        if fault := text_fault(value):
            return fault[0], f"{name!a:.60}{fault[1]}"
        if fields is None or name in fields or name in EXTRA or value is None:
            continue
        meant = _meant(name, value, row, fields)
        if meant or (strict and "where" not in row):
            near = f' (did you mean "{meant}"?)' if meant else nearest(str(name), fields)
            return "unknown field", f"{name!a:.60}{near}"
    return None


def text_fault(value: Any, depth: int = 0) -> tuple[str, str] | None:
    """Returns why a value of a row cannot be text that a tokenizer or a file takes, None where it can."""
    if isinstance(value, str):
        if not value.isascii() and (at := _surrogate(value)) is not None:
            return "lone surrogate", f", at character {at} of {value[max(0, at - 20) : at + 20]!a}"
        return None
    if depth > DEPTH and isinstance(value, Mapping | list | tuple):
        return "nested too deeply", f", expected at most {DEPTH} levels"
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
        inner = list(value)
    else:
        return None
    return next(filter(None, (text_fault(one, depth + 1) for one in inner)), None)


def _surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _meant(name: Any, value: Any, row: Row, fields: Collection[str]) -> str | None:
    """Returns the field that a name stands for; None where the row has that field, or none is meant."""
    absent = [field for field in fields if row.get(field) is None]
    folded = str(name).lower().strip("_- ")
    singular = folded.removesuffix("s")
    for field in absent:
        if field in ENDINGS and isinstance(value, int | float):  # the number of a frame is no picture
            continue
        if folded == field or {folded, singular} & {*OTHER_NAMES.get(field, ())} or _holds(value, field):
            return field
    close = get_close_matches(folded, absent, n=1, cutoff=0.7)
    return None if not close or folded.startswith(f"{close[0]}_") else close[0]  # `target_id` says what a target is


def _holds(value: Any, field: str) -> bool:
    """Whether a value looks like a picture or a sound."""
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, str):
        return value.lower().endswith(ENDINGS.get(field, ()))
    return field == "audio" and isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value)
