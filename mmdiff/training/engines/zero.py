"""DeepSpeed as the engine of a stage: ZeRO's stages 1 and 2, which divide moments and gradients over processes.

Loss, noise, learning rates, clipping and precision are those of the configuration, whatever the engine; its file says
how the work is divided. Moments go into checkpoints whole and by name, so that a run resumes in another number of
processes, and without DeepSpeed.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmdiff.config.settings import StageConfig, TrainConfig
from mmdiff.errors import ConfigError, nearest, require
from mmdiff.model import MMDiff
from mmdiff.runs.moments import load_moments

OURS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "fp16", "bf16", "amp", "torch_autocast",
)  # fmt: skip
"""What the configuration of a run decides; a file may say "auto" of it."""
MOMENTS = ("exp_avg", "exp_avg_sq")


def read_zero(settings: TrainConfig) -> dict[str, Any] | None:
    """Returns what the file `train.deepspeed` holds; None: there is none.

    Raises ConfigError for a file that cannot be read, that decides what the configuration decides, or that asks for
    another stage of ZeRO than 1 or 2, and for settings that are not to be had with it; MissingExtra without DeepSpeed.
    """
    if settings.deepspeed is None:
        return None
    file = Path(settings.deepspeed)
    if settings.sharding != "none":
        raise ConfigError("train.deepspeed: divides the model by its own file; expected train.sharding=none beside it")
    if settings.precision == "fp16":
        raise ConfigError("train.precision: fp16 has a loss scale of DeepSpeed's own; expected fp32 or bf16 beside it")
    if settings.on_divergence == "skip":
        raise ConfigError("train.on_divergence: skip: DeepSpeed takes its steps itself; expected stop beside it")
    if settings.compile != "none":
        raise ConfigError("train.compile: DeepSpeed hooks into the layers; expected none beside it")
    require("deepspeed", "deepspeed")
    if not file.is_file():
        raise ConfigError(f"train.deepspeed: {file}: no such file")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"train.deepspeed: {file}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"train.deepspeed: {file}: expected one JSON object")
    for name in OURS:
        if found.get(name, "auto") != "auto":
            raise ConfigError(f'train.deepspeed: {file}: {name}: the configuration decides it; leave it out, or "auto"')
    zero = found.get("zero_optimization")
    if not isinstance(zero, dict):
        raise ConfigError(f"train.deepspeed: {file}: no zero_optimization{nearest('zero_optimization', found)}")
    if zero.get("stage") == 3:
        raise ConfigError(
            f"train.deepspeed: {file}: zero_optimization.stage: 3; train.sharding=full divides weights so"
        )
    if zero.get("stage") not in (1, 2):
        raise ConfigError(f"train.deepspeed: {file}: zero_optimization.stage: {zero.get('stage')!r}, expected 1 or 2")
    if any("offload" in name for name in zero):
        raise ConfigError(f"train.deepspeed: {file}: zero_optimization: moments stay on the device; leave offload out")
    if "RANK" not in os.environ:
        raise ConfigError("train.deepspeed: runs under torchrun, also in one process: torchrun --nproc-per-node 1")
    return {name: value for name, value in found.items() if name not in OURS}


class Zero:
    """The engine of a stage. engine: DeepSpeed's, which is called as the model is. groups: what is trained, by name."""

    def __init__(
        self, model: MMDiff, optimizer: Optimizer, given: dict[str, Any], stage: StageConfig, settings: TrainConfig
    ) -> None:
        if stage.optimizer is not None:
            raise ConfigError("train.stages: optimizer: DeepSpeed divides AdamW's moments; expected none beside it")
        import deepspeed

        self.groups = [{"names": list(g["names"]), "params": list(g["params"])} for g in optimizer.param_groups]
        self.optimizer = optimizer
        config = {
            **given,
            "train_micro_batch_size_per_gpu": 1,  # for its timers only
            "gradient_accumulation_steps": 1,  # of a window, the loop says which forward is the last
            "gradient_clipping": settings.clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        deepspeed.utils.logger.setLevel("ERROR")
        made = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        self.engine: Any = made[0]
        self.precision = settings.precision

    def low_precision(self, device: torch.device) -> torch.autocast:
        """Within it, forwards are computed in bf16 where the configuration has it so."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a forward; with those of the last one of a step, move the weights."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss, scale_wrt_gas=False)
        if last:
            self.engine.step()

    def norm(self) -> Tensor:
        """Returns the norm that the last step's gradient had; infinite where DeepSpeed passed the step over."""
        if self.engine.optimizer.overflow:
            return torch.tensor(math.inf)
        return torch.as_tensor(self.engine.get_global_grad_norm())

    def moments(self) -> dict[str, Tensor]:
        """Returns the whole moments by name, as `mmdiff.runs.moments.moments` does. All processes call it."""
        flat = [self._state(number).get("step") for number in range(len(self.groups))]
        out: dict[str, Tensor] = {}
        if any(step is not None for step in flat):
            self._link()
        for group, step in zip(self.groups, flat, strict=True):
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if step is not None:
                    out[f"step:{name}"] = step.detach().clone()
                    out |= {f"{key}:{name}": parameter.get_full_hp_param(key).view_as(parameter) for key in MOMENTS}
        return out

    def load(self, file: Path) -> None:
        """Resume with the moments of a checkpoint, of this engine or of another. Raises ConfigError as they do."""
        plain = torch.optim.AdamW([{**g, "params": list(g["params"])} for g in self.groups], fused=True)
        load_moments(plain, file)
        for number, group in enumerate(self.groups):
            found = [plain.state.get(p, {}) for p in group["params"]]
            if not any(found):
                continue
            mine = self._state(number)
            like = self.engine.optimizer.single_partition_of_fp32_groups[number]
            mine |= {"step": next(f["step"] for f in found if f), **{key: torch.zeros_like(like) for key in MOMENTS}}
            self.engine.optimizer.optimizer.state[like] = mine
        self._link()
        for group in self.groups:
            for parameter in group["params"]:
                for key in MOMENTS if plain.state.get(parameter) else ():
                    parameter.set_full_hp_param(plain.state[parameter][key], key)

    def _link(self) -> None:
        """Let parameters know where their moments lie. DeepSpeed does so behind the step of the first group, when those
        of the others are not there yet."""
        self.engine.optimizer._hp_optimizer_states_linked = False
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _state(self, number: int) -> dict[str, Any]:
        """Returns the state of the flat part of a group that lies in this process."""
        own = self.engine.optimizer
        found: dict[str, Any] = own.optimizer.state.get(own.single_partition_of_fp32_groups[number], {})
        return found

    def close(self) -> None:
        """Take the hooks out of the model."""
        self.engine.destroy()
