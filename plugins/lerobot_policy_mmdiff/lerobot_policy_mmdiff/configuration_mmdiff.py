"""The configuration of `mmdiff_vla`. lerobot finds the policy by this file's name: configuration_ -> modeling_ ->
processor_mmdiff."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

IDENTITY = NormalizationMode.IDENTITY
MODEL = "mmdiff"  # the folder within a saved policy that describes its model


@PreTrainedConfig.register_subclass("mmdiff_vla")
@dataclass
class MMDiffVLAConfig(PreTrainedConfig):
    """The settings of a policy `mmdiff_vla`.

    run: a run of mmdiff, a model folder in it, or a saved policy, from which a new policy takes model, task and
        weights. A saved policy has them in its own folder.
    cameras: keys of the pictures in the model's order (`observation.images.front`); empty: the order of the features.
    statistics: "model": actions and states are normalised by the numbers the model was saved with. "dataset": by those
        of the data set it is made for, from then on. key: of the model's numbers, where it has several.
    chunk_size: K; 0: the model's, the only one it can have. n_action_steps: actions of a chunk that are executed before
        the next chunk; 0: all.
    sampler: fields of mmdiff's GenerationConfig, over those of the model (`{"steps": 5}`).
    views: noised copies of each sample in training. denominator: see mmdiff.objectives.denoise.
    train: rules of mmdiff.model.params; empty: everything is trained.
    """

    run: str | None = None
    cameras: list[str] = field(default_factory=list)
    statistics: str = "model"
    key: str | None = None
    chunk_size: int = 0
    n_action_steps: int = 0
    sampler: dict[str, Any] = field(default_factory=dict)
    views: int = 1
    denominator: str = "tokens"
    train: list[dict[str, Any]] = field(default_factory=list)
    # actions and states are normalised within the model's task, together with their binning
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"VISUAL": IDENTITY, "STATE": IDENTITY, "ACTION": IDENTITY}
    )

    optimizer_lr: float = 1e-4
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 500
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps: {self.n_obs_steps}, expected 1: the model sees no history")
        if self.statistics not in ("model", "dataset"):
            raise ValueError(f'statistics: "{self.statistics}", expected "model" or "dataset"')
        for kind, mode in self.normalization_mapping.items():
            if mode != IDENTITY:
                raise ValueError(
                    f"normalization_mapping.{kind}: {NormalizationMode(mode).value}, expected IDENTITY: the model"
                    ' normalises; statistics="dataset" takes the numbers of the data set'
                )
        if self.run is not None and not self.chunk_size:  # lerobot asks for the chunk before there is a policy
            self.chunk_size = saved_chunk(self.run)
        if not 0 <= self.n_action_steps <= (self.chunk_size or self.n_action_steps):
            raise ValueError(f"n_action_steps: {self.n_action_steps}, expected at most the chunk's {self.chunk_size}")

    def validate_features(self) -> None:
        """Raises ValueError."""
        if self.input_features:
            for name in self.cameras:
                if name not in self.image_features:
                    known = ", ".join(self.image_features) or "none"
                    raise ValueError(f"cameras: there is no {name} among the pictures ({known})")
        if self.action_feature is None and self.output_features:
            raise ValueError(f"output_features: no action among {', '.join(self.output_features)}")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        if not self.chunk_size:
            raise ValueError("run: missing, expected a run of mmdiff (--policy.run), or a saved policy (--policy.path)")
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save without the settings that a policy's folder replaces: run, statistics and key."""
        super(MMDiffVLAConfig, replace(self, run=None, statistics="model", key=None))._save_pretrained(save_directory)


def located(run: str) -> Path:
    """The folder of mmdiff's config.json. Raises mmdiff.errors.ConfigError."""
    from mmdiff.session import find_model

    folder = Path(run)
    described = folder if folder.name == MODEL else folder / MODEL
    return described if (described / "config.json").is_file() else find_model(folder)


def saved_chunk(run: str) -> int:
    """K of a saved model. Raises mmdiff.errors.ConfigError, ValueError for one that gives no chunks."""
    from mmdiff.model.published.described import read_config

    where = located(run)
    task = read_config(where).get("task") or {}
    if task.get("target") != "mmdiff.tasks.vla.VLA":
        raise ValueError(f"run: {where} has the task {task.get('target')}, expected mmdiff.tasks.vla.VLA")
    return int(task.get("chunk", 5))  # the default of VLA
