"""Many rows in one call: each is written as it would be alone, keeps what it was given, and follows the model's law."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import by_query
from oracle import LENGTH, MASK, WORDS, Oracle
from torch import Tensor

from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config as checked
from mmdiff.session import Session
from mmdiff.tasks.protein.design.control import bounds, control_rows, design_control
from mmdiff.tasks.protein.design.generate import count_records, generate, noise_number
from mmdiff.tasks.protein.design.guard import Guard
from mmdiff.tasks.protein.design.motifs import allowed, template
from mmdiff.tasks.protein.residues import CANONICAL
from mmdiff.tasks.protein.task import Protein

SAMPLER = GenerationConfig(temperature=1.0, remasking="random")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def session() -> Session:
    torch.manual_seed(0)
    backbone = new_backbone(
        family="esm", tokenizer=tokenizer(), hidden_size=16, layers=1, heads=2, max_length=64, init_std=0.3
    )
    return Session(MMDiff(backbone).eval(), Protein(), SAMPLER, Path("nowhere"))


def rows() -> list[Row]:
    """Of many lengths, with and without target, given residues, allowed letters."""
    limited = allowed(template("MK[5]{ILV}C{^CM}_", np.random.default_rng(0)), "3:W", forbid="A")
    mixed: list[Row] = [{"id": f"free{n}", "description": "as it comes", "sequence": "_" * n} for n in (9, 3, 17, 6)]
    mixed += [{"id": "motif", "sequence": "__ACXDE___"}, {"id": "given", "sequence": "ACDE"}]
    mixed += [{"id": "limited", "sequence": limited.sequence, "allow": limited.allow}]
    mixed += [{"id": "binder", "sequence": "_" * 7, "target": "MKTAYIAKQR"}, {"id": "one", "sequence": "_"}]
    return mixed


def same(some: Iterable[Row], others: Iterable[Row]) -> bool:
    """Confidences come from sums in another order when the batch is another."""
    some, others = list(some), list(others)
    sure, theirs = ([r["confidence"] or 0.0 for r in records] for records in (some, others))
    plain = [[{**r, "confidence": None} for r in records] for records in (some, others)]
    return plain[0] == plain[1] and sure == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"steps": 3},
        {"remasking": "low_confidence"},
        {"remasking": "mmdiff.samplers.rules.score.Margin", "steps": 4},
        {"remasking": "mmdiff.samplers.rules.score.NegativeEntropy", "temperature": 0.0},
    ],
)
def test_a_row_is_written_as_it_is_alone(session: Session, named: dict[str, Any]) -> None:
    """Token for token, step for step, in any batch; the canvas it is checked against is laid out by hand."""
    together = list(generate(session, rows(), guard=None, **named))
    assert same(together, generate(session, rows(), guard=None, tokens=30, window=2, **named))
    assert [r["id"] for r in together] == [row["id"] for row in rows()]
    model = session.model
    for k, (row, record) in enumerate(zip(rows(), together, strict=True)):
        laid = collate([session.task.prompt(row, model.vocab)], model.vocab, index=[k])
        alone = model.generate(laid, generation_config=replace(SAMPLER, **named))
        position_L = laid.target_BL[0]
        assert record["sequence"] == session.task.parse(alone.targets()[0], model.vocab)
        assert record["steps"] == alone.step_BL[0, position_L].tolist()
        n = row["sequence"].count("_")
        assert record["designed"] == n and record["forwards"] == min(n, named.get("steps", n))
        sure = alone.confidence_BL[0, position_L][alone.step_BL[0, position_L] > 0].double().log()
        assert record["confidence"] == (pytest.approx(float(sure.mean()), abs=1e-4) if n else None)


def test_given_residues_stay_and_only_allowed_ones_are_written(session: Session) -> None:
    for seed in range(5):
        for row, record in zip(rows(), generate(session, rows(), seed=seed), strict=True):
            assert record["length"] == len(record["sequence"]) == len(row["sequence"])
            for i, (was, now, step) in enumerate(
                zip(row["sequence"], record["sequence"], record["steps"], strict=True)
            ):
                letters = (row.get("allow") or [None] * 99)[i] or CANONICAL
                assert (now == was and step == 0) if was != "_" else (now in letters and step > 0)
            assert record.get("target") == row.get("target")
            assert record["description"] == row.get("description", "")


def test_trajectories_of_every_record_open_what_is_written_later(session: Session) -> None:
    for row, record in zip(rows(), generate(session, rows(), steps=4, trajectory=True), strict=True):
        states = [row["sequence"], *record["trajectory"]]
        assert len(states) == record["forwards"] + 1 and states[-1] == record["sequence"]
        for now, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True), start=1):
            changed = {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
            assert changed == {i for i, step in enumerate(record["steps"]) if step == now} and changed
            assert {before[i] for i in changed} == {"_"}


def test_a_seed_of_its_own_goes_with_the_row(session: Session) -> None:
    mine = {"id": "mine", "sequence": "_" * 12, "seed": 5}
    alone = next(iter(generate(session, [mine])))
    placed = list(generate(session, [*rows(), mine, {**mine, "seed": 6}, {**mine, "seed": None}], tokens=50))
    assert same(placed[-3:-2], [alone])
    assert len({record["sequence"] for record in placed[-3:]}) == 3
    assert next(iter(generate(session, [mine], seed=1)))["sequence"] != alone["sequence"]
    for wrong in ("5", 1.5, True):
        with pytest.raises(DataError, match="row 0: seed: .* expected a whole number"):
            generate(session, [{**mine, "seed": wrong}])


def test_noise_numbers_do_not_meet() -> None:
    numbers = {noise_number(k, {}, a) for k in range(200) for a in range(4)}
    numbers |= {noise_number(0, {"seed": k}, a) for k in range(200) for a in range(4)}
    assert len(numbers) == 1600 and max(numbers) < 1 << 63
    assert sorted(n for n in numbers if n < 1 << 62) == list(range(200))
    assert noise_number(3, {"seed": 7}) == noise_number(9, {"seed": np.int64(7)})


# The law -------------------------------------------------------------------------------------------------------------


class OracleModel:
    """`generate` of a model whose conditionals are exact, over the letters A, C and D."""

    def __init__(self, oracle: Oracle, vocab: Any) -> None:
        self.oracle, self.vocab, self.readers, self.device = oracle, vocab, {}, torch.device("cpu")
        self.letters = [vocab.tokenizer.get_vocab()[letter] for letter in "ACD"]

    def generate(self, batch: Any, generation_config: Any, **named: Any) -> Any:
        @by_query
        def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
            words_RL = torch.full_like(ids_RL, MASK)
            for word, i in enumerate(self.letters):
                words_RL[ids_RL == i] = word
            position_L = batch.target_BL[0]
            log_RLV = self.oracle.hidden(words_RL[:, position_L], batch, {}, row_R)[..., :WORDS]
            logits_RLV = torch.full((*ids_RL.shape, self.vocab.size), -torch.inf)
            at_L = position_L.nonzero().squeeze(1)
            for word, i in enumerate(self.letters):
                logits_RLV[:, at_L, i] = log_RLV[..., word].float()
            return logits_RLV[predict_RL]

        return sample(denoise, batch, self.vocab, checked(generation_config, **named))


def law(records: list[Row]) -> np.ndarray[Any, Any]:
    names = ["".join(letters) for letters in product("ACD", repeat=LENGTH)]
    count = dict.fromkeys(names, 0)
    for record in records:
        count[record["sequence"]] += 1
    return np.array(list(count.values())) / len(records)


def test_one_place_a_step_in_random_order_follows_the_joint_distribution(session: Session) -> None:
    """Within what 200 true samples stay within; certain positions first, as proposed by confidence, do not."""
    oracle, n = Oracle.random(), 1000
    model = OracleModel(oracle, session.model.vocab)
    exact = Session(model, Protein("ACD"), SAMPLER, Path("nowhere"))  # type: ignore[arg-type]
    p = oracle.joint.flatten().numpy()
    rng = np.random.default_rng(0)
    floor = max(np.abs(p - rng.multinomial(n, p) / n).sum() / 2 for _ in range(200))
    free = [{"sequence": "_" * LENGTH}] * n
    random = np.abs(p - law(list(generate(exact, free, tokens=2000, guard=None)))).sum() / 2
    sure = np.abs(p - law(list(generate(exact, free, guard=None, remasking="low_confidence")))).sum() / 2
    assert random < floor < 2 * floor < sure


# The guard -----------------------------------------------------------------------------------------------------------


def test_what_the_guard_trips_on() -> None:
    def tripped(sequence: str, given: str = "", **settings: Any) -> str:
        return Guard(**settings)(sequence, [i >= len(given) for i in range(len(sequence))])

    assert tripped(CANONICAL * 3) == "ok"
    assert tripped("LACDLEFGLHIKLMNP" * 3) == "ok"  # 12 of 48 are 25 %, not above
    assert tripped("LACDLEFGLHIKLMNP" * 3 + "L") == "L 27 %"
    assert tripped("LALCLDLE") == "ok" and tripped("LALCLDLE", least=4) == "L 50 %"
    assert tripped("LLLLLLLLLL" + CANONICAL, given="LLLLLLLLLL") == "ok"  # what was given is not the design's fault
    assert tripped("AGGGGGGGGC") == "ok" and tripped("AGGGGGGGGGC") == "run of 9 G"
    assert tripped("AGGGG----GGGGG", run=8) == "run of 9 G"  # gaps of an alignment are no residues
    assert tripped("-" * 40 + "ACDEF") == "ok"
    assert tripped("AGSGSGSGSGK") == "ok" and tripped("AGSGSGSGSGSK", least=99) == "10 residues repeat GS"
    assert tripped("MKACDEACDEACDEK") == "12 residues repeat ACDE"
    assert tripped("ACDACDACDACDACD", run=12) == "15 residues repeat ACD"
    for wrong in ({"share": 0.0}, {"run": 0}, {"tries": 0}, {"least": 1.5}):
        with pytest.raises(ConfigError, match=f"Guard.{next(iter(wrong))}"):
            Guard(**wrong)  # type: ignore[arg-type]


def test_what_trips_is_written_again_under_other_noise(session: Session) -> None:
    guard = Guard(share=0.12, least=1, tries=5)  # most sequences of 25 residues have four of one kind
    free = [{"sequence": "_" * 25, **({"seed": 9} if k == 3 else {})} for k in range(8)]
    first, kept = (list(generate(session, free, guard=g, steps=5)) for g in (None, guard))
    assert {record["guard"] for record in first} == {"off"}
    rewritten = 0
    for k, (before, after) in enumerate(zip(first, kept, strict=True)):
        tries = []
        for attempt in range(after["attempts"]):
            laid = collate(
                [session.task.prompt(free[k], session.model.vocab)],
                session.model.vocab,
                index=[noise_number(k, free[k], attempt)],
            )
            out = session.model.generate(laid, generation_config=SAMPLER, steps=5)
            tries.append(session.task.parse(out.targets()[0], session.model.vocab))
        found = [guard(sequence, [True] * 25) for sequence in tries]
        assert tries[0] == before["sequence"] and tries[-1] == after["sequence"] and len(set(tries)) == len(tries)
        assert "ok" not in found[:-1] and found[-1] == after["guard"]
        assert after["guard"] == "ok" or after["attempts"] == guard.tries
        rewritten += after["attempts"] > 1
    assert rewritten
    assert same(kept, generate(session, free, guard=guard, steps=5, tokens=60, window=5))
    counts = count_records(kept)
    assert counts["records"] == 8 and counts["resampled"] == rewritten and counts["positions"] == 200
    assert counts["flagged"] == sum(r["guard"] != "ok" for r in kept) == sum(counts["flagged_by"].values())
    assert count_records(first)["flagged"] == 0 and count_records([])["flagged_by"] == {}


def test_what_no_noise_changes_is_not_tried_for_ever(session: Session) -> None:
    greedy = {"temperature": 0.0, "remasking": "low_confidence"}
    record = next(
        iter(generate(session, [{"sequence": "_" * 30}], guard=Guard(share=0.01, least=1, tries=50), **greedy))
    )
    assert record["attempts"] == 2 and record["guard"].endswith("%")


# Files ---------------------------------------------------------------------------------------------------------------


def test_an_interrupted_call_goes_on_where_it_stopped(session: Session, tmp_path: Path) -> None:
    whole, file = list(generate(session, rows())), tmp_path / "designs.jsonl"

    def cut() -> Iterator[Row]:
        yield from rows()[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(session, cut(), out=file, window=2)
    assert len(file.read_text().splitlines()) == 4
    file.write_text(file.read_text() + '{"row": 4, "id"')  # a kill within a line
    fresh = []

    def watched() -> Iterator[Row]:
        for row in rows():
            fresh.append(row["id"])
            yield row

    assert same(generate(session, watched(), out=file, window=3), whole)
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == fresh == [r["id"] for r in whole]
    before = file.read_bytes()
    assert same(generate(session, rows(), out=file), whole) and file.read_bytes() == before
    for other in ({"steps": 2}, {"guard": None}, {"guard": Guard(run=9)}, {"settings": {"input": "x.fa"}}):
        with pytest.raises(ConfigError, match="written with another"):
            generate(session, rows(), out=file, **other)
    for others in (rows()[::-1], rows()[:4]):
        with pytest.raises(ConfigError, match="written for other records|holds more records than the 4"):
            generate(session, others, out=file)
    assert file.read_bytes() == before


def test_only_a_window_of_rows_is_held(session: Session, tmp_path: Path) -> None:
    """Rows of the next window are asked for when those before are on the disk."""
    file = tmp_path / "designs.jsonl"

    def many() -> Iterator[Row]:
        for k in range(12):
            if k % 4 == 0 and k:
                assert len(file.read_text().splitlines()) == k
            yield {"sequence": "__"}

    assert len(list(generate(session, many(), out=file, window=4))) == 12


def test_what_is_wrong_is_named(session: Session) -> None:
    for row, message in [
        ({"sequence": "A?_"}, "row 1: .*residue 2: '\\?'"),
        ({"sequence": "", "where": "a.fa, record 2"}, "^a.fa, record 2: sequence"),
        ({"sequence": "__", "allow": ["A"]}, "row 1: allow: 1 entries for 2 positions"),
    ]:
        with pytest.raises(DataError, match=message):
            generate(session, [{"sequence": "__"}, row])
    with pytest.raises(ConfigError, match="tokens=0: expected"):
        generate(session, rows(), tokens=0)
    with pytest.raises(ConfigError, match="sampler.step: no such field"):
        generate(session, rows(), step=3)
    assert list(generate(session, [])) == []


# Binders -------------------------------------------------------------------------------------------------------------


def binders() -> list[Row]:
    targets = ["MKTAYIAKQRQISF", "ACDEFGHIKL", "ACDEFGHIKL"]
    return [{"id": str(k), "sequence": "_" * 8, "target": target} for k, target in enumerate(targets)]


def test_wrong_targets() -> None:
    wrong = control_rows(binders(), seed=1)
    for own, row in zip(binders(), wrong, strict=True):
        assert sorted(own["target"]) == sorted(row["target"]) and own["target"] != row["target"]
        assert {**row, "target": own["target"]} == own
    assert wrong == control_rows(binders(), seed=1) != control_rows(binders(), seed=2)
    assert wrong[1]["target"] != wrong[2]["target"]  # by record
    with pytest.raises(DataError, match="row 0: target: None"):
        control_rows([{"sequence": "__"}])


def test_a_control_differs_in_its_target_only(session: Session, tmp_path: Path) -> None:
    own, control = (list(x) for x in design_control(session, binders(), seed=4, out=tmp_path / "b.jsonl", guard=None))
    assert own == list(generate(session, binders(), guard=None))
    assert control == list(generate(session, control_rows(binders(), seed=4), guard=None))
    assert [r["sequence"] for r in own] != [r["sequence"] for r in control]
    assert {p.name for p in tmp_path.glob("*.jsonl")} == {"b.jsonl", "b.control.jsonl"}


def test_bounds_are_those_of_rows_alone_and_see_the_target(session: Session) -> None:
    own = list(generate(session, binders()))
    mixed = [*own, {"sequence": "ACDEFGHIKLM"}]
    priced = bounds(session, mixed, tokens=30, levels=4)
    assert priced == pytest.approx(bounds(session, mixed, levels=4), abs=1e-5)
    model = session.model
    for k, row in enumerate(mixed):
        alone = bound(model, collate([session.task.sample(row, model.vocab)], model.vocab, index=[k]), levels=4)
        assert priced[k] == pytest.approx(float(alone.nll_B[0]) / len(row["sequence"]), abs=1e-5)
    assert bounds(session, control_rows(own), levels=4) != pytest.approx(priced[:3], abs=1e-3)


def test_a_source_without_an_iterator(session: Session) -> None:
    class Rows:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Row:
            return rows()[index]  # ends where it is asked to, not where it could

    assert list(generate(session, Rows())) == list(generate(session, rows()[:3]))


def test_drafts_are_refused_since_they_rewrite_what_is_given(session: Session) -> None:
    with pytest.raises(ConfigError, match="sampler.draft: masks residues that are given"):
        generate(session, [{"sequence": "A_"}], draft={"target": "mmdiff.samplers.deliberation.MaskRandom"})


def test_a_target_of_one_kind_of_residue_has_no_shuffled_control() -> None:
    with pytest.raises(DataError, match="row 0: target: one kind of residue, whose order cannot be shuffled"):
        control_rows([{"sequence": "_", "target": "AAAA"}])


@pytest.mark.parametrize("other", [{"sequence": "C_A"}, {"sequence": "A_AA"}, {"target": "MK"}])
def test_a_file_is_not_gone_on_with_for_rows_of_the_same_name(
    session: Session, tmp_path: Path, other: dict[str, str]
) -> None:
    row = {"id": "a", "sequence": "A_A"}
    list(generate(session, [row], out=tmp_path / "x.jsonl"))
    before = (tmp_path / "x.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="was written for other records"):
        generate(session, [row | other], out=tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == before
