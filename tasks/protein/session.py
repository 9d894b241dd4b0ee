"""A model to work with: a run, a saved model, or a published backbone as it stands (ESM-2, ESM C, DSM, DPLM).

What the verbs of `mmdiff protein` do, from Python:

    from mmdiff.tasks.protein.data.fasta import read_sequences
    session = load_protein_session("runs/protein-dsm")  # or "facebook/esm2_t30_150M_UR50D", or a folder

    from mmdiff.tasks.protein.design.generate import generate
    generate(session, [{"sequence": "MKT" + "_" * 97}], steps=20)[0]["sequence"]

    from mmdiff.tasks.protein.score.sequences import score_sequences
    for record in score_sequences(session, read_sequences("x.fasta"), methods=["bound"]): ...

    from mmdiff.tasks.protein.embed.embeddings import Embeddings, embed
    embed(session, read_sequences("x.fasta"), "x.npz")
    Embeddings("x.npz").stacked()

    from mmdiff.tasks.protein.score.dms import read_scan, scan, score_mutants
    score_mutants(session, "MKTAYIAK", ["K2A", "T3P:A4G"])
    scan(session, read_scan("dms.csv"), ["masked_marginal"])["columns"]

    from mmdiff.tasks.protein.data.fasta import Fasta
    from mmdiff.tasks.protein.evaluate.evaluate import evaluate_model
    evaluate_model(session, Fasta("held-out.fasta"), samples=100)["bound"]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmdiff.backbones import load_backbone
from mmdiff.backbones.load import local_folder
from mmdiff.backbones.weights import read_json
from mmdiff.config import build, parsed, task_and_sampler
from mmdiff.errors import ConfigError, short
from mmdiff.model import MMDiff
from mmdiff.model.features import fingerprint
from mmdiff.session import Session, load

from .task import Protein

SAMPLER = {"temperature": 1.0, "remasking": "random"}
"""Order at random and temperature 1 draw from the model's own law; order by confidence collapses to a few residues."""

OWN = "backbone."  # of overrides: arguments of `load_backbone`
NO_ARCHITECTURE = ("architectures", "transformers_version", "torch_dtype", "dtype")  # of a transformers configuration


def load_protein_session(path: str | Path, overrides: Sequence[str] = ()) -> Session[Protein]:
    """Load the session of a run or saved model, or of a backbone, a folder or hub id, with `Protein` and `SAMPLER`.

    overrides: `sampler.steps=20`, `task.letters=...`; of a backbone also the arguments of `load_backbone`:
    `backbone.dtype=bfloat16`, `backbone.options.token_dropout=true` (see `mmdiff.backbones.families.esm`).
    Raises ConfigError, for a model of another task too.
    """
    if not is_backbone(path):
        return load(path, *overrides, task=Protein)
    others = [one for one in overrides if not one.startswith(OWN)]
    task, sampler = task_and_sampler({"target": "mmdiff.tasks.protein.Protein"}, SAMPLER, others)
    protein = build(task, where="task")
    node = _node(path, [one.removeprefix(OWN) for one in overrides if one.startswith(OWN)])
    model = MMDiff(build(node, where="backbone")).eval()
    protein.residues(model.vocab)  # a backbone of text has none, and raises now
    return Session(model.to("cuda" if torch.cuda.is_available() else "cpu"), protein, sampler, local_folder(path))


def is_backbone(path: str | Path) -> bool:
    """Whether it is a backbone's folder, or no folder at all (then a hub id, which `load_backbone` checks)."""
    folder = Path(path)
    try:
        is_there = folder.exists()
    except OSError as error:
        raise ConfigError(f"{short(path)}: cannot be read ({error.strerror})") from None
    if not is_there:
        return str(path).count("/") == 1 and not str(path).startswith(("runs/", ".", "/", "~"))
    file = folder / "config.json"
    return file.is_file() and not (folder / "backbone").is_dir() and "model_type" in read_json(file)


def digest(model: MMDiff) -> str:
    """Of all that the backbone computes: weights, architecture, and options that no weight tells. What was written with
    one model is not gone on with by another, whatever their folders are called."""
    fields = model.backbone.model.config.to_dict()
    fields = {key: v for key, v in fields.items() if not key.startswith("_") and key not in NO_ARCHITECTURE}
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(fingerprint(model.backbone) + text.encode()).hexdigest()[:16]


def _node(path: str | Path, overrides: Iterable[str]) -> dict[str, Any]:
    """`load_backbone` of the path, with the arguments that overrides name."""
    node: dict[str, Any] = {"target": f"{load_backbone.__module__}.{load_backbone.__name__}", "path": str(path)}
    for key, value in map(parsed, overrides):
        *above, last = key.split(".")
        inner = node
        for name in above:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{OWN}{key}: {name} has no fields")
        inner[last] = value
    return node
