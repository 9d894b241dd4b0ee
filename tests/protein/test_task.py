"""Canvases of the protein task. Ids: 0 `<cls>`, 2 `<eos>`, 32 mask; M 20, K 15, V 7, A 5, C 23, X 24."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families import esm
from mmdiff.canvas.sample import Media, Target, Text, canvas_length
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.data.fields import check_row
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model.likelihood import bound
from mmdiff.objectives.denoise import Denoise
from mmdiff.tasks.protein.session import is_backbone
from mmdiff.tasks.protein.task import Protein

M, K, V, A, C, X, MASK = 20, 15, 7, 5, 23, 24, 32
AMINO = ((4, 24),)


@pytest.fixture(scope="module")
def model() -> MMDiff:
    torch.manual_seed(0)
    made = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 64, "init_std": 0.3}
    return MMDiff(new_backbone(family="esm", tokenizer=esm.tokenizer(), **made))


@pytest.fixture(scope="module")
def vocab(model: MMDiff) -> Vocab:
    return model.vocab


def test_a_sequence_stands_between_cls_and_eos(vocab: Vocab) -> None:
    assert Protein().sample({"sequence": "MKV"}, vocab) == [Text([0]), Target([M, K, V], allow=AMINO), Text([2])]


def test_the_target_is_context_and_never_masked(vocab: Vocab) -> None:
    row = {"target": "MKVAC", "sequence": "CA"}
    sample = Protein().sample(row, vocab)
    assert sample == [Text([0, M, K, V, A, C, 2]), Target([C, A], allow=AMINO), Text([2])]
    assert Protein().prompt(row | {"sequence": "_A"}, vocab)[0] == sample[0]
    batch = collate([sample] * 64, vocab)
    crops = Denoise().plan(batch, NoiseKey(0, batch=64), vocab)
    assert crops.masked_RL.any() and not crops.masked_RL[:, :7].any()


def test_letters_that_are_not_learned_are_context(vocab: Vocab) -> None:
    row = {"sequence": "MXK-"}
    x, gap = [24], [30]
    own = [Text([0]), Target([M], allow=AMINO), Text(x), Target([K], allow=AMINO), Text(gap), Text([2])]
    assert Protein().sample(row, vocab) == own
    assert Protein(learned="all").sample(row, vocab) == [Text([0]), Target([M, *x, K, *gap]), Text([2])]
    with_gaps = Protein(letters="ACDEFGHIKLMNPQRSTVWY-").sample(row, vocab)
    allow = ((4, 24), (30, 31))
    assert with_gaps[1:-1] == [Target([M], allow=allow), Text(x), Target([K, *gap], allow=allow)]


def test_a_prompt_gives_the_whole_sequence_and_says_what_may_be_written(vocab: Vocab) -> None:
    row = {"sequence": "MX__K_", "allow": [None, None, "VA", None, None, "C"]}
    assert Protein().prompt(row, vocab) == [
        Text([0]), Target([M, X]), Target([MASK], allow=((5, 6), (7, 8))), Target([MASK], allow=AMINO), Target([K]),
        Target([MASK], allow=((23, 24),)), Text([2]),
    ]  # fmt: skip


def test_what_is_written_is_allowed_and_what_is_given_is_kept(model: MMDiff, vocab: Vocab) -> None:
    """At random weights every id is about as likely as any other, `<eos>` and X among them."""
    task = Protein()
    rows: list[dict[str, Any]] = [{"sequence": "MX__K_" * 5, "allow": [None, None, "VA", None, None, "C"] * 5}]
    rows += [{"sequence": "_" * n} for n in (3, 17)]
    batch = collate([task.prompt(row, vocab) for row in rows], vocab, side="left")
    out = model.generate(batch, temperature=1.0, remasking="random", seed=3)
    first, *free = [task.parse(ids, vocab) for ids in out.targets()]
    for i, letter in enumerate(first):
        given, allow = rows[0]["sequence"][i], rows[0]["allow"][i]
        assert letter == given if given != "_" else letter in (allow or task.letters)
    assert [len(sequence) for sequence in free] == [3, 17] and set("".join(free)) <= set(task.letters)
    assert out.forwards_B.tolist() == [15, 3, 17]


def test_text_backbones_write_proteins_in_a_reserved_range() -> None:
    words = word_tokenizer(["write", "a", "protein"])
    made = {"hidden_size": 16, "layers": 1, "heads": 2, "init_std": 0.3, "reserve": {"residues": 26}}
    text = MMDiff(new_backbone(tokenizer=words, **made))
    task = Protein()
    ids = [len(words) + i for i in (10, 8)]
    sample = task.sample({"sequence": "MK"}, text.vocab)
    assert sample == [Target(ids, allow=((7, 27),)), Text([text.vocab.eos_id])]
    batch = collate([task.prompt({"sequence": "__M_" * 4}, text.vocab)], text.vocab, side="left")
    written = task.parse(text.generate(batch, temperature=1.0).targets()[0], text.vocab)
    assert written[2::4] == "MMMM" and set(written) <= set(task.letters)


def test_recovery_counts_designed_places() -> None:
    row = {"sequence": "M__K", "answer": "MACK"}
    assert Protein().score("MAVK", row) == {"recovery": 0.5}
    assert Protein().score("MAVK", {"sequence": "M__K"}) == {}
    with pytest.raises(DataError, match="answer: 4 residues, the sequence has 3"):
        Protein().score("MAV", row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "sequence: None, expected residues"),
        ({"sequence": ""}, "sequence: '', expected residues"),
        ({"sequence": "MK_", "id": "p1"}, "p1: residue 3 is masked"),
        ({"sequence": "MKj", "where": "x.fa record 2 (p1)"}, r"x.fa record 2 \(p1\): residue 3: 'j' is none of"),
        ({"sequence": "MK", "target": ""}, "target: '', expected residues"),
        ({"sequence": "MK", "target": "M1"}, "target: residue 2: '1' is none of"),
    ],
)
def test_a_wrong_row_is_named(vocab: Vocab, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Protein().sample(row, vocab)


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        (["A"], "allow: 1 entries for 2 positions"),
        ([None, "AX"], "allow, residue 2: 'AX', expected some of"),
        ([None, ""], "allow, residue 2: '', expected some of"),
    ],
)
def test_a_wrong_allowed_set_is_named(vocab: Vocab, allow: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Protein().prompt({"sequence": "__", "allow": allow}, vocab)


def test_a_field_that_looks_like_one_that_is_missing_is_refused(vocab: Vocab) -> None:
    """Else a binder would be designed without its target, and letters be generated that are not allowed."""
    task = Protein()
    for name, value in (("targets", "ACD"), ("Target", "ACD"), ("allowed", [None, None, None])):
        for make in (task.sample, task.prompt):
            with pytest.raises(
                DataError, match=f"^pair 3: unknown field: '{name}' .did you mean .{name[:6].lower()[:5]}"
            ):
                make({"sequence": "MKT", "where": "pair 3", name: value}, vocab)
    with pytest.raises(DataError, match="unknown field: 'seqence' .did you mean .sequence"):
        task.prompt({"seqence": "MKT"}, vocab)


def test_columns_of_a_table_that_nothing_reads_are_kept(vocab: Vocab) -> None:
    table = {"label": "helix", "output": 3, "target_id": "P12345", "sequence_length": 3, "pH": 7.4, "fields": {}}
    for make in (Protein().sample, Protein().prompt):
        assert make({"sequence": "MKT", **table}, vocab) == make({"sequence": "MKT"}, vocab)
    check_row({"sequence": "M_T", "answer": "MKT", "id": "a", "description": "b"}, Protein.fields, strict=True)
    with pytest.raises(DataError, match="unknown field: 'answr' .did you mean .answer"):
        check_row({"sequence": "M_T", "answr": "MKT"}, Protein.fields, strict=True)


def test_wrong_letters_are_refused(vocab: Vocab) -> None:
    with pytest.raises(ConfigError, match="task.letters: 'AA', expected letters, each once"):
        Protein("AA")
    with pytest.raises(ConfigError, match="task.letters: no id for 'J'"):
        Protein("ACJ").sample({"sequence": "A"}, vocab)
    with pytest.raises(ConfigError, match="task.letters: no id for 'J'"):
        Protein(learned="ACJ").sample({"sequence": "A"}, vocab)


def test_open_places_hold_the_letters_of_the_task(vocab: Vocab) -> None:
    prompt = Protein(letters="LAG-").prompt({"sequence": "_M", "allow": ["-L", None]}, vocab)
    assert prompt[1:3] == [Target([MASK], allow=((4, 5), (30, 31))), Target([M])]
    assert Protein(letters="LAG-").prompt({"sequence": "_"}, vocab)[1] == Target([MASK], allow=((4, 7), (30, 31)))


def test_places_are_those_of_texts_and_targets(vocab: Vocab) -> None:
    assert canvas_length(Protein().sample({"sequence": "MKVX", "target": "MK"}, vocab)) == 4 + 4 + 1
    assert canvas_length([Text([1, 2]), Media("image", None), Target(length=5), Target([3])]) == 8


@pytest.mark.parametrize("options", [{"token_dropout": True}, {"positions": "absolute"}, {}])
def test_bounds_and_samples_are_those_of_single_rows_on_either_side(options: dict[str, Any]) -> None:
    """Token dropout counts a row's own masks, absolute positions its own positions."""
    torch.manual_seed(0)
    made = {"hidden_size": 16, "layers": 2, "heads": 2, "max_length": 32, "init_std": 0.5, "options": options}
    model = MMDiff(new_backbone(family="esm", tokenizer=esm.tokenizer(), **made)).eval()
    task, whole = Protein(), ["MKVACDEFGH", "MK", "ACDEFGHIKLMNPQRSTVWY"]
    samples = [task.sample({"sequence": s, "target": "WW" if s == "MK" else None}, model.vocab) for s in whole]
    prompts = [task.prompt({"sequence": s}, model.vocab) for s in ("__VA__", "_" * 12, "M____K")]

    def bounds(rows: list[int], side: Any) -> torch.Tensor:
        return bound(model, collate([samples[i] for i in rows], model.vocab, index=rows, side=side), levels=4).nll_B

    def written(rows: list[int], side: Any) -> list[str]:
        batch = collate([prompts[i] for i in rows], model.vocab, index=rows, side=side)
        out = model.generate(batch, temperature=1.0, remasking="random", seed=3)
        return [task.parse(ids, model.vocab) for ids in out.targets()]

    for side in ("left", "right"):
        alone = torch.cat([bounds([i], side) for i in range(3)])
        torch.testing.assert_close(bounds([0, 1, 2], side), alone, rtol=1e-5, atol=1e-5)
        assert written([0, 1, 2], side) == [written([i], side)[0] for i in range(3)] == written([0, 1, 2], "left")


def test_backbones_are_told_from_runs_and_saved_models(tmp_path: Path, model: MMDiff) -> None:
    model.save_pretrained(tmp_path / "saved")
    model.backbone.save_pretrained(tmp_path / "backbone", original_format=True)
    assert is_backbone(str(tmp_path / "backbone")) and is_backbone("GleghornLab/DSM_150")
    assert not any(map(is_backbone, [str(tmp_path / "saved"), str(tmp_path), "runs/x", "./x", "protein-demo"]))


def test_an_open_place_of_a_target_is_named(vocab: Vocab) -> None:
    with pytest.raises(DataError, match="target: residue 2 is masked"):
        Protein().prompt({"sequence": "__", "target": "M_K"}, vocab)
