"""Scores of whole sequences against transformers' own model one mask at a time, and against a joint distribution."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import TOKENS, tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.model.likelihood import bound
from mmdiff.session import Session
from mmdiff.tasks.protein.data.records import Record
from mmdiff.tasks.protein.residues import CANONICAL
from mmdiff.tasks.protein.score import sequences as module
from mmdiff.tasks.protein.score.sequences import score_sequences
from mmdiff.tasks.protein.task import Protein

ROWS = [
    {"id": "a", "sequence": "MKTAYIAKQR"},
    {"id": "b", "sequence": "MKX"},
    {"id": "c", "sequence": "GAVLIMFWPSTCYNQDEKRHGAVLI"},
    {"id": "d", "sequence": "ACDEF", "target": "MKWV"},
    {"id": "e", "sequence": "W"},
    {"id": "f", "sequence": "GGXXSGGBSG"},
]
NAMES = ("bound", "bound_nats", "pseudo_perplexity")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    torch.manual_seed(0)
    backbone = new_backbone(
        family="esm", tokenizer=tokenizer(), hidden_size=16, layers=2, heads=2, max_length=64, init_std=0.4
    )
    model = MMDiff(backbone)
    with torch.no_grad():
        model.backbone.model.lm_head.bias.uniform_(-2, 2)
    return Session(model, Protein(), GenerationConfig(), tmp_path_factory.mktemp("model"))


def published(session: Session) -> Any:
    """transformers' class, made by itself, with the same tensors."""
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=session.model.backbone.model.config.intermediate_size,
        max_position_embeddings=66,
        pad_token_id=1,
        mask_token_id=32,
        position_embedding_type="rotary",
        token_dropout=False,
        layer_norm_eps=1e-5,
        emb_layer_norm_before=False,
    )
    made = EsmForMaskedLM(config).eval()
    missing, unexpected = made.load_state_dict(session.model.backbone.model.state_dict(), strict=False)
    assert not unexpected and all("contact_head" in name for name in missing)
    return made


def plain(made: Any, before: list[int], sequence: str) -> list[float | None]:
    """log p of each residue given all others, one forward per residue, nothing batched."""
    ids = [*before, *(TOKENS.index(letter) for letter in sequence), 2]
    letters = [TOKENS.index(letter) for letter in CANONICAL]
    out: list[float | None] = []
    for n, letter in enumerate(sequence):
        if letter not in CANONICAL:
            out.append(None)
            continue
        masked = list(ids)
        masked[len(before) + n] = 32
        with torch.no_grad():
            logits = made(input_ids=torch.tensor([masked])).logits[0, len(before) + n]
        out.append(float(logits[letters].log_softmax(-1)[CANONICAL.index(letter)]))
    return out


def test_pseudo_perplexity_is_that_of_a_plain_loop(session: Session) -> None:
    made = published(session)
    records = list(score_sequences(session, ROWS, methods=["pseudo_perplexity"], per_residue=True))
    for row, record in zip(ROWS, records, strict=True):
        target = [TOKENS.index(letter) for letter in row.get("target", "")]
        by_hand = plain(made, [0, *target, 2] if target else [0], row["sequence"])
        known = [p for p in by_hand if p is not None]
        assert record["scored"] == len(known) and record["length"] == len(row["sequence"]) == len(record["log_p"])
        for ours, theirs in zip(record["log_p"], by_hand, strict=True):
            assert ours is None if theirs is None else ours == pytest.approx(theirs, abs=1e-5)
        assert record["pseudo_perplexity"] == pytest.approx(math.exp(-np.mean(known)), rel=1e-5)
    assert len({round(r["pseudo_perplexity"], 3) for r in records}) == len(records)  # not uniform
    # the last residue counts, which the published script leaves out
    short = math.exp(-np.mean(records[0]["log_p"][:-1]))
    assert abs(records[0]["pseudo_perplexity"] - short) > 1e-3


def test_the_bound_is_that_of_the_core(session: Session) -> None:
    for i, record in enumerate(score_sequences(session, ROWS, methods=["bound"], levels=4, seed=3)):
        batch = collate([session.task.sample(ROWS[i], session.model.vocab)], session.model.vocab, index=[i])
        alone = bound(session.model.eval(), batch, levels=4, seed=3)
        assert record["bound_nats"] == pytest.approx(float(alone.nll_B[0]), rel=1e-5)
        assert record["bound"] == pytest.approx(record["bound_nats"] / int(alone.positions_B[0]))
        assert record["scored"] == int(alone.positions_B[0]) and "pseudo_perplexity" not in record


@pytest.mark.parametrize("tokens", [1, 30, 100, 16384])
@pytest.mark.parametrize("window", [1, 4, 1024])
def test_batches_and_windows_change_nothing(tokens: int, window: int, session: Session) -> None:
    reference = list(score_sequences(session, ROWS, levels=3))
    records = list(score_sequences(session, ROWS, levels=3, tokens=tokens, window=window))
    assert [r["id"] for r in records] == list("abcdef")
    for ours, theirs in zip(records, reference, strict=True):
        assert [ours[name] for name in NAMES] == pytest.approx([theirs[name] for name in NAMES], rel=1e-5)


def test_forwards_are_full_and_no_fuller(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    hidden = session.model.hidden

    def spy(ids_RL: Any, *rest: Any, **named: Any) -> Any:
        sizes.append(tuple(ids_RL.shape))
        return hidden(ids_RL, *rest, **named)

    monkeypatch.setattr(session.model, "hidden", spy)
    list(score_sequences(session, ROWS, methods=["pseudo_perplexity"], tokens=64))
    assert all(rows * length <= 64 for rows, length in sizes)
    assert sum(rows for rows, _ in sizes) == 10 + 2 + 25 + 5 + 1 + 7  # a forward per residue that counts
    lengths = [length for _, length in sizes]
    assert sizes[0] == (2, 27) and lengths == sorted(lengths, reverse=True)  # those of one length stand together


def test_what_is_not_written_is_context(session: Session) -> None:
    (none,) = score_sequences(session, [{"id": "x", "sequence": "XXB"}], per_residue=True)
    assert none == {
        "id": "x",
        "length": 3,
        "scored": 0,
        "bound": None,
        "bound_nats": None,
        "pseudo_perplexity": None,
        "log_p": [None] * 3,
    }
    one, other = score_sequences(session, [{"sequence": "GXG"}, {"sequence": "GBG"}], methods=["pseudo_perplexity"])
    assert one["scored"] == other["scored"] == 2 and one["pseudo_perplexity"] != other["pseudo_perplexity"]
    aligned = Session(session.model, Protein(CANONICAL + "-"), session.sampler, session.folder)
    rows = [{"sequence": "G-G"}]
    assert [next(iter(score_sequences(s, rows, levels=2)))["scored"] for s in (session, aligned)] == [2, 3]


def test_records_of_files_are_rows(session: Session) -> None:
    files = [Record(row["id"], "", row["sequence"], "f.fasta") for row in ROWS if "target" not in row]
    rows = [row for row in ROWS if "target" not in row]
    assert list(score_sequences(session, files)) == list(score_sequences(session, rows))
    free = [{"sequence": "ACD"}, {"sequence": "ACD", "allow": [None, "C", "DE"]}]
    records = list(score_sequences(session, free, methods=["pseudo_perplexity"]))
    assert [r["id"] for r in records] == ["0", "1"]
    assert records[0]["pseudo_perplexity"] == records[1]["pseudo_perplexity"]


def test_the_control_scores_with_the_targets_residues_in_another_order(session: Session) -> None:
    rows = [{"id": str(n), "sequence": "ACDEF", "target": "MKWVTYRH"} for n in range(3)]
    records = list(score_sequences(session, rows, control="shuffled_target", levels=3, per_residue=True))
    again = list(score_sequences(session, rows, control="shuffled_target", levels=3, per_residue=True, tokens=20))
    plain_ones = list(score_sequences(session, rows, levels=3, per_residue=True))
    targets = set()
    for i, record in enumerate(records):
        control = record.pop("control")
        assert control["pseudo_perplexity"] == pytest.approx(again[i]["control"]["pseudo_perplexity"], rel=1e-5)
        assert {name: record[name] for name in NAMES} == pytest.approx({n: plain_ones[i][n] for n in NAMES}, rel=1e-5)
        assert control["pseudo_perplexity"] != pytest.approx(record["pseudo_perplexity"], rel=1e-4)
        targets.add(round(control["pseudo_perplexity"], 5))
    assert len(targets) == 3  # each record its own order
    # residues all alike have one order: the bound, whose noise is that of the record, is the same to the last bit
    (same,) = score_sequences(session, [{**rows[0], "target": "KKKK"}], control="shuffled_target", per_residue=True)
    assert {name: same["control"][name] for name in NAMES} == pytest.approx({n: same[n] for n in NAMES}, rel=1e-6)
    with pytest.raises(DataError, match=r"^record 1 \(a\): no target, which the control shuffled_target shuffles$"):
        list(score_sequences(session, ROWS, control="shuffled_target"))


# Files


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_interrupted_run_goes_on(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"levels": 3, "per_residue": True, "window": 2, "settings": {"input": "f"}}
    whole = list(score_sequences(session, ROWS, out=tmp_path / "whole.jsonl", **options))
    assert whole == list(score_sequences(session, ROWS, levels=3, per_residue=True, window=2))
    file, inner, done = tmp_path / "o.jsonl", module._Scoring.records, []

    def killed(self: Any, group: Any) -> Any:
        done.append([i for i, _, _ in group])
        if len(done) == 3:
            raise KeyboardInterrupt
        return inner(self, group)

    monkeypatch.setattr(module._Scoring, "records", killed)
    with pytest.raises(KeyboardInterrupt):
        score_sequences(session, iter(ROWS), out=file, **options)
    assert [line["row"] for line in lines(file)] == [0, 1, 2, 3]
    file.write_bytes(file.read_bytes()[:-5])  # a line cut short by a kill
    again = list(score_sequences(session, iter(ROWS), out=file, **{**options, "window": 1024, "tokens": 64}))
    assert done[3:] == [[3, 4, 5]]
    for ours, theirs in zip(again, whole, strict=True):
        assert [ours[name] for name in NAMES] == pytest.approx([theirs[name] for name in NAMES], rel=1e-5)
    before = file.read_bytes()
    for other, message in (
        ({"levels": 4}, r"with another levels \(3, now 4\)"),
        ({"seed": 1}, r"with another seed"),
        ({"settings": {"input": "g"}}, r"with another input \('f', now 'g'\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_sequences(session, ROWS, out=file, **{**options, **other})
    with pytest.raises(ConfigError, match=r"other records \(record 1 is 'a', now 'b'\); choose another name"):
        score_sequences(session, ROWS[1:], out=file, **options)
    with pytest.raises(ConfigError, match="more records than the 2 of the input"):
        score_sequences(session, ROWS[:2], out=file, **options)
    assert file.read_bytes() == before
    with torch.no_grad():
        session.model.backbone.model.lm_head.bias += 1e-3
    with pytest.raises(ConfigError, match=r"with another model \("):
        score_sequences(session, ROWS, out=file, **options)
    with torch.no_grad():
        session.model.backbone.model.lm_head.bias -= 1e-3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"sequence": "AC_", "where": "f.fasta record 5 (z)"}, r"^f.fasta record 5 \(z\): residue 3 is masked \(`_`\)"),
        ({"id": "z", "sequence": ""}, r"^record 5 \(z\): sequence: '', expected residues$"),
        ({"id": "z", "sequence": "AC*"}, r"^record 5 \(z\): residue 3: '\*' is none of"),
    ],
)
def test_what_comes_before_a_bad_record_is_written(
    bad: dict[str, Any], message: str, session: Session, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        score_sequences(session, [*ROWS[:4], bad, *ROWS[4:]], out=tmp_path / "o.jsonl", levels=2)
    assert [line["id"] for line in lines(tmp_path / "o.jsonl")] == list("abcd")


def test_records_are_read_as_they_are_needed(session: Session) -> None:
    read = []

    def source() -> Iterator[dict[str, Any]]:
        for n in range(1000):
            read.append(n)
            yield {"sequence": "ACDE"}

    scored = score_sequences(session, source(), window=4, levels=2, methods=["bound"])
    assert not read
    assert [next(scored)["id"] for _ in range(5)] == list("01234") and len(read) == 8
    read.clear()  # much work ends a window too: 200 copies of 6 positions are more than 64 batches of 18
    scored = score_sequences(session, source(), levels=200, methods=["bound"], tokens=18)
    next(scored)
    assert len(read) == 1


def test_the_model_is_left_as_it_was(session: Session) -> None:
    session.model.train()
    list(score_sequences(session, ROWS[:1]))
    assert session.model.training
    session.model.eval()
    list(score_sequences(session, ROWS[:1]))
    assert not session.model.training


def test_a_canvas_longer_than_the_positions_is_named(tmp_path: Path) -> None:
    backbone = new_backbone(
        family="esm",
        tokenizer=tokenizer(),
        hidden_size=16,
        layers=1,
        heads=2,
        max_length=8,
        options={"positions": "absolute"},
    )
    absolute = Session(MMDiff(backbone), Protein(), GenerationConfig(), tmp_path)
    rows = [{"sequence": "ACD"}, {"sequence": "ACDEFGH", "where": "f record 2"}]
    with pytest.raises(DataError, match="^f record 2: a canvas of 9 positions"):
        list(score_sequences(absolute, rows))


def test_arguments(session: Session) -> None:
    for named, message in (
        ({"methods": ["bond"]}, r'^methods: \'bond\' \(did you mean "bound"\?\)$'),
        ({"methods": []}, "^methods: none"),
        ({"control": "shuffled"}, "^control: 'shuffled'"),
        ({"per_residue": True, "methods": ["bound"]}, "^per_residue: needs"),
        ({"levels": 0}, "levels=0: expected a whole number of at least 1$"),
        ({"tokens": 0}, "tokens=0"),
        ({"window": 0}, "window=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_sequences(session, ROWS, **named)
    assert list(score_sequences(session, [])) == []
