"""Which tensors of a folder are of its model, whichever layout it is in."""

from __future__ import annotations

from typing import Any

from mmdiff.backbones.family import Family
from mmdiff.backbones.shares import Published
from mmdiff.backbones.weights import Header, Match, match
from mmdiff.model.published.layout import other_files

from .folder import Folder, part_of


def matched(folder: Folder, model: Any, headers: list[Header], published: Published, own: Family) -> Match:
    """Returns which tensors are of the model; of a saved one those that `MMDiff` calls `backbone.model.*`.

    model: of the backbone alone, a module or outlines, as `match` takes it.
    """
    if folder.exported is not None:
        found = match(model, [h for h in headers if not _is_other(h)], published, own.is_elsewhere)
        others = [h.name for h in headers if _is_other(h)]
        found.elsewhere += [name for name in others if part_of(folder, name)]
        found.unexpected += [name for name in others if not part_of(folder, name) and ".lora_" not in name]
        return found
    if folder.saved is None:
        return match(model, headers, published, own.is_elsewhere)
    prefix = "backbone.model."
    buffers = {name for name, _ in model.named_buffers()}
    ours = [h._replace(name=h.name.removeprefix(prefix)) for h in headers if h.name.startswith(prefix)]
    found = match(model, ours, {}, lambda name: name in buffers)
    found.elsewhere = [h.name for h in headers if part_of(folder, h.name)]
    others = [h.name for h in headers if not h.name.startswith(prefix) and not part_of(folder, h.name)]
    found.unexpected = [prefix + name for name in found.unexpected] + others
    found.missing = [prefix + name for name in found.missing]
    return found


def _is_other(header: Header) -> bool:
    return header.file in other_files(header.file.parent)
