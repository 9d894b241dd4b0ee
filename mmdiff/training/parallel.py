"""One run in several processes: replicas of the model, or shards of it by torch's FSDP2.

train.sharding:

    none         every process has the whole model (DistributedDataParallel)
    full         weights, gradients and the optimizer's state are divided; a layer's weights are put together while the
                 layer is run, and again for its backward pass (ZeRO-3)
    gradients    the same, but the weights stay together between forward and backward pass (ZeRO-2)
    hybrid       full within a node, replicas between nodes

What lies outside of the backbone's layers (embeddings, head, connectors, trained encoders) is put together for the
length of a forward and backward pass. Frozen encoders are not divided: their features may be wanted at any time.
Nothing here changes a gradient beyond rounding: see `mmdiff.training.step`. Without a GPU, processes talk over gloo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from mmdiff.config.settings import TrainConfig
from mmdiff.errors import ConfigError, UserError
from mmdiff.model import MMDiff

from .engines.zero import read_zero


def make_accelerator(settings: TrainConfig) -> Accelerator:
    """Returns an accelerator of the configured precision.

    Raises ConfigError for fp16 without a GPU or of shards, and what `read_zero` raises for DeepSpeed.
    """
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU, expected fp32 or bf16 here")
    if settings.precision == "fp16" and settings.sharding != "none":
        raise ConfigError("train.precision: fp16 has a loss scale, which shards do not share; expected fp32 or bf16")
    if settings.compile != "none" and settings.sharding != "none":
        raise ConfigError(
            "train.compile: a graph of a layer does not put its shards together; expected none beside them"
        )
    AcceleratorState._reset_state()  # accelerate keeps a process to its first precision; a check or run may have been
    precision = "no" if settings.precision == "fp32" else settings.precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a rank's batch may hold no picture
    on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    if read_zero(settings) is not None:
        precision = "no"  # of its forwards the engine takes care
    return Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[unused])


def divides(settings: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether the model of a run lies in shards."""
    return settings.sharding != "none" and accelerator.num_processes > 1


def shard(model: MMDiff, settings: TrainConfig, accelerator: Accelerator) -> None:
    """Divide a model over the processes, in place: parameters become DTensors, a layer of the backbone at a time.

    Weights of 4 bits are no parameters: every process has all of them, and a shard of what is trained beside them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    world, device = accelerator.num_processes, accelerator.device.type
    if settings.sharding == "hybrid":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        mesh = init_device_mesh(device, (world // local, local), mesh_dim_names=("replicas", "shards"))
    else:
        mesh = init_device_mesh(device, (world,), mesh_dim_names=("shards",))
    low = torch.bfloat16 if settings.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    kept: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": policy,
        "reshard_after_forward": settings.sharding != "gradients",
    }
    whole: set[nn.Parameter] = set()
    for kind, encoder in model.encoders.items():
        if model.frozen(kind):
            encoder.to(accelerator.device)
            whole |= set(encoder.parameters())
    for layer in layers_of(model.backbone):
        fully_shard(layer, **kept)
        layer.register_forward_pre_hook(_with_gradient, prepend=True, with_kwargs=True)
    fully_shard(model, ignored_params=whole, **kept)
    model.to(accelerator.device)  # buffers


@contextmanager
def together(model: MMDiff, *, again: bool) -> Iterator[None]:
    """Within it the shards of a model are put together in each process, which may then run it as often as it likes.

    All processes enter and leave it, within a forward of the model. again: whether layers are divided again behind each
    forward of training.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(again, recurse=False)


def _with_gradient(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    """Let what goes into a layer have a gradient. Under frozen embeddings it has one only where a row has a picture;
    without one this process would add up its layers' gradients later than others do: each would wait for another."""
    if not torch.is_grad_enabled():
        return None

    def asked(value: Any) -> Any:
        fresh = isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
        return value.detach().requires_grad_() if fresh else value

    if args:
        return (asked(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": asked(kwargs["hidden_states"])}


def layers_of(backbone: nn.Module) -> list[nn.Module]:
    """Returns the layers that a backbone repeats, none within another."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # every layer that transformers repeats

    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = {id(module) for layer in layers for module in layer.modules() if module is not layer}
    return [layer for layer in layers if id(layer) not in inner]


def renewed(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Returns an optimizer's groups with the parameters that the model has now under their names."""
    own = dict(model.named_parameters())
    return [{**group, "params": [own[name] for name in group["names"]]} for group in groups]


def unused_parts(model: MMDiff) -> dict[str, list[nn.Parameter]]:
    """Returns the trained parameters that a process's batch may leave unused, by kind of media ("": always there)."""
    out: dict[str, list[nn.Parameter]] = {"": [p for p in model.extras.parameters() if p.requires_grad]}
    for kind in model.encoders:
        parts = [part[kind] for part in (model.encoders, model.connectors, model.heads) if kind in part]
        out[kind] = [p for part in parts for p in part.parameters() if p.requires_grad]
    return {kind: found for kind, found in out.items() if found}


def touched(total: Tensor, parts: dict[str, list[nn.Parameter]]) -> Tensor:
    """Returns a loss that all of these parameters have a gradient of, if of 0: shards of gradients are added up by all
    processes, also by one whose batch holds no picture."""
    return total + sum((p.flatten()[:1].sum() * 0.0 for found in parts.values() for p in found), torch.zeros(()))


def clipped(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scale gradients to a norm of at most `most`, in place (0: leave them). Returns the norm that they had."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, whole)
    return whole


def unsynced(wrapped: Any, accelerator: Accelerator, divided: bool) -> AbstractContextManager[Any]:
    """Within it, replicas keep their gradients to themselves, to be added up with the next forward's. Shards are added
    up at each forward: whole gradients would need the memory that shards save."""
    return nullcontext() if divided else accelerator.no_sync(wrapped)


@contextmanager
def one_line_deaths(accelerator: Accelerator) -> Iterator[None]:
    """Within it, what breaks here because another process of the run died is one line."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or re.search(
            "gloo|Connection (closed|reset)|Broken pipe", str(error)
        )
        if accelerator.num_processes == 1 or not broken:
            raise
        raise UserError("another process of this run ended; the same command resumes") from None
