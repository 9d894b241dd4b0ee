"""Which parameters a stage trains, at which learning rate, with which adapters: a list of rules; the first match wins.

    - {match: encoders, train: false}
    - {match: connectors, lr: 1e-3}
    - {match: backbone, lora: {r: 8, alpha: 16, modules: "q_proj|v_proj"}}
    - {match: encoders.image, lr: 2e-4, lr_decay: 0.8}

`match` is a prefix of the parameter's name at a dot (`backbone`, `encoders.image`), or a glob (`*.bias`). A parameter
no rule matches, and a rule that matches none, are errors. No rules: everything is trained.

With `four_bit`, the weights below LoRA's factors are kept in 4 bits (QLoRA, arXiv 2305.14314): 4.5 bits per weight in
place of 16, dequantised while a layer is run.

Shape letters: O outputs, I inputs of a linear layer, N its weights, B blocks of 64 of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import regex
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.config.schema import as_annotated
from mmdiff.errors import ConfigError, nearest
from mmdiff.parts.ranges import AtLeast1, BelowOne, NotNegative, Positive, PositiveShare
from mmdiff.protocols import Model


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) by peft. modules: a regular expression for the last part of module names.

    four_bit: whether the weights below are kept in 4 bits.
    """

    r: AtLeast1 = 8
    alpha: Positive = 16.0
    dropout: BelowOne = 0.0
    modules: str = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    four_bit: bool = False


@dataclass(frozen=True)
class Rule:
    """lr, weight_decay: None takes the stage's. lora: the matched weights are frozen, adapters in them are trained.

    lr_decay: the learning rate falls by this factor from layer to layer, downwards from what stands above the last
        layer; what stands below the first (embeddings) is one layer more (BEiT, arXiv 2106.08254).
    """

    match: str
    train: bool = True
    lr: NotNegative | None = None
    lr_decay: PositiveShare = 1.0
    weight_decay: NotNegative | None = None
    lora: Lora | None = None

    def covers(self, name: str) -> bool:
        return name.startswith(self.match + ".") or fnmatchcase(name, self.match)


def read_rules(nodes: Sequence[Any], where: str = "params") -> list[Rule]:
    """Returns the rules of a configuration. Raises ConfigError for unknown keys, wrong types and ranges."""
    rules = []
    for i, node in enumerate(nodes):
        at = f"{where}[{i}]"
        if not isinstance(node, dict):
            raise ConfigError(f"{at}: {node!r} is not a rule, expected {{{', '.join(f.name for f in fields(Rule))}}}")
        if "match" not in node:
            as_annotated(Rule, {**node, "match": ""}, at)  # a slip in this name is told as one
            raise ConfigError(f"{at}: `match` is missing")
        rules.append(as_annotated(Rule, node, at))
    return rules


def read_adapters(nodes: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """Returns the adapters of a saved model. Raises as `read_rules` does."""
    for i, node in enumerate(nodes):
        at = f"{where}[{i}]"
        if not isinstance(node, dict) or not isinstance(node.get("part"), str):
            names = ", ".join(f.name for f in fields(Lora))
            raise ConfigError(f"{at}: {node!r} is no adapter, expected {{part, {names}}}")
        values = {key: value for key, value in node.items() if key != "part"}
        missing = {f.name for f in fields(Lora)} - values.keys() - {"four_bit"}  # later than the others
        if missing:
            raise ConfigError(f"{at}: `{min(missing)}` is missing")
        as_annotated(Lora, values, at)
    return list(nodes)


@dataclass
class RuleEffect:
    """What a rule does to a model, a line of the table that is printed: so many tensors, `count` trained parameters."""

    match: str
    tensors: int
    count: int
    lr: float
    weight_decay: float
    what: str  # trained | frozen | lora


def apply_rules(
    model: Model, rules: Sequence[Rule], *, lr: float, weight_decay: float
) -> tuple[list[dict[str, Any]], list[RuleEffect]]:
    """Set `requires_grad` and put adapters in place. Returns AdamW's groups, each with a `base_lr`, and what rules do.

    Vectors and scalars (biases, norms, position tables of one axis) take no weight decay. Raises ConfigError for a
    parameter that no rule matches, a rule that matches none, and rules that leave nothing to train.
    """
    rules = list(rules) or [Rule("*")]
    for rule in rules:
        if rule.lora is not None:
            config = {"part": rule.match, **{f.name: getattr(rule.lora, f.name) for f in fields(Lora)}}
            if config not in model.adapters:
                add_adapters(model, config)
    lines = [RuleEffect(r.match, 0, 0, r.lr if r.lr is not None else lr, 0.0, "frozen") for r in rules]
    depths = [layers_below(model, rule) if rule.lr_decay < 1 else {} for rule in rules]
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        plain = re.sub(r"\.base_layer\.|\.lora_[AB]\.default\.", ".", name)
        chosen = next((i for i, rule in enumerate(rules) if rule.covers(plain) or rule.covers(name)), None)
        if chosen is None:
            raise ConfigError(f"params: no rule matches {name}{nearest(name.split('.')[0], [r.match for r in rules])}")
        rule, line = rules[chosen], lines[chosen]
        adapter = ".lora_" in name
        parameter.requires_grad_(rule.train and (adapter or rule.lora is None))
        line.tensors += 1
        if not parameter.requires_grad:
            continue
        decay = rule.weight_decay if rule.weight_decay is not None else weight_decay
        decay = decay if parameter.ndim > 1 else 0.0
        line.count += parameter.numel()
        line.what = "lora" if rule.lora else "trained"
        line.weight_decay = max(line.weight_decay, decay)
        rate = line.lr * rule.lr_decay ** depths[chosen].get(name, 0)
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "base_lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    for rule, line in zip(rules, lines, strict=True):
        if not line.tensors:
            names = {n.rsplit(".", k)[0] for n, _ in model.named_parameters() for k in range(1, 9) if n.count(".") >= k}
            raise ConfigError(f"params: the rule {rule.match!r} matches no parameter{nearest(rule.match, names)}")
    if not groups:
        raise ConfigError("params: every parameter is frozen, nothing is left to train")
    return list(groups.values()), lines


def layers_below(model: Model, rule: Rule) -> dict[str, int]:
    """Returns how many layers below the top each parameter of a rule stands, by name: 0 above the last layer, n + 1
    below the first of n. A layer is a numbered module, the first number in a name."""
    names = [name for name, _ in model.named_parameters() if rule.covers(name)]
    numbers = [int(found[1]) if (found := re.search(r"\.(\d+)\.", name)) else None for name in names]
    layers = [number for number in numbers if number is not None]
    count, first = max(layers, default=-1) + 1, next((i for i, n in enumerate(numbers) if n is not None), 0)
    return {
        name: count - number if number is not None else (count + 1 if i < first else 0)
        for i, (name, number) in enumerate(zip(names, numbers, strict=True))
    }


def add_adapters(model: Model, config: dict[str, Any]) -> None:
    """Put LoRA adapters into linear layers of a part of the model, in place, and add `config` to `model.adapters`.

    config: `part` and the fields of `Lora`. Raises ConfigError where the part has adapters or no such layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    part = config["part"]
    try:
        modules = regex.compile(rf"(.*\.)?({config['modules']})")
    except regex.error as error:
        raise ConfigError(f"params: lora.modules {config['modules']!r} is no regular expression: {error}") from None
    if any(old["part"] == part for old in model.adapters):
        raise ConfigError(f"params: {part} has adapters of another shape already: {model.adapters}")
    rule = Rule(part)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and rule.covers(f"{n}.weight")]
    try:  # nested repetition can take for ever, and a saved folder may be anyone's
        targets = [name for name in linear if modules.fullmatch(name, timeout=0.2)]
    except TimeoutError:
        raise ConfigError(f"params: lora.modules {config['modules']!r} takes too long to match a name") from None
    if not targets:
        raise ConfigError(f"params: lora.modules {config['modules']!r} matches no linear layer of {part}")
    if config.get("four_bit"):
        for name in targets:
            parent, _, attribute = name.rpartition(".")
            layer: Any = model.get_submodule(name)  # type: ignore[attr-defined]
            setattr(model.get_submodule(parent), attribute, FourBit(layer))  # type: ignore[attr-defined]
    lora = LoraConfig(
        r=config["r"], lora_alpha=config["alpha"], lora_dropout=config["dropout"], target_modules=targets, bias="none"
    )
    inject_adapter_in_model(lora, model)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # peft gives adapters the dtype of their layer; steps of 1e-5 vanish in bfloat16
            parameter.data = parameter.data.float()
    model.adapters.append(dict(config))


def merge_adapters(model: Model) -> int:
    """Add all LoRA factors to the weights that they change, and take them out. Returns how many layers had them.

    The sum is computed in fp32 and rounded once to the kind of number of the weight. Weights of 4 bits become whole
    again, with the error that rounding to 4 bits made.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        base = layer.get_base_layer()
        base = base.whole() if isinstance(base, FourBit) else base
        with torch.no_grad():
            change = layer.get_delta_weight("default").float()
            base.weight.copy_(base.weight.float() + change)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, base)  # type: ignore[attr-defined]
    model.adapters.clear()
    return len(layers)


LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NF4: quantiles of a normal distribution, scaled to [-1, 1] (QLoRA, appendix E)."""
BLOCK = 64


class FourBit(nn.Linear):
    """A frozen linear layer whose weights are codes of 4 bits and, for every 64 of them, the largest magnitude.

    It extends `nn.Linear`, without that class's weight, for this is what peft puts adapters into. It needs no library
    and runs on any device; kernels that multiply codes directly, as bitsandbytes has for CUDA, are faster.
    """

    codes: Tensor
    largest: Tensor
    levels: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, weight = layer.in_features, layer.out_features, layer.weight.detach()
        self.kind = weight.dtype
        flat_N = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK))
        block_BN = flat_N.view(-1, BLOCK)
        largest_B = block_BN.abs().amax(1)
        self.register_buffer("levels", torch.tensor(LEVELS, device=weight.device), persistent=False)
        between = (self.levels[1:] + self.levels[:-1]) / 2
        code_N = torch.bucketize(block_BN / largest_B.clamp(min=1e-30)[:, None], between).flatten().to(torch.uint8)
        self.register_buffer("codes", code_N[::2] << 4 | code_N[1::2])
        self.register_buffer("largest", largest_B)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights (O, I) in the dtype that they had, rounded to 4 bits."""
        code_N = torch.stack([self.codes >> 4, self.codes & 15], 1).flatten().long()
        flat_N = (self.levels.float()[code_N].view(-1, BLOCK) * self.largest.float()[:, None]).flatten()
        return flat_N[: self.out_features * self.in_features].view(self.out_features, self.in_features).to(self.kind)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out

    def whole(self) -> nn.Linear:
        """Returns a layer with the weights (O, I) as they are."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, dtype=self.kind, device="meta")
        made.weight, made.bias = nn.Parameter(self.weight), self.bias
        return made


class _Product(torch.autograd.Function):
    """x times the transposed weights, which are dequantised again for the gradient: none is kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBit) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight.to(grad.dtype), None


def rules_table(lines: Sequence[RuleEffect]) -> str:
    """Returns the rules as a table of text, which is printed before training starts."""
    rows = [("parameters", "tensors", "trained", "lr", "decay", "")]
    rows += [
        (x.match, str(x.tensors), f"{x.count:,}", f"{x.lr:g}" if x.count else "-", f"{x.weight_decay:g}", x.what)
        for x in lines
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
