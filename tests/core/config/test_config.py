"""Configurations: inheritance, overrides, types; nodes: targets, arguments, toy sizes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from mmdiff.config import build, check_nodes, load_config, locate, packaged, to_yaml
from mmdiff.config.settings import Config, ModelConfig
from mmdiff.errors import ConfigError, MissingExtra
from mmdiff.files import write_sums

HERE = __name__  # the parts below are named by dotted path, as a configuration would name them


@dataclass
class Words:
    words: list[str]


@dataclass
class Tower:
    layer: int
    words: Any = None
    scale: float = 1.0
    size: str = "full"

    @classmethod
    def toy(cls, **arguments: Any) -> Tower:
        return replace(cls(**arguments), size="toy")


@dataclass
class Bridge:
    width_in: int
    width_out: int
    depth: int = 2


def anything(**arguments: Any) -> dict[str, Any]:
    return arguments


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write(
        tmp_path,
        "base",
        f"""
        name: base-run
        demo: somewhere.demo
        model:
          backbone: {{target: {HERE}.Tower, layer: 3, scale: 0.5, words: {{target: {HERE}.Words, words: [a, b]}}}}
          encoders:
            image: {{target: {HERE}.Tower, layer: 1, scale: 2.0}}
            audio: {HERE}.Words
        train:
          seed: 7
          stages:
            align: {{steps: 10, params: [{{match: connectors, lr: 1e-3}}, {{match: all, lr: 1e-5}}]}}
            tune: {{steps: 20, lr: 1e-5}}
        """,
    )


def child(tmp_path: Path, text: str) -> Config:
    return load_config(write(tmp_path, "child", f"base: base.yaml\n{text}"))


# Files


def test_a_file_is_typed_and_named_after_itself(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "small", "train: {clip: 2, stages: {tune: {lr: 1e-5}}}"))
    assert config.name == "small"
    assert config.train.clip == 2.0 and isinstance(config.train.clip, float)
    assert config.train.stages["tune"].lr == 1e-5 and config.train.stages["tune"].steps == 1000
    assert config.train.betas == (0.9, 0.999)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "empty", "")) == Config(name="empty")


def test_a_child_lies_over_its_base_key_by_key(base: str, tmp_path: Path) -> None:
    config = child(tmp_path, "train: {stages: {tune: {steps: 5}, polish: {steps: 2}}}")
    assert list(config.train.stages) == ["align", "tune", "polish"]
    assert (config.train.stages["tune"].steps, config.train.stages["tune"].lr, config.train.seed) == (5, 1e-5, 7)
    assert config.demo == "somewhere.demo"
    assert config.base is None


def test_the_name_of_a_run_is_not_inherited(base: str, tmp_path: Path) -> None:
    assert load_config(base).name == "base-run"
    assert child(tmp_path, "").name == "child"


def test_the_same_target_keeps_the_arguments_of_the_base(base: str, tmp_path: Path) -> None:
    config = child(tmp_path, f"model: {{backbone: {{target: {HERE}.Tower, layer: 4}}}}")
    assert config.model.backbone["layer"] == 4 and config.model.backbone["scale"] == 0.5
    assert child(tmp_path, "model: {backbone: {layer: 5}}").model.backbone["scale"] == 0.5
    assert child(tmp_path, f"model: {{backbone: {HERE}.Tower}}").model.backbone["layer"] == 3


def test_another_target_drops_the_arguments_of_the_base(base: str, tmp_path: Path) -> None:
    config = child(tmp_path, f"model: {{backbone: {{target: {HERE}.Bridge, depth: 1}}}}")
    assert config.model.backbone == {"target": f"{HERE}.Bridge", "depth": 1}
    config = child(tmp_path, f"model: {{backbone: {{words: {{target: {HERE}.anything}}}}}}")
    assert config.model.backbone["words"] == {"target": f"{HERE}.anything"} and config.model.backbone["layer"] == 3


def test_a_base_lies_beside_the_file_that_names_it(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "deep", "middle", "base: ../base.yaml\ntrain: {seed: 8}")
    top = write(tmp_path, "top", "base: deep/middle.yaml")
    monkeypatch.chdir(tmp_path / "deep")
    config = load_config(top)
    assert config.train.seed == 8 and config.demo == "somewhere.demo"


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "base: b.yaml")
    with pytest.raises(ConfigError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_config(write(tmp_path, "b", "base: a.yaml").replace("b.yaml", "a.yaml"))


def test_a_run_folder_is_read_from_its_resolved_file(base: str, tmp_path: Path) -> None:
    config = load_config(base, ["train.seed=11"])
    write(tmp_path / "runs" / "mine", "config", to_yaml(config))
    write_sums(tmp_path / "runs" / "mine", ["config.yaml"])  # this user's own
    assert load_config(str(tmp_path / "runs" / "mine")) == replace(config, name="mine")  # the folder is the run


def test_what_is_written_reads_back_equal(base: str, tmp_path: Path) -> None:
    """Also text that looks like a number, which a plain YAML writer leaves unquoted."""
    config = load_config(base, ["task={target: a.b, x: '1e-5', y: 1e-5, z: 'no', t: 'a: b #c'}", "sampler.steps=4"])
    assert config.task["x"] == "1e-5" and config.task["y"] == 1e-5
    assert load_config(write(tmp_path, "again", to_yaml(config))) == config


def test_values_can_refer_to_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, "x", "train: {seed: 5}\nsampler: {seed: '${train.seed}'}")
    assert load_config(path, ["train.seed=6"]).sampler.seed == 6
    with pytest.raises(ConfigError, match=r"sampler\.seed: .*train\.sed"):
        load_config(path, ["sampler.seed=${train.sed}"])


# Overrides


def test_overrides_reach_every_kind_of_place(base: str) -> None:
    config = load_config(
        base,
        [
            "train.stages.tune.steps=5",
            "model.encoders.image.layer=9",
            "model.encoders.image.new=1",
            "model.encoders.text={target: x.Y, k: [1, 2]}",
            "train.stages.align.params.1.lr=2",
            "sampler.steps=null",
        ],
    )
    assert config.train.stages["tune"].steps == 5 and config.train.stages["tune"].lr == 1e-5
    assert config.model.encoders["image"] == {"target": f"{HERE}.Tower", "layer": 9, "scale": 2.0, "new": 1}
    assert config.model.encoders["text"] == {"target": "x.Y", "k": [1, 2]}
    assert config.train.stages["align"].params == [{"match": "connectors", "lr": 1e-3}, {"match": "all", "lr": 2}]
    assert config.sampler.steps is None


def test_null_takes_out_a_part_and_a_stage(base: str) -> None:
    config = load_config(base, ["model.encoders.image=null", "train.stages.align=null"])
    assert config.model.encoders["image"] is None
    assert list(config.train.stages) == ["tune"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_dotted_path_stands_for_a_node(base: str, turned: bool) -> None:
    assert load_config(base).model.encoders["audio"] == {"target": f"{HERE}.Words"}
    words = [f"model.encoders.image={HERE}.Bridge", "model.encoders.image.depth=4"]
    config = load_config(base, words if not turned else [f"model.encoders.image.target={HERE}.Bridge", words[1]][::-1])
    assert config.model.encoders["image"] == {"target": f"{HERE}.Bridge", "depth": 4}


def test_strings_that_are_not_nodes_stay_strings(base: str) -> None:
    config = load_config(base, ["model.backbone.words=a.path", "train.stages.tune.params=[backbone.lora]", "demo=x.y"])
    assert config.model.backbone["words"] == "a.path"
    assert config.train.stages["tune"].params == ["backbone.lora"] and config.demo == "x.y"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.seed=1", r'^trian: no such field \(did you mean "train"\?\)$'),
        ("train.stages.tune.stepps=1", r'^train\.stages\.tune\.stepps: no such field \(did you mean "steps"\?\)$'),
        ("train.seed=many", r"^train\.seed: 'many' is not a whole number$"),
        ("train.seed=1.5", r"^train\.seed: 1\.5 is not a whole number$"),
        ("train.seed=true", r"^train\.seed: True is not a whole number$"),
        ("train.seed=null", r"^train\.seed: None is not a whole number$"),
        ("train.clip='1'", r"^train\.clip: '1' is not a number$"),
        ("train.tensorboard=1", r"^train\.tensorboard: 1 is not true or false$"),
        ("train.betas=[0.9]", r"^train\.betas: \[0\.9\] is not a list of 2$"),
        ("train.betas=[0.9, x]", r"^train\.betas\.1: 'x' is not a number$"),
        ("train.stages=3", r"^train\.stages: 3 is not a mapping$"),
        ("train.seed.x=3", r"^train\.seed: \{'x': 3\} is not a whole number$"),
        ("sampler.suppress_ids=[1, a]", r"^sampler\.suppress_ids\.1: 'a' is not a whole number$"),
        ("train.precision=bf61", r"^train\.precision: 'bf61' is not one of .* \(did you mean \"bf16\"\?\)$"),
        ("train.stages.tune.lr_schedule=cosin", r"lr_schedule: 'cosin' .* \(did you mean \"cosine\"\?\)$"),
        ("train.stages.tune.padding=1", r"padding: 1 is not one of ignore, eos, answer$"),
        ("sampler.eos_policy=lst", r"eos_policy: 'lst' .* \(did you mean \"last\"\?\)$"),
        ("sampler.remasking=randm", r"remasking: 'randm' .* or a dotted path \(did you mean \"random\"\?\)$"),
        ("train.stages.align.params.2.lr=1", r"^train\.stages\.align\.params\.2: the list has 2 items$"),
        ("train.seed", r"^'train\.seed' is not an override, expected dotted\.key=value$"),
        ("train..seed=1", r"is not an override"),
        ("train.seed=[1", r"^train\.seed: '\[1' is not YAML"),
        (f"train.seed={'9' * 5000}", r"^train\.seed: '9+' is not YAML: Exceeds the limit"),
        ("base=vqa", r"^base: only a file can have one"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_was_expected(base: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(base, [override])
    assert "\n" not in str(caught.value)


def test_a_score_may_be_a_dotted_path(base: str) -> None:
    assert load_config(base, ["sampler.remasking=my.Score"]).sampler.remasking == "my.Score"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "x.yaml: not YAML"),
        ("seed: 1\nseed: 2", "duplicate key seed"),
        ("- a", "holds a list, expected a mapping"),
        ("base: nowhere", 'x.yaml: base: no configuration, .yaml file or run folder "nowhere"'),
        ("base: nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("base: [a]", "is not a string"),
        ("sampler: {seed: '${'}", "sampler.seed|not YAML"),
        (f"sampler: {{seed: {'9' * 5000}}}", "x.yaml: not YAML: Exceeds the limit"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, "x", text))
    assert "\n" not in str(caught.value)


def test_a_node_may_be_that_of_another_key(base: str, tmp_path: Path) -> None:
    text = "train: {stages: {align: {optimizer: my.Own}, tune: {optimizer: '${train.stages.align.optimizer}'}}}"
    config = child(tmp_path, text)
    assert config.train.stages["tune"].optimizer == {"target": "my.Own"} == config.train.stages["align"].optimizer
    given = load_config(base, ["model.encoders.other=${model.encoders.image}", "sampler.select=${demo}"])
    assert given.model.encoders["other"] == {"target": f"{HERE}.Tower", "layer": 1, "scale": 2.0}
    assert given.sampler.select == {"target": "somewhere.demo"}  # a path, which becomes a node as it does elsewhere
    with pytest.raises(ConfigError, match="task: Recursive interpolation detected"):
        load_config(base, ["task=${task}"])


# Nodes


def test_build_makes_inner_nodes_first() -> None:
    node = {
        "target": f"{HERE}.anything",
        "one": {"target": f"{HERE}.Words", "words": ["a"]},
        "many": [{"target": f"{HERE}.Words", "words": ["b"]}, 3],
        "plain": {"deep": {"target": f"{HERE}.Words", "words": []}},
        "text": f"{HERE}.Words",
    }
    assert build(node) == {
        "one": Words(["a"]),
        "many": [Words(["b"]), 3],
        "plain": {"deep": Words([])},
        "text": f"{HERE}.Words",
    }
    with pytest.raises(ConfigError, match="is not a node"):
        build(f"{HERE}.anything")


def test_build_passes_what_is_known_at_run_time() -> None:
    assert build({"target": f"{HERE}.Bridge", "depth": 1}, width_in=3, width_out=4) == Bridge(3, 4, 1)


def test_toy_reaches_inner_nodes() -> None:
    inner = {"target": f"{HERE}.Tower", "layer": 1}
    built = build({"target": f"{HERE}.Tower", "layer": 2, "words": inner}, toy=True)
    assert built == Tower(2, Tower(1, size="toy"), size="toy")
    assert build({"target": f"{HERE}.Words", "words": [inner]}, toy=True) == Words([Tower(1, size="toy")])
    assert build(inner) == Tower(1)


@pytest.mark.parametrize(
    ("node", "run_time", "message"),
    [
        (
            {"target": "{}.Tower", "layr": 1},
            {},
            r'^k\.layr: {}\.Tower takes no such argument \(did you mean "layer"\?\)$',
        ),
        ({"target": "{}.Tower"}, {}, r'^k: {}\.Tower needs "layer"$'),
        ({"target": "{}.Bridge", "width_in": 3}, {}, r'^k: {}\.Bridge needs "width_out"$'),
        ({"target": "{}.Bridge", "width_in": 3}, {"width_in": 1, "width_out": 1}, r"^k\.width_in: set at run time"),
        ({"target": "{}.Words", "words": []}, {"width_in": 1}, r"^k\.width_in: {}\.Words takes no such argument"),
        ({"target": "{}.Towr"}, {}, r'^k\.target: {} has no "Towr" \(did you mean "Tower"\?\)$'),
        ({"target": "{}.Tower.tyo"}, {}, r'^k\.target: {}\.Tower has no "tyo" \(did you mean "toy"\?\)$'),
        ({"target": "mmdiff.encodrs.x.X"}, {}, r'^k\.target: mmdiff has no "encodrs" \(did you mean "encoders"\?\)$'),
        ({"target": "mmdiff.error.x"}, {}, r'^k\.target: mmdiff has no "error" \(did you mean "errors"\?\)$'),
        ({"target": "mmdiff.errors.nearst"}, {}, r'mmdiff\.errors has no "nearst" \(did you mean "nearest"\?\)$'),
        ({"target": "no_such_package.X"}, {}, r"no_such_package\.X: there is no module 'no_such_package'$"),
        ({"target": "mmdiff.config.load.RUN_FILE"}, {}, r"is a str, expected a class or a function$"),
        ({"target": "Tower"}, {}, r"^k\.target: 'Tower' is not a dotted path$"),
        ({"target": 3}, {}, r"^k\.target: 3 is not a dotted path$"),
        ({"target": "a..b"}, {}, r"is not a dotted path$"),
        ({"layer": 3}, {}, r"is not a node, expected \{{target: dotted\.path, \.\.\.\}}$"),
        ({"target": "{}.anything", "x": [{"target": "{}.Tower"}]}, {}, r'^k\.x\.0: {}\.Tower needs "layer"$'),
    ],
)
def test_a_wrong_node_is_one_line_with_the_key(node: Any, run_time: dict[str, int], message: str) -> None:
    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        return value.format(HERE) if isinstance(value, str) else value

    with pytest.raises(ConfigError, match=message.format(*[HERE] * 2)) as caught:
        build(fill(node), where="k", **run_time)
    assert "\n" not in str(caught.value)


def test_nothing_is_built_when_the_outer_arguments_are_wrong() -> None:
    made: list[int] = []
    sys.modules[HERE].__dict__["note"] = lambda: made.append(1)
    with pytest.raises(ConfigError, match="layr"):
        build({"target": f"{HERE}.Tower", "layr": 1, "words": {"target": f"{HERE}.note"}})
    assert made == []
    build({"target": f"{HERE}.Tower", "layer": 1, "words": {"target": f"{HERE}.note"}})
    assert made == [1]


def test_a_missing_package_is_not_mistaken_for_a_wrong_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part_in_need.py").write_text("import no_such_package\n\ndef f(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match="part_in_need needs no_such_package, which is not installed"):
        locate("part_in_need.f")


def test_check_nodes_finds_what_build_would(base: str) -> None:
    def config(**nodes: Any) -> Config:
        return Config(model=ModelConfig(connectors={"image": {"target": f"{HERE}.Bridge", **nodes}}))

    check_nodes(config())  # the widths are known at run time
    with pytest.raises(ConfigError, match=r"^model\.connectors\.image\.dept: .* \(did you mean \"depth\"\?\)$"):
        check_nodes(config(dept=1))
    with pytest.raises(ConfigError, match=r"^model\.encoders\.image\.layr: "):
        check_nodes(load_config(base, ["model.encoders.image.layr=3", "model.encoders.audio=null"]))
    with pytest.raises(ConfigError, match=r"^model\.encoders\.audio: .* needs \"words\"$"):
        check_nodes(load_config(base))


@pytest.mark.parametrize("name", packaged())
def test_every_packaged_configuration(name: str, tmp_path: Path) -> None:
    """It opens with a comment, its nodes fit their targets, and what is resolved reads back equal."""
    config = load_config(name)
    check_nodes(config)
    assert load_config(write(tmp_path, "again", to_yaml(config))) == config
    assert config.demo is None or callable(locate(config.demo, "demo"))
    source = ROOT / "configs" / f"{name}.yaml"
    assert source.read_text(encoding="utf-8").startswith("# ")
