"""Cached features: the same numbers, each picture once, and never those of another tower."""

from __future__ import annotations

import os
import resource
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spoken
import torch
import toy
from safetensors.torch import load_file

from mmdiff import train
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Item, Media, Target
from mmdiff.data.collate import collate
from mmdiff.data.media_reader import MediaReader
from mmdiff.data.origin import file_state
from mmdiff.data.stream import Batches, Component, Stream, read_media
from mmdiff.errors import UserError
from mmdiff.model import MMDiff
from mmdiff.model.features import FeatureCache, fingerprint
from mmdiff.model.params import apply_rules, read_rules

RULES: list[Any] = [{"match": "encoders", "train": False}, {"match": "*"}]


def model() -> MMDiff:
    torch.manual_seed(0)
    out = MMDiff(toy.backbone(), {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    apply_rules(out, read_rules(RULES), lr=0.1, weight_decay=0.0)
    return out.train()


def batches(m: MMDiff) -> Batches:
    return Batches(Stream([Component("", toy.Corners(8), toy.Where())], seed=0), m.vocab, m.readers)


def test_features_are_the_towers_and_each_picture_goes_through_it_once(tmp_path: Path) -> None:
    m, file = model(), tmp_path / "features.sqlite"
    prints = {"image": fingerprint(m.encoders["image"])}
    data, cache = batches(m), FeatureCache(file)
    for first in (0, 4, 8, 12):  # two epochs
        batch = data[list(range(first, first + 4))]
        filled = cache.fill(m, batch, prints).media["image"].features_NTE
        assert filled is not None
        torch.testing.assert_close(filled, m.features("image", batch.media["image"]), atol=1e-6, rtol=0)
    assert (cache.misses, cache.hits) == (8, 8)
    cache.close()
    later = FeatureCache(file)
    again = later.fill(m, data[[12, 13, 14, 15]], prints).media["image"].features_NTE
    assert (later.misses, later.hits) == (0, 4) and again is not None and torch.equal(again, filled)


def test_another_tower_never_meets_old_features(tmp_path: Path) -> None:
    m, cache = model(), FeatureCache(tmp_path / "features.sqlite")
    batch = batches(m)[[0, 1]]
    old = cache.fill(m, batch, {"image": fingerprint(m.encoders["image"])}).media["image"].features_NTE
    with torch.no_grad():
        m.encoders["image"].conv.bias[3] += 1e-3
    new = cache.fill(m, batch, {"image": fingerprint(m.encoders["image"])}).media["image"].features_NTE
    assert cache.hits == 0 and old is not None and new is not None
    torch.testing.assert_close((new - old)[..., 3], torch.full((2, 4), 1e-3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    feature = torch.randn(2, 3, 5).to(dtype)
    first = FeatureCache(tmp_path / "f.sqlite")
    first._write({b"key": feature})
    first._db.commit()
    first.close()
    back = FeatureCache(tmp_path / "f.sqlite")._get(b"key")
    assert back is not None and back.dtype == dtype and torch.equal(back, feature)


def test_training_with_the_cache_equals_training_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, on in (("off", False), ("on", True)):
        data = {"target": "toy.Corners", "n": 8}
        train(toy.config(name, stage={"params": RULES, "cache_features": on, "lr": 1e-4, "data": data}))
    off, on_ = (load_file(f"runs/{name}/model/model.safetensors") for name in ("off", "on"))
    assert max(float((off[k] - on_[k]).abs().max()) for k in off) < 1e-6
    assert Path("runs/on/features.sqlite").is_file() and not Path("runs/off/features.sqlite").exists()


@pytest.mark.parametrize("room", [9_000, 24_000, 60_000])
def test_a_full_disk_is_one_line_and_the_run_resumes(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file grows to so many bytes at most: while the table is made, at the first step, or some steps later."""
    monkeypatch.chdir(tmp_path)
    stage = {"params": RULES, "cache_features": True, "lr": 1e-4, "data": {"target": "toy.Corners", "n": 64}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(UserError, match=r"^runs/full/features\.sqlite: [^\n]*; the same command resumes$"):
            train(toy.config("full", save_every=100, stage=stage))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(toy.config("full", save_every=100, stage=stage))
    train(toy.config("whole", save_every=100, stage=stage))
    full, whole = (load_file(f"runs/{name}/model/model.safetensors") for name in ("full", "whole"))
    assert all(torch.equal(full[name], value) for name, value in whole.items())


def test_damaged_features_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m, file = model(), tmp_path / "features.sqlite"
    prints = {"image": fingerprint(m.encoders["image"])}
    batch = batches(m)[[0, 1, 2, 3]]
    cache = FeatureCache(file)
    once = cache.fill(m, batch, prints).media["image"].features_NTE
    cache.close()
    db = sqlite3.connect(file)
    key, data = db.execute("SELECT key, data FROM features").fetchone()
    db.execute("UPDATE features SET data = ? WHERE key = ?", (data[:-1] + bytes([data[-1] ^ 1]), key))
    db.commit()
    db.close()
    cache = FeatureCache(file)
    again = cache.fill(m, batch, prints).media["image"].features_NTE
    assert (cache.misses, cache.hits) == (1, 3) and once is not None and again is not None and torch.equal(once, again)
    assert "a feature is damaged" in capsys.readouterr().err
    cache.close()
    file.write_bytes(b"no database" * 1000)
    cache = FeatureCache(file)
    again = cache.fill(m, batch, prints).media["image"].features_NTE
    assert cache.misses == 4 and again is not None and torch.equal(once, again)
    assert "features.sqlite: is damaged" in capsys.readouterr().err


def test_a_tower_with_batch_norm_has_a_fingerprint() -> None:
    """Its count of batches is a whole number without an axis."""
    tower = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    before = fingerprint(tower)
    tower[1].num_batches_tracked += 1
    assert fingerprint(tower) != before


def test_short_clips_are_padded_to_the_longest_of_a_batch(tmp_path: Path) -> None:
    """Features behind the end of a clip are zeros, whether they come from the file or from the encoder."""
    m = spoken.model(head=False)
    apply_rules(m, read_rules(RULES), lr=0.1, weight_decay=0.0)
    m.eval()
    prints = {"audio": fingerprint(m.encoders["audio"])}
    reader = m.readers["audio"]
    clips = [reader.read(spoken.row(seconds)["audio"]) for seconds in (0.4, 1.1)]
    cache = FeatureCache(tmp_path / "f.sqlite")

    def batch(chosen: list[int]) -> Batch:
        samples = [[Media("audio", clips[i]), Target([4, 5])] for i in chosen]
        return collate(samples, m.vocab, m.readers)

    cache.fill(m, batch([1]), prints)
    both = cache.fill(m, batch([0, 1]), prints).media["audio"]
    cache.fill(m, batch([1, 0]), prints)
    assert (cache.hits, cache.misses) == (3, 2) and both.features_NTE is not None and both.tokens is not None
    short, long = both.tokens
    assert both.features_NTE.shape[1] == long > short
    assert not both.features_NTE[0, short:].any() and both.features_NTE[0, :short].any(1).all()
    FeatureCache(tmp_path / "g.sqlite").fill(m, batch([0, 1]), prints)
    alone = FeatureCache(tmp_path / "g.sqlite").fill(m, batch([0]), prints).media["audio"].features_NTE
    assert alone is not None and alone.shape[1] == short, "no feature keeps the length of the batch it was made in"
    expected = m.features("audio", batch([0, 1]).media["audio"])
    torch.testing.assert_close(both.features_NTE, expected, atol=1e-4, rtol=0)


class Numbers(toy.Patches):
    """Reads the file that holds the numbers of a picture."""

    def read(self, data: Any) -> Any:
        return super().read(np.load(data))


def test_a_file_that_is_unchanged_is_known_without_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that changed is not, though its path, size and time of content are those of before."""
    now = time.time_ns()
    monkeypatch.setattr("mmdiff.data.origin.time.time_ns", lambda: now + 60 * 10**9)
    m = MMDiff(toy.backbone(), {"image": Numbers()}, {"image": toy.Project(width_in=16, width_out=32)}).eval()
    apply_rules(m, read_rules(RULES), lr=0.1, weight_decay=0.0)
    prints = {"image": fingerprint(m.encoders["image"])}
    first, second = (toy.Corners(2)[n]["image"] for n in (0, 1))
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(a, first)
    np.save(b, second)
    cache = FeatureCache(tmp_path / "f.sqlite")

    def features(*data: Any) -> Any:
        batch = collate([read_media([Media("image", one), Target([4])], m.readers) for one in data], m.vocab, m.readers)
        filled = cache.fill(m, batch, prints).media["image"].features_NTE
        assert filled is not None
        torch.testing.assert_close(filled, m.features("image", batch.media["image"]), atol=1e-6, rtol=0)
        return batch

    read = features(str(a), str(b))
    assert all(read.media["image"].origins) and cache.misses == 2
    monkeypatch.setattr("mmdiff.model.features.items", None)  # no number is looked at
    features(str(b), a)
    assert (cache.misses, cache.hits) == (2, 2)
    monkeypatch.undo()
    monkeypatch.setattr("mmdiff.data.origin.time.time_ns", lambda: now + 60 * 10**9)
    before = a.stat()
    with a.open("r+b") as file:  # the same inode and size
        file.write(b.read_bytes())
    os.utime(a, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (a.stat().st_ino, a.stat().st_size, a.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    features(str(a))
    assert cache.misses == 3
    np.save(tmp_path / "c.npy", first)
    (tmp_path / "c.npy").replace(b)
    features(str(b))
    assert cache.misses == 4


def test_a_file_that_is_new_or_changes_while_it_is_read_is_known_by_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, toy.Corners(2)[0]["image"])
    reader = MediaReader(Numbers(), toy.Project(width_in=16, width_out=32))

    def origin(data: Any) -> bytes:
        (media,) = read_media([Media("image", data)], {"image": reader})
        assert isinstance(media, Media) and isinstance(media.data, Item)
        return media.data.origin

    now = time.time_ns()
    assert origin(path) == b""  # another write within the same tick of the file system would keep its times
    monkeypatch.setattr("mmdiff.data.origin.time.time_ns", lambda: now + 60 * 10**9)
    assert origin(path) == file_state(path) != b""
    read = Numbers.read

    def slowly(self: Any, data: Any) -> Any:
        item = read(self, data)
        os.truncate(data, 10)
        return item

    monkeypatch.setattr(Numbers, "read", slowly)
    assert origin(path) == b""


def test_states_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    now = time.time_ns()
    monkeypatch.setattr("mmdiff.data.origin.time.time_ns", lambda: now + 60 * 10**9)
    whole = file_state(str(path))
    parts = [file_state({"path": str(path), "start": 0.0, "end": end}) for end in (1.0, 2.0)]
    assert len({whole, *parts}) == 3 and whole == file_state(path) and all((whole, *parts))
    for data in (b"RIFF", np.zeros(3), {"array": [0.0], "path": str(path)}, tmp_path, tmp_path / "none", "a\0b", None):
        assert file_state(data) == b""
