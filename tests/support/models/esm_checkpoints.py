"""ESM-2 checkpoints at toy size, in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from mmdiff.backbones.families import esm

LAYERS, D, HEADS = 2, 32, 4
SIZES = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 48}
ESM2 = dict(esm.PUBLISHED["facebook/esm2_t6_8M_UR50D"]) | SIZES


def reference(token_dropout: bool = False, **fields: Any) -> Any:
    """transformers' model with weights large enough for attention to matter, no two tensors alike."""
    torch.manual_seed(0)
    own = {k: v for k, v in ESM2.items() if k in EsmConfig().to_dict()} | {"token_dropout": token_dropout} | fields
    model = EsmForMaskedLM(EsmConfig(**own)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(
                1.0 if name.lower().endswith(("layernorm.weight", "norm.weight", "norm_after.weight")) else 0, 0.2
            )
    return model


def tensors(model: Any) -> dict[str, Tensor]:
    """As ESM-2's files have them: one table, contact head, positions, and rotary frequencies in every layer."""
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.decoder.weight"}
    frequencies = state.pop("esm.rotary_embeddings.inv_freq", None)
    if frequencies is not None:
        for i in range(LAYERS):
            state[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
        state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
        state["esm.embeddings.position_embeddings.weight"] = torch.randn(1026, D)
    return state


def write_folder(folder: Path, state: dict[str, Tensor], **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(ESM2 | fields))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(esm.TOKENS))
    return folder
