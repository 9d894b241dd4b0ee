"""Model cards: they hold what is known, the hub's own parser reads them, and a person's edits stay."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml
from huggingface_hub import ModelCard

from mmdiff import train
from mmdiff.commands import cli
from mmdiff.errors import ConfigError
from mmdiff.evaluation.evaluate import evaluate_run
from mmdiff.files import check_sums
from mmdiff.model import MMDiff
from mmdiff.runs.notes import write_note
from mmdiff.sharing.card import missing_of, write_card
from mmdiff.sharing.markdown import UNKNOWN
from mmdiff.sharing.medical import ITEMS, medical_text, missing_items, read_items


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    config = toy.config(stage={"steps": 3, "lr": 0.015})
    config.eval = replace(config.eval, data={"held": {"target": "toy.Corners", "n": 5}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config)
        evaluate_run("runs/toy")
    return folder / "runs/toy"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "toy")
    return tmp_path / "toy"


def sections(text: str) -> dict[str, str]:
    return {part.partition("\n")[0]: part.partition("\n\n")[2] for part in text.split("\n## ")[1:]}


def test_it_holds_what_is_known(run: Path) -> None:
    file = write_card(str(run), licence="apache-2.0")
    assert file == run / "model/README.md"
    card = ModelCard.load(file)
    front: dict[str, Any] = card.data.to_dict()
    assert (
        front["license"] == "apache-2.0" and front["library_name"] == "mmdiff" and "masked-diffusion" in front["tags"]
    )
    parts = sections(card.text)
    result = json.loads((run / "metrics.json").read_text())
    assert f"{result['eval']['held']['exact']:.6g}" in parts["Metrics"] and "held.exact" in parts["Metrics"]
    recipe = yaml.safe_load("\n".join(line[4:] for line in parts["Recipe"].splitlines() if line.startswith("    ")))
    assert recipe["seed"] == 0 and recipe["stages"]["only"]["lr"] == 0.015 and recipe["stages"]["only"]["steps"] == 3
    assert "toy.Corners" in parts["Data"] and "held" in parts["Data"] and "n: 5" in parts["Data"]
    count = sum(p.numel() for p in MMDiff.from_pretrained(run / "model", trust=True).backbone.parameters())
    assert f"{count:,} numbers" in parts["Architecture"]
    assert (
        parts["Use"].startswith("    import mmdiff\n")
        and "toy.Where" in parts["Use"]
        and "apache-2.0" in parts["Licence"]
    )
    check_sums(run / "model")


def test_what_is_not_known_is_not_reported(run: Path) -> None:
    shutil.copytree(run / "model", run.parent / "alone")
    shutil.copy(run / "config.yaml", run.parent)  # of no run, though it is near
    text = write_card(str(run.parent / "alone")).read_text()
    parts = sections(text)
    assert parts["Data"].strip() == parts["Recipe"].strip() == parts["Metrics"].strip() == UNKNOWN
    assert parts["Licence"].startswith(UNKNOWN) and "It was not evaluated" in parts["Limits"]


def test_a_hub_id_is_the_base_and_an_adapter_is_one(run: Path) -> None:
    from mmdiff.config import load_config
    from mmdiff.sharing.card import _base

    config = load_config(str(run))
    assert _base(config) is None and _base(None) is None
    config.model.backbone = {"target": "mmdiff.backbones.load_backbone", "path": "GSAI-ML/LLaDA-8B-Base"}
    assert _base(config) == "GSAI-ML/LLaDA-8B-Base"
    config.model.backbone = {"target": "mmdiff.backbones.load_backbone", "path": str(run / "model")}
    assert _base(config) is None


def test_a_card_is_written_again_until_a_person_edits_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_card(str(run))
    first = file.read_text()
    assert cli.main(["card", str(run), "--medical", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"] == str(file) and file.read_text() != first
    edited = file.read_text().replace("# toy", "# My own name")
    file.write_text(edited)
    assert cli.main(["card", str(run)]) == 2
    assert "was written or edited by a person" in capsys.readouterr().err
    assert file.read_text() == edited
    assert cli.main(["card", str(run), "--out", str(run / "other.md")]) == 0 and (run / "other.md").is_file()
    file.write_text("mine")
    with pytest.raises(ConfigError, match="by a person"):
        write_card(str(run))


CLINICAL = "Reporting in clinical research"


def test_a_medical_card_has_every_item_and_names_those_that_are_missing(run: Path) -> None:
    assert "clinical" not in write_card(str(run)).read_text()
    file = write_card(str(run), medical=True)
    part = sections(file.read_text())[CLINICAL]
    rows = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in part.splitlines() if line[:2] == "| "}
    assert ITEMS.keys() <= rows.keys() and "arXiv 2403.02558" in part
    assert rows["problem"] == UNKNOWN and rows["compute"].startswith("see Recipe; hardware") and "card" in rows
    silent = {name for name in ITEMS if UNKNOWN in rows[name]}
    assert silent == set(missing_of(file)) == ITEMS.keys() - {"card"}
    assert missing_of(write_card(str(run))) == []


def test_what_a_person_reports_is_in_the_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {name: f"about {name}" for name in ITEMS} | {"tier": "2B", "risk": "a | b\n# c <script>"}
    (tmp_path / "clinical.yaml").write_text(yaml.safe_dump(given))
    command = ["card", str(run), "--medical", "--reported", str(tmp_path / "clinical.yaml"), "--json"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["missing"] == [] and "nothing" in err
    part = sections((run / "model/README.md").read_text())[CLINICAL]
    assert part.count(UNKNOWN) == 0 and "about problem" in part and "a \\| b \\# c \\<script\\>; see Limits" in part
    del given["shift"]
    (tmp_path / "clinical.yaml").write_text(yaml.safe_dump(given))
    assert cli.main(command) == 0 and json.loads(capsys.readouterr().out)["missing"] == ["shift"]


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("problme: x", 'problme: no item of MI-CLAIM-GEN (did you mean "problem"?)'),
        ("tier: 4", "tier: '4', expected 1, 2A, 2B, 3"),
        ("problem: [a]", "problem: list, expected text"),
        ("problem: ' '", "problem: str, expected text"),
        ("- problem", "expected items by name, {problem: ...}, found list"),
        ("problem: {", "not YAML"),
        ("problem: 2024-13-45", "not YAML: month must be in 1..12"),
        ("\n".join([BOMB, "problem: *a8"]), "holds more than 100,000 values, or refers to itself"),
        ("problem: &a [*a]", "holds more than 100,000 values, or refers to itself"),
    ],
)
def test_a_wrong_item_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "clinical.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_items(tmp_path / "clinical.yaml")
    assert says in str(raised.value) and "clinical.yaml" in str(raised.value)


def test_items_without_a_medical_card_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="expected --medical"):
        write_card(str(run), reported=Path("clinical.yaml"))


def test_the_items_are_those_of_the_authors_form() -> None:
    """Its rows by part: 6, 4, 4, 5; of the last, a tier, and three about the model."""
    parts = [item.part for item in ITEMS.values()]
    assert [parts.count(part) for part in dict.fromkeys(parts)] == [6, 4, 4, 5, 4]
    assert missing_items((), {}) == [name for name in ITEMS if name != "card"]
    assert medical_text((), {}).count("###") == 5


def test_text_of_a_configuration_is_no_markup(run: Path) -> None:
    """It can neither end a block nor the front matter, nor pass for the mark of an unedited card."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    nasty = "x\n---\n```\n<script>alert(1)</script>\n## Licence\n\nmit\n<!-- mmdiff card " + "0" * 64 + " -->\n"
    content["name"] = nasty
    content["eval"]["data"] = {nasty: {"target": "toy.Corners", "n": 5}}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    (run / "metrics.json").write_text(json.dumps({"eval": {nasty: {"exact": 1.0}}}))
    file = write_card(str(run))
    card = ModelCard.load(file)
    assert card.data.to_dict()["library_name"] == "mmdiff"
    lines = [line for line in card.text.splitlines() if not line.startswith("    ")]
    assert not any("<script>" in line.replace("\\<", "") for line in lines)
    assert card.text.count("\n## Licence") == 1 and "mit" not in sections(card.text)["Licence"].split()
    write_card(str(run))  # still its own


def test_a_folder_of_another_kind_is_one_line(tmp_path: Path) -> None:
    toy.backbone().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="neither a run nor a model that mmdiff saved"):
        write_card(str(tmp_path))


def test_it_has_what_a_person_noted_of_the_run(run: Path) -> None:
    write_note(run, "a first try\n# of *two*")
    parts = sections(write_card(str(run)).read_text())
    assert parts["Notes"].strip() == "a first try\n\n\\# of \\*two\\*"
