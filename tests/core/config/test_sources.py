"""`mmdiff config` checks arguments of parts by their source, without torch; what it reads is what Python sees."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from imports import declared

from mmdiff.commands.cli import main
from mmdiff.config import check_nodes, load_config, packaged
from mmdiff.config.sources import absent, signature_of
from mmdiff.parts.arguments import annotations_of


def test_the_source_says_what_the_signature_says() -> None:
    for function in declared():
        target = f"{function.__module__}.{function.__qualname__}"
        read, seen = signature_of(target), inspect.signature(function)
        assert read is not None and absent(target) is None, target
        assert {p.name: p.default is p.empty for p in read.parameters.values()} == {
            p.name: p.default is p.empty for p in seen.parameters.values()
        }, target
        numbers = {n: k for n, k in annotations_of(function).items() if "Interval" in str(k) and n in seen.parameters}
        assert {name: read.parameters[name].annotation for name in numbers} == numbers, target


@pytest.mark.parametrize("name", packaged())
def test_packaged_configurations_pass(name: str) -> None:
    check_nodes(load_config(name), importing=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.connectors.image.hiden=3", 'mmdiff.connectors.mlp.MLP takes no such argument (did you mean "hidden"?)'),
        ("model.connectors.image.hidden=0", "model.connectors.image.hidden=0: expected a whole number of at least 1"),
        ("model.connectors.image.width_in=4", "model.connectors.image.width_in: set at run time, leave it out"),
        ("model.encoders.image=mmdiff.encoders.conv.ConvTowr", 'has no "ConvTowr" (did you mean "ConvTower"?)'),
        ("model.encoders.image=mmdiff.encoders.cnv.ConvTower", 'mmdiff.encoders has no "cnv" (did you mean "conv"?)'),
        ("train.stages.tune.objective.copies=.nan", "train.stages.tune.objective.copies=nan"),
        ("eval.data.overall.n=many", "eval.data.overall.n: 'many' is not a whole number"),
        ("eval.data.other={target: mmdiff.tasks.vqa.scenes.Scenes, n: 4}", 'Scenes needs "seed"'),
        ("task=5", "task: 5 is not a node, expected {target: dotted.path, ...}"),
        ("sampler.select=[1]", "sampler.select: [1] is not a node"),
        ("model.heads.image=3", "model.heads.image: 3 is not a node"),
        ("train.stages.tune.objective={copies: 2, target: null}", "train.stages.tune.objective.target: None is not"),
        ("eval.data.x=5", "eval.data.x: 5 is not a node"),
        ("task.metrics=[5]", "task.metrics.0: 5 is not a string"),
        ("task=VQA", "task.target: 'VQA' is not a dotted path"),
    ],
)
def test_mmdiff_config_refuses_wrong_arguments(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "vqa-demo", override]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


def test_a_package_of_ones_own_is_read_and_not_imported(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("from .rows import Rows\nraise SystemExit('imported')\n")
    (tmp_path / "own" / "rows.py").write_text(
        "from dataclasses import dataclass\nfrom mmdiff.parts.ranges import AtLeast1\n\n\n@dataclass\nclass Base:\n"
        "    path: str\n\n\n@dataclass\nclass Rows(Base):\n    n: AtLeast1 = 1\n"
    )
    (tmp_path / "mine.yaml").write_text("base: vqa-demo\neval: {data: {overall: {target: own.Rows, path: x}}}\n")
    code = (
        "import sys; from mmdiff.commands.cli import main\nsys.path.append('.')\n"
        "assert main(['config', 'mine.yaml']) == 0\n"
        "assert main(['config', 'mine.yaml', 'eval.data.overall.n=0']) == 2\n"
        "assert main(['config', 'mine.yaml', 'eval.data.overall.m=1']) == 2\n"
        "assert not {'torch', 'own'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "eval.data.overall.n=0: expected a whole number of at least 1" in done.stderr
    assert "own.Rows takes no such argument (known: n, path)" in done.stderr
    assert signature_of("own.Rows") is None
