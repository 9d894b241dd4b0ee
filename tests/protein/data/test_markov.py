"""The exact chain: its figures, forward-backward against enumeration of all sequences, and pure rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.protein.data.markov import LETTERS, Chain, Markov, Subfamilies, family
from mmdiff.tasks.protein.residues import CANONICAL

K, L = 3, 5
SMALL = Chain(np.array([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8], [0.5, 0.3, 0.2]]), letters="ABC")
EVERY = ["".join(letters) for letters in product("ABC", repeat=L)]


def joint() -> np.ndarray:
    """(3, ..., 3) probabilities, by multiplying out."""
    t, pi = SMALL.transition_KK, SMALL.initial_K
    p = np.empty([K] * L)
    for x in product(range(K), repeat=L):
        p[x] = pi[x[0]] * np.prod([t[a, b] for a, b in zip(x, x[1:], strict=False)])
    return p


def test_the_first_residue_is_drawn_from_the_stationary_distribution() -> None:
    for chain in (SMALL, family()):
        assert np.allclose(chain.initial_K @ chain.transition_KK, chain.initial_K, atol=1e-14)
        assert chain.initial_K.sum() == pytest.approx(1) and (chain.initial_K > 0).all()


def test_log_likelihood_and_entropy_are_those_of_the_enumerated_joint() -> None:
    p = joint()
    log_p = SMALL.log_likelihood(EVERY)
    assert np.allclose(log_p, np.log(p.reshape(-1)))
    assert np.exp(log_p).sum() == pytest.approx(1)
    assert SMALL.entropy(L) == pytest.approx(-(p * np.log(p)).sum())
    assert SMALL.entropy(1) == pytest.approx(-(SMALL.initial_K * np.log(SMALL.initial_K)).sum())


def test_the_posterior_is_that_of_enumeration_for_every_mask() -> None:
    p = joint()
    sequences = ["ABCAB", "CCBAA", "BABCC"]
    for mask in product([False, True], repeat=L):
        posterior = SMALL.posterior(sequences, np.tile(mask, (len(sequences), 1)))
        for n, sequence in enumerate(sequences):
            given = tuple(slice(None) if m else ["ABC".index(c)] for c, m in zip(sequence, mask, strict=True))
            rest = np.zeros_like(p)
            rest[np.ix_(*[np.arange(K)[g] for g in given])] = p[np.ix_(*[np.arange(K)[g] for g in given])]
            for position in range(L):
                expected = rest.sum(tuple(d for d in range(L) if d != position)) / rest.sum()
                assert np.allclose(posterior[n, position], expected, atol=1e-12)


def test_bayes_over_all_sequences_is_the_exact_expectation() -> None:
    """Weighed by p, the accuracy of argmax is sum of max posterior, and cross-entropy the conditional entropy."""
    p = joint()
    mask = np.array([True, False, True, True, False])
    best = wrong = 0.0
    for x in EVERY:
        accuracy, nll = SMALL.bayes([x], mask[None])
        weight = p[tuple("ABC".index(c) for c in x)]
        best, wrong = best + weight * accuracy, wrong + weight * nll
    seen = {v: p[:, v[0], :, :, v[1]] for v in product(range(K), repeat=2)}
    marginals = [[s.sum(tuple({0, 1, 2} - {d})) for d in range(3)] for s in seen.values()]
    assert best == pytest.approx(sum(m.max() for of in marginals for m in of) / 3)
    assert wrong == pytest.approx(-sum((m * np.log(m / m.sum())).sum() for of in marginals for m in of) / 3)


def test_the_exact_denoiser_s_any_order_bound_is_log_p() -> None:
    """The sum over k of the mean cross-entropy of a position when k are masked: each order of reveals telescopes."""
    x = "ABCCA"
    total = 0.0
    for k in range(1, L + 1):
        masks = np.array([m for m in product([False, True], repeat=L) if sum(m) == k])
        total += SMALL.bayes([x] * len(masks), masks)[1]
    assert total == pytest.approx(-SMALL.log_likelihood([x])[0])


def test_figures_of_the_family() -> None:
    chain = family()
    assert sorted(LETTERS) == sorted(CANONICAL)
    assert chain.entropy(32) / 32 == pytest.approx(1.4342, abs=5e-5)
    assert chain.entropy(1) == pytest.approx(2.635, abs=5e-4)


def test_draws_have_the_chain_s_likelihood_and_composition() -> None:
    chain, n = family(), 4000
    drawn = chain.draw(n, seed=5)
    log_p = chain.log_likelihood(drawn) / 32
    assert abs(-log_p.mean() - chain.entropy(32) / 32) < 4 * log_p.std() / n**0.5
    counts = np.bincount(chain.states(drawn)[:, 31], minlength=20)  # stationary: the last position is as the first
    assert (abs(counts / n - chain.initial_K) < 5 * np.sqrt(chain.initial_K / n)).all()


def test_rows_are_pure_and_lazy() -> None:
    rows = Markov(10**9, seed=3)
    assert len(rows) == 10**9
    assert rows[123_456_789] == Markov(10**9, seed=3)[123_456_789] and rows[-1] == rows[10**9 - 1]
    assert [rows[i]["sequence"] for i in range(20)] == family().draw(20, seed=3)
    assert rows[7]["sequence"] != Markov(10, seed=4)[7]["sequence"]
    assert Markov(10, seed=3, length=12)[7]["sequence"] == rows[7]["sequence"][:12]
    assert len({rows[i]["id"] for i in range(100)}) == 100 and rows.length(0) == 32
    assert len(Markov.toy(n=1000, seed=3, length=400)[0]["sequence"]) == 32
    with pytest.raises(IndexError):
        Markov(10, seed=3)[10]


def test_open_places() -> None:
    whole, half = Markov(50, seed=3), Markov(50, seed=3, masked=0.5)
    for i in range(50):
        row = half[i]
        assert row["answer"] == whole[i]["sequence"] and row["sequence"].count("_") == 16
        assert all(a in (b, "_") for a, b in zip(row["sequence"], row["answer"], strict=True))
    assert len({tuple(letter == "_" for letter in half[i]["sequence"]) for i in range(50)}) == 50


def test_what_cannot_be_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n": 0}, "Markov.n=0: expected a whole number of at least 1"),
        ({"n": "3"}, "Markov.n: '3' is not a whole number"),
        ({"seed": -1}, "Markov.seed=-1: expected a whole number of at least 0"),
        ({"length": 0}, "Markov.length=0: expected"),
        ({"masked": 2}, "Markov.masked=2: expected a number from 0 to 1"),
    ]
    for bad, named in wrong:
        with pytest.raises(ConfigError, match=named):
            Markov(**{"n": 1, "seed": 0, **bad})
    with pytest.raises(DataError, match="sequence 2: residue 3: 'X' is none of"):
        family().log_likelihood(["LAG", "LAX"])
    with pytest.raises(DataError, match="sequence 2: residue 1: 'é'"):
        family().log_likelihood(["LAG", "éAG"])
    with pytest.raises(DataError, match="sequence 2: 2 residues, expected 3"):
        family().log_likelihood(["LAG", "LA"])
    with pytest.raises(DataError, match="no position is masked"):
        family().bayes(["LAG"], np.zeros((1, 3), dtype=bool))


def test_subfamilies_mix_their_chains_and_are_told_apart() -> None:
    law = Subfamilies(3, (20, 60))
    rows = law.draw(300, seed=5)
    assert rows[:20] == law.draw(20, seed=5) and rows[:20] != law.draw(20, seed=6)
    assert {len(s) for s, _ in rows} <= set(range(20, 61)) and {k for _, k in rows} == {0, 1, 2}
    sequences = [s for s, _ in rows]
    by_chain = law.by_chain(sequences)
    assert by_chain[7, 2] == pytest.approx(float(law.chains[2].log_likelihood(sequences[7:8])[0]))
    assert np.allclose(law.log_likelihood(sequences), np.log(np.exp(by_chain).mean(1)))
    assert (by_chain.argmax(1) == [k for _, k in rows]).mean() > 0.99  # 20 residues are enough to know the chain
    enumerated = Subfamilies(1, (2, 2))
    pairs = ["".join(pair) for pair in product(LETTERS, repeat=2)]
    assert np.exp(enumerated.log_likelihood(pairs)).sum() == pytest.approx(1)
