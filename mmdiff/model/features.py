"""A frozen encoder's features on disk: each item goes through the encoder once, whatever the number of epochs.

There is one SQLite file per run (transactions survive a kill). The key of an item is the hash of the encoder's weights
and of where its numbers come from, a file as it stood when it was read (`mmdiff.data.origin`), or of the numbers
themselves. So a changed encoder, size or picture never finds an old feature; a checksum beside it shows damage, and
what is damaged is computed again. The file grows with the number of different items: T * E * 4 bytes per crop in fp32.

Shape letters: N crops, T features per crop, E encoder width.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.canvas.batch import Batch, MediaBatch, to_device
from mmdiff.errors import ConfigError, UserError

from . import MMDiff

COLUMNS = {"key": "BLOB PRIMARY KEY", "shape": "TEXT", "dtype": "TEXT", "data": "BLOB", "crc": "INTEGER"}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
NO_DAMAGE = tuple(f"SQLITE_{name}" for name in ("BUSY", "LOCKED", "FULL", "IOERR", "CANTOPEN", "PERM", "NOMEM"))
MEMORY = 512 << 20  # bytes of features kept in memory as well


class FeatureCache:
    """The cache of one run, in a file and, up to `MEMORY` bytes, in memory. hits, misses: items since it was opened."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        try:
            self._db = _connect(file)
        except sqlite3.DatabaseError as error:
            self._renew(error)
        self._memory: dict[bytes, Tensor] = {}
        self._used = 0
        self.hits = self.misses = 0

    def fill(self, model: MMDiff, batch: Batch, prints: dict[str, bytes]) -> Batch:
        """Returns `batch` (on the CPU) with `features_NTE` set for every kind in `prints`, computed where they are new.

        prints: kind -> `fingerprint` of its encoder.
        """
        media = dict(batch.media)
        for kind, of_encoder in prints.items():
            if kind in media:
                media[kind] = self._fill(model, kind, media[kind], of_encoder)
        return replace(batch, media=media)

    def _fill(self, model: MMDiff, kind: str, group: MediaBatch, of_encoder: bytes) -> MediaBatch:
        keys = [hashlib.sha256(of_encoder + own).digest() for own in _identities(group)]
        found = {key: feature for key in keys if (feature := self._get(key)) is not None}
        absent = [i for i, key in enumerate(keys) if key not in found]
        self.hits += len(keys) - len(absent)
        self.misses += len(absent)
        if absent:
            counts = group.tokens or [model.encoders[kind].tokens] * sum(group.crops)  # type: ignore[list-item]
            tokens = [own.tolist() for own in torch.tensor(counts).split(group.crops)]
            with torch.no_grad():
                features = model.features(kind, to_device(subset(group, absent), model.device)).cpu()
            for i, feature in zip(absent, features.split([group.crops[i] for i in absent]), strict=True):
                found[keys[i]] = feature[:, : max(tokens[i])]
                self._remember(keys[i], found[keys[i]])
            try:
                self._write({keys[i]: found[keys[i]] for i in absent})
            except sqlite3.DatabaseError as error:
                self._renew(error)
                self._write({keys[i]: found[keys[i]] for i in absent})
        most = max(found[key].shape[1] for key in keys)
        padded = [F.pad(found[key], (0, 0, 0, most - found[key].shape[1])) for key in keys]
        return replace(group, features_NTE=torch.cat(padded))

    def _get(self, key: bytes) -> Tensor | None:
        if key in self._memory:
            return self._memory[key]
        try:
            row = self._db.execute("SELECT shape, dtype, data, crc FROM features WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            shape, dtype, data, crc = row
            if zlib.crc32(data) != crc:
                raise ValueError
            feature = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(DTYPES[dtype]).view(json.loads(shape))
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError, RuntimeError):
            _warn(f"{self._file}: a feature is damaged, it is computed again")
            return None
        self._remember(key, feature)
        return feature

    def _write(self, features: Mapping[bytes, Tensor]) -> None:
        for key, feature in features.items():
            data = feature.contiguous().view(torch.uint8).numpy().tobytes()
            dtype = str(feature.dtype).removeprefix("torch.")
            values = (key, json.dumps(list(feature.shape)), dtype, data, zlib.crc32(data))
            self._db.execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?)", values)
        self._db.commit()

    def _renew(self, error: sqlite3.DatabaseError) -> None:
        """Begin with an empty file in the place of a damaged one. A lock or a full disk is no damage, and is raised."""
        readonly = error.sqlite_errorname.startswith("SQLITE_READONLY") and not os.access(self._file, os.W_OK)
        if readonly or error.sqlite_errorname.startswith(NO_DAMAGE):
            raise UserError(f"{self._file}: {error}; the same command resumes") from error
        _warn(f"{self._file}: is damaged ({error}), its features are computed again")
        for end in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + end).unlink(missing_ok=True)
        try:
            self._db = _connect(self._file)
        except sqlite3.DatabaseError as again:  # an empty file is not damaged: the disk takes nothing
            raise UserError(f"{self._file}: {again}; the same command resumes") from again

    def _remember(self, key: bytes, feature: Tensor) -> None:
        size = feature.numel() * feature.element_size()
        if self._used + size <= MEMORY:
            self._memory[key] = feature
            self._used += size

    def close(self) -> None:
        self._db.close()


def _connect(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, timeout=60)
    db.execute("PRAGMA journal_mode=WAL")
    if [row[1] for row in db.execute("PRAGMA table_info(features)")] not in ([], list(COLUMNS)):
        db.execute("DROP TABLE features")  # of version 0.1, without checksums
    db.execute(f"CREATE TABLE IF NOT EXISTS features ({', '.join(f'{k} {v}' for k, v in COLUMNS.items())})")
    return db


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _identities(group: MediaBatch) -> list[bytes]:
    """Returns what stands for the numbers of each item: its origin and sizes, or the numbers where it has none."""
    origins = group.origins or [b""] * len(group.crops)
    values = [] if all(origins) else items(group)
    sizes = f"{group.values_N.dtype} {tuple(group.values_N.shape[1 : None if group.length_N is None else -1])}"
    of_item: list[bytes] = []
    for i, origin in enumerate(origins):
        if origin:
            of_item.append(f"file {sizes} {group.crops[i]} {group.layouts[i]} ".encode() + origin)
        else:
            of_item.append(np.ascontiguousarray(values[i].numpy()).tobytes())
    return of_item


def items(group: MediaBatch) -> list[Tensor]:
    """Returns the numbers of each item, without the padding to the longest of the batch."""
    values = list(group.values_N.split(group.crops))
    if group.length_N is None:
        return values
    lengths = group.length_N.split(group.crops)
    return [v[..., : int(length.max())] for v, length in zip(values, lengths, strict=True)]


def subset(group: MediaBatch, chosen: Sequence[int]) -> MediaBatch:
    """Returns the items at the indices `chosen`, in that order."""
    of_item = torch.arange(sum(group.crops)).split(group.crops)
    crop_N = torch.cat([of_item[i] for i in chosen])
    return MediaBatch(
        group.values_N[crop_N],
        [group.crops[i] for i in chosen],
        [group.layouts[i] for i in chosen],
        length_N=None if group.length_N is None else group.length_N[crop_N],
        tokens=None if group.tokens is None else [group.tokens[i] for i in crop_N.tolist()],
        origins=[group.origins[i] for i in chosen] if group.origins else [],
    )


def fingerprints(model: MMDiff, where: str) -> dict[str, bytes]:
    """Returns the fingerprints of a model's encoders by kind. Raises ConfigError, which names `where`, if one is
    trained."""
    for kind in model.encoders:
        if not model.frozen(kind):
            raise ConfigError(f"{where}: the {kind} encoder is trained; freeze it in `params`")
    return {kind: fingerprint(encoder) for kind, encoder in model.encoders.items()}


def fingerprint(encoder: nn.Module) -> bytes:
    """Returns the SHA-256 of an encoder's arguments and weights."""
    digest = hashlib.sha256(json.dumps(getattr(encoder, "node", {}), sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
