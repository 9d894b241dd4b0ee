"""Embeddings against transformers' own ESM, one sequence at a time, and the folder under interruption."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failures import kills

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.tasks.protein.embed.embeddings import Embeddings, embed
from mmdiff.tasks.protein.residues import CANONICAL, Residues

WIDTH, LAYERS = 16, 2


def esm(max_length: int = 64, **options: Any) -> MMDiff:
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": WIDTH, "layers": LAYERS, "heads": 2, "max_length": max_length}
    backbone = new_backbone(family="esm", tokenizer=tokenizer(), **size, init_std=0.3, options=options or None)
    return MMDiff(backbone).eval()


@pytest.fixture(scope="module")
def model() -> MMDiff:
    return esm()


def rows(lengths: Iterable[int] = (5, 17, 1, 9, 17, 30, 2), seed: int = 0) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    sequences = ["".join(rng.choice(list(CANONICAL), n)) for n in lengths]
    return [{"id": f"s{i}", "description": f"number {i}", "sequence": s} for i, s in enumerate(sequences)]


def by_hand(model: MMDiff, sequence: str) -> tuple[torch.Tensor, ...]:
    """All hidden states (L, D) of transformers' EsmModel of the same weights: one sequence, no padding."""
    from transformers import EsmModel

    own = EsmModel(model.backbone.model.config, add_pooling_layer=False).eval()
    own.load_state_dict(model.backbone.model.esm.state_dict(), strict=False)
    vocab = model.vocab
    assert vocab.bos_id is not None
    ids = torch.tensor([[vocab.bos_id, *Residues(vocab).encode(sequence), vocab.eos_id]])
    with torch.no_grad():
        out = own(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return (*(h[0] for h in out.hidden_states[:-1]), out.last_hidden_state[0])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pools_are_those_of_transformers_one_sequence_at_a_time(model: MMDiff, tmp_path: Path) -> None:
    given = rows()
    out = embed(model, given, tmp_path / "e", pool=("cls", "mean", "std", "max"), tokens=64, window=4)
    assert out == {"records": 7, "width": 4 * WIDTH, "out": str(tmp_path / "e")}
    found = Embeddings(tmp_path / "e")
    assert found.ids == [row["id"] for row in given] and found.descriptions[3] == "number 3"
    assert found.lengths == [len(row["sequence"]) for row in given]
    for x, row in zip(found.stacked(), given, strict=True):
        h_LD = by_hand(model, row["sequence"])[-1].double()
        inner = h_LD[1:-1]
        spread = ((inner - inner.mean(0)) ** 2).mean(0).sqrt()
        wanted = torch.cat([h_LD[0], inner.mean(0), spread, inner.max(0).values])
        assert np.abs(x - wanted.numpy()).max() < 1e-5


@pytest.mark.parametrize("layer", [0, 1, LAYERS, -1])
def test_residues_of_any_layer(model: MMDiff, tmp_path: Path, layer: int) -> None:
    given = rows()
    embed(model, given, tmp_path / "e", pool=("residue",), layer=layer, tokens=64)
    for x, row in zip(Embeddings(tmp_path / "e"), given, strict=True):
        assert x.shape == (len(row["sequence"]), WIDTH)
        assert np.abs(x - by_hand(model, row["sequence"])[layer][1:-1].numpy()).max() < 1e-5


def test_an_embedding_does_not_depend_on_its_batch_and_draws_nothing(model: MMDiff, tmp_path: Path) -> None:
    given = rows()
    model.train()  # the caller's mode is given back
    embed(model, given, tmp_path / "a", tokens=10_000)
    assert model.training
    model.eval()
    embed(model, given[::-1], tmp_path / "b", tokens=1)
    a, b = Embeddings(tmp_path / "a").stacked(), Embeddings(tmp_path / "b").stacked()[::-1]
    assert np.abs(a - b).max() < 1e-5
    embed(model, given, tmp_path / "c", tokens=10_000)
    assert files(tmp_path / "a") == files(tmp_path / "c")


def test_token_budget(model: MMDiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    whole = model.backbone.hidden

    def hidden(x_RLD: torch.Tensor, *args: Any) -> torch.Tensor:
        shapes.append((x_RLD.shape[0], x_RLD.shape[1]))
        return whole(x_RLD, *args)

    monkeypatch.setattr(model.backbone, "hidden", hidden)
    embed(model, rows([3, 30, 3, 30, 3, 30]), tmp_path / "e", tokens=32)
    assert shapes == [(1, 32), (1, 32), (1, 32), (3, 5)]


def killed(records: list[Any], after: int) -> Iterator[Any]:
    yield from records[:after]
    raise KeyboardInterrupt


@pytest.mark.parametrize("format", ["safetensors", "npz"])
@pytest.mark.parametrize("pool", [("mean",), ("residue",)])
def test_a_killed_call_goes_on_with_the_next_window(
    model: MMDiff, tmp_path: Path, pool: tuple[str, ...], format: str
) -> None:
    given = rows()
    how: dict[str, Any] = {"pool": pool, "format": format, "window": 3, "tokens": 40}
    embed(model, given, tmp_path / "whole", **how)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        embed(model, killed(given, 5), cut, **how)
    assert len(Embeddings(cut)) == 3  # whole parts can be read
    first = (cut / f"part-00000.{format}").stat().st_mtime_ns
    # what a kill leaves behind at its worst: a part aside, a part without its lines, half of its lines
    (cut / f".part-00001.{format}.aside").write_bytes(b"half")
    whole = tmp_path / "whole"
    (cut / f"part-00001.{format}").write_bytes((whole / f"part-00001.{format}").read_bytes())
    lines = (whole / "index.jsonl").read_bytes().split(b"\n")
    for rest in (b"", lines[3][:20], lines[3] + b"\n" + lines[4][:9]):
        (cut / "index.jsonl").write_bytes(b"\n".join(lines[:3]) + b"\n" + rest)
        assert Embeddings(cut).ids == ["s0", "s1", "s2"]
        embed(model, given, cut, **how)
        assert files(cut) == files(whole)
    assert (cut / f"part-00000.{format}").stat().st_mtime_ns == first  # it was not written again
    embed(model, given, cut, **how)  # finished: nothing is left to do
    assert files(cut) == files(whole)
    grown = [*given, *rows([4, 4, 4, 4], seed=1)]
    embed(model, grown, cut, **how)
    assert len(Embeddings(cut)) == 11 and Embeddings(cut)[-1].shape[-1] == WIDTH


@pytest.mark.slow
@pytest.mark.parametrize(("out", "changes"), [("e", 15), ("e.safetensors", 22)])
def test_a_kill_at_every_change_heals(model: MMDiff, tmp_path: Path, out: str, changes: int) -> None:
    assert kills.everywhere(lambda: embed(model, rows([3, 2, 4]), Path(out), window=2), tmp_path) == changes


def test_a_kill_while_the_parts_of_a_file_are_removed_heals(model: MMDiff, tmp_path: Path) -> None:
    """The file is there by then."""
    kills.everywhere(lambda: embed(model, rows([1]), Path("e.safetensors")), tmp_path, first=14)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("pool", [("mean", "cls"), ("residue",)])
def test_one_file_is_the_folder_put_together(model: MMDiff, tmp_path: Path, pool: tuple[str, ...], suffix: str) -> None:
    given = rows()
    given[4]["id"] = given[1]["id"]  # ids may come again
    embed(model, given, tmp_path / "e", pool=pool)
    out = tmp_path / f"e.{suffix}"
    with pytest.raises(KeyboardInterrupt):
        embed(model, killed(given, 5), out, pool=pool, window=2)
    assert not out.exists() and len(Embeddings(tmp_path / f"e.{suffix}.parts")) == 4
    for _ in range(2):  # the second time it is there already
        assert embed(model, given, out, pool=pool, window=2)["records"] == 7
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e", out.name]
    folder, merged = Embeddings(tmp_path / "e"), Embeddings(out)
    assert merged.ids == folder.ids and merged.ids[4] == merged.ids[1] and len(merged) == 7
    for a, b in zip(folder, merged, strict=True):
        assert a.shape == b.shape and np.abs(a - b).max() < 1e-5
    if pool == ("residue",):
        with pytest.raises(ConfigError, match="by residue cannot be stacked"):
            merged.stacked()
    else:
        assert np.abs(folder.stacked() - merged.stacked()).max() < 1e-5
    before = out.read_bytes()
    for other, message in ((rows(seed=1), "record 1 is another sequence"), (given[:3], "holds more records")):
        with pytest.raises(ConfigError, match=message):
            embed(model, other, out, pool=pool)
    with pytest.raises(ConfigError, match="ends before record 8"):
        embed(model, [*given, *given], out, pool=pool)
    with pytest.raises(ConfigError, match="another layer"):
        embed(model, given, out, pool=pool, layer=0)
    assert out.read_bytes() == before


def test_other_settings_models_and_records_are_refused(model: MMDiff, tmp_path: Path) -> None:
    given, out = rows(), tmp_path / "e"
    embed(model, given, out)
    before = files(out)
    other = esm()
    with torch.no_grad():
        next(iter(other.parameters()))[0, 0] += 1e-3
    dropout = esm(token_dropout=True)  # the same weights, another function
    for call, message in (
        (lambda: embed(model, given, out, pool=("max",)), "another pool.0 \\('mean', now 'max'\\)"),
        (lambda: embed(model, given, out, dtype="float16"), "another dtype"),
        (lambda: embed(other, given, out), "another model.digest"),
        (lambda: embed(dropout, given, out), "another model.digest"),
        (lambda: embed(model, given[1:], out), "record 1 is 's0', now 's1'"),
        (lambda: embed(model, given[:2], out), "more records than the 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
        assert files(out) == before
    embed(esm(), given, out, tokens=50, window=2)  # the same model made again; how it is cut up does not matter
    assert files(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds no embeddings"):
        embed(model, given, tmp_path / "mine")
    with pytest.raises(ConfigError, match="expected a folder"):
        embed(model, given, tmp_path / "mine" / "notes.txt")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"pool": ("median",)}, "pool: 'median' is none"),
        ({"pool": ("residue", "mean")}, "residue alone"),
        ({"pool": ()}, "pool: none"),
        ({"layer": 3}, "layer: 3, expected -3 to 2"),
        ({"tokens": 0}, "tokens=0"),
        ({"dtype": "float23"}, "dtype: 'float23' is none.*float32"),
        ({"dtype": "bfloat16", "format": "npz"}, "no bfloat16"),
        ({"format": "hdf5"}, "format: 'hdf5' is none"),
    ],
)
def test_arguments(model: MMDiff, tmp_path: Path, named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embed(model, rows(), tmp_path / "e", **named)
    assert not (tmp_path / "e").exists()


def test_a_bad_record_names_itself_and_finished_parts_stay(model: MMDiff, tmp_path: Path) -> None:
    given = rows()
    good, given[5]["sequence"] = given[5]["sequence"], "MKJT"
    with pytest.raises(DataError, match=r"record 6 \(s5\): residue 3: 'J'"):
        embed(model, given, tmp_path / "e", window=2)
    assert len(Embeddings(tmp_path / "e")) == 4
    given[5] |= {"sequence": good}
    embed(model, given, tmp_path / "e", window=2)
    assert len(Embeddings(tmp_path / "e")) == 7
    with pytest.raises(DataError, match="x.fasta: record 1: sequence: '', expected letters"):
        embed(model, [{"sequence": "", "where": "x.fasta: record 1"}], tmp_path / "f")


def test_sequences_longer_than_the_model_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = rows([4, 40, 50, 60])
    embed(esm(max_length=20), given, tmp_path / "rotary", tokens=50)
    told = capsys.readouterr().err
    assert told.count("longer than the 20 positions of training") == 1 and "record 4 (s3)" in told
    assert len(Embeddings(tmp_path / "rotary")) == 4
    with pytest.raises(DataError, match=r"record 4 \(s3\): a canvas of 62 positions"):
        embed(esm(max_length=20, positions="absolute"), given, tmp_path / "absolute", tokens=50)


def test_dtypes(model: MMDiff, tmp_path: Path) -> None:
    given = rows()
    embed(model, given, tmp_path / "float32")
    exact = Embeddings(tmp_path / "float32").stacked()
    for dtype, eps, read in (("float16", 2**-11, np.float16), ("bfloat16", 2**-8, np.float32)):
        embed(model, given, tmp_path / dtype, dtype=dtype)
        x = Embeddings(tmp_path / dtype).stacked()
        assert x.dtype == read and (np.abs(x - exact) <= eps * np.abs(exact) + 1e-6).all()
    huge = esm()
    with torch.no_grad():
        huge.backbone.model.esm.encoder.emb_layer_norm_after.bias.fill_(1e5)
    with pytest.raises(DataError, match=r"\(s\d\): its embedding is beyond float16"):
        embed(huge, given, tmp_path / "huge", dtype="float16")


def test_reader_refuses_what_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"no zip")
    np.savez(tmp_path / "y.npz", a=np.zeros(2))
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "settings.json").write_text(json.dumps([1]))
    for name in ("x.npz", "y.npz", "z", "nothing.safetensors"):
        with pytest.raises(ConfigError, match=name):
            Embeddings(tmp_path / name)


def test_no_records(model: MMDiff, tmp_path: Path) -> None:
    for out in ("e", "e.safetensors", "e.npz"):
        assert embed(model, [], tmp_path / out)["records"] == 0
        assert len(Embeddings(tmp_path / out)) == 0
