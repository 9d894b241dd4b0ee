"""`protein_session.load_protein_session`: runs and published backbones, and what it says of everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.esm_checkpoints import reference, tensors, write_folder
from protein_models import saved
from toy import Where, backbone

from mmdiff import MMDiff, load
from mmdiff.errors import ConfigError
from mmdiff.model.saving import save_model
from mmdiff.tasks.protein.design.generate import generate
from mmdiff.tasks.protein.session import digest, is_backbone, load_protein_session


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    saved(home / "run")
    write_folder(home / "esm2", tensors(reference()))
    where = {"target": f"{Where.__module__}.{Where.__qualname__}", "image": False}
    save_model(MMDiff(backbone()), home / "words", extra={"task": where})
    return home


def test_a_saved_model_is_what_load_makes_of_it(folders: Path) -> None:
    session = load_protein_session(folders / "run", ["sampler.steps=3"])
    direct = load(folders / "run", "sampler.steps=3")
    assert session.sampler == direct.sampler and session.sampler.steps == 3 and session.folder == direct.folder
    assert digest(session.model) == digest(direct.model)
    rows = [{"sequence": "MK" + "_" * 9}]
    assert generate(session, rows) == generate(direct, rows)


def test_a_published_backbone_draws_from_its_own_law(folders: Path) -> None:
    session = load_protein_session(str(folders / "esm2"))
    assert (session.sampler.temperature, session.sampler.remasking, session.sampler.steps) == (1.0, "random", None)
    assert session.folder == folders / "esm2" and not session.model.training
    found = load_protein_session(folders / "esm2", ["task.letters=AC", "sampler.steps=2"])
    (record,) = generate(found, [{"sequence": "_" * 20}], guard=None)
    assert set(record["sequence"]) == {"A", "C"} and record["forwards"] == 2


def test_arguments_of_a_backbone(folders: Path) -> None:
    half = load_protein_session(folders / "esm2", ["backbone.dtype=bfloat16", "sampler.steps=2"])
    assert next(half.model.parameters()).dtype == torch.bfloat16
    plain = load_protein_session(folders / "esm2")
    dropped = load_protein_session(folders / "esm2", ["backbone.options.token_dropout=true"])
    assert digest(plain.model) != digest(dropped.model)  # one that no weight tells


def test_which_paths_are_backbones(folders: Path) -> None:
    assert is_backbone(folders / "esm2") and is_backbone("facebook/esm2_t6_8M_UR50D")
    for path in (folders / "run", "runs/x", "x", "./a/b", "/a/b", "a/b/c"):
        assert not is_backbone(path)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("words", "", "words: its task is toy.Where, expected mmdiff.tasks.protein.task.Protein"),
        ("rum", "", "rum: no such folder"),
        ("run", "backbone.dtype=bfloat16", "backbone: a saved model takes settings of `task` and `sampler`"),
        ("run", "sampler.step=1", 'sampler.step: no such field (did you mean "steps"?)'),
        ("esm2", "sampler.step=1", 'sampler.step: no such field (did you mean "steps"?)'),
        ("esm2", "task.leters=A", 'task.leters: mmdiff.tasks.protein.Protein takes no such argument (did you mean "le'),
        ("esm2", "task.letters=A1", "task.letters: no id for '1'"),
        ("esm2", "backbone.dtipe=1", "backbone.dtipe: mmdiff.backbones.load.load_backbone takes no such argument (did"),
        ("esm2", "backbone.options.drop=1", "options.drop: no such option of ESM"),
        ("esm2", "backbone.path.x=1", "backbone.path.x: path has no fields"),
        ("esm2", "model.x=1", "model: a saved model takes settings of `task` and `sampler`"),
    ],
)
def test_refusals(folders: Path, name: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_protein_session(folders / name, [override] if override else [])
    assert str(error.value).removeprefix(f"{folders}/").startswith(message) and "\n" not in str(error.value)
