"""Probes on features whose answer is known, and folds that keep groups whole."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError, MissingExtra
from mmdiff.tasks.protein.embed.probes import (
    composition,
    folds_of,
    onehot,
    probe,
    probe_text,
    read_labels,
    residue_probe,
)
from mmdiff.tasks.protein.residues import CANONICAL

needs_sklearn = pytest.mark.needs("sklearn")


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def drawn(n: int, length: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(CANONICAL), length)) for _ in range(n)]


def mean(found: dict[str, Any], predictor: str, metric: str) -> float:
    value: float = found["scores"][predictor][metric]["mean"]
    return value


@needs_sklearn
def test_labels_that_are_linear_in_the_features() -> None:
    x_ND = normal(400, 6)
    found = probe(x_ND, ["helix" if x > 0 else "sheet" for x in x_ND @ np.arange(1, 7)])
    assert found["kind"] == "classification" and found["rows"] == found["groups"] == 400
    assert sum(found["classes"].values()) == 400
    assert mean(found, "probe", "accuracy") > 0.97 and mean(found, "probe", "mcc") > 0.94
    assert mean(found, "probe", "macro_f1") > 0.97
    # 400 rows, a coin each: 5 standard errors of a mean accuracy are 0.125
    assert abs(mean(found, "shuffled", "accuracy") - 0.5) < 0.125
    found = probe(x_ND, x_ND @ np.arange(1, 7) + 3)
    assert found["kind"] == "regression"
    assert mean(found, "probe", "spearman") > 0.999 and mean(found, "probe", "r2") > 0.999
    assert mean(found, "mean", "spearman") == 0 and abs(mean(found, "mean", "r2")) < 0.1
    assert mean(found, "probe", "rmse") < 0.05 < 9 < mean(found, "mean", "rmse") < 10  # sd of labels: 91 ** .5
    text = probe_text(found).splitlines()
    assert text[0].split() == ["spearman", "r2", "rmse"]
    assert [line.split()[0] for line in text[1:]] == ["probe", "mean", "shuffled"]
    assert "1.000 +- 0.000 (1.000 to 1.000)" in text[1]
    for by_metric in found["scores"].values():
        for of in by_metric.values():
            assert of["interval"][0] <= of["mean"] + 1e-9 and of["mean"] - 1e-9 <= of["interval"][1]


@needs_sklearn
def test_random_labels_are_at_chance() -> None:
    labels = ["a", "b", "b", "b"] * 100
    np.random.default_rng(1).shuffle(labels)
    found = probe(normal(400, 4), labels)
    assert mean(found, "majority", "accuracy") == 0.75 and mean(found, "majority", "mcc") == 0
    assert mean(found, "majority", "macro_f1") == pytest.approx(0.5 * 2 * 0.75 / 1.75)  # F1 of b, and 0 for a
    assert abs(mean(found, "probe", "accuracy") - 0.75) < 5 * (0.75 * 0.25 / 400) ** 0.5
    assert abs(mean(found, "probe", "mcc")) < 5 / 400**0.5
    found = probe(normal(400, 4), np.random.default_rng(2).normal(size=400))
    assert abs(mean(found, "probe", "spearman")) < 5 / 400**0.5 and mean(found, "probe", "r2") < 0.05


@needs_sklearn
def test_what_only_the_group_tells_is_seen_by_ungrouped_folds_alone() -> None:
    rng = np.random.default_rng(0)
    group_N = np.repeat(np.arange(100), 6)
    x_ND = normal(100, 150)[group_N] + 0.05 * normal(600, 150, seed=1)
    label_N = rng.integers(2, size=100)[group_N]
    grouped, leaking = probe(x_ND, label_N, [f"g{g}" for g in group_N]), probe(x_ND, label_N)
    assert grouped["groups"] == 100
    assert mean(leaking, "probe", "accuracy") > 0.98
    assert abs(mean(grouped, "probe", "accuracy") - 0.5) < 4 * (0.25 / 100) ** 0.5  # 100 groups, a coin each


def test_folds_keep_groups_whole_and_are_even() -> None:
    rng = np.random.default_rng(0)
    group_N = rng.integers(60, size=900)
    class_N = rng.choice(["a", "b", "c"], size=900, p=[0.6, 0.3, 0.1])
    fold_N = folds_of(group_N, class_N, 5, seed=0)
    assert all(len(set(fold_N[group_N == g])) == 1 for g in range(60))
    assert np.abs(np.bincount(fold_N) / 900 - 0.2).max() < 0.02
    for c in "abc":
        assert np.abs(np.bincount(fold_N[class_N == c]) / (class_N == c).sum() - 0.2).max() < 0.08
    assert (fold_N == folds_of(group_N, class_N, 5, seed=0)).all()
    assert (fold_N != folds_of(group_N, class_N, 5, seed=1)).any()
    # groups of one row: every class is split as evenly as whole numbers allow
    fold_N = folds_of(np.arange(900), class_N, 5, seed=0)
    for c in "abc":
        assert np.ptp(np.bincount(fold_N[class_N == c])) <= 1
    # one group larger than a fold: the others still have a test set each
    fold_N = folds_of(np.array([0] * 50 + [1, 2, 3]), np.zeros(53), 4, seed=0)
    assert sorted(np.bincount(fold_N)) == [1, 1, 1, 50]


@needs_sklearn
def test_composition_stands_in_the_same_folds() -> None:
    sequences = drawn(300, 40)
    found = probe(normal(300, 3), ["many" if s.count("A") >= 2 else "few" for s in sequences], sequences=sequences)
    assert mean(found, "composition", "accuracy") > 0.95 and mean(found, "probe", "accuracy") < 0.75
    assert (composition(["AAC", "XX"])[:, :2] == [[np.float32(2 / 3), np.float32(1 / 3)], [0, 0]]).all()


@needs_sklearn
def test_features_of_any_scale_are_standardised_on_the_training_rows() -> None:
    x_ND = normal(200, 3)
    labels = (x_ND[:, 0] > 0.2).tolist()
    stretched = np.concatenate([x_ND * [1e-3, 1.0, 1e4] + [5.0, 0.0, -1e4], np.full((200, 1), 0.1)], 1)
    assert probe(x_ND, labels)["scores"]["probe"] == probe(stretched, labels)["scores"]["probe"]


@needs_sklearn
def test_residue_probe() -> None:
    sequences = drawn(40, 30)
    labels = ["".join("H" if i > 1 and s[i - 2] in "ACDEFGHIK" else "E" for i in range(30)) for s in sequences]
    labels = ["".join("?-"[i % 2] if i % 7 == 3 else c for i, c in enumerate(label)) for label in labels]
    rng = np.random.default_rng(0)
    embeddings = []
    for label in labels:
        x_ND = rng.normal(size=(30, 4))
        x_ND[:, 2] += [6.0 if c == "H" else -6.0 for c in label]
        x_ND[[c in "-?" for c in label]] = np.nan  # what is left out is never looked at
        embeddings.append(x_ND)
    found = residue_probe(embeddings, labels, [i // 2 for i in range(40)], sequences=sequences)
    resolved = sum(c in "HE" for label in labels for c in label)
    assert found["rows"] == found["labelled"] == resolved and found["groups"] == 20
    assert mean(found, "probe", "accuracy") > 0.99
    assert mean(found, "onehot-15", "accuracy") > 0.97 > 0.7 > mean(found, "majority", "accuracy")
    some = residue_probe(embeddings, labels, limit=200, seed=1)
    assert some["rows"] == 200 and some["labelled"] == resolved and "onehot-15" not in some["scores"]
    assert some == residue_probe(embeddings, labels, limit=200, seed=1)
    for wrong, message in (
        ((embeddings, [*labels[:3], "HH", *labels[4:]]), r"record 4 \(3\): 2 letters of labels for 30 residues emb"),
        ((embeddings, labels[1:]), "40 embeddings, 39 labels"),
        ((embeddings, ["?" * 30] * 40), "no residue has a label"),
    ):
        with pytest.raises(DataError, match=message):
            residue_probe(*wrong)
    with pytest.raises(DataError, match=r"record 2 \(two\): 30 letters of labels for 29 residues$"):
        residue_probe(embeddings[:2], labels[:2], sequences=[sequences[0], "A" * 29], ids=["one", "two"])


def test_onehot_window() -> None:
    x = onehot("ACX", np.array([0, 2]), window=3).reshape(2, 3, 21)
    assert x.sum() == 6 and x.argmax(-1).tolist() == [[20, 0, 1], [1, 20, 20]]


@needs_sklearn
def test_probe_of_embeddings(tmp_path: Path) -> None:
    """The embedding table tells each residue, so that a probe of layer 0 finds any class of residues."""
    import torch

    from mmdiff.backbones import new_backbone
    from mmdiff.backbones.families.esm import tokenizer
    from mmdiff.model import MMDiff
    from mmdiff.tasks.protein.embed.embeddings import Embeddings, embed

    torch.manual_seed(0)
    model = MMDiff(new_backbone(family="esm", tokenizer=tokenizer(), hidden_size=32, layers=1, heads=2))
    rows = [{"id": f"s{i}", "sequence": s} for i, s in enumerate(drawn(20, 25))]
    embed(model, rows, tmp_path / "e", pool=("residue",), layer=0)
    file = tmp_path / "labels.fasta"
    kinds = [(row["id"], "".join("H" if c in "AVILMFWY" else "C" for c in row["sequence"])) for row in rows]
    file.write_text("".join(f">{name} a chain\n{label[:9]}\n{label[9:]}\n" for name, label in reversed(kinds)))
    found, known = Embeddings(tmp_path / "e"), read_labels(file)
    assert known.by_residue
    labels, groups = known.of(found.ids)
    assert mean(residue_probe(found, labels, groups), "probe", "accuracy") == 1
    rows = [{"sequence": s} for s in drawn(100, 25)]
    embed(model, rows, tmp_path / "p.npz", pool=("mean",), layer=0)
    share = [sum(row["sequence"].count(c) for c in "AVILMFWY") / 25 for row in rows]
    assert mean(probe(Embeddings(tmp_path / "p.npz"), share), "probe", "r2") > 0.99


def test_tables_of_labels(tmp_path: Path) -> None:
    file = tmp_path / "x.csv.gz"
    file.write_bytes(gzip.compress(b'id,note,label,group\na,x,1.5,g\nb,"y, z",2,g\n'))
    known = read_labels(file)
    assert not known.by_residue and known.of(["b", "a"]) == (["2", "1.5"], ["g", "g"])
    plain = tmp_path / "x.tsv"
    plain.write_text("id\tlabel\na\thot\nb\tcold\n")
    assert read_labels(plain).of(["a", "b", "a"]) == (["hot", "cold", "hot"], ["a", "b", "a"])
    with pytest.raises(DataError, match=r"x.tsv: no label for record 2, 'bb' \(did you mean"):
        read_labels(plain).of(["a", "bb"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "name,label\n", "line 1: no column 'id'"),
        ("x.csv", "id,lable\n", "line 1: no column 'label' .did you mean \"lable\""),
        ("x.csv", "id,label\na,1\na,2\n", "line 3: 'a' has a label already"),
        ("x.csv", "id,label\na,\n", "line 2: 'a' has no label"),
        ("x.csv", "id,label\na,1,2\n", "line 2: 3 cells, expected 2"),
        ("x.csv", "id,label,group\na,1,\n", "line 2: 'a' has no group"),
        ("x.csv", "id,label\n", "no records"),
        ("x.csv", 'id,label\n"a,1\n', "unexpected end of data"),
        ("x.fasta", "HHH\n", "line 1: 'HHH' before the first '>'"),
        ("x.fasta", ">a\nHH\n>b\n>c\nH\n", "line 3: 'b' has no label"),
        ("x.fasta", ">a\nHH\n> \nH\n", "line 3: no id"),
        ("x.fasta", "", "no records"),
    ],
)
def test_bad_files_of_labels(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        read_labels(tmp_path / name)


@needs_sklearn
def test_bad_arguments() -> None:
    x_ND = normal(10, 2)
    labels = [*"ababababab"]
    for call, error, message in (
        (lambda: probe(x_ND, labels[1:]), DataError, r"shape \(10, 2\) for 9 labels"),
        (lambda: probe(x_ND, labels, ["g"] * 9), DataError, "9 groups for 10 labels"),
        (lambda: probe(x_ND, labels, ["g"] * 5 + ["h"] * 5), ConfigError, "folds: 5, expected 2 to 2"),
        (lambda: probe(x_ND, ["a"] * 10), DataError, "all 10 are a"),
        (lambda: probe(x_ND, labels, kind="regression"), DataError, "label 1: 'a' is not a number"),
        (lambda: probe(x_ND, labels, kind="regresion"), ConfigError, "regression"),
        (lambda: probe(np.where(x_ND == x_ND[3, 1], np.nan, x_ND), labels), DataError, "row 4 are not finite"),
        (lambda: residue_probe([x_ND], ["H" * 10], limit=0), ConfigError, "limit=0"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_kinds_that_are_told_apart() -> None:
    from mmdiff.tasks.protein.embed.labels import label_array

    assert label_array(["1", "2", "1"], "auto")[1] == "classification"
    assert label_array(["1", "2.5"], "auto")[1] == "regression"
    assert label_array(range(21), "auto")[1] == "regression"
    assert label_array(["1.5", "x"], "auto")[1] == "classification"
    assert label_array([1, 2], "regression")[0].dtype == np.float64


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"mmdiff\[protein\]"):
        probe(normal(4, 2), [1, 2, 1, 2])
