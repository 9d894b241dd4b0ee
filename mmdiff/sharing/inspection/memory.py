"""The memory that a backbone takes in inference and in training, in bytes, of a forward on torch's meta device.

Tensors there have a shape and a dtype but no numbers, so the forward of a model of any size takes neither memory nor
time, and is the code that a real forward is. What it makes is counted, storage by storage; the rest is arithmetic:

    weights        bytes of all parameters, in the dtype they are loaded in
    gradients      the same, of what is trained
    moments        twice that: AdamW's two
    activations    what autograd keeps of a forward; under gradient checkpointing the input of each layer, what lies
                   outside of layers, and one layer
    kv_cache       keys and values of all layers for every canvas, one position more than it is long
    working        the most that a forward without gradient has at one time
    logits         generation: LOGITS numbers of 4 bytes for each masked position and each id; training: LOSS of them
                   for each of at most `logit_chunk` positions

Attention is a fused kernel (flash, memory-efficient), which keeps no L x L matrix, and no row is padded. LoRA is that
of `mmdiff.model.params.Lora`: factors in fp32, whose input is cast to fp32. Buffers of libraries, fragmentation and the
context of a GPU, some hundreds of MB, come on top. Where experts have kernels for bfloat16 alone, its figures are
scaled to the dtype at hand, which counts twice what is in float32 in both.

Shape letters: B rows, L canvas length, D width, V rows of the embedding table.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff.backbones.family import Family
from mmdiff.backbones.memory import Memory

from .figures import ADAPTED, Canvases, Kept, inference, training

ATTENTION = "mmdiff_shapes"


def memory_of(model: Any, family: Family, of: Canvases) -> dict[str, Any]:
    """Returns bytes by name, of inference, and of training all weights and LoRA factors.

    model: of the family, on the meta device, made with the attention `ATTENTION`, in the dtype of its weights.
    """
    batch, length = of.batch, of.length
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    rows = model.get_output_embeddings().weight.shape[0]
    size, scale = parameters[0].element_size(), 1.0
    try:
        _forward(model, family, 1, 1)
    except RuntimeError:  # kernels of experts that have no shapes for float32
        model.to(torch.bfloat16)
        scale = size / 2
    kv_cache, working = (int(scale * n) for n in _inference(model, family, batch, length))
    full = training(weights, weights, kept(model, family, batch, length).times(scale), rows, of)
    with lora_factors(model, of.rank) as factors:
        own = sum(p.numel() * p.element_size() for p in factors)
        lora = training(weights + own, own, kept(model, family, batch, length, factors).times(scale), rows, of)
    found = inference(weights, kv_cache, working, rows, of)
    return {"inference": found, "full_training": full, "lora_training": lora}


def kept(model: Any, family: Family, batch: int, length: int, factors: Iterable[Tensor] = ()) -> Kept:
    """Returns what autograd keeps of one forward (B, L) of the body, in training mode, besides weights and factors."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inner = {id(m) for layer in layers for m in layer.modules() if m is not layer}
    layers = [layer for layer in layers if id(layer) not in inner]
    own = {_key(p) for p in (*model.parameters(), *factors)}
    inputs: dict[int, Tensor] = {}  # of layers, by storage; held, so that no address is used twice
    seen: dict[int, Tensor] = {}
    of: dict[Any, int] = {None: 0}  # bytes by layer, inputs left out
    now: list[nn.Module] = []

    def pack(x: Tensor) -> Tensor:
        if (key := _key(x)) not in own and key not in seen:
            seen[key] = x
            if key not in inputs:
                layer = now[-1] if now else None
                of[layer] = of.get(layer, 0) + _bytes(x)
        return x

    def enter(layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        inputs[_key(x)] = x
        now.append(layer)

    def leave(layer: nn.Module, *_: Any) -> None:
        now.pop()

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = _forward(model, family, batch, length)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    outside = of.pop(None) + (0 if _key(out) in seen else _bytes(out))
    saved = sum(_bytes(x) for key, x in inputs.items() if key in seen)
    whole = outside + saved + sum(of.values())
    return Kept(whole, outside + sum(map(_bytes, inputs.values())) + max(of.values(), default=0))


def _inference(model: Any, family: Family, batch: int, length: int) -> tuple[int, int]:
    """Returns bytes of keys and values of canvases, 0 for encoders, and the most that a forward has besides."""
    kv_cache = 0
    with torch.no_grad():
        if family.CACHES:
            memory = Memory(model.config.num_hidden_layers, batch, length)
            _forward(model, family, batch, length, memory)
            states = [x for layer in memory.buffers for x in (layer.keys, layer.values) if x is not None]
            kv_cache = sum(map(_bytes, states))
        with _Live() as live:
            _forward(model, family, batch, length)
    return kv_cache, live.most


def _forward(model: Any, family: Family, batch: int, length: int, memory: Memory | None = None) -> Tensor:
    ids_RL = torch.zeros(batch, length, dtype=torch.int64, device="meta")
    x_RLD = family.embed(model, ids_RL, None)
    out: Tensor = family.run(model, x_RLD, None, None, None, False, memory).last_hidden_state
    return out


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that are alive. most: at the worst moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(x) for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and (key := _key(x)) not in before and key not in self.known:
                self.known.add(key)
                self.now += _bytes(x)
                weakref.finalize(x.untyped_storage(), self._gone, key, _bytes(x))
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


# LoRA -----------------------------------------------------------------------------------------------------------------


@contextmanager
def lora_factors(model: Any, rank: int) -> Iterator[list[Tensor]]:
    """Freeze a model and give its linear layers factors, as peft does; within it they are what is trained.

    Layers are those that `Lora` names; where a model has none of these, all but the head.
    """
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    layers = [m for name, m in linear.items() if re.fullmatch(rf"(.*\.)?({ADAPTED})", name)]
    layers = layers or list(linear.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    factors: list[Tensor] = []
    hooks = []
    for layer in layers:
        pair = [layer.weight.new_empty(shape, dtype=torch.float32).requires_grad_()
                for shape in ((rank, layer.in_features), (layer.out_features, rank))]  # fmt: skip
        factors += pair
        hooks.append(layer.register_forward_hook(_Adapted(*pair)))
    for p in trained:
        p.requires_grad_(False)
    try:
        yield factors
    finally:
        for p in trained:
            p.requires_grad_()
        for hook in hooks:
            hook.remove()


class _Adapted:
    """The arithmetic of peft's layer, behind the frozen one."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor) -> None:
        self.a_RI, self.b_OR = a_RI, b_OR

    def __call__(self, layer: nn.Module, args: Any, out: Tensor) -> Tensor:
        low = nn.functional.linear(args[0].to(self.a_RI.dtype), self.a_RI)
        return (out + nn.functional.linear(low, self.b_OR) * 2.0).to(out.dtype)


# Attention ------------------------------------------------------------------------------------------------------------


def register_attention() -> None:
    """Let transformers know the attention `ATTENTION`: the shapes of a fused kernel, for tensors without numbers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    out: Tensor = _Fused.apply(query, key, value)
    return out, None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(rows, heads, length, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("what a forward keeps is counted, on no device: no backward pass is ever run")


def _key(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _bytes(x: Tensor) -> int:
    return int(x.untyped_storage().nbytes())
