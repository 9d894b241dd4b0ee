"""Every number that a file may give has a range; one outside is refused in one line, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import toy
from annotated_types import Ge, Interval
from imports import declared

from mmdiff.config import check_nodes, load_config
from mmdiff.config.nodes import build
from mmdiff.config.settings import Config, EvalConfig, GenerationConfig, ModelConfig, StageConfig, TrainConfig
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.errors import ConfigError
from mmdiff.model.params import Lora, Rule, read_rules
from mmdiff.parts import part
from mmdiff.parts.arguments import check_argument, check_finite
from mmdiff.parts.ranges import AtLeast1, BelowOne, Finite, Whole, expected, in_range
from mmdiff.training.train import train

SETTINGS = [Config, ModelConfig, GenerationConfig, StageConfig, TrainConfig, EvalConfig, Rule, Lora]


def bare(kind: Any) -> Iterator[Any]:
    """Numbers without a range, at any depth of an annotation."""
    if kind in (int, float):
        yield kind
    elif get_origin(kind) is Annotated:
        base, *marks = get_args(kind)
        if base in (int, float) and not any(isinstance(mark, Interval) for mark in marks):
            yield kind
    else:
        for inner in get_args(kind):
            yield from bare(inner)


def test_every_number_in_a_configuration_has_a_range() -> None:
    parts = declared()
    assert len(parts) > 60
    for function in [*SETTINGS, *parts]:
        made = function if is_dataclass(function) or not isinstance(function, type) else function.__init__
        hints = get_type_hints(inspect.unwrap(made), include_extras=True)  # all of them can be looked up
        assert hints or not inspect.signature(function).parameters, function
        wrong = {name: kind for name, kind in hints.items() if name != "return" and list(bare(kind))}
        assert not wrong, f"{function.__module__}.{function.__qualname__}: {wrong}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.clip=-1", "train.clip=-1: expected a number of at least 0"),
        ("train.betas=[2,2]", "train.betas.0=2: expected a number of at least 0 and below 1"),
        ("train.threads=-2", "train.threads=-2: expected a whole number from 1 to 1024"),
        ("train.workers=-1", "train.workers=-1: expected a whole number from 0 to 1024"),
        ("train.keep=-1", "train.keep=-1: expected a whole number of at least 1"),
        ("train.save_every=0", "train.save_every=0: expected a whole number of at least 1"),
        ("train.log_every=0", "train.log_every=0"),
        ("train.seed=99999999999999999999", "expected a whole number of 64 bits"),
        ("train.stages.one.lr=.nan", "train.stages.one.lr=nan: expected a number of at least 0"),
        ("train.stages.one.lr=.inf", "train.stages.one.lr=inf"),
        ("train.stages.one.lr=-1", "train.stages.one.lr=-1"),
        ("train.stages.one.lr_end=-1", "train.stages.one.lr_end=-1: expected a number from 0 to 1"),
        ("train.stages.one.warmup=-3", "train.stages.one.warmup=-3"),
        ("train.stages.one.weight_decay=-1", "train.stages.one.weight_decay=-1"),
        ("train.stages.one.steps=-1", "train.stages.one.steps=-1"),
        ("train.stages.one.batch_size=0", "train.stages.one.batch_size=0"),
        ("train.stages.one.accumulate=0", "train.stages.one.accumulate=0"),
        ("train.stages.one.bucket=-1", "train.stages.one.bucket=-1"),
        ("eval.batch_size=0", "eval.batch_size=0"),
        ("eval.limit=0", "eval.limit=0"),
        ("sampler.temperature=.inf", "sampler.temperature=inf"),
        (
            "sampler.temperature=1e308",
            "temperature=1e+308: expected a number of at most 3.4e+38, as 32-bit floats hold",
        ),
        ("sampler.suppress_ids=[-1]", "sampler.suppress_ids.0=-1"),
        ("train.keep=99999999999999999999", "train.keep=99999999999999999999: expected a whole number of 64 bits"),
        ("train.clip=true", "train.clip: True is not a number"),
        ("train.keep=2.0", "train.keep: 2.0 is not a whole number"),
    ],
)
def test_settings_out_of_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("vqa-demo", [override])
    assert message in str(raised.value) and "\n" not in str(raised.value)


MLP = "mmdiff.connectors.mlp.MLP"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "here.hidden=0: expected a whole number of at least 1"),
        ({"hidden": -4}, "here.hidden=-4: expected"),
        ({"hidden": "4"}, "here.hidden: '4' is not a whole number or null"),
        ({"hidden": True}, "here.hidden: True is not a whole number or null"),
        ({"out_norm": float("nan")}, "here.out_norm=nan: expected a finite number"),
        ({"out_norm": 0}, "here.out_norm=0: expected a number above 0"),
        ({"norm": 1}, "here.norm: 1 is not true or false"),
        ({"weights": 3}, "here.weights: 3 is not a string or null"),
    ],
)
def test_arguments_of_parts_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build({"target": MLP, "width_in": 2, "width_out": 2, **arguments}, where="here")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    config = Config(model=ModelConfig(encoders={"image": None}, connectors={"image": {"target": MLP, **arguments}}))
    with pytest.raises(ConfigError, match=r"model\.connectors\.image\."):
        check_nodes(config)


@part
class Own:
    """A part from elsewhere, with a mark of `annotated_types` of its own."""

    def __init__(self, n: Annotated[int, Ge(3)] = 3, words: list[str] | None = None, rows: Any = None) -> None:
        self.n = n


def test_parts_from_elsewhere() -> None:
    own = f"{__name__}.Own"
    assert build({"target": own, "n": 3, "words": ["a"], "rows": 5}).n == 3
    for arguments, message in (
        ({"n": 2}, "n=2: expected a whole number of at least 3"),
        ({"words": "a"}, "words: 'a' is not a list or null"),
        ({"rows": [float("inf")]}, "rows.0=inf: expected a finite number"),
    ):
        with pytest.raises(ConfigError) as raised:
            build({"target": own, **arguments})
        assert message in str(raised.value)
    schedule = {"target": "mmdiff.diffusion.mask_rates.Bernoulli", "schedule": "cosine"}
    with pytest.raises(ConfigError, match="schedule: 'cosine' is no part, expected {target: dotted.path, ...}"):
        build(schedule)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (tuple[int, int], [1, 2], None),
        (tuple[int, int], [1], "a: [1] is not a list of 2"),
        (tuple[int, int], [1, 2, 3], "a: [1, 2, 3] is not a list of 2"),
        (tuple[int, ...], [1, 2, "b"], "a.2: 'b' is not a whole number"),
        (tuple[float, str], [1, "b"], None),
        (tuple[float, str], ["b", 1], "a.0: 'b' is not a number"),
        (Literal[1, "b"], 1, None),
        (Literal[1, "b"], True, "a: True is not one of 1, b"),
        (Literal["left", "right"], "lift", "a: 'lift' is not one of left, right (did you mean \"left\"?)"),
        (dict[str, int], {"b": 1}, None),
        (dict[str, int], {"b": 1, "c": "d"}, "a.c: 'd' is not a whole number"),
        (dict, {"b": object()}, None),
        (AtLeast1 | None, 0, "a=0: expected a whole number of at least 1"),
        (str | list[AtLeast1], ["b"], "a.0: 'b' is not a whole number"),
        (str | list[AtLeast1], [0], "a.0=0: expected a whole number of at least 1"),
        (float, True, "a: True is not a number"),
        (float, 2, None),
        (int, 2.0, "a: 2.0 is not a whole number"),
        (Own, {"target": "any.Thing"}, None),
        (Own, "Own", None),
        (Path, 3, "a: 3 is not a path"),
    ],
)
def test_values_against_annotations(kind: Any, value: Any, message: str | None) -> None:
    if message is None:
        return check_argument(kind, value, "a")
    with pytest.raises(ConfigError) as raised:
        check_argument(kind, value, "a")
    assert str(raised.value) == message


def test_values_that_python_code_hands_over() -> None:
    """A list may be an object that an interface describes; in a file it is no part. A word is none anywhere."""
    interface = get_type_hints(inspect.unwrap(Bernoulli.__init__))["schedule"]
    check_argument(interface, [1], "a", called=True)
    for value, called in (([1], False), ("cosine", True), ("cosine", False)):
        with pytest.raises(ConfigError, match="is no part, expected"):
            check_argument(interface, value, "a", called=called)


@pytest.mark.parametrize(
    ("value", "key"),
    [([1.0, [float("nan")]], "a.1.0=nan"), ((float("inf"),), "a.0=inf"), ({"b": {"c": -float("inf")}}, "a.b.c=-inf")],
)
def test_numbers_at_any_depth_are_finite(value: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: expected a finite number"):
        check_finite(value, "a")


def test_arguments_by_position_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="n=2: expected a whole number of at least 3"):
        Own(2)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"lr": -1.0}, "params[0].lr=-1.0: expected a number of at least 0"),
        ({"weight_decay": float("nan")}, "params[0].weight_decay=nan"),
        ({"lora": {"r": 0}}, "params[0].lora.r=0: expected a whole number of at least 1"),
        ({"lora": {"dropout": 1}}, "params[0].lora.dropout=1: expected a number of at least 0 and below 1"),
        ({"lora": {"r": True}}, "params[0].lora.r: True is not a whole number"),
    ],
)
def test_rules_of_parameters_out_of_range(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_rules([{"match": "backbone", **rule}])
    assert message in str(raised.value)


def test_memory_that_is_not_there_is_one_line_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"target": "torch.nn.Linear", "in_features": 10**9, "out_features": 10**9}
    with pytest.raises(
        ConfigError, match=r"^model.here: takes more memory than there is \(.*\); in_features=1000000000, out_f"
    ):
        build(node, where="model.here")
    config = toy.config(stage={"params": [{"match": "backbone", "lora": {"r": 10**12}}, {"match": "*"}]})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^train.stages.only.params: takes more memory than there is"):
        train(config)
    broken = {"target": "mmdiff.connectors.anyres.AnyRes", "inner": True}
    with pytest.raises(ConfigError, match=r"^here.inner: True is not a string or {target: dotted.path, ...}$"):
        build(broken, where="here", width_in=1, width_out=1)


def test_ranges_and_their_words() -> None:
    assert in_range(1, get_args(AtLeast1)[1:]) and not in_range(0, get_args(AtLeast1)[1:])
    assert in_range(0.999, get_args(BelowOne)[1:]) and not in_range(1, get_args(BelowOne)[1:])
    assert not any(in_range(x) for x in (float("nan"), float("inf"), -float("inf"), 2**63, -(2**63) - 1))
    assert in_range(2**63 - 1, get_args(Whole)[1:])
    assert expected(int, get_args(Whole)[1:]) == "a whole number of 64 bits"
    assert expected(float, get_args(Finite)[1:]) == "a finite number"
