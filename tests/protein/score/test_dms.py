"""Mutants against a joint distribution that is enumerated, and transformers' own model one mask at a time."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import by_query
from oracle import head
from paths import SHARED
from torch import Tensor

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import TOKENS, tokenizer
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import Full
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, DataError
from mmdiff.model.scorer import Scores, score
from mmdiff.session import Session
from mmdiff.tasks.protein.residues import CANONICAL
from mmdiff.tasks.protein.score import mutants as scoring
from mmdiff.tasks.protein.score.dms import (
    METHODS,
    Mutation,
    parse_mutant,
    read_scan,
    scan,
    scan_text,
    score_mutants,
    site_profile,
)
from mmdiff.tasks.protein.score.log_probs import bounds, canvas
from mmdiff.tasks.protein.score.sequences import score_sequences
from mmdiff.tasks.protein.task import Protein

LETTER = {letter: k for k, letter in enumerate(CANONICAL)}
ID_K = [TOKENS.index(letter) for letter in CANONICAL]
DLG4 = SHARED / "data/protein/small/DLG4_RAT_Ranganathan2012.csv"


def tiny(folder: Path) -> Session:
    torch.manual_seed(1)
    backbone = new_backbone(
        family="esm", tokenizer=tokenizer(), hidden_size=16, layers=2, heads=2, max_length=64, init_std=0.4
    )
    return Session(MMDiff(backbone), Protein(), GenerationConfig(), folder)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return tiny(tmp_path_factory.mktemp("model"))


class Exact:
    """p(x_i | what is not masked of x) of a joint distribution of three residues, in the place of a model."""

    device = torch.device("cpu")
    attention = Full()
    training = False
    readers: dict[str, Any] = {}

    def __init__(self, vocab: Any, seed: int = 0) -> None:
        self.vocab = vocab
        generator = torch.Generator().manual_seed(seed)
        joint = torch.rand(20, 20, 20, generator=generator, dtype=torch.float64).pow(4)
        self.joint = joint / joint.sum()

    def eval(self) -> None: ...
    def modules(self) -> list[Any]:
        return [self]

    def log_p(self, sequence: str) -> float:
        return float(self.joint[tuple(LETTER[letter] for letter in sequence)].log())

    def _logits(self, ids_L: Tensor) -> Tensor:
        """(L, V): a residue that is seen is asked about as if it were masked. All else gets what must be left out."""
        out_LV = torch.full((len(ids_L), self.vocab.size), 50.0, dtype=torch.float64)
        for position in range(3):
            p = self.joint
            for other in range(3):
                i = int(ids_L[1 + other])
                if other != position and i != self.vocab.mask_id:
                    p = p.index_select(other, torch.tensor([ID_K.index(i)]))
            out_LV[1 + position, ID_K] = p.sum([d for d in range(3) if d != position]).log()
        return out_LV

    def denoiser(self, batch: Batch) -> Callable[..., Tensor]:
        @by_query
        def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Any = None) -> Tensor:
            return torch.stack([self._logits(ids_L) for ids_L in ids_RL])[predict_RL]

        return denoise

    def encode(self, media: Any) -> dict[str, Tensor]:
        return {}

    def hidden(self, ids_RL: Tensor, *rest: Any) -> Tensor:
        return torch.stack([self._logits(ids_L) for ids_L in ids_RL])

    def score(self, h_RLD: Tensor, batch: Batch, masked_RL: Tensor, row_R: Tensor | None = None, **how: Any) -> Scores:
        backbone: Any = SimpleNamespace(head=head, linear_head=None)
        return score(backbone, h_RLD[masked_RL], batch, masked_RL, row_R, chunk=4096, **how)


@pytest.fixture(scope="module")
def exact(session: Session) -> Session:
    model: Any = Exact(session.model.vocab)
    return Session(model, Protein(), GenerationConfig(), session.folder)


# Spelling


def test_mutants_are_read() -> None:
    assert parse_mutant("A1P", "ADK") == [(0, "A", "P")]
    assert parse_mutant("A1P:D2N", "ADK") == parse_mutant(" A1P, D2N", "ADK") == [(0, "A", "P"), (1, "D", "N")]
    assert parse_mutant("D312N", "ADK", offset=311) == parse_mutant("D-1N", "ADK", -2) == [Mutation(1, "D", "N")]
    assert parse_mutant("A1A", "ADK") == [(0, "A", "A")]
    assert parse_mutant("WT", "ADK") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C2N", "mutant 'C2N': position 2: C, but the wild type has D"),
        ("A1P:D4N", "mutant 'A1P:D4N': position 4 is not there, expected 1 to 3"),
        ("A0P", "mutant 'A0P': position 0 is not there, expected 1 to 3"),
        ("A1X", "mutant 'A1X': 'A1X': 'X' is none of ACDEFGHIKLMNPQRSTVWY"),
        ("A1p", "mutant 'A1p': 'A1p': 'p' is none of ACDEFGHIKLMNPQRSTVWY"),
        ("A1P:A1G", "mutant 'A1P:A1G': position 1 is named twice"),
        ("A1P:", "mutant 'A1P:': '', expected residue, position, residue, as in A1P:D2N"),
        ("", "mutant '': '', expected residue, position, residue, as in A1P:D2N"),
        ("Ala1Pro", "mutant 'Ala1Pro': 'Ala1Pro', expected residue, position, residue, as in A1P:D2N"),
    ],
)
def test_what_is_no_mutant_of_the_wild_type(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_mutant(text, "ADK")
    assert str(caught.value) == message


# Scores


def test_where_the_model_is_exact_so_are_the_scores(exact: Session) -> None:
    joint: Exact = exact.model  # type: ignore[assignment]
    wild = "ADK"
    single = ["A1P", "D2N", "K3W"]
    gain = [joint.log_p(s) - joint.log_p(wild) for s in ("PDK", "ANK", "ADW")]
    for method in ("masked_marginal", "chain", "wt_marginal"):  # the stand-in never looks at what it is asked about
        assert score_mutants(exact, wild, single, method) == pytest.approx(gain, rel=1e-5)
    double, triple = "A1P:D2N", "K3W:A1P:D2N"
    truth = [joint.log_p("PNK") - joint.log_p(wild), joint.log_p("PNW") - joint.log_p(wild)]
    for orders in (1, 2, 6):  # by the chain rule, whatever the order
        assert score_mutants(exact, wild, [double, triple], "chain", orders=orders) == pytest.approx(truth, rel=1e-5)
    p_K = joint.joint[:, :, LETTER["K"]]
    one, other = p_K.sum(1), p_K.sum(0)
    jointly = one[LETTER["P"]] / one[LETTER["A"]] * other[LETTER["N"]] / other[LETTER["D"]]
    assert score_mutants(exact, wild, [double], "masked_marginal") == pytest.approx([math.log(jointly)], rel=1e-5)
    assert score_mutants(exact, wild, [double], "wt_marginal") == pytest.approx([gain[0] + gain[1]], rel=1e-5)

    def pseudo(sequence: str) -> float:
        at = [LETTER[letter] for letter in sequence]
        whole = joint.joint[tuple(at)]
        others = [joint.joint[:, at[1], at[2]], joint.joint[at[0], :, at[2]], joint.joint[at[0], at[1], :]]
        return sum(float((whole / p.sum()).log()) for p in others)

    found = score_mutants(exact, wild, [*single, triple], "pseudo_likelihood")
    assert found == pytest.approx([pseudo(s) - pseudo(wild) for s in ("PDK", "ANK", "ADW", "PNW")], rel=1e-5)


def test_the_bound_of_an_exact_model_is_right_in_the_mean(exact: Session) -> None:
    joint: Exact = exact.model  # type: ignore[assignment]
    draws = [score_mutants(exact, "ADK", ["A1P:D2N"], "bound", seed=seed)[0] for seed in range(200)]
    truth, error = joint.log_p("PNK") - joint.log_p("ADK"), np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - truth) < 4 * error and 0 < error < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_what_mutates_nothing_scores_0(method: str, session: Session) -> None:
    mutants = ["M1M", "WT", "M1M:K2K", "K2R", "M1M:K2R"]
    *nothing, one, same = score_mutants(session, "MKTAYIAK", mutants, method)
    assert nothing == [0.0, 0.0, 0.0] and one == same != 0.0


def log_p(session: Session, sequence: str, masked: list[int]) -> np.ndarray:
    """(N, 20) by transformers' class alone, one canvas."""
    ids = [0, *(TOKENS.index(letter) for letter in sequence), 2]
    for n in masked:
        ids[1 + n] = 32
    with torch.no_grad():
        logits = session.model.backbone.model(input_ids=torch.tensor([ids])).logits[0, 1:-1]
    return np.asarray(logits[:, ID_K].log_softmax(-1))


def test_marginals_are_those_of_a_plain_loop(session: Session) -> None:
    wild = "MKTAYIXAK"
    seen = log_p(session, wild, [])
    for mutant in ("M1A", "T3W", "K9G", "M1A:Y5C:K9G"):
        sites = parse_mutant(mutant, wild)
        by_hand = sum(seen[m.at, LETTER[m.new]] - seen[m.at, LETTER[m.old]] for m in sites)
        assert score_mutants(session, wild, [mutant], "wt_marginal") == pytest.approx([by_hand], abs=1e-4)
        hidden = log_p(session, wild, [m.at for m in sites])
        by_hand = sum(hidden[m.at, LETTER[m.new]] - hidden[m.at, LETTER[m.old]] for m in sites)
        assert score_mutants(session, wild, [mutant], "masked_marginal") == pytest.approx([by_hand], abs=1e-4)


def test_the_chain_over_two_sites_is_the_mean_of_both_orders(session: Session) -> None:
    wild, mutant = "MKTAYIAK", "MRTAYWAK"
    sites = {1: ("K", "R"), 5: ("I", "W")}
    orders = []
    for first, second in permutations(sites):
        total = 0.0
        for which, sign, sequence in ((1, 1, mutant), (0, -1, wild)):
            both, last = log_p(session, sequence, [1, 5]), log_p(session, sequence, [second])
            total += sign * (both[first, LETTER[sites[first][which]]] + last[second, LETTER[sites[second][which]]])
        orders.append(total)
    assert abs(orders[0] - orders[1]) > 1e-3
    assert score_mutants(session, wild, ["K2R:I6W"], "chain", orders=2) == pytest.approx([np.mean(orders)], abs=1e-4)
    drawn = [score_mutants(session, wild, ["K2R:I6W"], "chain", orders=1, seed=seed)[0] for seed in range(8)]
    assert {min(range(2), key=lambda k: abs(orders[k] - one)) for one in drawn} == {0, 1}
    assert all(min(abs(one - order) for order in orders) < 1e-4 for one in drawn)
    assert drawn[0] == score_mutants(session, wild, ["M1A", "I6W:K2R"], "chain", orders=1, seed=0)[1]


def test_differences_are_those_of_whole_sequences(session: Session) -> None:
    wild, mutant = {"sequence": "MKTXAYIAK"}, {"sequence": "MRTXAYWAK"}
    a, b = (
        next(iter(score_sequences(session, [row], levels=5, seed=2, per_residue=True))) for row in (wild, mutant)
    )  # both are record 0, so their noise is one
    named: dict[str, Any] = {"levels": 5, "seed": 2}
    (found,) = score_mutants(session, wild["sequence"], ["K2R:I7W"], "bound", **named)
    assert found == pytest.approx(a["bound_nats"] - b["bound_nats"], abs=1e-4)
    (found,) = score_mutants(session, wild["sequence"], ["K2R:I7W"], "pseudo_likelihood")
    sums = [sum(p for p in record["log_p"] if p is not None) for record in (a, b)]
    assert found == pytest.approx(sums[1] - sums[0], abs=1e-4)
    other = bounds(session.model, [canvas(session, mutant, CANONICAL)], [1], **named)[0]
    assert abs(other - b["bound_nats"]) > 1e-3  # under other noise it is another figure


@pytest.mark.parametrize("method", METHODS)
def test_batches_and_company_change_nothing(method: str, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = "MKTAYIAK"
    mutants = ["K2R", "T3W:Y5C", "M1A:K2R:T3W:A4G", "K2W", "K8G", "K2R", "Y5D:T3A"]
    whole = score_mutants(session, wild, mutants, method, target="GAV")
    assert len({round(s, 4) for s in whole}) == 6 and whole[0] == whole[5]
    assert score_mutants(session, wild, mutants, method, target="GAV", tokens=1) == pytest.approx(whole, abs=1e-4)
    assert score_mutants(session, wild, mutants, method) != pytest.approx(whole, abs=1e-2)
    monkeypatch.setattr(scoring, "WINDOW", 2)
    turned = score_mutants(session, wild, mutants[::-1], method, target="GAV", tokens=40)
    assert turned[::-1] == pytest.approx(whole, abs=1e-4)
    numbered = [[(Mutation(m.at, m.old, m.new)) for m in parse_mutant(text, wild)] for text in mutants]
    assert score_mutants(session, wild, numbered, method, target="GAV", offset=7) == pytest.approx(whole, abs=1e-4)


def test_forwards_are_shared(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    inner = session.model.hidden

    def spy(ids_RL: Tensor, *rest: Any, **named: Any) -> Tensor:
        rows.append(len(ids_RL))
        return inner(ids_RL, *rest, **named)

    monkeypatch.setattr(session.model, "hidden", spy)

    def forwards(method: str, mutants: list[str]) -> int:
        rows.clear()
        score_mutants(session, "MKTAYIAK", mutants, method)
        return sum(rows)

    every = [f"K2{letter}" for letter in CANONICAL if letter != "K"]
    doubles = [f"K2{letter}:A4{letter}" for letter in "CDE"]
    assert forwards("wt_marginal", [*every, *doubles]) == 1
    assert forwards("masked_marginal", [*every, "T3W", *doubles]) == 3
    # both masked; for either order, the wild type's and three mutants' last site
    assert forwards("chain", doubles) == 1 + 2 * (1 + 3)
    assert forwards("pseudo_likelihood", ["K2R", "K2R", "K2W"]) == 3 * 8


def test_arguments(session: Session) -> None:
    with pytest.raises(ConfigError, match=r'^method: \'masked_marginals\' \(did you mean "masked_marginal"\?\)$'):
        score_mutants(session, "MK", ["M1A"], "masked_marginals")
    with pytest.raises(ConfigError, match="orders=0: expected a whole number of at least 1$"):
        score_mutants(session, "MK", ["M1A"], "chain", orders=0)
    with pytest.raises(DataError, match="position 1: A, but the wild type has M"):
        score_mutants(session, "MK", ["A1M"])
    assert score_mutants(session, "MK", []) == []


# Files


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_proteingym(tmp_path: Path) -> None:
    text = (
        "mutant,mutated_sequence,DMS_score,DMS_score_bin\n"
        'A1P,PDK,0.5,1\nA1P:D2N,PNK,-1,0\n"A1P,K3W",PDW,,0\nA1A,ADK,0.1,1\nD2W,AWK,NaN,1\nWT,ADK,0,1\n'
    )
    file = tmp_path / "g.csv.gz"
    file.write_bytes(gzip.compress(text.encode()))
    found = read_scan(file)
    assert (found.wild_type, found.offset, found.note) == ("ADK", 1, "from mutated_sequence")
    assert found.names == ["A1P", "A1P:D2N", "A1P,K3W", "D2W"] and (found.rows, found.synonymous) == (6, 2)
    assert found.mutants[1] == [(0, "A", "P"), (1, "D", "N")]
    assert list(found.scores) == ["DMS_score"]
    np.testing.assert_equal(found.scores["DMS_score"], [0.5, -1.0, math.nan, math.nan])
    assert list(read_scan(file, score_column=["DMS_score_bin", "DMS_score"]).scores) == ["DMS_score_bin", "DMS_score"]
    assert read_scan(file, "ADK").note == "given"


def test_a_wild_type_of_the_mutants_letters(tmp_path: Path) -> None:
    file = write(tmp_path / "d.csv", "mutant,a,note,b\nA311P,1,x,\nD312N,2,y,0.5\nA311A,3,z,1\n")
    found = read_scan(file)
    assert (found.wild_type, found.offset) == ("AD", 311)
    assert found.note == "from the mutants' own letters, positions 311-312"
    assert list(found.scores) == ["a", "b"]  # `note` has no figures
    np.testing.assert_equal(found.scores["b"], [math.nan, 0.5])
    assert (found.rows, found.synonymous) == (3, 1)
    assert found.mutants == [[(0, "A", "P")], [(1, "D", "N")]]
    given = read_scan(file, "MAD", offset=310)
    assert given.mutants == [[(1, "A", "P")], [(2, "D", "N")]]


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        ("mutant,a\nA1P,1\nA3P,1\n", {}, "f.csv: position 2 is in no mutant, so the wild type is not known; expected "),
        ("mutant,a\nA1P,1\n", {"offset": 2}, "f.csv: position 1 comes before the offset, so the wild type is not"),
        ("mutant,a\nA3P,1\n", {"offset": 2}, "f.csv: position 2 is in no mutant"),
        ("mutant,a\nA1P,1\nC1P,1\n", {}, "f.csv line 3: position 1: C, but A in a line before"),
        ("mutant,a\nA1P,1\nA1,1\n", {}, "f.csv line 3: mutant 'A1': 'A1', expected residue"),
        ("mutant,a\nA1P,1\nD2C,1\n", {"wild_type": "AK"}, "f.csv line 3: mutant 'D2C': position 2: D, but the wild"),
        ("mutant,a\nA1P,1\n,1\n", {}, "f.csv line 3: mutant '': '', expected"),
        ("mutant,a\nA1A,1\n", {}, "f.csv: no row mutates anything"),
        ("mutant,a\nA1P,one\n", {}, "f.csv: no column of figures"),
        ("mutant,a\nA1P,one\n", {"score_column": "a"}, "f.csv line 2: a: 'one', expected a number or nothing"),
        ("mutant,a\nA1P,1\n", {"score_column": "b"}, "f.csv: no column 'b'"),
        ("mutants,a\nA1P,1\n", {}, "f.csv line 1: no column 'mutant' \\(did you mean \"mutants\"\\?\\)"),
        ("mutant,mutated_sequence,a\nA1P,GDK,1\n", {}, "line 2: position 1: P in the mutant, G in mutated_sequence"),
        ("mutant,mutated_sequence,a\nA9P,PDK,1\n", {}, "line 2: position 9: P in the mutant, nothing in mutated_seq"),
        ("mutant,mutated_sequence,a\nA1P,PDK,1\nD2N,ANW,1\n", {}, "line 3: mutated_sequence comes of another wild"),
    ],
)
def test_files_that_are_no_scans(text: str, named: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "f.csv", text)
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        read_scan(file, **named)
    assert "\n" not in str(caught.value)


# Scans


def made_scan(session: Session, tmp_path: Path) -> Any:
    """Every single mutant of three sites; `same` is what the model says, `noise` is not, `flat` is all one figure."""
    wild = "MKT"
    names = [f"{old}{n + 1}{new}" for n, old in enumerate(wild) for new in CANONICAL if new != old]
    said = score_mutants(session, wild, names)
    rng = np.random.default_rng(0)
    rows = [f"{name},{-2 * s},{rng.integers(4)},1" for name, s in zip(names, said, strict=True)]
    rows[5] = rows[5].rsplit(",", 2)[0] + ",,1"
    return read_scan(write(tmp_path / "s.csv", "mutant,same,noise,flat\n" + "\n".join(rows) + "\n"))


@pytest.mark.needs("scipy", "Bio")
def test_correlations(session: Session, tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    measured = made_scan(session, tmp_path)
    found = scan(session, measured, ["masked_marginal", "wt_marginal"])
    assert json.loads(json.dumps(found)) == found
    same, noise, flat = (found["columns"][name] for name in ("same", "noise", "flat"))
    assert list(same["spearman"]) == ["masked_marginal", "wt_marginal", "blosum62", "unigram"]
    assert same["spearman"]["masked_marginal"] == pytest.approx(-1)
    assert (same["n"], same["missing"], noise["n"], noise["missing"]) == (57, 0, 56, 1)
    kept = [row for row in found["mutants"] if row["noise"] is not None]
    assert len(kept) == 56 and list(kept[0])[:4] == ["mutant", "same", "noise", "flat"]
    for name, rho in noise["spearman"].items():  # ties in the figures, and in BLOSUM62
        assert rho == pytest.approx(spearmanr([r["noise"] for r in kept], [r[name] for r in kept]).statistic)
    low, high = noise["random"]  # the variance of a shuffled rank correlation is 1 / (n - 1), near normal
    assert low == pytest.approx(-1.96 / math.sqrt(55), abs=0.04) and high == pytest.approx(-low, abs=0.05)
    assert set(flat["spearman"].values()) == {None} and flat["random"] == [None, None]
    text = scan_text(found)
    assert "masked_marginal    -1.000" in text and "blosum62" in text and "n = 56 (1 without a figure)" in text
    assert "3 residues, 1-3, from the mutants' own letters, positions 1-3" in text
    with pytest.raises(ConfigError, match="^methods: 'mask'"):
        scan(session, measured, ["mask"])


@pytest.mark.needs("scipy", "Bio")
def test_baselines(session: Session, tmp_path: Path) -> None:
    measured = read_scan(write(tmp_path / "s.csv", "mutant,a\nM1L,1\nK2W:T3S,2\nK2R,3\n"))
    alignment = ["-MK-T", "LL-AS", "-MRAT", "-LRAX"]
    found = scan(session, measured, [], alignment=alignment)
    one, two, three = found["mutants"]
    assert [row["blosum62"] for row in (one, two, three)] == [2, -3 + 1, 2]
    assert found["composition"] == "alignment"
    # letters of the alignment: L3 M2 K1 R2 T2 S1 A3, and one of each of the 20 is added: 14 + 20
    unigram = {letter: (count + 1) / 34 for letter, count in {"M": 2, "L": 3, "K": 1, "R": 2, "T": 2, "S": 1}.items()}
    assert one["unigram"] == pytest.approx(math.log(unigram["L"] / unigram["M"]))
    # the wild type's residues are the columns 2, 3 and 5; a column starts with half a letter of each
    assert one["profile"] == pytest.approx(math.log(2.5 / 2.5))
    assert three["profile"] == pytest.approx(math.log(2.5 / 1.5))
    double = math.log(0.5 / 1.5) + math.log(1.5 / 2.5)
    assert two["profile"] == pytest.approx(double)
    plain = scan(session, measured, [])
    assert plain["composition"] == "Swiss-Prot" and "profile" not in plain["mutants"][0]
    assert plain["mutants"][0]["unigram"] == pytest.approx(math.log(9.65 / 2.41))


def test_columns_of_an_alignment() -> None:
    whole = site_profile(["MKT", "MRT"], "MKT")
    np.testing.assert_allclose(whole.sum(1), 1)
    stretch = site_profile(["-KT", "WRT"], "MKTA")  # one row is a stretch of the wild type
    assert stretch[1].argmax() in (LETTER["K"], LETTER["R"]) and stretch[2].argmax() == LETTER["T"]
    np.testing.assert_allclose(stretch[0], stretch[3])  # sites it does not cover: the composition
    by_column = site_profile(["WRT", "WRC"], "MKT")
    assert by_column[0].argmax() == LETTER["W"]
    with pytest.raises(ConfigError, match="^alignment: 2 columns, the wild type 3 residues, and no row is the wild"):
        site_profile(["WR"], "MKT")


@pytest.mark.needs("scipy", "Bio")
def test_names_that_clash(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^score column 'bound' has the name of a method; rename it$"):
        scan(session, read_scan(write(tmp_path / "s.csv", "mutant,bound\nM1L,1\n")))


@pytest.mark.needs("scipy", "Bio")
@pytest.mark.skipif(not DLG4.is_file(), reason="no DLG4 scan beside the checkout")
def test_a_real_scan(session: Session) -> None:
    measured = read_scan(DLG4)
    assert (measured.offset, len(measured.wild_type), measured.rows, measured.synonymous) == (311, 83, 1660, 83)
    assert measured.wild_type.startswith(
        "PRRIVIHRGSTGLGFNIVGGEDGEGIFISFILAGGPADLSGELRKGDQILSVNGVDLRNASHEQAAIALKNAGQTVTIIAQ"
    )
    found = scan(session, measured, ["wt_marginal", "masked_marginal"])
    cript = found["columns"]["CRIPT"]
    assert cript["n"] == 1577 and list(found["columns"]) == ["CRIPT", "Tm2F"]
    assert cript["spearman"]["blosum62"] > 0.2 > cript["random"][1]
    assert abs(cript["spearman"]["masked_marginal"]) < 0.3  # random weights
