"""A saved model of proteins at toy size."""

from __future__ import annotations

from pathlib import Path

import torch

from mmdiff import MMDiff
from mmdiff.backbones import new_backbone
from mmdiff.backbones.esm import tokenizer
from mmdiff.model.saving import save_model

PROTEIN = {"target": "mmdiff.tasks.protein.Protein"}


def saved(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    esm = new_backbone(
        family="esm", tokenizer=tokenizer(), hidden_size=16, layers=1, heads=2, max_length=64, init_std=0.3
    )
    save_model(MMDiff(esm), folder, extra={"task": PROTEIN, "sampler": {"temperature": 1.0, "remasking": "random"}})
    return folder
