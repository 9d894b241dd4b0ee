"""What a row costs on its way to the model, in ratios against the plain way of the same run (one thread, medians).

    pictures  JPEG to a crop, 640 x 480 to 48 x 48 and to 96 x 96, 1280 x 960 to 96 x 96: plain PIL (open, decode,
              resize, float32) against `read` of an encoder, and of one in `mmdiff.encoders.media.compact.Compact`, with
              and without `reduce`.
    cache     a feature that is known: its key from the numbers of the picture against that from its file.
    mixture   `Stream.locate` of two components against one.
    formats   rows per second in the order of a stage, by format.

Run: python benchmarks/speed/data.py [--json]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kit import Options, medians, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Media, Target
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.connectors.mlp import MLP
from mmdiff.data.collate import collate
from mmdiff.data.formats.rows import Rows
from mmdiff.data.stream import Component, Stream, read_media
from mmdiff.encoders.conv import ConvTower
from mmdiff.encoders.media.compact import Compact
from mmdiff.model import MMDiff
from mmdiff.model.features import FeatureCache, fingerprint

CELL = 12
wall_seconds = partial(medians, repeats=7, clock=time.perf_counter)


def photographs(folder: Path, scale: int = 1, count: int = 12) -> list[Path]:
    """Write JPEGs of smooth colours with noise, of about the bytes of a photograph. Returns their paths."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    old = time.time() - 3600  # files that lie there, and are not being written
    for n in range(count):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((640 * scale, 480 * scale), 3)
        noise = rng.normal(0, 4, (480 * scale, 640 * scale, 3))
        path = folder / f"{scale}-{n}.jpg"
        Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        os.utime(path, (old, old))
        files.append(path)
    return files


def pictures(files: list[Path], side: int) -> dict[str, float]:
    from PIL import Image

    def plain(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        return (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5

    tower = ConvTower(side, 64, CELL)
    ways: list[Callable[[Path], object]] = [
        plain, tower.read, Compact(tower).read, Compact(tower, reduce=True).read
    ]  # fmt: skip
    base, own, kept, reduced = wall_seconds(*(lambda way=way: [way(f) for f in files] for way in ways))  # type: ignore[misc]
    assert torch.allclose(plain(files[0]), tower.read(files[0]).values[0], atol=1e-6)
    return {
        "plain_ms": 1e3 * base / len(files),
        "read_ratio": base / own,
        "bytes_ratio": base / kept,
        "reduced_ratio": base / reduced,
    }


def cache(files: list[Path]) -> dict[str, float]:
    torch.manual_seed(0)
    tower = ConvTower(384, 64, 32)
    backbone = new_backbone(tokenizer=word_tokenizer(["a"]), hidden_size=64, layers=1, heads=2)
    model = MMDiff(backbone, {"image": tower}, {"image": MLP(width_in=64, width_out=64)})
    tower.requires_grad_(False)
    samples = [read_media([Media("image", str(path)), Target([4])], model.readers) for path in files]
    batch = collate(samples, model.vocab, model.readers)
    if not all(batch.media["image"].origins):
        time.sleep(2.1)  # written just now: their numbers alone would stand for them
        samples = [read_media([Media("image", str(path)), Target([4])], model.readers) for path in files]
        batch = collate(samples, model.vocab, model.readers)
    assert all(batch.media["image"].origins)
    hashed = replace(batch, media={"image": replace(batch.media["image"], origins=[])})
    prints = {"image": fingerprint(tower)}
    with tempfile.TemporaryDirectory() as folder:
        kept = FeatureCache(Path(folder) / "features.sqlite")
        numbers, file = wall_seconds(*(lambda b=b: kept.fill(model, b, prints) for b in (hashed, batch)))  # type: ignore[misc]
        kept.close()
    return {"numbers_ms": 1e3 * numbers / len(files), "file_ms": 1e3 * file / len(files), "ratio": numbers / file}


def mixture(calls: int = 20_000) -> dict[str, float]:
    class Numbers:
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"n": index}

    streams = [Stream([Component(str(i), Numbers(), None) for i in range(n)], seed=0) for n in (1, 2)]  # type: ignore[arg-type]
    one, two = wall_seconds(*(lambda s=s: [s.locate(n) for n in range(calls)] for s in streams))  # type: ignore[misc]
    return {"one_us": 1e6 * one / calls, "mixture_us": 1e6 * two / calls}


def formats(folder: Path, count: int = 4000) -> dict[str, float]:
    import io
    import tarfile

    import datasets
    import pyarrow
    from pyarrow import parquet

    rows = [{"question": f"what is {n}", "answer": str(n)} for n in range(count)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=count // 8)
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for n, row in enumerate(rows):
            data = json.dumps(row).encode()
            member = tarfile.TarInfo(f"{n:06}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    sources: dict[str, Any] = {name: str(folder / f"rows.{name}") for name in ("jsonl", "parquet", "tar")}
    sources |= {
        "dataset": datasets.Dataset.from_list(rows),
        "streamed": datasets.Dataset.from_list(rows).to_iterable_dataset(),
    }
    out = {}
    for name, source in sources.items():
        stream = Stream([Component("", Rows(source), None)], seed=0)  # type: ignore[arg-type]
        (seconds,) = wall_seconds(lambda s=stream: [s.components[0].rows[s.locate(n)[1]] for n in range(count)])  # type: ignore[misc]
        out[name] = count / seconds
    return out


def main() -> None:
    given = Options(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        files, large = photographs(Path(name)), photographs(Path(name), 2)
        figures = {
            "640 to 48": pictures(files, 48),
            "640 to 96": pictures(files, 96),
            "1280 to 96": pictures(large, 96),
            "cache": cache(files),
            "mixture": mixture(),
            "formats": formats(Path(name)),
        }
    for name, values in figures.items():
        print(f"{name:10}", ", ".join(f"{key} {value:.3g}" for key, value in values.items()))
    write_figures(figures, given.json)


if __name__ == "__main__":
    main()
