"""The demonstration's figures from made-up ones, its data set, and configurations that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff.config import load_config
from mmdiff.errors import ConfigError
from mmdiff.tasks.vla.cli.demo import FAUCETS, LINES, PAIRS, SILENT, demonstrations, simulator, summary
from mmdiff.tasks.vla.cli.tables import BASE, TABLES, VARIANTS, overrides

pytest.importorskip("gymnasium")
TASKS = [*FAUCETS, "button-press-topdown-v3", "drawer-open-v3"]


def rates(*shares: float) -> dict[str, Any]:
    by_task = {task: {"success": share} for task, share in zip(TASKS, shares, strict=False)}
    return {"success": sum(shares) / len(shares), "by_task": by_task}


def test_summary() -> None:
    ablations = {
        "swapped": rates(0.1, 0.0, 1.0, 1.0),  # of the faucets alone: the others may well do what they see
        "no_image": rates(0.5, 0.5, 0.0, 0.0),
        "random": rates(0.0, 0.0, 0.0, 0.0),
        "expert": rates(1.0, 1.0, 1.0, 1.0),
        SILENT: rates(0.3, 0.1),
    }
    found = summary({**rates(1.0, 0.9, 0.8, 0.7), "ablations": ablations})
    assert found["success"] == pytest.approx(0.85) and found["faucets"] == pytest.approx(0.95)
    assert found["swapped"] == pytest.approx(0.05) and found["no_language_faucets"] == pytest.approx(0.2)
    assert found["no_image"] == 0.25 and found["random"] == 0.0 and found["expert"] == 1.0
    assert found["by_task"]["drawer-open-v3"] == 0.7 and set(LINES) <= set(found)


def test_the_faucets_are_swapped_with_each_other() -> None:
    assert {PAIRS[a] for a in FAUCETS} == set(FAUCETS) and all(PAIRS[a] != a for a in FAUCETS)


def test_the_second_policy_differs_in_what_it_is_told_alone() -> None:
    full, silent = load_config("vla-demo", []), load_config("vla-demo-silent", [])
    a, b = full.train.stages["fit"], silent.train.stages["fit"]
    assert b.data["rows"] == a.data and b.data["fields"] == {"instruction": ""}
    b.data = a.data
    assert a == b and full.model == silent.model and full.task == silent.task and silent.demo is None


def test_variants_change_one_thing_each() -> None:
    config = load_config("vla-tables-demo", [])
    base = load_config("vla-demo", overrides(config, BASE))
    assert base.task["execute"] is None
    for name in VARIANTS:
        other = load_config("vla-demo", overrides(config, name))
        assert other.name == f"vla-tables-{name}" and other.train.seed == base.train.seed
        same = (other.model == base.model, other.task == base.task, other.train == base.train)
        assert sum(same) == {BASE: 3, "full-vocabulary": 2, "bins-256": 1}.get(name, 1), name
    assert {name for rows in TABLES.values() for name in rows.values()} == set(VARIANTS)
    wide = load_config("vla-demo", overrides(config, "bins-256"))
    assert wide.model.backbone["reserve"] == {"action": 256} and wide.task["codec"]["bins"] == 256
    long = load_config("vla-demo", overrides(config, "chunk-8"))
    assert long.task["chunk"] == long.train.stages["fit"].data["chunk"] == 8


@pytest.mark.needs("metaworld")
def test_mt10_is_mt10() -> None:
    from metaworld.env_dict import MT10_V3  # `metaworld.MT10` would make every one of its worlds

    spec, tasks = simulator(load_config("vla-mt10-demo", []))
    assert sorted(tasks) == sorted(MT10_V3) and spec["goals"] is True and "tasks" not in spec


def reach(folder: Path, **world: Any) -> Any:
    spec = {"name": "reach", "size": 16, "tasks": ["reach-red"], **world}
    config = load_config("vla-demo", [f"task.statistics={folder}"])
    config.task["world"] = spec
    return config


@pytest.mark.needs("pyarrow")
def test_demonstrations_are_recorded_once_and_never_over_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdiff.tasks.vla.cli.demo.DEMONSTRATIONS", 2)
    folder = tmp_path / "data"
    demonstrations(reach(folder), fresh=False)
    first = {f.name: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    assert json.loads((folder / "meta" / "world.json").read_text())["hold"] >= 1
    demonstrations(reach(folder), fresh=False)
    assert {f.name: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} == first
    with pytest.raises(ConfigError, match="move it away"):
        demonstrations(reach(folder, size=24), fresh=True)
    assert {f.name: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} == first
    demonstrations(reach(folder), fresh=True)
    assert {f.name: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} != first
