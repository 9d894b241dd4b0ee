"""`mmdiff card`: a model card in the hub's format (README.md with YAML front matter) of what is known of a model.

What is known: the configuration that a run was trained by, its result, its evaluation, and the heads of the weights.
What is not is "not reported", for a person to fill in. The last line holds a checksum, by which a card that a person
edited is known: it is never overwritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff import __version__
from mmdiff.config import flatten, load_config
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.files import write_text
from mmdiff.runs.folder import RUN_FILE, Run, standing
from mmdiff.runs.notes import read_note

from .inspection.folder import find_folder
from .inspection.inspect import inspect
from .markdown import UNKNOWN, as_yaml, code, plain, table
from .medical import MISSING, medical_text, read_items

MARK = re.compile(r"<!-- mmdiff card ([0-9a-f]{64}) -->\n?\Z")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def write_card(
    path: str,
    *,
    out: Path | None = None,
    licence: str | None = None,
    medical: bool = False,
    reported: Path | None = None,
) -> Path:
    """Write the card of a run, a checkpoint or a saved model to README.md in the model's folder, or to `out`.

    licence: its identifier on the hub, such as apache-2.0. medical: with the items of MI-CLAIM-GEN, as far as they are
    known. reported: a file with items that a person answers (`mmdiff.sharing.medical.read_items`).
    Raises ConfigError for a folder that is neither, and for a card that a person wrote or edited.
    """
    folder = find_folder(path)
    if not folder.described:
        raise ConfigError(f"{path}: neither a run nor a model that mmdiff saved")
    if reported is not None and not medical:
        raise ConfigError("reported: the items of a medical card, expected --medical beside it")
    file = out or folder.path / "README.md"
    if file.exists() and not unedited(file):
        raise ConfigError(f"{file}: was written or edited by a person; choose another file by --out")
    home = run_of(folder.path)
    text = card_of(
        inspect(path),
        saved=folder.described,
        run=Run(home) if home else None,
        model=folder.path,
        licence=licence,
        medical=(read_items(reported) if reported else {}) if medical else None,
    )
    write_text(file, marked(text))
    return file


def missing_of(file: Path) -> list[str]:
    """Returns the items of MI-CLAIM-GEN that a card does not report, or in part; empty where it is no medical one."""
    found = re.search(MISSING, file.read_text(encoding="utf-8"))
    return found[1].split(", ") if found else []


def marked(text: str) -> str:
    """Returns a card with its checksum, by which `unedited` knows it."""
    return f"{text}<!-- mmdiff card {_digest(text)} -->\n"


def run_of(model: Path) -> Path | None:
    """Returns the folder of the run that a model is in, as its result or as a checkpoint; None for one by itself."""
    model = model.resolve()
    parent = model.parent
    home = parent if model.name == "model" else parent.parent if parent.name == "checkpoints" else None
    return home if home and (home / RUN_FILE).is_file() else None


def unedited(file: Path) -> bool:
    """Returns whether a card is as `write_card` wrote it."""
    try:
        text = file.read_text(encoding="utf-8")
    except ValueError:
        return False
    mark = MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) == mark[1]


def card_of(
    found: Mapping[str, Any],
    *,
    saved: Mapping[str, Any],
    run: Run | None,
    model: Path,
    licence: str | None,
    medical: Mapping[str, str] | None,
    folder: str | None = None,
) -> str:
    """Returns the text of a card. found: what `inspect` returns. saved: config.json of the model. model: its folder.

    medical: items of MI-CLAIM-GEN that a person answers, of a card that has them; None: of one that has not.
    folder: the name under which it is published, where that is another one.
    """
    from huggingface_hub import ModelCardData

    config = load_config(str(run.folder)) if run else None
    result = (run.result if run else None) or {}
    name = str(config.name) if config else folder or model.resolve().name
    base = _base(config)
    relation: dict[str, Any] = {"base_model_relation": "adapter" if saved["adapters"] else "finetune"} if base else {}
    data = ModelCardData(
        license=licence,
        library_name="mmdiff",
        base_model=base,
        tags=["masked-diffusion", f"family:{found['family']}", *(["medical"] if medical is not None else [])],
        model_name=name,
        **relation,
    )
    note = standing(run.folder, model.resolve()) if run else None
    noted = read_note(run.folder) if run else ""
    parts = {part: f"{count:,} numbers" for part, count in found["parts"].items()}
    sections = {
        "Use": code(
            f'import mmdiff\n\nmmdiff.load("{folder or model.name}").predict({{...}})  # a row of {found["task"]}'
        ),
        "Base": _base_text(base, saved, config),
        "Architecture": table(
            {
                "family": f"{found['family']} ({found['class']})",
                **parts,
                "attention": found["attention"],
                "context": f"{found['max_length']:,} positions",
                "noise": found["noise"],
                "weights": found["dtype"],
            }
        ),
        "Data": _data(config),
        "Recipe": _recipe(config, result),
        "Metrics": _metrics(result),
        "Limits": _limits(found, result, note),
        **({"Notes": "\n\n".join(map(plain, noted.splitlines()))} if noted else {}),
        "Licence": licence or f"{UNKNOWN}. That of the base model and of the data holds for what was made of them.",
    }
    if medical is not None:
        known = {name for name, text in sections.items() if not text.startswith(UNKNOWN)}
        sections["Reporting in clinical research"] = medical_text(known, medical)
    head = f"---\n{data.to_yaml()}\n---\n\n# {plain(name)}\n\nA masked-diffusion model, by mmdiff {__version__}.\n"
    texts = (f"\n## {heading}\n\n{text.strip(chr(10))}\n" for heading, text in sections.items())
    return head + "".join(texts) + "\n"


def _base(config: Config | None) -> str | None:
    """Returns the hub id that a run began with, None where it is not known to be one."""
    backbone = (config.model.backbone if config else None) or {}
    path = backbone.get("path") if isinstance(backbone, Mapping) else None
    return path if isinstance(path, str) and HUB_ID.fullmatch(path) and not Path(path).exists() else None


def _base_text(base: str | None, saved: Mapping[str, Any], config: Config | None) -> str:
    nodes = {"backbone": config.model.backbone} if config and config.model.backbone else {}
    if config and config.model.weights:
        nodes["weights"] = config.model.weights
    for kind in ("encoders", "connectors", "heads", "extras"):
        nodes |= {f"{kind}.{name}": node for name, node in saved[kind].items()}
    first = f"[{base}](https://huggingface.co/{base})" if base else f"The published model it began with: {UNKNOWN}."
    return f"{first}\n\n{as_yaml(nodes)}" if nodes else first


def _data(config: Config | None) -> str:
    if config is None:
        return UNKNOWN
    stages = {name: stage.data for name, stage in config.train.stages.items()}
    held_out = {name: node for name, node in config.eval.data.items() if node}
    return (
        f"Trained on, by stage:\n\n{as_yaml(stages)}\n\nEvaluated on:\n\n{as_yaml(held_out) if held_out else UNKNOWN}"
    )


def _recipe(config: Config | None, result: Mapping[str, Any]) -> str:
    if config is None:
        return UNKNOWN
    kept = "steps objective params batch_size accumulate lr weight_decay warmup lr_schedule".split()
    stages = {name: {key: getattr(stage, key) for key in kept} for name, stage in config.train.stages.items()}
    whole = {key: getattr(config.train, key) for key in ("seed", "precision", "betas", "clip")}
    taken = {key: result[key] for key in ("steps", "tokens", "seconds_training") if key in result}
    return (
        f"{as_yaml({**whole, 'stages': stages})}\n\n{table(taken)}" if taken else as_yaml({**whole, "stages": stages})
    )


def _metrics(result: Mapping[str, Any]) -> str:
    figures = flatten({"loss": result.get("loss", {}), **result.get("eval", {})})
    numbers = {k: f"{v:.6g}" for k, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return table(numbers) if numbers else UNKNOWN


def _limits(found: Mapping[str, Any], result: Mapping[str, Any], note: str | None) -> str:
    known = [
        f"Canvases of more than {found['max_length']:,} positions are longer than any it was made for.",
        "The figures are of the sets named above, and of no others."
        if result.get("eval")
        else "It was not evaluated on sets of its own.",
        *([f"The run: {note}."] if note else []),
        *(f"Of the folder: {problem}" for problem in found["problems"]),
        f"Who is harmed by its errors, and what it must not be used for: {UNKNOWN}.",
    ]
    return "\n".join(f"* {plain(line)}" for line in known)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
