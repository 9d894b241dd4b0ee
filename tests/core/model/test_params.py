"""Parameter rules: who is trained, at which rate, with which decay, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import toy

from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import apply_rules, read_rules, rules_table


def model() -> MMDiff:
    return MMDiff(toy.backbone(), {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})


def test_the_first_match_wins_and_groups_carry_rate_and_decay() -> None:
    m = model()
    rules = read_rules(
        [
            {"match": "*.bias", "lr": 0.5},
            {"match": "encoders", "train": False},
            {"match": "connectors.image", "lr": 0.2, "weight_decay": 0.0},
            {"match": "backbone"},
        ]
    )
    groups, lines = apply_rules(m, rules, lr=0.1, weight_decay=0.3)
    found = {n: (g["base_lr"], g["weight_decay"]) for g in groups for n in g["names"]}
    assert found["encoders.image.conv.bias"] == (0.5, 0.0) and "encoders.image.conv.weight" not in found
    assert found["connectors.image.linear.weight"] == (0.2, 0.0)
    assert found["backbone.model.lm_head.weight"] == (0.1, 0.3)
    assert {v for n, v in found.items() if "norm" in n} == {(0.1, 0.0)}  # vectors take no decay
    assert set(found) == {n for n, p in m.named_parameters() if p.requires_grad}
    assert sum(line.count for line in lines) == sum(p.numel() for p in m.parameters() if p.requires_grad)
    assert sum(line.tensors for line in lines) == len(list(m.parameters()))
    text = rules_table(lines).splitlines()
    assert text[2].split() == ["encoders", "1", "0", "-", "0", "frozen"] and len(text) == 5


def test_no_rules_train_everything() -> None:
    m = model()
    groups, _ = apply_rules(m, [], lr=0.1, weight_decay=0.0)
    assert {n for g in groups for n in g["names"]} == {n for n, _ in m.named_parameters()}


def test_a_prefix_ends_at_a_dot() -> None:
    (rule,) = read_rules([{"match": "encoders.im"}])
    assert not rule.covers("encoders.image.conv.weight") and rule.covers("encoders.im.conv.weight")


@pytest.mark.filterwarnings("ignore:Already found a .peft_config")
def test_two_parts_have_adapters_of_their_own() -> None:
    m = model()
    parts = {"backbone": "q_proj", "connectors": "linear"}
    rules = [{"match": part, "lora": {"r": 2, "modules": modules}} for part, modules in parts.items()]
    apply_rules(m, read_rules([*rules, {"match": "*", "train": False}]), lr=0.1, weight_decay=0.0)
    assert [adapter["part"] for adapter in m.adapters] == [*parts]


def test_adapters_stay_from_one_stage_to_the_next() -> None:
    m = model()
    lora = [{"match": "backbone", "lora": {"r": 2, "modules": "q_proj|v_proj"}}, {"match": "*", "train": False}]
    for _ in range(2):  # the same adapters are not put in twice
        groups, lines = apply_rules(m, read_rules(lora), lr=0.1, weight_decay=0.0)
        names = [n for g in groups for n in g["names"]]
        assert len(names) == 8 and all(".lora_" in n for n in names) and lines[0].what == "lora"
    assert len(m.adapters) == 1
    groups, _ = apply_rules(
        m, read_rules([{"match": "backbone"}, {"match": "*", "train": False}]), lr=1, weight_decay=0
    )
    names = [n for g in groups for n in g["names"]]
    assert any(".lora_" in n for n in names) and any("base_layer" in n for n in names)
    with pytest.raises(ConfigError, match="backbone has adapters of another shape already"):
        apply_rules(m, read_rules([{"match": "backbone", "lora": {"r": 4}}, {"match": "*"}]), lr=1, weight_decay=0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "connectors"}], "params: no rule matches backbone.model"),
        ([{"match": "conectors"}, {"match": "*"}], "params: the rule 'conectors' matches no parameter (did you mean"),
        ([{"match": "*", "train": False}], "params: every parameter is frozen, nothing is left to train"),
        ([{"match": "backbone", "lora": {"modules": "query"}}], "params: lora.modules 'query' matches no linear layer"),
    ],
)
def test_rules_that_do_not_fit_the_model(rules: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_rules(model(), read_rules(rules), lr=0.1, weight_decay=0.0)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("backbone", "params[0]: 'backbone' is not a rule, expected {match, train, lr, lr_decay, weight_decay, lora}"),
        ({"lr": 1.0}, "params[0]: `match` is missing"),
        ({"match": "*", "trian": True}, 'params[0].trian: no such field (did you mean "train"?)'),
        ({"match": "*", "lr": "1e-3"}, "params[0].lr: '1e-3' is not a number"),
        ({"match": "*", "train": 0}, "params[0].train: 0 is not true or false"),
        ({"match": "*", "lora": {"r": 0}}, "params[0].lora.r=0: expected a whole number of at least 1"),
        ({"match": "*", "lora": 8}, "params[0].lora: 8 is not a mapping"),
    ],
)
def test_rules_that_cannot_be_read(rule: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_rules([rule])
    assert str(error.value) == message
