"""A model to work with: a run, a saved model, or a published backbone as it stands (ESM-2, DSM, DPLM)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..backbones import load_backbone
from ..backbones.load import local_folder
from ..backbones.weights import read_json
from ..config import build, typed_sampler
from ..errors import ConfigError
from ..features import fingerprint
from ..model import MMDiff
from ..session import Session, load

SAMPLER = {"temperature": 1.0, "remasking": "random"}
"""Order at random and temperature 1 draw from the model's own law; order by confidence collapses to a few residues."""

NO_ARCHITECTURE = ("architectures", "transformers_version", "torch_dtype", "dtype")  # of a transformers configuration


def opened(path: str, overrides: Sequence[str] = ()) -> Session:
    """The session of a run or saved model; of a backbone's folder or hub id with the protein task and `SAMPLER`.

    overrides: `sampler.steps=20`, `task.letters=...`; of a backbone also `options.token_dropout=true` (see
    `mmdiff.backbones.esm`). Raises ConfigError.
    """
    if not is_backbone(path):
        return load(path, *overrides)
    own = [word for word in overrides if word.startswith(("options.", "dtype=", "attention="))]
    node = build_node(path, own)
    backbone = build(node, where="backbone")
    task, sampler = typed_sampler(
        {"target": "mmdiff.tasks.protein.Protein"}, SAMPLER, [word for word in overrides if word not in own]
    )
    model = MMDiff(backbone).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Session(model, build(task, where="task"), sampler, local_folder(path))


def is_backbone(path: str) -> bool:
    """Whether it is a backbone's folder, or no folder at all (then a hub id, which `load_backbone` checks)."""
    folder = Path(path)
    if not folder.exists():
        return "/" in path and not path.startswith(("runs/", ".", "/"))
    file = folder / "config.json"
    return file.is_file() and not (folder / "backbone").is_dir() and "model_type" in read_json(file)


def digest(model: MMDiff) -> str:
    """Of all that the backbone computes: weights, architecture, and options that no weight tells. What was written with
    one model is not gone on with by another, whatever their folders are called."""
    fields = model.backbone.model.config.to_dict()
    fields = {key: v for key, v in fields.items() if not key.startswith("_") and key not in NO_ARCHITECTURE}
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(fingerprint(model.backbone) + text.encode()).hexdigest()[:16]


def build_node(path: str, overrides: Sequence[str]) -> dict[str, object]:
    from ..config import parsed

    node: dict[str, object] = {"target": f"{load_backbone.__module__}.{load_backbone.__name__}", "path": path}
    options: dict[str, object] = {}
    for key, value in map(parsed, overrides):
        name, _, inner = key.partition(".")
        if inner and "." in inner:
            raise ConfigError(f"{key}: no such option")
        if inner:
            options[inner] = value
        else:
            node[name] = value
    return {**node, "options": options} if options else node
