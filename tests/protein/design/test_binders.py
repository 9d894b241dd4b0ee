"""Binders: what of a canvas is noised, pairs from a file, and whether a design depends on its target.

First against the exact law of `Complements` and a model that does not look, both made by hand; then, slow, with models
that are trained. Ids: 0 `<cls>`, 2 `<eos>`, 32 mask, residues 4 to 23 (`esm.TOKENS`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from protein_models import UNIFORM, VOCAB, Complements, agreement, entropy, exact_session, partners, shuffled

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import TOKENS, tokenizer
from mmdiff.canvas.sample import Target, Text
from mmdiff.commands.cli import main
from mmdiff.config import load_config
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise
from mmdiff.protocols import Row
from mmdiff.session import Session, load
from mmdiff.tasks.protein.data.tables import Pairs
from mmdiff.tasks.protein.design.control import bounds, control_rows, design_control
from mmdiff.tasks.protein.residues import CANONICAL
from mmdiff.tasks.protein.task import Protein

ID = {letter: i for i, letter in enumerate(TOKENS)}
NOISE, LENGTH = 0.1, 12


def ids(letters: str) -> list[int]:
    return [ID[letter] for letter in letters]


def rows_of(source: Complements) -> list[Row]:
    return [source[i] for i in range(len(source))]


def opened(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "sequence": "_" * len(row["sequence"])} for row in rows]


def agreeing(records: Sequence[Row]) -> float:
    """The share of residues that are the partner of their record's target."""
    return identity([r["sequence"] for r in records], [partners(r["target"]) for r in records])


def identity(some: Sequence[str], others: Sequence[str]) -> float:
    return float(np.mean([x == y for a, b in zip(some, others, strict=True) for x, y in zip(a, b, strict=True)]))


# Pairs whose law is known ---------------------------------------------------------------------------------------------


def test_a_pair_depends_on_seed_and_number_only() -> None:
    few, many = Complements(3, seed=4), Complements(1000, seed=4)
    assert rows_of(few) == rows_of(many)[:3] and few[-1] == few[2] and len(many) == 1000
    assert few[0] != Complements(3, seed=5)[0] and few.length(0) == 24
    alone = Complements(3, seed=4, with_target=False)
    assert alone[1] == {name: few[1][name] for name in ("id", "sequence")} and alone.length(1) == 12
    assert rows_of(Complements.toy(10**9, 4))[:3] == rows_of(few)
    assert partners("ACDY") == "YWVA" and partners(partners(CANONICAL)) == CANONICAL
    assert all(a != b for a, b in zip(CANONICAL, partners(CANONICAL), strict=True))
    clean = Complements(1, seed=0, noise=0)[0]
    assert clean["sequence"] == partners(clean["target"]) and entropy(0) == 0
    for wrong in ({"n": 0}, {"seed": -1}, {"length": 0}, {"noise": 1.5}):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: {next(iter(wrong.values()))} "):
            Complements(**{"n": 1, "seed": 0, **wrong})


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_the_entropies_are_those_of_the_joint_law(noise: float) -> None:
    """By enumeration of both residues, and under a shuffled target also of whether the position kept its own."""
    p_TB = np.full((20, 20), noise / 20)
    p_TB[np.arange(20), [CANONICAL.index(x) for x in partners(CANONICAL)]] += 1 - noise
    joint_TB = p_TB / 20
    assert joint_TB.sum(0) == pytest.approx(np.full(20, 1 / 20))  # a binder alone is uniform: UNIFORM
    assert entropy(noise) == pytest.approx(-(joint_TB * np.log(p_TB)).sum())
    others = -sum(joint_TB[t, b] / 20 * math.log(p_TB[s, b]) for t, b, s in product(range(20), repeat=3))
    assert shuffled(noise, 12) == pytest.approx(entropy(noise) / 12 + others * 11 / 12)
    assert shuffled(noise, 1) == pytest.approx(entropy(noise))
    rows = rows_of(Complements(400, seed=1, noise=noise))
    share = agreement(noise)
    assert agreeing(rows) == pytest.approx(share, abs=4 * math.sqrt(max(share * (1 - share), 1e-9) / 4800))
    count = np.bincount([CANONICAL.index(x) for row in rows for x in row["sequence"]], minlength=20)
    assert count == pytest.approx(np.full(20, 240), abs=4.5 * math.sqrt(240 * 0.95))


# Canvases -------------------------------------------------------------------------------------------------------------

HARD = [  # letters of targets that would mislead a layout which looks at ids
    {"target": "X", "sequence": "ACDEF"},
    {"target": "MXB-XZ.U", "sequence": "MXK-V"},
    {"target": "ACDEFGHIKL", "sequence": "ACDEFGHIKL"},
    {"target": "-" * 30, "sequence": "W"},
]


@pytest.mark.parametrize("levels", [Bernoulli(stratified=True), ExactCount(full=0.5)])
@pytest.mark.parametrize("learned", [None, "all"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_binder_is_masked_whatever_the_target_has(levels: Any, learned: str | None, side: Any) -> None:
    """Rows of many lengths on one canvas. Over 64 steps every learned residue of a binder is masked, and nothing else:
    no end, no padding, no position of the target."""
    task = Protein(learned=learned)
    batch = collate([task.sample(row, VOCAB) for row in HARD], VOCAB, side=side)
    allowed = torch.zeros_like(batch.target_BL)
    for b, row in enumerate(HARD):
        binder = torch.tensor([learned == "all" or letter in CANONICAL for letter in row["sequence"]])
        whole = [0, *ids(row["target"]), 2, *ids(row["sequence"]), 2]
        start = batch.ids_BL.shape[1] - len(whole) if side == "left" else 0
        assert batch.ids_BL[b, start : start + len(whole)].tolist() == whole
        first = start + len(row["target"]) + 2
        allowed[b, first : first + len(binder)] = binder
    assert torch.equal(batch.target_BL, allowed)
    ever = torch.zeros_like(allowed)
    for step in range(64):
        copies = Denoise(levels).plan(batch, NoiseKey(0, step=step, batch=len(HARD)), VOCAB)
        ever |= copies.masked_RL
        assert torch.equal(copies.ids_RL == VOCAB.mask_id, copies.masked_RL)
    assert torch.equal(ever, allowed)


def test_ends_are_not_counted() -> None:
    """Two chains in front, so three ends before the binder's: a rule that masks what follows the first one is wrong."""
    parts = [Text([0, *ids("MK"), 2, *ids("AC"), 2]), Target(ids("VYW")), Text([2])]
    batch = collate([parts], VOCAB)
    copies = [Denoise().plan(batch, NoiseKey(0, step=step), VOCAB).masked_RL[0] for step in range(32)]
    assert torch.stack(copies).any(0).tolist() == [False] * 7 + [True] * 3 + [False]


def test_a_target_stays_as_it_is_when_a_binder_is_written() -> None:
    """At random weights every id is about as likely as any other."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 64, "init_std": 0.3}
    model = MMDiff(new_backbone(family="esm", tokenizer=tokenizer(), **sizes))
    rows = opened(HARD)
    batch = collate([Protein().prompt(row, VOCAB) for row in rows], VOCAB, side="left")
    out = model.generate(batch, temperature=1.0, remasking="random")
    for b, row in enumerate(rows):
        written = out.ids_BL[b, -len(row["sequence"]) - 1 : -1].tolist()
        assert out.ids_BL[b, out.ids_BL[b] != 1].tolist() == [0, *ids(row["target"]), 2, *written, 2]
        assert all(4 <= i < 24 for i in written)
    assert torch.equal(out.ids_BL[~batch.target_BL], batch.ids_BL[~batch.target_BL])


@pytest.mark.parametrize("swap", [False, True])
def test_pairs_of_a_file_become_canvases_both_ways(tmp_path: Path, swap: bool) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("id,binder,target\none,mkv,AXC\ntwo,W-W*,DE\n")
    pairs = Pairs(str(file), swap=swap)
    canvases = [Protein().sample(pairs[i], VOCAB) for i in range(len(pairs))]
    amino = ((4, 24),)
    own = [
        [Text([0, *ids("AXC"), 2]), Target(ids("MKV"), allow=amino), Text([2])],
        [Text([0, *ids("DE"), 2]), Target(ids("WW"), allow=amino), Text([2])],
    ]
    other = [
        [Text([0, *ids("MKV"), 2]), Target([ID["A"]], allow=amino), Text([ID["X"]]), Target([ID["C"]], allow=amino),
         Text([2])],
        [Text([0, *ids("WW"), 2]), Target(ids("DE"), allow=amino), Text([2])],
    ]  # fmt: skip
    assert canvases == ([own[0], other[0], own[1], other[1]] if swap else own)


# The exact law, and a model that does not look ------------------------------------------------------------------------


def by_hand(looks: bool) -> Session:
    """log p(residue | target) of `Complements`, or that of a binder without its target."""
    p_VV = torch.full((33, 33), 1e-30, dtype=torch.float64)  # of an id, by the id of the target's residue
    p_VV[:, 4:24] = NOISE / 20 if looks else 1 / 20
    if looks:
        p_VV[ids(CANONICAL), ids(partners(CANONICAL))] += 1 - NOISE
    log_p_VV = p_VV.log()
    # chains of equal length, an end between them
    return exact_session(lambda ids_RL: log_p_VV[ids_RL.roll(LENGTH + 1, dims=1)])


def test_bounds_of_the_exact_law_are_its_entropies() -> None:
    rows = rows_of(Complements(300, seed=2))
    own, wrong = (np.array(bounds(by_hand(True), some)) for some in (rows, control_rows(rows)))
    for found, expected in ((own, entropy(NOISE)), (wrong, shuffled(NOISE, LENGTH))):
        assert found.mean() == pytest.approx(expected, abs=4 * found.std() / math.sqrt(len(rows)))
    assert expected > UNIFORM + 1 > own.mean() + 3


def test_designs_of_the_exact_law_follow_their_targets() -> None:
    rows = opened(rows_of(Complements(100, seed=3)))
    own, control = map(list, design_control(by_hand(True), rows, guard=None))
    right = agreement(NOISE)
    four = 4 * math.sqrt(right * (1 - right) / 1200)
    assert agreeing(own) == pytest.approx(right, abs=four) and agreeing(control) == pytest.approx(right, abs=four)
    targets = [row["target"] for row in rows]
    assert [r["target"] for r in own] == targets != [r["target"] for r in control]
    assert agreeing([{**r, "target": t} for r, t in zip(control, targets, strict=True)]) < 0.25
    priced = bounds(by_hand(True), own), bounds(by_hand(True), control_rows(own))
    assert np.mean(priced[1]) - np.mean(priced[0]) > 3


def test_the_control_finds_a_model_that_does_not_look() -> None:
    """Its bounds are the same to the last digit, and so are its designs: the noise of a row and its control is one."""
    session, rows = by_hand(False), rows_of(Complements(40, seed=3))
    own, wrong = bounds(session, rows), bounds(session, control_rows(rows))
    assert own == wrong == pytest.approx([UNIFORM] * 40)
    designs, control = map(list, design_control(session, opened(rows), guard=None))
    assert [r["sequence"] for r in designs] == [r["sequence"] for r in control]
    assert agreeing(designs) < 0.12  # 1 in 20 by chance


# Trained models -------------------------------------------------------------------------------------------------------

HELD_OUT = 64  # pairs, 768 residues of binders


def stage(steps: int, lr: float, **more: Any) -> dict[str, Any]:
    rows = {"target": "protein_models.Complements", **more.pop("rows", {})}
    levels = {"target": "mmdiff.diffusion.mask_rates.ExactCount", "full": 0.5}
    return {
        "steps": steps,
        "batch_size": 64,
        "lr": lr,
        "warmup": 20,
        "data": {**rows, "n": 64 * steps, "seed": 1},  # no pair is seen twice
        "eval": {**rows, "n": 64, "seed": 2},
        "objective": {"target": "mmdiff.objectives.denoise.Denoise", "levels": levels},
        **more,
    }


def configuration(**stages: Any) -> dict[str, Any]:
    return {
        "model": {
            "backbone": {
                "target": "mmdiff.backbones.new_backbone",
                "family": "esm",
                "tokenizer": {"target": "mmdiff.backbones.families.esm.tokenizer"},
                "hidden_size": 64,
                "layers": 2,
                "heads": 4,
                "max_length": 64,
                "init_std": 0.125,
            }
        },
        "task": {"target": "mmdiff.tasks.protein.Protein"},
        "sampler": {"temperature": 1.0, "remasking": "random"},
        "train": {"threads": 1, "betas": [0.9, 0.98], "tensorboard": False, "stages": stages},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three runs by `mmdiff train`: `pairs`, from nothing; `alone`, which never saw a target; and `adapted`, from it by
    the parameter rules of configs/protein-binder.yaml."""
    folder = tmp_path_factory.mktemp("binders")
    base = str(folder / "runs/alone/model")
    rules = load_config("protein-binder").train.stages["pairs"].params
    assert rules[0]["lora"]["modules"] == "query|key|value"
    files = {
        "pairs": configuration(fit=stage(200, 3e-3)),
        "alone": configuration(fit=stage(60, 3e-3, rows={"with_target": False})),
        "adapted": configuration(fit=stage(300, 1e-2, params=rules)) | {"model": {"weights": base}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, tree in files.items():
            Path(f"{name}.yaml").write_text(yaml.safe_dump(tree))
            assert main(["train", f"{name}.yaml"]) == 0
    yield folder / "runs"


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return rows_of(Complements(HELD_OUT, seed=9))


def surprise(rows: Sequence[Row]) -> float:
    """-log p of binders under the true law, in nats per residue."""
    share = agreeing(rows)
    return -share * math.log(agreement(NOISE)) - (1 - share) * math.log(NOISE / 20)


@pytest.mark.slow
def test_a_bound_falls_to_the_entropy_and_rises_under_a_wrong_target(runs: Path, held_out: list[Row]) -> None:
    """Within 0.1 nats of what the exact law says of the same pairs; that of a binder alone is 2.4 above it."""
    session = load(runs / "pairs")
    own, wrong = np.mean(bounds(session, held_out)), np.mean(bounds(session, control_rows(held_out)))
    assert surprise(held_out) - 0.02 < own < surprise(held_out) + 0.1
    assert surprise(held_out) == pytest.approx(entropy(NOISE), abs=0.3)
    assert wrong > UNIFORM + 0.5
    assert wrong == pytest.approx(surprise(control_rows(held_out)), abs=1)


@pytest.mark.slow
def test_designs_have_the_partners_of_their_targets(runs: Path, held_out: list[Row]) -> None:
    session = load(runs / "pairs")
    own, control = map(list, design_control(session, opened(held_out)))
    assert agreeing(own) >= 0.8 and agreeing(control) >= 0.8  # the exact law: 0.905 of each one's own target
    assert identity([r["sequence"] for r in own], [r["sequence"] for r in control]) < 0.35
    assert agreeing(list(design_control(session, opened(held_out), temperature=0.0)[0])) > 0.97


@pytest.mark.slow
def test_adapters_teach_a_model_of_binders_to_look(runs: Path, held_out: list[Row]) -> None:
    """The bounds of the base model hardly depend on the target, those of the adapted one do, by 3 nats and more."""
    before, after = load(runs / "alone"), load(runs / "adapted")
    wrong = control_rows(held_out)
    gap = np.array(bounds(before, wrong)) - np.array(bounds(before, held_out))
    assert abs(gap.mean()) < 0.02 and np.abs(gap).max() < 0.1  # what attention of first weights lets through
    assert np.mean(bounds(before, [{"sequence": row["sequence"]} for row in held_out])) == pytest.approx(
        UNIFORM, abs=0.1
    )
    assert agreeing(list(design_control(before, opened(held_out))[0])) < 0.1
    assert np.mean(bounds(after, held_out)) < surprise(held_out) + 0.3
    assert np.mean(bounds(after, wrong)) > UNIFORM + 0.5
    own, control = map(list, design_control(after, opened(held_out)))
    assert agreeing(own) > 0.7 and agreeing(control) > 0.7
    frozen, tuned = dict(before.model.named_parameters()), dict(after.model.named_parameters())
    adapters = [name for name in tuned if ".lora_" in name]
    assert len(adapters) == 2 * 3 * 2  # A and B of query, key and value in two layers
    for name in tuned.keys() - set(adapters):
        assert torch.equal(tuned[name], frozen[name.replace(".base_layer", "")]), name


@pytest.mark.slow
def test_the_command_says_what_came_from_the_target(
    runs: Path, held_out: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    target = held_out[0]["target"]
    found = {}
    for name in ("pairs", "alone"):
        words = ["protein", "design", str(runs / name), "--target", target, "--length", "12", "--n", "16", "--json"]
        assert main(words) == 0
        found[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
    pairs, alone = found["pairs"], found["alone"]
    assert pairs["bound_shuffled_target"] - pairs["bound_own_target"] > 2
    assert abs(alone["bound_shuffled_target"] - alone["bound_own_target"]) < 0.1
    assert pairs["identity_with_control"] < 0.4 < 0.8 < alone["identity_with_control"]
    assert identity([r["sequence"] for r in pairs["records"]], [partners(target)] * 16) > 0.8
