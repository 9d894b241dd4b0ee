"""lerobot's policy round a model of mmdiff. The folder of a saved policy:

    config.json          lerobot's, with `"type": "mmdiff_vla"`
    model.safetensors    all weights
    mmdiff/              what mmdiff needs to make the model and its task: config.json, backbone/ (no weights)

Shape letters: B samples, K actions of a chunk, D dimensions of an action, H W pixels.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_model as load_safetensors
from torch import Tensor

from mmdiff.backbones.bounds import bounded_by
from mmdiff.canvas.batch import to_device
from mmdiff.config import build, check_parts, sampler_nodes, task_and_sampler
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.model.params import apply_rules, read_rules
from mmdiff.model.published.described import read_config
from mmdiff.objectives.denoise import Denoise
from mmdiff.session import Session
from mmdiff.tasks.vla.task import VLA

from .configuration_mmdiff import MODEL, MMDiffVLAConfig, located

WEIGHTS = "model.safetensors"
KEY = "lerobot"  # of the statistics that a data set of lerobot brings


class MMDiffVLAPolicy(PreTrainedPolicy):
    """A vision-language-action model of mmdiff; everything random comes from torch's generator of the CPU.

    dataset_stats: numbers of the data set, used where `config.statistics` is "dataset".
    Raises ValueError and mmdiff's ConfigError for features that do not fit the model.
    """

    config_class = MMDiffVLAConfig
    name = "mmdiff_vla"

    def __init__(
        self, config: MMDiffVLAConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config)
        if config.run is None:
            raise ValueError("run: missing, expected a run of mmdiff (--policy.run), or a saved policy (--policy.path)")
        where = located(config.run)
        self.config = config
        self.described = read_config(where)
        task, sampler = saved_task(self.described, config, dataset_stats, where)
        if (where.parent / WEIGHTS).is_file() and not (where / WEIGHTS).is_file():  # a saved policy
            with bounded_by([where.parent / WEIGHTS], where):
                self.model = MMDiff.from_pretrained(where, weights=False)
            load_safetensors(self, where.parent / WEIGHTS, strict=True)
        else:
            self.model = MMDiff.from_pretrained(where)
        if config.train:
            apply_rules(self.model, read_rules(config.train, "train"), lr=1.0, weight_decay=0.0)
        self.session = Session(self.model, task, sampler, where)
        self.objective = Denoise(copies=config.views, denominator=config.denominator)
        if config.chunk_size not in (0, task.chunk):
            raise ValueError(f"chunk_size: {config.chunk_size}, but the model of {where} has chunks of {task.chunk}")
        config.chunk_size = task.chunk
        self.check_features()
        self.reset()

    def check_features(self) -> None:
        """Raise ValueError where the robot of the configuration does not fit the model."""
        task, config = self.session.task, self.config
        config.validate_features()
        if (action := config.action_feature) is not None and tuple(action.shape) != (task.dims,):
            raise ValueError(f"action: {tuple(action.shape)} numbers, but the model's actions have {task.dims}")
        state = config.robot_state_feature
        if task.state_dims and config.input_features and (state is None or tuple(state.shape) != (task.state_dims,)):
            found = "none" if state is None else f"{tuple(state.shape)} numbers"
            raise ValueError(f"observation.state: {found}, but the model's state has {task.state_dims}")
        if config.input_features and len(self.cameras()) != task.cameras:
            names = ", ".join(self.cameras()) or "none"
            raise ValueError(
                f"cameras: {names}; the model has {task.cameras}, name them in its order (--policy.cameras)"
            )

    def cameras(self) -> list[str]:
        return self.config.cameras or list(self.config.image_features)

    # Training

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss of masked denoising over the action tokens, and its figures. Padded actions do not count."""
        rows, task, vocab = self.rows(batch), self.session.task, self.model.vocab
        samples = [read_media(task.sample(row, vocab), self.model.readers) for row in rows]
        key = NoiseKey(drawn(), stream="lerobot", batch=len(rows))
        plan = self.objective.plan(collate(samples, vocab, self.model.readers), key, vocab)
        count = max(plan.counts["denoise"], 1.0)
        term = self.model(self.objective.terms, to_device(plan, self.model.device))["denoise"]
        figures = {name: float(term.sums[name][0] / term.sums[name][1].clamp(min=1)) for name in ("nll", "accuracy")}
        return term.coefficient * term.value / count, figures

    def get_optim_params(self) -> list[Tensor]:  # type: ignore[override]  # lerobot says dict, its policies do not
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """LoRA in all linear layers of the backbone's blocks; connectors and encoders stay as they are."""
        layers = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
        return {"target_modules": rf"model\.backbone\..*\.({layers})", "modules_to_save": []}

    # Acting

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Returns chunks of actions, float32 (B, K, D), in robot units."""
        rows = self.rows(batch, with_actions=False)
        found = self.session.predict_many(rows, first=drawn() >> 8)
        return torch.tensor([one["prediction"] for one in found], dtype=torch.float32, device=self.model.device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Returns (B, D), the next action; the model predicts a chunk when all actions of the last are executed."""
        self.eval()
        if not self._action_queue:
            chunk_BKD = self.predict_action_chunk(batch)
            self._action_queue.extend(chunk_BKD[:, : self.config.n_action_steps or None].unbind(1))
        return self._action_queue.popleft()

    def reset(self) -> None:
        self._action_queue: deque[Tensor] = deque()

    def rows(self, batch: Mapping[str, Any], with_actions: bool = True) -> list[dict[str, Any]]:
        """Returns a batch of lerobot as rows of mmdiff. Raises ValueError, which names a field that is missing."""
        task = self.session.task
        instruction = batch.get("task")
        if instruction is None:
            raise ValueError("task: missing in the batch, expected an instruction per sample")
        cameras = self.cameras() or sorted(name for name in batch if name.startswith("observation.image"))
        if task.cameras and len(cameras) != task.cameras:
            raise ValueError(
                f"cameras: {', '.join(cameras) or 'none'}; the model has {task.cameras} (--policy.cameras)"
            )
        needed = {name: name for name in cameras}
        needed |= {"state": "observation.state"} if task.state_dims else {}
        needed |= {"action": "action"} if with_actions else {}
        for name in needed.values():
            if batch.get(name) is None:
                raise ValueError(f"{name}: missing in the batch, which has {', '.join(sorted(map(str, batch)))}")
        pictures = {name: pixels(batch[name], name) for name in cameras}
        texts = [instruction] if isinstance(instruction, str) else list(instruction)
        rows: list[dict[str, Any]] = [{"instruction": text} for text in texts]
        for i, row in enumerate(rows):
            seen = [pictures[name][i] for name in cameras]
            row["image"] = seen[0] if len(seen) == 1 else seen
            for name in ("state", "action"):
                if name in needed:
                    row[name] = batch[needed[name]][i].detach().cpu().float().numpy()
            if with_actions and batch.get("action_is_pad") is not None:
                row["action_is_pad"] = batch["action_is_pad"][i].cpu().bool().numpy()
        return rows

    # Folders

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        folder = save_directory / MODEL
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**self.described, "adapters": self.model.adapters}, indent=2))
        self.model.backbone.save_pretrained(folder / "backbone", weights=False)

    @classmethod
    def _load_as_safetensor(cls, model: Any, *args: Any) -> Any:
        """Returns the model unchanged: the weights of `config.run` were read, strictly, when the policy was made."""
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> MMDiffVLAPolicy:
        """Returns the policy of a folder that `save_pretrained` wrote, or of a repository. Raises ValueError."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            hub = {name: kwargs[name] for name in ("cache_dir", "token", "local_files_only") if name in kwargs}
            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision, **hub))
        if not (folder / MODEL / "config.json").is_file():
            raise ValueError(f"{folder}: no saved policy of mmdiff (mmdiff/config.json is missing); export a run first")
        if config is None:
            config = PreTrainedConfig.from_pretrained(folder)
        config.run = str(folder / MODEL)  # type: ignore[attr-defined]
        policy: MMDiffVLAPolicy = super().from_pretrained(folder, config=config, **kwargs)
        return policy


def saved_task(
    described: dict[str, Any], config: MMDiffVLAConfig, stats: Mapping[str, Mapping[str, Any]] | None, where: Path
) -> tuple[VLA, GenerationConfig]:
    """Returns the task and the sampler of a saved model, with the settings of the configuration.

    `described["task"]` is changed where the configuration chooses other statistics. Raises ValueError and ConfigError.
    """
    if config.statistics == "dataset":
        described["task"] = {**described["task"], "statistics": {KEY: numbers(stats)}, "key": KEY}
    elif config.key is not None:
        described["task"] = {**described["task"], "key": config.key}
    settings = {**(described.get("sampler") or {}), **config.sampler}
    check_parts(sampler_nodes(settings), f"{where}: sampler")  # the policy's own config.json may be a stranger's
    node, sampler = task_and_sampler(described.get("task"), settings, ())
    task = build(node, where="task") if node else None
    if not isinstance(task, VLA):
        raise ValueError(f"run: {where} has the task {type(task).__name__}, expected mmdiff.tasks.vla.VLA")
    return task, sampler


def numbers(stats: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Returns lerobot's statistics of a data set as plain numbers under mmdiff's names. Raises ValueError."""
    if not stats or "action" not in stats:
        raise ValueError('statistics: "dataset", but there is no data set with statistics of its actions')
    names = {"action": "action", "observation.state": "state"}
    return {
        ours: {name: np.ravel(np.asarray(value)).tolist() for name, value in stats[theirs].items()}
        for theirs, ours in names.items()
        if theirs in stats
    }


def pixels(values: Tensor, name: str) -> np.ndarray:
    """Returns uint8 (B, H, W, 3) of (B, 3, H, W) floats in 0..1 or uint8, also with one step of history."""
    if values.ndim == 5 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise ValueError(f"{name}: shape {tuple(values.shape)}, expected (batch, 3, height, width)")
    if values.is_floating_point():
        values = (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    picture: np.ndarray = values.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
    return picture


def drawn() -> int:
    """Returns 63 bits from torch's generator, whose state lerobot keeps with a checkpoint."""
    return int(torch.randint(2**63 - 1, ()))
