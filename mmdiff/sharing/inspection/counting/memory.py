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

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff.backbones.family import Family
from mmdiff.backbones.memory import Memory

from ..figures import Canvases, Kept, inference, training
from .alike import Stands, few_layers
from .factors import lora_factors


def memory_of(model: Any, family: Family, of: Canvases) -> dict[str, Any]:
    """Returns bytes by name, of inference, and of training all weights and LoRA factors.

    model: of the family, on the meta device, made with the attention `ATTENTION`, in the dtype of its weights. Layers
    that are alike are run a few times only, where that gives the same bytes.
    """
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    size, scale = parameters[0].element_size(), 1.0
    if parameters[0].dtype != torch.bfloat16:
        try:
            _forward(model, family, 1, 1)
        except RuntimeError:  # kernels of experts that have no shapes for float32
            model.to(torch.bfloat16)
            scale = size / 2
    try:
        return _memory_of(model, family, of, weights, scale, few=True)
    except Exception:  # of a class that asks for all its layers
        return _memory_of(model, family, of, weights, scale, few=False)


def _memory_of(model: Any, family: Family, of: Canvases, weights: int, scale: float, few: bool) -> dict[str, Any]:
    batch, length, rows = of.batch, of.length, model.get_output_embeddings().weight.shape[0]
    with few_layers(model, few) as stands:
        kv_cache, working = (int(scale * n) for n in _inference(model, family, batch, length, stands))
        full = training(weights, weights, _kept(model, family, batch, length, (), stands).times(scale), rows, of)
    with lora_factors(model, of.rank) as factors, few_layers(model, few) as stands:
        own = sum(p.numel() * p.element_size() for p in factors)
        adapted = _kept(model, family, batch, length, factors, stands).times(scale)
        lora = training(weights + own, own, adapted, rows, of)
    found = inference(weights, kv_cache, working, rows, of)
    return {"inference": found, "full_training": full, "lora_training": lora}


def kept(model: Any, family: Family, batch: int, length: int, factors: Iterable[Tensor] = ()) -> Kept:
    """Returns what autograd keeps of one forward (B, L) of the body in training, weights, buffers and factors aside."""
    with few_layers(model, False) as stands:
        return _kept(model, family, batch, length, factors, stands)


def _kept(model: Any, family: Family, batch: int, length: int, factors: Iterable[Tensor], stands: Stands) -> Kept:
    own = {_key(p) for p in (*model.parameters(), *model.buffers(), *factors)}
    inputs: dict[int, Tensor] = {}  # of layers, by storage; held, so that no address is used twice
    times: dict[int, int] = {}  # how many layers an input stands for
    seen: dict[int, Tensor] = {}
    of: dict[Any, int] = {None: 0, **dict.fromkeys(stands.counts, 0)}  # bytes by layer, inputs left out
    now: list[nn.Module] = []

    def pack(x: Tensor) -> Tensor:
        if (key := _key(x)) not in own and key not in seen:
            seen[key] = x
            if key not in inputs:
                of[now[-1] if now else None] += _bytes(x)
        return x

    def enter(layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        inputs[_key(x)] = x
        times.setdefault(_key(x), stands.counts[layer])
        now.append(layer)

    def leave(layer: nn.Module, *_: Any) -> None:
        now.pop()

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in stands.counts]
    hooks += [layer.register_forward_hook(leave) for layer in stands.counts]
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
    every = {key: times[key] * _bytes(x) for key, x in inputs.items()}
    saved = sum(count for key, count in every.items() if key in seen)
    stands.check(of, inputs)
    whole = outside + saved + sum(stands.counts[layer] * count for layer, count in of.items())
    return Kept(whole, outside + sum(every.values()) + max(of.values(), default=0))


def _inference(model: Any, family: Family, batch: int, length: int, stands: Stands) -> tuple[int, int]:
    """Returns bytes of keys and values of canvases, 0 for encoders, and the most that a forward has besides."""
    kv_cache = 0
    entered: dict[nn.Module, int] = {}
    with torch.no_grad():
        if family.CACHES:
            memory = Memory(model.config.num_hidden_layers, batch, length)
            _forward(model, family, batch, length, memory)
            for i, layer in enumerate(memory.buffers):
                kv_cache += stands.of(i, sum(_bytes(x) for x in (layer.keys, layer.values) if x is not None))
        with _Live() as live:
            hooks = [x.register_forward_pre_hook(lambda m, _: entered.update({m: live.now})) for x in stands.counts]
            try:
                _forward(model, family, batch, length)
            finally:
                for hook in hooks:
                    hook.remove()
    stands.check(entered, entered)
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


def _key(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _bytes(x: Tensor) -> int:
    return int(x.untyped_storage().nbytes())
