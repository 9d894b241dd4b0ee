"""The bytes of inference and of training by name, of what a forward was counted to take (`counting` has the words)."""

from __future__ import annotations

from dataclasses import dataclass

LOGITS, LOSS = 2, 3
"""Copies in fp32 of the logits of a position: of a step of generation, and of a loss with its gradient."""
ADAPTED = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
"""Layers that LoRA adapts where a rule names none: those of `mmdiff.model.params.Lora`, which needs torch."""


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of a forward. checkpointed: under gradient checkpointing."""

    whole: int
    checkpointed: int

    def times(self, scale: float) -> Kept:
        return Kept(int(self.whole * scale), int(self.checkpointed * scale))


@dataclass(frozen=True)
class Canvases:
    """What memory is computed for. masked: masked positions per row of a generation. rank: of LoRA factors.
    logit_chunk: positions whose logits a loss has at one time."""

    length: int
    batch: int
    masked: int
    rank: int
    logit_chunk: int = 4096


def inference(weights: int, kv_cache: int, working: int, rows: int, of: Canvases) -> dict[str, int]:
    """Returns bytes by name. working: the most that a forward has. rows: of the embedding table."""
    logits = LOGITS * 4 * of.batch * of.masked * rows
    out = {"weights": weights, "kv_cache": kv_cache, "working": working, "logits": logits}
    return out | {"total": sum(out.values())}


def training(weights: int, trained: int, activations: Kept, rows: int, of: Canvases) -> dict[str, int]:
    """Returns bytes by name. trained: bytes of the weights that are trained."""
    logits = LOSS * 4 * min(of.batch * of.length, of.logit_chunk) * rows
    fixed = {"weights": weights, "gradients": trained, "moments": 2 * trained, "logits": logits}
    least = sum(fixed.values())
    return fixed | {
        "activations": activations.whole,
        "total": least + activations.whole,
        "activations_checkpointed": activations.checkpointed,
        "total_checkpointed": least + activations.checkpointed,
    }
