"""Hidden states of a frozen model as embeddings, one vector per residue or per sequence, in a folder or in one file.

Nothing is masked: the canvas is `<cls> sequence <eos>` as it stands (the published DSM code masks at random inside its
forward, embeddings included). Only `_` in a sequence, a masked position, is the mask.

What the files hold: `files.py`.

Shape letters: R rows of a batch, L canvas, D width, N residues of a sequence, n sequences.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mmdiff.config.typed import typed
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.errors import ConfigError, DataError, located, nearest, short
from mmdiff.files import writable
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.data.records import Record, as_row, name_of, pass_over, where_of
from mmdiff.tasks.protein.residues import Residues
from mmdiff.tasks.protein.session import digest

from .files import DTYPES, FORMATS, Embeddings, Line
from .folder import Folder, discard, merge, unchanged

__all__ = ["Embeddings", "embed"]

POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x_ND: x_ND.mean(0),
    "max": lambda x_ND: x_ND.amax(0),
    "std": lambda x_ND: x_ND.std(0, correction=0),  # of the sequence's own residues: 0 where there is but one
}
"""Over residues. `cls` is the state of the first special position; `residue`, alone, keeps them all."""


@typed
def embed(
    model: Session | MMDiff,
    records: Iterable[Record | Row],
    out: str | Path,
    *,
    pool: Sequence[str] = ("mean",),
    layer: int = -1,
    tokens: AtLeast1 | None = None,
    window: AtLeast1 = 1024,
    dtype: str = "float32",
    format: str | None = None,
) -> dict[str, Any]:
    """Write the embeddings of `records` to `out`: {"records", "width", "out"}.

    records: `Record`s of a file, or rows with `sequence` and, if they have them, `id`, `description`, `where`.
        Read as they come: memory holds a window of them and of its embeddings.
    out: a folder. Or a file ending in .safetensors or .npz: the work is done in the folder `<out>.parts`, whose parts
        are put together at the end, for which all embeddings have to fit into memory twice.
    pool: mean | max | std | cls, one after the other as given: (D * pools,). ("residue",): (N, D), without
        special positions. std divides by N.
    layer: whose states: 0 the embedding table's, then one per layer, -1 the last after its norm. All but the last keep
        the states of every layer of a batch in memory.
    tokens: token budget of a batch, padding counted; a longer sequence is a batch of its own. window: records per part.
        Neither changes what is computed, beyond rounding: both may differ when a call is resumed.
    dtype: as it is written; pooling is done in float32. bfloat16 is for safetensors.

    A sequence longer than the model was trained on is embedded all the same, with one warning; with absolute
    positions it raises DataError. So does a record that cannot be embedded, by its name; parts before its window stay.
    Raises ConfigError for a folder or file of other settings, of another model or of other records, which are left.
    """
    model = model.model if isinstance(model, Session) else model
    pool, tokens = (pool,) if isinstance(pool, str) else tuple(pool), token_budget(model.device, tokens)
    out = Path(out)
    single = out.suffix.removeprefix(".") if out.suffix.removeprefix(".") in FORMATS else None
    layers = int(model.backbone.model.config.num_hidden_layers)
    settings = {
        **_checked(pool, layer, layers, dtype, format or single or FORMATS[0]),
        "model": {"family": model.backbone.family, "dim": model.backbone.dim, "digest": digest(model)},
    }
    if single is not None and settings["format"] != single:
        raise ConfigError(f"format: {short(repr(format), 60)}, but {short(out)} ends in .{single}")
    if "cls" in pool and model.vocab.bos_id is None:
        raise ConfigError(f"pool: cls: {model.backbone.family} has no token before a sequence")
    numbered = _numbered(records)
    with writable(out):  # a name that is too long
        is_there = out.exists()
    if single is not None and is_there:
        return _finished(out, settings, numbered)
    with Folder(Path(f"{out}.parts") if single else out, settings) as folder:
        pass_over(folder.lines(), numbered, _is_of, folder.path)
        with evaluating(model):
            _write_parts(model, numbered, folder, settings, tokens, window)
        found = {"records": folder.records, "width": model.backbone.dim * len(pool), "out": str(out)}
        if single is not None:
            merge(folder, out, settings)
            folder.remove()
    return found


def vectors(session: Session, sequences: Sequence[str], pooling: str = "mean") -> NDArray[np.float32]:
    """Returns float32 (N, D), a vector per sequence, by the last layer: what a server answers.

    pooling: mean, or first, the state of the token before a sequence. Raises DataError as `embed` does.
    """
    model = session.model
    name = {"mean": "mean", "first": "cls"}.get(pooling)
    if name is None or (name == "cls" and model.vocab.bos_id is None):
        raise DataError(f"pooling: {pooling!r}, expected mean{'' if model.vocab.bos_id is None else ' or first'}")
    residues, last = Residues(model.vocab), int(model.backbone.model.config.num_hidden_layers)
    canvases = [_canvas({"sequence": text}, f"input {n}", residues, model) for n, text in enumerate(sequences)]
    out_ND = np.zeros((len(canvases), model.backbone.dim), dtype=np.float32)
    with evaluating(model):
        for index in batch_by_tokens([len(ids) for ids in canvases], token_budget(model.device)):
            states = _states(model, [canvases[i] for i in index], last)
            out_ND[index] = torch.stack(_pooled(states, [name], torch.float32, model)).numpy()
    return out_ND


# Computing ------------------------------------------------------------------------------------------------------------


Numbered = Iterator[tuple[int, Row]]


def _numbered(records: Iterable[Record | Row]) -> Numbered:
    for number, row in enumerate(map(as_row, records)):
        if not isinstance(sequence := row.get("sequence"), str) or not sequence:
            raise DataError(f"{where_of(row, number)}: sequence: {sequence!r}, expected letters")
        yield number, row


def _line(number: int, row: Row, part: str) -> Line:
    digest = hashlib.sha256(row["sequence"].encode("utf-8", "surrogatepass")).hexdigest()[:16]
    named = {"id": name_of(row, number), "description": str(row.get("description") or "")}
    return {**named, "length": len(row["sequence"]), "part": part, "key": str(number), "digest": digest}


def _write_parts(
    model: MMDiff,
    records: Numbered,
    folder: Folder,
    settings: Mapping[str, Any],
    tokens: int,
    window: int,
) -> None:
    """Everything of `records`, window by window, after what the folder has."""
    residues = Residues(model.vocab)
    dtype = getattr(torch, settings["dtype"])
    trained, warned = model.backbone.facts.max_length, False
    with tqdm(initial=folder.records, unit="records", desc="embed", file=sys.stderr, leave=False) as bar:
        while group := list(islice(records, window)):
            where = [where_of(row, number) for number, row in group]
            canvases = [_canvas(row, at, residues, model) for (_, row), at in zip(group, where, strict=True)]
            done: list[Tensor | None] = [None] * len(group)
            for batch in batch_by_tokens([len(ids) for ids in canvases], tokens):
                with located(where[batch[0]]):  # a canvas too long: the first of a batch is its longest
                    states = _states(model, [canvases[i] for i in batch], settings["layer"])
                if len(canvases[batch[0]]) > trained and not warned:
                    warned = True
                    bar.write(
                        f"embed: {where[batch[0]]}: longer than the {trained} positions of training", file=sys.stderr
                    )
                for i, x in zip(batch, _pooled(states, settings["pool"], dtype, model), strict=True):
                    if dtype == torch.float16 and not x.isfinite().all():
                        raise DataError(f"{where[i]}: its embedding is beyond {settings['dtype']}; use float32")
                    done[i] = x
            folder.add([_line(number, row, folder.next) for number, row in group], [x for x in done if x is not None])
            bar.update(len(group))


def _canvas(row: Row, where: str, residues: Residues, model: MMDiff) -> NDArray[np.int64]:
    with located(where):
        ids = residues.encode(row["sequence"])
    first = [] if model.vocab.bos_id is None else [model.vocab.bos_id]
    return np.concatenate([np.array(first, dtype=np.int64), ids, [model.vocab.eos_id]])


@torch.inference_mode()
def _states(model: MMDiff, canvases: Sequence[NDArray[np.int64]], layer: int) -> list[Tensor]:
    """(L, D) of each canvas, without padding, on the model's device."""
    length_R = torch.tensor([len(ids) for ids in canvases])
    ids_RL = torch.full((len(canvases), int(length_R.max())), model.vocab.pad_id)
    for row_L, ids in zip(ids_RL, canvases, strict=True):
        row_L[: len(ids)] = torch.from_numpy(ids)
    ids_RL = ids_RL.to(model.device)
    position_L = torch.arange(ids_RL.shape[1], device=model.device)
    attend_RL = None if (length_R == ids_RL.shape[1]).all() else position_L < length_R[:, None].to(model.device)
    x_RLD = model.backbone.embed(ids_RL, attend_RL)
    position_ids_RL = position_L.expand(ids_RL.shape)
    if layer == model.backbone.model.config.num_hidden_layers:
        h_RLD = model.backbone.hidden(x_RLD, attend_RL, position_ids_RL)
    else:
        h_RLD = model.backbone.layers(x_RLD, attend_RL, position_ids_RL)[layer]
    return [h_LD[:length] for h_LD, length in zip(h_RLD, length_R.tolist(), strict=True)]


@torch.inference_mode()
def _pooled(states: Sequence[Tensor], pool: Sequence[str], dtype: torch.dtype, model: MMDiff) -> list[Tensor]:
    """Of each canvas, on the CPU."""
    first = 0 if model.vocab.bos_id is None else 1
    if list(pool) == ["residue"]:
        return [h_LD[first:-1].to(dtype).cpu().contiguous() for h_LD in states]
    vectors = []
    for h_LD in states:
        x_ND = h_LD[first:-1].float()
        vectors.append(torch.cat([h_LD[0].float() if name == "cls" else POOLS[name](x_ND) for name in pool]))
    return list(torch.stack(vectors).to(dtype).cpu())  # one transfer per batch


def _checked(pool: tuple[str, ...], layer: int, layers: int, dtype: str, format: str) -> dict[str, Any]:
    """What is settled of the arguments, as it stands in settings.json. Raises ConfigError."""
    known = (*POOLS, "cls", "residue")
    for name in pool:
        if name not in known:
            raise ConfigError(f"pool: {short(repr(name), 60)} is none{nearest(name, known)}")
    if not pool or len(set(pool)) < len(pool) or ("residue" in pool and len(pool) > 1):
        raise ConfigError(f"pool: {', '.join(pool) or 'none'}: expected residue alone, or others, each once")
    if not -layers - 1 <= layer <= layers:
        raise ConfigError(f"layer: {layer}, expected {-layers - 1} to {layers} (0 is the embedding table)")
    for field, name, names in (("dtype", dtype, DTYPES), ("format", format, FORMATS)):
        if name not in names:
            raise ConfigError(f"{field}: {short(repr(name), 60)} is none{nearest(name, names)}")
    if dtype == "bfloat16" and format == "npz":
        raise ConfigError("dtype: numpy has no bfloat16; use format safetensors, or float16")
    return {"pool": list(pool), "layer": layer % (layers + 1), "dtype": dtype, "format": format}


def _is_of(line: Mapping[str, Any], row: Row, number: int) -> bool:
    own = _line(number, row, line["part"])
    return all(line.get(name) == value for name, value in own.items())


def _finished(out: Path, settings: Mapping[str, Any], records: Numbered) -> dict[str, Any]:
    """What `embed` returns of a file that is there already. Raises ConfigError unless it is just what was asked for."""
    there = Embeddings(out)
    unchanged(out, there.settings, settings)
    pass_over(there.lines, records, _is_of, out)
    if (more := next(records, None)) is not None:
        raise ConfigError(f"{out} is finished and ends before {where_of(more[1], more[0])}; choose another name")
    if Path(f"{out}.parts").is_dir():  # killed within the last step
        discard(Path(f"{out}.parts"))
    return {"records": len(there), "width": settings["model"]["dim"] * len(settings["pool"]), "out": str(out)}
