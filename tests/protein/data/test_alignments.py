"""Alignments, identity, clusters, profiles and splits, against counts by hand and the plain definition."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paths import DATA, SHARED
from rapidfuzz.distance import LCSseq

from mmdiff.config import build
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.protein.data.alignments import Family, Profile, clusters, identity, read_alignment
from mmdiff.tasks.protein.data.clustering import global_identity
from mmdiff.tasks.protein.data.fasta import read_fasta
from mmdiff.tasks.protein.residues import CANONICAL

GLOBINS = DATA / "globins45.fa"
KUNITZ = SHARED / "data" / "protein" / "family" / "kunitz_PF00014.afa"

KNOWN = [f"r{n}" for n in (18, 22, 42, 44, 56, 62, 71, 93, 96, 98, 100, 113, 129, 130, 135, 138, 146)]
"""The test rows of the 150 changed copies below, as every process must find them."""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: str, name: str = "x.afa") -> str:
        (tmp_path / name).write_text("".join(f">r{i} row\n{row}\n" for i, row in enumerate(rows)))
        return str(tmp_path / name)

    return write


def mutants(n: int, columns: int, seed: int, letters: str = CANONICAL + "-") -> list[str]:
    """Rows at very different distances of each other: each is a changed copy of one before it."""
    rng = random.Random(seed)
    rows = ["".join(rng.choice(letters) for _ in range(columns))]
    while len(rows) < n:
        row, share = list(rng.choice(rows)), rng.random() / 2
        rows.append("".join(rng.choice(letters) if rng.random() < share else c for c in row))
    return rows


def test_tables_of_sequences_that_are_not_aligned(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("Bio")
    sequences = [row.replace("-", "") for row in mutants(30, 12, 3)]
    write(*sequences, name="x.fasta")
    (tmp_path / "x.csv").write_text("id,sequence\n" + "".join(f"r{n},{one}\n" for n, one in enumerate(sequences)))
    for split in ("train", "test"):
        table, fasta = (Family(f"{tmp_path}/x.{kind}", split, aligned=False) for kind in ("csv", "fasta"))
        assert [(row["id"], row["sequence"]) for row in table._rows] == [(r["id"], r["sequence"]) for r in fasta._rows]
    path = write(*sequences, "ACD-E", name="x.fasta")
    with pytest.raises(DataError, match=r"match columns .*; a gap makes an alignment of a file$"):
        Family(path, aligned=False)


def test_match_columns(write: Write) -> None:
    alignment = read_alignment(write("..MK-t.V", "aaM--..V", "M-ccccVA", "MK-V", "----"))
    assert alignment.sequences == ("MK-V", "M--V", "M-VA", "MK-V", "----")
    assert alignment.ids == ("r0", "r1", "r2", "r3", "r4") and alignment.columns == 4 and not alignment.dropped
    alignment = read_alignment(write("MK-V", "M--V", "M-VA", "MK-V", "----"), max_gaps=0.5, distinct=True)
    assert alignment.ids == ("r0", "r1", "r2") and alignment.dropped == {"duplicates": 1, "gaps": 1}
    path = write("MK-V", "MKV")
    with pytest.raises(DataError) as caught:
        read_alignment(path)
    assert str(caught.value) == (f"{path} record 2 (r1): 3 match columns (upper case and '-'), the first record has 4")
    with pytest.raises(DataError, match=r"no row is left \(dropped: 2 gaps\)"):
        read_alignment(write("M-", "-K"), max_gaps=0.4)
    with pytest.raises(ConfigError, match="max_gaps=2"):
        read_alignment(path, max_gaps=2)


def test_identity_by_hand() -> None:
    assert identity("MKTV", "MKTV") == 1
    assert identity("MK-V", "MRTV") == 2 / 4  # M, V of all four
    assert identity("M--V", "M--A") == 1 / 2  # columns of gaps only do not count
    assert identity("--", "--") == 0
    with pytest.raises(DataError, match="2 and 3 columns"):
        identity("MK", "MKT")


@pytest.mark.needs("Bio")
def test_global_identity_by_hand() -> None:
    assert global_identity("MKTAYIAKQR", "MKTAYIAKQR") == 1
    assert global_identity("MKTAYIAKQR", "AYIAK") == 1  # ends cost nothing, and the shorter one is counted
    assert global_identity("AYIAK", "MKTAYIAKQR") == 1
    assert global_identity("MKTAYIAKQR", "MKTAYLAKQR") == 9 / 10
    assert global_identity("WWWWWCCCCCHHHHHWWWWW", "WWWWWCCCCCWWWWW") == 1  # one gap of 5
    assert global_identity("MUOJ", "MUOJ") == 1


def greedy(sequences: list[str], like: Callable[[str, str], float], share: float) -> list[int]:
    """The definition, a sequence at a time."""
    out = [-1] * len(sequences)
    founders: list[int] = []
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i].replace("-", ""))):
        found = (n for n, f in enumerate(founders) if like(sequences[f], sequences[i]) >= share - 1e-9)
        out[i] = next(found, len(founders))
        if out[i] == len(founders):
            founders.append(i)
    return out


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 1.0])
def test_clusters_of_aligned_rows(share: float) -> None:
    rows = mutants(120, 30, seed=int(share * 10))
    found = clusters(rows, share)
    assert found.tolist() == greedy(rows, identity, share)
    assert share == 0.3 or 1 < found.max() < len(rows) - 1


@pytest.mark.needs("Bio")
def test_clusters_of_unaligned_sequences() -> None:
    """The filter by words loses no pair at 0.7, neither of globins nor of changed copies with other ends."""
    globins = [record.sequence for record in read_fasta(GLOBINS)]
    rng = random.Random(0)
    others = [row[rng.randrange(9) : 60 - rng.randrange(9)] for row in mutants(60, 60, 1, CANONICAL)]
    for sequences in (globins, others):
        found = clusters(sequences, 0.7)
        assert found.tolist() == greedy(sequences, global_identity, 0.7)
        assert 1 < found.max() < len(sequences) - 1
    gapped = [f"-{s[:3]}--{s[3:]}" for s in globins]
    assert clusters(gapped, 0.7, aligned=False).tolist() == clusters(globins, 0.7).tolist()
    assert clusters(["A", "AC", "AC", "W"]).tolist() == [0, 0, 0, 1]  # too short for a word


def test_the_longest_common_subsequence_bounds_identity() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = ("".join(rng.choice(list("ACDE"), int(n))) for n in rng.integers(1, 80, 2))
        assert global_identity(a, b) * min(len(a), len(b)) <= LCSseq.similarity(a, b) + 1e-9


def test_refused_clusters() -> None:
    assert clusters([]).tolist() == []
    with pytest.raises(ConfigError, match="identity=70"):
        clusters(["MK"], 70)
    with pytest.raises(DataError, match="2 and 3 columns"):
        clusters(["MK", "MKT"], aligned=True)


def test_profile_is_counted() -> None:
    profile = Profile(["AC-", "AD-", "AX-"], pseudo=0.5)
    p = profile.probabilities
    assert p.shape == (3, 21) and np.allclose(p.sum(1), 1)
    assert np.allclose(p[0, 0], 3.5 / (3 + 21 * 0.5)) and np.allclose(p[1, [1, 2, 3]], np.array([1.5, 1.5, 0.5]) / 12.5)
    assert np.allclose(p[2, 20], 3.5 / 13.5)
    assert profile.nll("AC-") == pytest.approx(-np.log([3.5 / 13.5, 1.5 / 12.5, 3.5 / 13.5]).mean())
    assert profile.nll("XC-") == pytest.approx(-np.log([1.5 / 12.5, 3.5 / 13.5]).mean())
    for bad in ("AC", "XXX"):
        with pytest.raises(DataError):
            profile.nll(bad)
    with pytest.raises(DataError, match="sequence 2: 1 columns, expected 2 as in the first"):
        Profile(["AC", "A"])


def test_profile_samples_its_own_frequencies() -> None:
    rows = mutants(40, 6, seed=3)
    profile = Profile(rows)
    n = 4000
    drawn = profile.sample(n, seed=5)
    assert drawn == profile.sample(n, seed=5) and drawn[:20] != profile.sample(20, seed=6)
    seen = Profile(drawn, pseudo=1e-9).probabilities
    p = profile.probabilities
    assert (np.abs(seen - p) <= 6 * np.sqrt(p * (1 - p) / n)).all()  # 126 figures: two-sided chance below 1e-6
    entropy = -(p * np.log(p)).sum(1).mean()
    assert np.mean([profile.nll(row) for row in drawn]) == pytest.approx(entropy, abs=0.05)


def test_split_keeps_clusters_together(write: Write) -> None:
    rows = mutants(150, 24, seed=8)
    path = write(*rows)
    parts = {split: Family(path, split, max_gaps=1) for split in ("train", "test", "all")}  # type: ignore[arg-type]
    ids = {split: [family[i]["id"] for i in range(len(family))] for split, family in parts.items()}
    assert set(ids["train"]) | set(ids["test"]) == set(ids["all"]) and not set(ids["train"]) & set(ids["test"])
    assert len(ids["test"]) == round(0.12 * len(ids["all"]))  # single rows are there to fill it up
    found = dict(zip(ids["all"], parts["all"].clusters.tolist(), strict=True))
    assert not {found[id] for id in ids["train"]} & {found[id] for id in ids["test"]}
    for split, family in parts.items():
        assert [found[id] for id in ids[split]] == family.clusters.tolist()
    again = Family(path, "test", max_gaps=1, seed=1)
    assert [again[i]["id"] for i in range(len(again))] != ids["test"]
    assert ids["test"] == KNOWN  # whatever the process, and the seed of its hashes
    copy = pickle.loads(pickle.dumps(parts["test"]))
    assert copy[0] == parts["test"][0] and copy.length(0) == 24


def test_rows_of_a_family(write: Write) -> None:
    path = write("MK-Vaa", "MKTV..", "MKTVcc", "M--V..", "MKXV", "WWWWee", name="x.a3m")
    family = Family(path, "all", max_gaps=0.25)
    assert [family[i]["sequence"] for i in range(len(family))] == ["MK-V", "MKTV", "WWWW"]
    assert family[1] == {"id": "r1", "description": "row", "sequence": "MKTV", "where": f"{path} record 2 (r1)"}
    assert family.dropped == {"duplicates": 1, "gaps": 1, "unknown letters": 1} and family.columns == 4
    residues = Family(path, "all", aligned=False, max_gaps=0.25)
    assert [residues[i]["sequence"] for i in range(len(residues))] == ["MKVAA", "MKTV", "WWWWEE"]
    assert residues.clusters.tolist() == family.clusters.tolist() == [0, 0, 1]  # MKTV comes first, MK-V joins it
    short = Family(path, "all", aligned=False, max_gaps=0.25, max_length=5)
    assert [short[i]["id"] for i in range(len(short))] == ["r0", "r1"] and short.dropped["length"] == 1
    for split in ("train", "test"):
        a = Family(path, split, max_gaps=0.25, test_share=0.4)
        b = Family(path, split, aligned=False, max_gaps=0.25, test_share=0.4)
        assert [row["id"] for row in a] == [row["id"] for row in b]


@pytest.mark.needs("Bio")
def test_unaligned_family() -> None:
    train, test = (Family(str(GLOBINS), split, aligned=False) for split in ("train", "test"))  # type: ignore[arg-type]
    assert len(train) + len(test) == 45 and 1 <= len(test) <= round(0.12 * 45) and train.columns is None
    wanted = {r.id: r.sequence for r in read_fasta(GLOBINS)}
    assert {row["id"]: row["sequence"] for family in (train, test) for row in family} == wanted
    with pytest.raises(DataError, match=r"record 7 \(MYG_MUSAN\): 148 match columns .* first record has 153"):
        Family(str(GLOBINS))


def test_refused_families(write: Write) -> None:
    path = write("MKTV", "MKTV-"[:4], "MKTA")
    with pytest.raises(ConfigError, match="split: 'trian' .*\\(did you mean \"train\""):
        Family(path, "trian")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="test_share=0"):
        Family(path, test_share=0)
    with pytest.raises(DataError, match="2 rows make 1 clusters at identity 0.7, none small enough"):
        Family(path)
    with pytest.raises(DataError, match="no row has at most 3 letters"):
        Family(path, "all", max_length=3)


def test_toy_twin() -> None:
    node = {"target": "mmdiff.tasks.protein.data.alignments.Family", "path": "not/there.afa", "max_length": 10}
    sizes = {}
    for aligned in (True, False):
        for split in ("train", "test", "all"):
            family = build({**node, "split": split, "aligned": aligned}, toy=True)
            sizes[split] = len(family)
            assert len(family[0]["sequence"]) == (24 if aligned else 23)
        assert sizes == {"train": 28, "test": 4, "all": 32}


def test_kunitz() -> None:
    """Counts of the file, by other means than these."""
    if not KUNITZ.is_file():
        pytest.skip(f"{KUNITZ} is not there")
    alignment = read_alignment(KUNITZ)
    assert (len(alignment.ids), alignment.columns) == (4914, 53)
    assert len({r.sequence for r in read_fasta(KUNITZ)}) == 3644
    test = Family(str(KUNITZ), "test")
    dropped = {"duplicates": 4914 - 3617, "gaps": 173, "unknown letters": 5}
    assert test.dropped == dropped and len(test) == 413 == round(0.12 * (4914 - sum(dropped.values())))
    p = Profile(alignment.sequences).probabilities[:, CANONICAL.index("C")]
    assert np.flatnonzero(p > 0.6).tolist() == [1, 10, 26, 34, 47, 51]  # the six cysteines of three bridges


def test_test_rows_apart_from_all_training_rows(write: Write) -> None:
    """By the definition, row by row; the training rows are the same as without."""
    path = write(*mutants(150, 40, 1))
    train, test = (Family(path, split, max_gaps=0.5) for split in ("train", "test"))  # type: ignore[arg-type]
    apart = Family(path, "test", max_gaps=0.5, apart=True)
    known = [row["sequence"] for row in train]
    far = [row for row in test if max(identity(row["sequence"], other) for other in known) < 0.7]
    assert [row["id"] for row in apart] == [row["id"] for row in far]
    assert 0 < len(far) < len(test) and apart.dropped["close"] == len(test) - len(far)
    same = Family(path, "train", max_gaps=0.5, apart=True)
    assert [row["id"] for row in same] == [row["id"] for row in train]
