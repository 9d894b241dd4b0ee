"""What lerobot 0.6 documents of a policy's base classes, for machines without it: names, signatures and folder layout.

Written after lerobot/configs/policies.py, policies/pretrained.py, policies/factory.py and processor/pipeline.py.
`tests/vla/test_lerobot_plugin.py` runs against the real package where it is installed.
"""

from __future__ import annotations

import abc
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn


class FeatureType(StrEnum):
    STATE = "STATE"
    VISUAL = "VISUAL"
    ENV = "ENV"
    ACTION = "ACTION"


class NormalizationMode(StrEnum):
    MIN_MAX = "MIN_MAX"
    MEAN_STD = "MEAN_STD"
    IDENTITY = "IDENTITY"
    QUANTILES = "QUANTILES"


@dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple[int, ...]


@dataclass
class PreTrainedConfig(abc.ABC):
    n_obs_steps: int = 1
    input_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    output_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    device: str | None = None
    use_amp: bool = False
    use_peft: bool = False
    push_to_hub: bool = True
    repo_id: str | None = None
    private: bool | None = None
    tags: list[str] | None = None
    license: str | None = None
    pretrained_path: Path | None = None
    pretrained_revision: str | None = None

    choices = {}  # noqa: RUF012

    def __post_init__(self) -> None:
        self.device = self.device or "cpu"

    @classmethod
    def register_subclass(cls, name: str) -> Callable[[type], type]:
        def registered(subclass: type) -> type:
            PreTrainedConfig.choices[name] = subclass
            return subclass

        return registered

    @classmethod
    def get_choice_class(cls, name: str) -> Any:
        return PreTrainedConfig.choices[name]

    @property
    def type(self) -> str:
        return next(name for name, found in PreTrainedConfig.choices.items() if found is type(self))

    @property
    @abc.abstractmethod
    def observation_delta_indices(self) -> list[int] | None: ...

    @property
    @abc.abstractmethod
    def action_delta_indices(self) -> list[int] | None: ...

    @property
    @abc.abstractmethod
    def reward_delta_indices(self) -> list[int] | None: ...

    @abc.abstractmethod
    def get_optimizer_preset(self) -> Any: ...

    @abc.abstractmethod
    def get_scheduler_preset(self) -> Any: ...

    @abc.abstractmethod
    def validate_features(self) -> None: ...

    @property
    def robot_state_feature(self) -> PolicyFeature | None:
        return (self.input_features or {}).get("observation.state")

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        return {k: f for k, f in (self.input_features or {}).items() if f.type is FeatureType.VISUAL}

    @property
    def action_feature(self) -> PolicyFeature | None:
        return (self.output_features or {}).get("action")

    def save_pretrained(self, save_directory: str | Path) -> None:
        self._save_pretrained(Path(save_directory))

    def _save_pretrained(self, save_directory: Path) -> None:
        text = json.dumps({"type": self.type, **asdict(self)}, indent=4, default=str)
        (save_directory / "config.json").write_text(text)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> Any:
        config = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        found = PreTrainedConfig.choices[config.pop("type")]
        if unknown := set(config) - {f.name for f in fields(found)}:
            raise ValueError(f"unknown fields {unknown}")
        for name in ("input_features", "output_features"):
            config[name] = {
                k: PolicyFeature(FeatureType(f["type"]), tuple(f["shape"])) for k, f in (config[name] or {}).items()
            }
        config["normalization_mapping"] = {k: NormalizationMode(m) for k, m in config["normalization_mapping"].items()}
        return found(**config)


class PreTrainedPolicy(nn.Module, abc.ABC):
    config_class: Any = None
    name: Any = None

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__()
        if not isinstance(config, PreTrainedConfig):
            raise ValueError("config is no PreTrainedConfig")
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.config_class or not cls.name:
            raise TypeError(f"Class {cls.__name__} must define 'config_class' and 'name'")

    def save_pretrained(self, save_directory: str | Path, *, state_dict: Any = None, **kwargs: Any) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self._save_pretrained(Path(save_directory), state_dict=state_dict)

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        self.config._save_pretrained(save_directory)
        save_model(self, str(save_directory / "model.safetensors"))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: Any = None,
        revision: str | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> Any:
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **kwargs)
        policy = cls(config, **kwargs)
        file = str(Path(pretrained_name_or_path) / "model.safetensors")
        policy = cls._load_as_safetensor(policy, file, config.device, strict)
        return policy.to(config.device).eval()

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        load_model(model, model_file, strict=strict)
        return model

    @abc.abstractmethod
    def get_optim_params(self) -> Any: ...

    @abc.abstractmethod
    def reset(self) -> None: ...

    @abc.abstractmethod
    def forward(self, batch: dict[str, Any]) -> Any: ...

    @abc.abstractmethod
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Any: ...

    @abc.abstractmethod
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Any: ...


@dataclass
class AdamWConfig:
    lr: float = 1e-3
    weight_decay: float = 1e-2
    grad_clip_norm: float = 10.0

    def build(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=self.lr, weight_decay=self.weight_decay)


@dataclass
class CosineDecayWithWarmupSchedulerConfig:
    num_warmup_steps: int
    num_decay_steps: int
    peak_lr: float
    decay_lr: float


@dataclass
class PolicyProcessorPipeline:
    """Adds the dimension of the batch, where it is missing; actions pass as they are."""

    name: str
    norm_map: dict[str, Any]

    def __call__(self, data: Any) -> Any:
        assert all(mode == NormalizationMode.IDENTITY for mode in self.norm_map.values())
        if not isinstance(data, dict):
            return data
        dims = {"action": 2, "observation.state": 2}
        out = {k: v[None] if isinstance(v, torch.Tensor) and v.ndim < dims.get(k, 4) else v for k, v in data.items()}
        return {**out, "task": [out["task"]] if isinstance(out.get("task"), str) else out.get("task")}

    def save_pretrained(self, save_directory: str | Path) -> None:
        text = json.dumps({"name": self.name, "norm_map": self.norm_map})
        (Path(save_directory) / f"{self.name}.json").write_text(text)

    @classmethod
    def from_pretrained(cls, folder: str | Path, config_filename: str) -> Any:
        return cls(**json.loads((Path(folder) / config_filename).read_text()))


def make_default_pre_post_processors(config: Any, dataset_stats: Any = None, *, normalizer_device: Any = None) -> Any:
    names = ("policy_preprocessor", "policy_postprocessor")
    return tuple(PolicyProcessorPipeline(name, config.normalization_mapping) for name in names)


def get_policy_class(name: str) -> Any:
    """By the names of class and module, as lerobot.policies.factory does."""
    config = PreTrainedConfig.get_choice_class(name)
    module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    return getattr(module, config.__name__.removesuffix("Config") + "Policy")


def make_pre_post_processors(policy_cfg: Any, pretrained_path: Any = None, **kwargs: Any) -> Any:
    if pretrained_path:
        names = ("policy_preprocessor.json", "policy_postprocessor.json")
        return tuple(PolicyProcessorPipeline.from_pretrained(pretrained_path, name) for name in names)
    module = importlib.import_module(type(policy_cfg).__module__.replace("configuration_", "processor_"))
    make = getattr(module, f"make_{policy_cfg.type}_pre_post_processors")
    return make(policy_cfg, dataset_stats=kwargs.get("dataset_stats"))


def modules() -> dict[str, ModuleType]:
    """Name -> module, as `sys.modules` holds them."""
    here = SimpleNamespace(**globals())
    names = {
        "lerobot": (),
        "lerobot.configs": ("FeatureType", "NormalizationMode", "PolicyFeature", "PreTrainedConfig"),
        "lerobot.optim": ("AdamWConfig", "CosineDecayWithWarmupSchedulerConfig"),
        "lerobot.policies": (),
        "lerobot.policies.pretrained": ("PreTrainedPolicy",),
        "lerobot.policies.factory": ("get_policy_class", "make_pre_post_processors"),
        "lerobot.processor": ("PolicyProcessorPipeline", "make_default_pre_post_processors"),
    }
    out = {}
    for name, members in names.items():
        out[name] = ModuleType(name)
        for member in members:
            setattr(out[name], member, getattr(here, member))
    return out
