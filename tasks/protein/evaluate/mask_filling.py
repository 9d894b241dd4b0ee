"""Mask filling: residues are hidden at several rates, each is guessed from the others in one forward, and what was seen
stays as it was. Beside the model: what composition, columns and the nearest sequence alone can do.

Which residues are hidden depends on (seed, number of the record) only, and what is hidden at one rate is hidden at all
higher ones, so that models, baselines and rates are compared on the same positions. Every figure counts residues; those
called `column_...` count the gaps of aligned sequences too, which are easier.

Shape letters: B sequences, L canvas, N positions of a sequence, C columns, T training sequences, P hidden positions,
K letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.sample import Sample, canvas_length
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, located
from mmdiff.model.evaluating import evaluating
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.data.alignments import LETTERS, Profile, aligned_codes, background
from mmdiff.tasks.protein.residues import CANONICAL, GAP, MASKED, Residues, codes

from .alignment_score import alignment_scores
from .intervals import Drawn, of_sequences
from .metrics import Array, Counts, classification, confusion, one_hot

RATES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)
WINDOW = 1024  # rows that are sorted by length at one time

Codes = NDArray[np.int16]


def hidden(record: int, n: int, rate: float, seed: int) -> NDArray[np.bool_]:
    """(N,) which positions of a sequence of n are hidden: each by itself with probability `rate`."""
    return NoiseKey(seed, stream="mask filling").uniform(record, n) < rate


@dataclass
class Tally:
    """Hidden positions and what was predicted there. codes are indices of `LETTERS`."""

    counts_KK: Counts = field(default_factory=lambda: np.zeros((len(LETTERS), len(LETTERS)), dtype=np.int64))
    nll_K: Array = field(default_factory=lambda: np.zeros(len(LETTERS)))  # sums, by true letter
    of_sequences: list[tuple[int, int]] = field(default_factory=list)  # right and hidden residues
    scores: list[float] = field(default_factory=list)  # of alignments
    drawn: Drawn | None = None  # for intervals; None: without

    def add(self, number: int, true_P: Codes, predicted_P: Codes, nll_P: Array | None = None) -> None:
        """The hidden positions of one sequence."""
        counts_KK = confusion(true_P, predicted_P, len(LETTERS))
        self.counts_KK += counts_KK
        nll_K = np.zeros(len(LETTERS))
        if nll_P is not None:
            np.add.at(nll_K, true_P, nll_P)
            np.add.at(self.nll_K, true_P, nll_P)
        if self.drawn is not None:
            self.drawn.add(number, counts_KK, nll_K)
        residue_P = true_P < len(CANONICAL)
        self.of_sequences.append((int((residue_P & (true_P == predicted_P)).sum()), int(residue_P.sum())))

    def figures(self, *, nll: bool = True, columns: bool = False) -> dict[str, Any]:
        """`n` hidden residues, `accuracy` with its standard error (sequences are drawn, not residues), `f1`, `mcc`,
        `nll` (nats per hidden residue); with `columns`, `column_n`, `column_accuracy`, `column_nll`, gaps counted.
        `intervals`: of each [low, high] where 95 % lie when the sequences are drawn again."""
        residues_KK = self.counts_KK.copy()
        residues_KK[len(CANONICAL) :] = 0
        n = int(residues_KK.sum())
        out: dict[str, Any] = {"n": n, **classification(residues_KK), "accuracy_se": self._standard_error()}
        every = int(self.counts_KK.sum())
        if nll:
            out["nll"] = float(self.nll_K[: len(CANONICAL)].sum() / n) if n else float("nan")
        if columns:
            out |= {"column_n": every, "column_accuracy": classification(self.counts_KK)["accuracy"]}
            if nll:
                out["column_nll"] = float(self.nll_K.sum() / every) if every else float("nan")
        if self.scores:
            out["alignment_score"] = float(np.mean(self.scores))
        if self.drawn is not None:
            out["intervals"] = self.drawn.intervals(nll=nll, columns=columns)
            if self.scores:
                out["alignment_score_interval"] = of_sequences(sorted(self.scores))
        return out

    def _standard_error(self) -> float:
        """Of a ratio of sums over sequences."""
        right_B, n_B = np.array(self.of_sequences, dtype=np.float64).reshape(-1, 2).T
        if len(n_B) < 2 or not n_B.sum():
            return float("nan")
        left_B = right_B - right_B.sum() / n_B.sum() * n_B
        return float(np.sqrt((left_B**2).sum() * len(n_B) / (len(n_B) - 1)) / n_B.sum())


def mask_filling(
    session: Session,
    rows: Sequence[Row],
    rates: Sequence[float] = RATES,
    *,
    seed: int = 0,
    tokens: int | None = None,
    aligned: bool = False,
    train: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Fill masks in at several rates: `{"0.15": figures, ...}`, see `Tally.figures`, with `alignment_score`,
    `alignment_floor`, `unigram_accuracy` and `unigram_nll`.

    The prediction is the likeliest of the 20 residues, by a softmax over these (aligned: and the gap, which is hidden
    as residues are). Other letters are context. The alignment score is that of the whole sequence with the hidden
    residues filled in; its floor fills them in at random by composition.

    train: sequences whose composition the unigram baseline and the floor know, None: that of `rows`.
    tokens: token budget of a batch, padding counted; changes no figure.
    Raises ConfigError for a rate that is not above 0 and at most 1, DataError without rows.
    """
    if wrong := [rate for rate in rates if not 0 < rate <= 1]:
        raise ConfigError(f"rates: {wrong[0]}, expected above 0 and at most 1")
    if not len(rows):
        raise DataError("mask filling: no rows")
    model, vocab = session.model, session.model.vocab
    letters = LETTERS if aligned else CANONICAL
    residues = Residues(vocab)
    if aligned and GAP not in residues.id_of:
        raise ConfigError(f"aligned: the vocabulary has no id for the gap; expected one of {LETTERS}")
    letter_K = torch.tensor([residues.id_of[x] for x in letters], device=model.device)
    background_K = background(train if train is not None else sequences(rows), letters)
    tallies, random, plain = ([Tally(drawn=Drawn() if drawn else None) for _ in rates] for drawn in (True, False, True))
    with evaluating(model):
        for numbers, batch in batches(session, rows, tokens, session.task.prompt):  # its targets are whole sequences
            pairs = zip(batch.ids_BL, batch.target_BL, strict=True)
            texts = [residues.decode(ids_L[target_L].numpy()) for ids_L, target_L in pairs]
            code_B = [codes(text, letters) for text in texts]
            on_device = to_device(batch, model.device)
            with torch.inference_mode():
                features = model.encode(on_device.media)
            for g, rate in enumerate(rates):
                masks = [
                    hidden(number, len(code_N), rate, seed) & (code_N >= 0)
                    for number, code_N in zip(numbers, code_B, strict=True)
                ]
                log_p_PK = _log_p(session, on_device, features, masks, letter_K)
                ends = np.cumsum([int(mask_N.sum()) for mask_N in masks])[:-1]
                for number, text, code_N, mask_N, log_p in zip(
                    numbers, texts, code_B, masks, np.split(log_p_PK, ends), strict=True
                ):
                    true_P, predicted_P = code_N[mask_N], log_p.argmax(1).astype(np.int16)
                    at_P = np.arange(len(true_P))
                    tallies[g].add(number, true_P, predicted_P, -log_p[at_P, true_P])
                    plain[g].add(
                        number, true_P, np.full_like(true_P, background_K.argmax()), -np.log(background_K[true_P])
                    )
                    drawn_N = _drawn(number, code_N, background_K, seed)
                    ways = ((tallies[g], predicted_P), (random[g], drawn_N[mask_N]))
                    for tally, filled_P in ways:
                        tally.scores += alignment_scores([_plain(text)], [_plain(filled(text, mask_N, filled_P))])
    found = {}
    for rate, tally, floor, unigram in zip(rates, tallies, random, plain, strict=True):
        below = unigram.figures()
        found[f"{rate:g}"] = {
            **tally.figures(columns=aligned),
            "alignment_floor": floor.figures()["alignment_score"],
            **{f"unigram_{name}": below[name] for name in ("accuracy", "nll", "intervals")},
        }
    return found


def sequences(rows: Sequence[Row]) -> list[str]:
    """Returns the sequences of rows."""
    return [str(rows[i]["sequence"]) for i in range(len(rows))]


def batches(
    session: Session, rows: Sequence[Row], tokens: int | None, lay_out: Callable[[Row, Vocab], Sample]
) -> Iterator[tuple[list[int], Batch]]:
    """(numbers of the rows, their canvas), rows of similar length together. lay_out: `prompt` or `sample` of a task."""
    vocab, readers = session.model.vocab, session.model.readers
    for first in range(0, len(rows), WINDOW):
        numbers, samples = range(first, min(first + WINDOW, len(rows))), []
        for i in numbers:
            with located(f"row {i}"):
                samples.append(lay_out(rows[i], vocab))
        for group in batch_by_tokens(
            [canvas_length(sample) for sample in samples], token_budget(session.model.device, tokens)
        ):
            index = [numbers[k] for k in group]
            yield index, collate([samples[k] for k in group], vocab, readers, index=index)


def _log_p(
    session: Session,
    batch: Batch,
    features: dict[str, Tensor],
    masks: Sequence[NDArray[np.bool_]],
    letter_K: Tensor,
) -> Array:
    """(P, K) of the hidden positions, row by row."""
    model = session.model
    masked_BL = torch.zeros_like(batch.target_BL)
    masked_BL[batch.target_BL] = torch.from_numpy(np.concatenate(masks)).to(masked_BL.device)
    row_P, position_P = masked_BL.nonzero(as_tuple=True)
    if not len(row_P):
        return np.zeros((0, len(letter_K)))
    with torch.inference_mode():
        ids_BL = batch.ids_BL.masked_fill(masked_BL, model.vocab.mask_id)
        h_BLD = model.hidden(ids_BL, batch, features, torch.arange(len(batch), device=ids_BL.device))
        parts = model.gather(h_BLD, row_P, position_P).split(model.logit_chunk)
        logits_PK = torch.cat([model.backbone.head(h_PD)[:, letter_K].float() for h_PD in parts])
        found: Array = logits_PK.double().log_softmax(-1).cpu().numpy()
    return found


def filled(sequence: str, hidden_N: NDArray[np.bool_], predicted_P: Codes) -> str:
    """The sequence with its hidden positions replaced by letters of `LETTERS`."""
    out = np.frombuffer(sequence.encode(), dtype=np.uint8).copy()
    out[hidden_N] = np.frombuffer(LETTERS.encode(), dtype=np.uint8)[predicted_P]
    return out.tobytes().decode()


def _plain(text: str) -> str:
    return text.replace("?", "X").replace(MASKED, "X")


def _drawn(record: int, code_N: Codes, background_K: Array, seed: int) -> Codes:
    """A letter by composition for every position."""
    draws = NoiseKey(seed, stream="mask filling/floor").uniform(record, len(code_N))
    edges = background_K.cumsum()
    return np.searchsorted(edges / edges[-1], draws, side="right").astype(np.int16)


# Baselines


def baselines(
    train: Sequence[str], test: Sequence[str], rates: Sequence[float] = RATES, *, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of aligned sequences, on the positions that `mask_filling` hides: `{"unigram" | "profile" | "nearest": by rate}`.

    `unigram` knows the composition, `profile` that of each column (see `alignments.Profile`), and `nearest` copies the
    hidden residues of the training sequence that agrees with most visible columns (of several, the first; it has no
    `nll`). `profile` has the rate `1` whatever the rates: all is hidden, and its `column_nll` is -log p of a sequence
    by column.
    """
    code_TC, code_BC = aligned_codes(train, LETTERS), aligned_codes(test, LETTERS)
    if code_TC.shape[1] != code_BC.shape[1]:
        raise DataError(f"test: {code_BC.shape[1]} columns, expected {code_TC.shape[1]} as in train")
    single_K, profile_CK = background(train, LETTERS), Profile(train).probabilities
    rates = [*rates, *([1.0] if 1.0 not in rates else [])]
    out: dict[str, dict[str, dict[str, Any]]] = {"unigram": {}, "profile": {}, "nearest": {}}
    known_TK = one_hot(code_TC, len(LETTERS))
    for rate in rates:
        mask_BC = np.stack([hidden(i, len(row_C), rate, seed) & (row_C >= 0) for i, row_C in enumerate(code_BC)])
        nearest_B = (one_hot(np.where(mask_BC, -1, code_BC), len(LETTERS)) @ known_TK.T).argmax(1)
        found = {name: Tally(drawn=Drawn()) for name in out}
        for i, (true_C, mask_C, t) in enumerate(zip(code_BC, mask_BC, nearest_B, strict=True)):
            true_P, by_position = true_C[mask_C], profile_CK[mask_C]
            at_P = np.arange(len(true_P))
            found["unigram"].add(i, true_P, np.full_like(true_P, single_K.argmax()), -np.log(single_K[true_P]))
            found["profile"].add(i, true_P, by_position.argmax(1).astype(np.int16), -np.log(by_position[at_P, true_P]))
            copied_P = code_TC[t][mask_C]
            found["nearest"].add(i, true_P, np.where(copied_P < 0, len(CANONICAL), copied_P))  # X is no guess
        for name, tally in found.items():
            if rate < 1 or name == "profile":
                out[name][f"{rate:g}"] = tally.figures(nll=name != "nearest", columns=True)
    return out
