"""Mask filling, its baselines and everything of a model in one call: models whose answers are known, and real ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import SHARED
from torch import Tensor

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, DataError
from mmdiff.session import Session
from mmdiff.tasks.protein.data.alignments import Profile, background
from mmdiff.tasks.protein.design.control import bounds
from mmdiff.tasks.protein.evaluate.alignment_score import alignment_scores
from mmdiff.tasks.protein.evaluate.evaluate import baselines, bound_per_residue, evaluate_model, kept, mask_filling
from mmdiff.tasks.protein.evaluate.intervals import of_share
from mmdiff.tasks.protein.evaluate.mask_filling import filled, hidden, sequences
from mmdiff.tasks.protein.evaluate.page import tables_of
from mmdiff.tasks.protein.residues import CANONICAL, GAP, Residues, codes
from mmdiff.tasks.protein.task import Protein

pytestmark = pytest.mark.needs("Bio")

LETTERS = CANONICAL + GAP
KUNITZ = SHARED / "data/protein/family/kunitz_PF00014.afa"


def tiny(letters: str = CANONICAL, seed: int = 0) -> Session:
    torch.manual_seed(seed)
    backbone = new_backbone(family="esm", tokenizer=tokenizer(), hidden_size=16, layers=1, heads=2, max_length=128)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)  # so that positions and rows differ
    sampler = GenerationConfig(temperature=1.0, remasking="random")
    return Session(MMDiff(backbone).eval(), Protein(letters), sampler, Path("nowhere"))


class Known(torch.nn.Module):
    """A model with `log_CK`, fixed logits of letters by column, behind `<cls>`."""

    def __init__(self, log_CK: Any, letters: str) -> None:
        super().__init__()
        self.vocab = tiny().model.vocab
        self.device, self.logit_chunk = torch.device("cpu"), 7
        self.readers: dict[str, Any] = {}
        residues = Residues(self.vocab)
        self.logits_CV = torch.full((len(log_CK), self.vocab.size), 50.0)  # what is no residue must not be said
        for k, letter in enumerate(letters):
            self.logits_CV[:, residues.id_of[letter]] = torch.as_tensor(log_CK[:, k]).float()
        self.backbone = SimpleNamespace(head=lambda column_P: self.logits_CV[column_P])

    def encode(self, media: Any) -> dict[str, Tensor]:
        return {}

    def hidden(self, ids_BL: Tensor, batch: Any, features: Any, rows_B: Tensor) -> Tensor:
        return (torch.arange(ids_BL.shape[1]) - 1).expand(ids_BL.shape)

    def gather(self, h_BL: Tensor, row_P: Tensor, position_P: Tensor) -> Tensor:
        return h_BL[row_P, position_P]


def known(log_CK: Any, letters: str = LETTERS) -> Session:
    return Session(Known(log_CK, letters), Protein(letters), GenerationConfig(), Path("nowhere"))  # type: ignore[arg-type]


def family(n: int, columns: int = 12, seed: int = 0) -> list[str]:
    """Columns with their own two or three letters, gaps among them; every third column is conserved."""
    sets = ["ACD", "EF-", "G", "HIK", "LM", "N", "P-", "QR", "S"]
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(sets[c % len(sets)])) for c in range(columns)) for _ in range(n)]


def rows(sequences: Sequence[str]) -> list[dict[str, str]]:
    return [{"id": f"s{i}", "sequence": s} for i, s in enumerate(sequences)]


def close(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, Mapping):
            close(value, b[key], tolerance)
        else:
            assert value == pytest.approx(b[key], abs=tolerance, nan_ok=True), key


# Hidden positions


def test_hidden_places_are_nested_and_as_many_as_asked() -> None:
    n, records = 200, 50
    counts = {rate: 0 for rate in (0.05, 0.5, 0.9)}
    for record in range(records):
        few, half, most = (hidden(record, n, rate, 3) for rate in counts)
        assert (few <= half).all() and (half <= most).all()
        for rate, mask_N in zip(counts, (few, half, most), strict=True):
            counts[rate] += int(mask_N.sum())
    for rate, count in counts.items():
        assert abs(count / (n * records) - rate) < 5 * math.sqrt(rate * (1 - rate) / (n * records))
    assert hidden(0, n, 1, 3).all() and (hidden(7, n, 0.5, 3) != hidden(8, n, 0.5, 3)).any()
    assert (hidden(7, n, 0.5, 3) != hidden(7, n, 0.5, 4)).any()


# Models whose answers are known


def test_a_model_that_knows_the_profile_scores_as_the_profile() -> None:
    """Two implementations of one thing: canvases, masks and logits of a model, and counts by column."""
    train, test = family(60), family(25, seed=1)
    session = known(np.log(Profile(train).probabilities))
    found = mask_filling(session, rows(test), (0.15, 0.5, 1.0), aligned=True, train=train, tokens=100)
    below = baselines(train, test, (0.15, 0.5))
    for rate in ("0.15", "0.5", "1"):
        shared = {key: value for key, value in found[rate].items() if key in below["profile"][rate]}
        close(shared, below["profile"][rate])
        assert {"f1", "mcc", "column_nll", "accuracy_se"} <= shared.keys()
    for rate in ("0.15", "0.5"):
        assert found[rate]["unigram_accuracy"] == pytest.approx(below["unigram"][rate]["accuracy"])
        assert found[rate]["unigram_nll"] == pytest.approx(below["unigram"][rate]["nll"])


def test_baselines_by_hand() -> None:
    train, test = family(40), family(10, seed=2)
    profile_CK, share_K = Profile(train).probabilities, background(train, LETTERS)
    found = baselines(train, test, (0.3,), seed=5)
    right = {"unigram": 0, "profile": 0, "nearest": 0}
    nll = {"unigram": 0.0, "profile": 0.0}
    n = 0
    for i, sequence in enumerate(test):
        mask_C = hidden(i, len(sequence), 0.3, 5)
        seen = [c for c in range(len(sequence)) if not mask_C[c]]
        nearest = max(train, key=lambda t: sum(t[c] == sequence[c] for c in seen))  # the first of the best
        for c in np.flatnonzero(mask_C):
            if sequence[c] == GAP:
                continue
            k, n = LETTERS.index(sequence[c]), n + 1
            right["unigram"] += share_K.argmax() == k
            right["profile"] += profile_CK[c].argmax() == k
            right["nearest"] += nearest[c] == sequence[c]
            nll["unigram"] -= math.log(share_K[k])
            nll["profile"] -= math.log(profile_CK[c, k])
    for name, count in right.items():
        assert found[name]["0.3"]["n"] == n and found[name]["0.3"]["accuracy"] == pytest.approx(count / n)
    for name, total in nll.items():
        assert found[name]["0.3"]["nll"] == pytest.approx(total / n)
    assert "nll" not in found["nearest"]["0.3"]
    every = np.mean([Profile(train).nll(sequence) for sequence in test])
    assert found["profile"]["1"]["column_nll"] == pytest.approx(every) and "1" not in found["unigram"]
    assert found["unigram"]["0.3"]["mcc"] == 0


def test_the_nearest_of_itself_is_right_everywhere() -> None:
    test = family(12)
    found = baselines([*family(8, seed=4), *test], test, (0.15,))
    assert found["nearest"]["0.15"]["accuracy"] >= 0.9  # another one may agree with all that is seen
    with pytest.raises(DataError, match="expected 12"):
        baselines(test, ["AC"])


def test_visible_residues_are_carried_over() -> None:
    """A model that says W everywhere: the score is that of the sequence with W at hidden positions only."""
    test = ["".join(np.random.default_rng(i).choice(list(CANONICAL), 40)) for i in range(6)]
    log_CK = np.where(np.array(list(CANONICAL)) == "W", 3.0, 0.0) * np.ones((40, 1))
    found = mask_filling(known(log_CK, CANONICAL), rows(test), (0.05, 0.5), seed=2)
    for rate in (0.05, 0.5):
        said = [
            "".join("W" if m else x for x, m in zip(s, hidden(i, 40, rate, 2), strict=True)) for i, s in enumerate(test)
        ]
        assert found[f"{rate:g}"]["alignment_score"] == pytest.approx(np.mean(alignment_scores(test, said)))
    share = sum(s[c] == "W" for i, s in enumerate(test) for c in np.flatnonzero(hidden(i, 40, 0.5, 2)))
    assert found["0.5"]["accuracy"] == pytest.approx(share / found["0.5"]["n"])
    assert found["0.05"]["alignment_score"] > 2 * found["0.5"]["alignment_score"]


def test_a_model_that_is_sure_of_the_truth_is_right() -> None:
    test = family(1)[0].replace(GAP, "W")
    log_CK = np.where(np.array(list(CANONICAL)) == np.array(list(test))[:, None], 40.0, 0.0)
    (found,) = mask_filling(known(log_CK, CANONICAL), rows([test]), (0.7,)).values()
    assert (found["accuracy"], found["alignment_score"]) == (1, 1) and found["nll"] < 1e-9
    assert found["f1"] == found["mcc"] == pytest.approx(1)
    assert found["alignment_floor"] < 1


def test_letters_besides_the_residues_are_context() -> None:
    log_CK = np.zeros((6, 20))
    (found,) = mask_filling(known(log_CK, CANONICAL), rows(["AXCU_D"]), (1.0,)).values()
    assert found["n"] == 3 and found["nll"] == pytest.approx(math.log(20))
    assert filled("AX_D", np.array([True, False, False, True]), codes("CW", LETTERS)) == "CX_W"


def test_what_cannot_be_asked() -> None:
    session = known(np.zeros((2, 20)), CANONICAL)
    with pytest.raises(ConfigError, match="rates: 1.5"):
        mask_filling(session, rows(["AC"]), (0.5, 1.5))
    with pytest.raises(DataError, match="no rows"):
        mask_filling(session, [])
    with pytest.raises(DataError, match="row 1: s1: residue 2"):
        mask_filling(session, rows(["AC", "A7"]))


# A real model


def test_batches_change_no_figure() -> None:
    session = tiny()
    rng = np.random.default_rng(0)
    test = rows(["".join(rng.choice(list(CANONICAL), int(n))) for n in rng.integers(5, 40, 14)])
    alone = mask_filling(session, test, (0.15, 0.7), tokens=1)
    close(alone, mask_filling(session, test, (0.15, 0.7), tokens=10**6))
    close(bound_per_residue(session, test, tokens=1), bound_per_residue(session, test, tokens=200))
    session.model.train()
    mask_filling(session, test[:2], (0.5,))
    assert session.model.training  # as it was


def test_the_target_of_a_binder_is_context() -> None:
    session = tiny()
    plain = mask_filling(session, rows(["ACDEFGHIKL"] * 3), (0.5,))["0.5"]
    with_target = [{**row, "target": "WWYY"} for row in rows(["ACDEFGHIKL"] * 3)]
    bound_to = mask_filling(session, with_target, (0.5,))["0.5"]
    assert plain["n"] == bound_to["n"] and plain["nll"] != bound_to["nll"]


def test_the_bound_of_a_model_that_knows_nothing() -> None:
    session = tiny()
    with torch.no_grad():
        for p in session.model.parameters():
            p.zero_()
    found = bound_per_residue(session, rows(["ACDEF", "GH", "KLMNPQRSTVWY" * 3]))
    assert found["nats"] == pytest.approx(math.log(20)) and found["nats_se"] == pytest.approx(0, abs=1e-6)
    assert found["positions"] == 43 and found["perplexity"] == pytest.approx(20)


def test_the_bound_is_the_sum_of_the_rows() -> None:
    session = tiny()
    test = ["ACDEF", "GHIKLMNPQ", "WWWYV"]
    nats = np.array(bounds(session, rows(test)))
    sizes = np.array([5, 9, 5])
    found = bound_per_residue(session, rows(test))
    assert found["nats"] == pytest.approx((nats * sizes).sum() / 19)
    left = (nats - found["nats"]) * sizes
    assert found["nats_se"] == pytest.approx(math.sqrt((left**2).sum() * 3 / 2) / 19)


@pytest.mark.parametrize("aligned", [True, False])
def test_everything_of_a_model(tmp_path: Path, aligned: bool) -> None:
    train, test = family(30), family(8, seed=1)
    if not aligned:
        train, test = ([s.replace(GAP, "") for s in some] for some in (train, test))
    session = tiny(LETTERS if aligned else CANONICAL)
    motif = None if aligned else "__CC____"
    named: dict[str, Any] = {"train_rows": rows(train), "aligned": aligned, "samples": 10, "motif": motif, "steps": 4}
    named["rates"] = (0.15, 0.5)
    found = evaluate_model(session, rows(test), file=tmp_path / "report.html", title="A <family>", **named)
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;family&gt;" in page and page.count('<img class="plot"') == (6 if aligned else 5)
    assert found["mask_filling"].keys() == {"0.15", "0.5"} and ("baselines" in found) == aligned
    assert found["generation"]["settings"] == {"steps": 4, "temperature": 1.0, "remasking": "random", "seed": 0}
    assert found["generation"]["validity"]["canonical"] == found["generation"]["validity"]["length"] == 1
    assert sum(found["generation"]["residues"].values()) == pytest.approx(1)
    assert found["motif"]["kept"] == found["motif"]["whole"] == 1
    assert found["generation"]["novelty"]["mean"] < found["generation"]["natural_novelty"]["mean"]
    for heading, table in tables_of(found).items():
        for label, cells in table.items():
            for column, figure in cells.items():  # counts and the largest of all aside
                bare = label in ("most",) or column == "given residues" or "at random" in label
                assert bare or (isinstance(figure, str) and " to " in figure), (heading, label, column, figure)
    of, ranges = found["generation"], found["generation"]["intervals"]
    shown = [(of["jsd"][k], ranges["jsd"][k], tuple(ranges["jsd"][k])) for k in "123"]
    shown += [(of[name], ranges[name], ("unique", "identity")) for name in ("diversity", "natural_diversity")]
    shown += [(found["motif"], found["motif"]["intervals"], ("kept", "whole"))]
    shown += [(of["conserved"], ranges["conserved"], ("mean", "natural_mean"))] if aligned else []
    for figures, around, names in shown:
        for name in names:
            low, high = around[name]
            assert 0 <= low <= figures[name] + 1e-9 and figures[name] - 1e-9 <= high <= 1, (
                name,
                low,
                figures[name],
                high,
            )
    for name in ("unigram", "profile") if aligned else ("unigram",):
        low, high = found["bound"][f"{name}_interval"]
        assert low < found["bound"][name] < high
    if aligned:
        assert found["motif"]["template"] == "__G__N__S__G" and found["motif"]["positions"] == 4
        assert found["bound"]["profile"] == found["baselines"]["profile"]["1"]["column_nll"]
        assert found["bound"]["profile"] < found["bound"]["nats"]  # for the model is not trained
        assert found["generation"]["conserved"]["natural_mean"] == 1
    if aligned:
        close(evaluate_model(session, rows(test), **named)["generation"], found["generation"], 1e-9)


def test_without_training_rows_and_without_a_motif() -> None:
    found = evaluate_model(tiny(), rows(["ACDEFGHIKL", "LMNPQR", "STVWYA"]), samples=3, rates=(0.5,), steps=2)
    assert not {"baselines", "motif"} & found.keys() and "novelty" not in found["generation"]
    assert found["bound"].keys() == {"nats", "nats_se", "positions", "perplexity", "unigram", "unigram_interval"}
    with pytest.raises(ConfigError, match="samples: 0"):
        evaluate_model(tiny(), rows(["AC"]), samples=0)


def test_what_is_kept_of_a_motif() -> None:
    assert kept("A_C", ["AWC", "AWW", "CWC"]) == {
        "template": "A_C",
        "n": 3,
        "positions": 2,
        "kept": pytest.approx(2 / 3),
        "whole": pytest.approx(1 / 3),
        "intervals": {"kept": [0.5, pytest.approx(1, abs=0.1)], "whole": pytest.approx(of_share(1 / 3, 3))},
    }
    assert kept("__", ["AC"])["kept"] == 1


@pytest.mark.skipif(not KUNITZ.is_file(), reason="the Kunitz alignment is not here")
def test_baselines_of_a_real_family() -> None:
    from mmdiff.tasks.protein.data.alignments import Family

    train, test = sequences(Family(str(KUNITZ), "train")), sequences(Family(str(KUNITZ), "test"))
    found = baselines(train, test, (0.15, 0.9))
    # measured before on another split: profile 0.445, nearest 0.54 and 0.385, unigram 0.108; so widely
    assert found["profile"]["1"]["accuracy"] == pytest.approx(0.445, abs=0.03)
    assert found["profile"]["1"]["column_nll"] == pytest.approx(1.823, abs=0.08)
    assert found["nearest"]["0.15"]["accuracy"] == pytest.approx(0.54, abs=0.05)
    assert found["nearest"]["0.9"]["accuracy"] == pytest.approx(0.385, abs=0.05)
    assert found["unigram"]["0.9"]["accuracy"] == pytest.approx(0.108, abs=0.01)
