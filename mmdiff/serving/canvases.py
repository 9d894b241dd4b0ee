"""What is asked for becomes a canvas. A request opens no file: media are sent as bytes, never as paths.

A row's media are base64 of a file (`data:image/png;base64,...` or without its head), lists of numbers, or, of sound,
{"array": [...], "sampling_rate": 16000}. A canvas may be given: `ids` at the target positions, of which some stay.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmdiff.canvas.sample import LONGEST, Item, Media, Part, Sample, Target, Text, canvas_length
from mmdiff.canvas.vocab import Vocab, literal, start_of
from mmdiff.data.fields import check_row
from mmdiff.data.stream import read_media
from mmdiff.errors import DataError
from mmdiff.protocols import Row
from mmdiff.session import Session

from .http.guard import BadRequest, short

FILE = "base64 of a file (data:...;base64,...)"
ARRAY = {"array", "sampling_rate"}


@dataclass(frozen=True)
class PromptCanvas:
    """A canvas to fill, and what is made of its target ids. prompt: positions of context, `target` those to fill."""

    sample: Sample
    parse: Callable[[Sequence[int], Vocab], Any]
    prompt: int
    target: int

    @property
    def length(self) -> int:
        return self.prompt + self.target


@dataclass(frozen=True)
class Seeded:
    """Ids at the target positions, as a client gives them. pinned: positions that stay; None: all but the masked."""

    ids: Sequence[int]
    pinned: Sequence[int] | None = None


def of_row(
    session: Session[Any], row: Row, *, new: int | None = None, seeded: Seeded | None = None, where: str = "row"
) -> PromptCanvas:
    """Returns the canvas of a row of the session's task. Raises BadRequest, which begins with `where`.

    new: masked positions of the answer, instead of the task's. seeded: what stands at the target positions.
    """
    task = session.task
    try:
        check_row(row, getattr(task, "fields", None), strict=True)
        sample = without_paths(task.prompt(row, session.model.vocab), session.model.encoders)
    except BadRequest:
        raise
    except DataError as error:
        raise BadRequest(f"{where}: {error}", 400, where) from None
    return _laid_out(session, sample, task.parse, new, seeded, where)


def of_text(
    session: Session[Any],
    prompt: str | Sequence[int],
    *,
    new: int,
    suffix: str | None = None,
    seeded: Seeded | None = None,
) -> PromptCanvas:
    """Returns a prompt, masked positions behind it, and what follows them. Raises BadRequest."""
    vocab = session.model.vocab
    if vocab.tokenizer is None:
        raise BadRequest(f"prompt: {type(session.task).__name__} has no tokenizer of texts", 400, "prompt")
    try:
        ids = literal(prompt, vocab) if isinstance(prompt, str) else [_id(i, vocab, "prompt") for i in prompt]
        tail = literal(suffix, vocab) if suffix else []
    except BadRequest:
        raise
    except DataError as error:
        raise BadRequest(f"prompt: {error}", 400, "prompt") from None
    head = [start_of(vocab)] if isinstance(prompt, str) else []
    if not head and not ids:
        raise BadRequest("prompt: no ids", 400, "prompt")
    sample: list[Part] = [Text([*head, *ids]), Target(length=new), *([Text(tail)] if tail else [])]
    return _laid_out(session, sample, _plain, None, seeded, "prompt")


def _plain(ids: Sequence[int], vocab: Vocab) -> str:
    return vocab.decode(vocab.until_end(ids))


def _laid_out(
    session: Session[Any],
    sample: Sample,
    parse: Callable[[Sequence[int], Vocab], Any],
    new: int | None,
    seeded: Seeded | None,
    where: str,
) -> PromptCanvas:
    model = session.model
    parts = list(sample)
    at = [i for i, part in enumerate(parts) if isinstance(part, Target)]
    if not at:
        raise BadRequest(f"{where}: nothing in it is to be generated", 400, where)
    last = parts[at[-1]]
    if new is not None and isinstance(last, Target) and last.ids is None:
        parts[at[-1]] = replace(last, length=new)
    if seeded is not None:
        parts = _seeded(parts, at, seeded, model.vocab)
    try:
        parts = list(read_media(parts, model.readers))
        slots = sum(_slots(part, model.readers) for part in parts if isinstance(part, Media))
    except DataError as error:
        raise BadRequest(f"{where}: {error}", 400, where) from None
    length = canvas_length(parts) + slots
    most = min(LONGEST, 8 * model.backbone.facts.max_length)
    if length > most:
        raise BadRequest(f"{where}: a canvas of {length} positions, expected at most {most} of this model", 400, where)
    target = canvas_length([part for part in parts if isinstance(part, Target)])
    return PromptCanvas(parts, parse, length - target, target)


def _slots(part: Media, readers: Mapping[str, Any]) -> int:
    if part.kind not in readers:
        raise DataError(f"media of kind {part.kind!r}: this model reads {sorted(readers) or 'no media'}")
    assert isinstance(part.data, Item)
    return int(readers[part.kind].slots(part.data))


def _seeded(parts: list[Part], at: Sequence[int], seeded: Seeded, vocab: Vocab) -> list[Part]:
    """Returns the parts with a client's ids at the target positions; those that do not stay are masked."""
    ids = [i if i == vocab.mask_id else _id(i, vocab, "diffusion_seed_canvas") for i in seeded.ids]
    if seeded.pinned is not None:
        for position in seeded.pinned:
            if not 0 <= position < len(ids):
                line = f"diffusion_pinned: {position} is no position of a canvas of {len(ids)}"
                raise BadRequest(line, 400, "diffusion_pinned")
        stay = set(seeded.pinned)
        ids = [one if i in stay else vocab.mask_id for i, one in enumerate(ids)]
    if len(at) == 1 and parts[at[0]].ids is None:  # type: ignore[union-attr]
        out = list(parts)
        out[at[0]] = Target(ids, allow=parts[at[0]].allow)  # type: ignore[union-attr]
        return out
    out, rest = list(parts), list(ids)
    expected = canvas_length([parts[i] for i in at])
    if len(ids) != expected:
        line = f"diffusion_seed_canvas: {len(ids)} ids, expected {expected}, as many as the canvas has"
        raise BadRequest(line, 400, "diffusion_seed_canvas")
    for i in at:
        n = canvas_length([parts[i]])
        out[i] = Target(rest[:n], allow=parts[i].allow)  # type: ignore[union-attr]
        rest = rest[n:]
    return out


def _id(value: int, vocab: Vocab, where: str) -> int:
    if not 0 <= value < vocab.size:
        raise BadRequest(f"{where}: id {short(value)} does not fit a vocabulary of {vocab.size}", 400, where)
    return value


def without_paths(sample: Sample, encoders: Any) -> Sample:
    """Returns a sample whose media are bytes and numbers. Raises BadRequest for anything that could name a file."""
    return [Media(p.kind, sent(p.data, p.kind, encoders)) if isinstance(p, Media) else p for p in sample]


def sent(value: Any, kind: str, encoders: Any) -> Any:
    """Returns what an encoder is given of media that came over a network. Raises BadRequest."""
    if isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
        return value  # an array is what the task has made of numbers
    if kind in encoders and getattr(encoders[kind], "takes_text", False):
        if isinstance(value, str):
            return value
        raise BadRequest(f"{kind}: {short(value)}, expected a text", 400, kind)
    if isinstance(value, str):
        return decoded(value, kind)
    if isinstance(value, list) and _numbers(value):
        try:
            array = np.array(value)
        except ValueError:
            raise BadRequest(f"{kind}: lists of unequal length", 400, kind) from None
        pixels = array.ndim > 1 and array.size and array.dtype.kind == "i" and 0 <= array.min() and array.max() <= 255
        return array.astype(np.uint8) if pixels else array
    if isinstance(value, Mapping) and set(value) == ARRAY and _numbers(value["array"]):
        return dict(value)
    raise BadRequest(f"{kind}: {short(value)}, expected {FILE}", 400, kind)


def decoded(text: str, where: str) -> bytes:
    """Returns the bytes of base64, with or without the head of a `data:` URL. Raises BadRequest."""
    if text.startswith(("http://", "https://", "file:")):
        raise BadRequest(f"{where}: {short(text)} is not fetched, expected {FILE}", 400, where)
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadRequest(f"{where}: {short(head)}, expected {FILE}", 400, where)
    try:
        found = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{where}: {short(text)} is no base64, expected {FILE}", 400, where) from None
    if not found:
        raise BadRequest(f"{where}: is empty, expected {FILE}", 400, where)
    return found


def _numbers(value: Any) -> bool:
    """Whether a value is numbers, or lists of them, at most four deep."""
    lists = [(value, 0)]
    while lists:
        found, depth = lists.pop()
        if not isinstance(found, list) or depth > 4:
            return False
        for one in found:
            if isinstance(one, list):
                lists.append((one, depth + 1))
            elif type(one) not in (int, float):
                return False
    return True
