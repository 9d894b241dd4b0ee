"""`mmdiff export`: a run or a saved model as a folder of the hub, with card, licence and defaults of generation.

The layout is that of `mmdiff.model.published.exported`. A folder is written aside and renamed, so one that is there is
whole. SHA256SUMS lists all that was written but the card, which people edit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdiff.backbones.load import backbone_from_folder
from mmdiff.config import build_saved, task_and_sampler
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest, shown
from mmdiff.files import SUMS, aside, digest, remove, write_sums, write_text
from mmdiff.files.sums import read_sums
from mmdiff.model import MMDiff
from mmdiff.model.params import merge_adapters
from mmdiff.model.published.described import read_config
from mmdiff.model.published.exported import write_exported
from mmdiff.model.published.layout import is_exported
from mmdiff.model.saving import describe
from mmdiff.runs.folder import Run, standing
from mmdiff.runs.summary import summary_of
from mmdiff.session import find_model

from .card import card_of, marked, run_of, unedited
from .engines import GEMMA, check_engine, gemma_defaults, write_engine
from .inspection.inspect import inspect

CARD, LICENCE = "README.md", "LICENSE"
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense",
    "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "llama2", "llama3", "llama3.1", "llama3.2", "gemma",
    "other", "unknown",
)  # fmt: skip
"""Identifiers of licences that the hub knows, those that models have."""


def export(
    path: str | Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    engine: str = "hub",
    tower: Path | None = None,
    merge: bool = False,
    force: bool = False,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write a run, a checkpoint or a saved model to the folder `out` as the hub has it. Returns what was written.

    overrides: of `sampler` and `task`. engine: which is to serve it, see `mmdiff.sharing.engines`; "hub": none. tower:
        the published folder of a DiffusionGemma, whose vision tower engines ask for.
    merge: add LoRA factors to the weights that they change, so that the folder is a plain model of its family.
    force: replace a folder that an export wrote and that nobody changed or added to.
    licence: its identifier on the hub, or a file with its text.
    Raises ConfigError, and then `out` is as it was.
    """
    source = find_model(Path(path))
    if note := in_doubt(source):
        print(f"warning: {note}", file=sys.stderr, flush=True)
    identifier, text = read_licence(licence)
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out}: is the model itself, expected another folder")
    check_free(out, force=force)
    config = read_config(source)
    task, sampler = task_and_sampler(config.get("task"), config.get("sampler") or {}, overrides)
    model = MMDiff.from_pretrained(source)
    merged = merge_adapters(model) if merge else 0
    if engine != "hub":
        check_engine(engine, model, sampler, tower)
    elif tower is not None:
        raise ConfigError("tower: an engine asks for it, expected --for sglang or vllm")
    _give_template(model, task and build_saved(task, "task"))
    out.parent.mkdir(parents=True, exist_ok=True)
    home = run_of(source)
    with _replacing(out), aside(out) as part:
        usual = vars(GenerationConfig())
        kept = {"sampler": {key: value for key, value in vars(sampler).items() if value != usual[key]}}
        kept |= {"task": task} if task else {}
        write_exported(model, part, describe(model, out, kept))
        _write_defaults(model, sampler, part)
        served = None if engine == "hub" else write_engine(engine, model, sampler, part, out, tower)
        if text is not None:
            (part / LICENCE).write_text(text, encoding="utf-8")
        write_sums(part)
        found = _read_back(model, part)
        card = card_of(
            found,
            saved=read_config(part),
            run=Run(home) if home else None,
            model=source,
            licence=identifier,
            medical=None,
            folder=out.name,
        )
        write_text(part / CARD, marked(card))
        files = [file for file in part.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
    wrote = {"folder": str(out), "family": found["family"], "files": len(files), "bytes": size, "merged": merged}
    return wrote if served is None else wrote | {"configuration": str(out / served.file), "serve": served.command}


def in_doubt(source: Path) -> str | None:
    """Returns in one line why a model is not that of a finished run; None where it is, or is of no run."""
    home = run_of(source)
    if home is None:
        return None
    if summary_of(home).state == "diverged":
        return f"{home} has diverged: {source} is of a training that went wrong"
    return standing(home, source.resolve())


def read_licence(given: str | None) -> tuple[str | None, str | None]:
    """Returns the identifier of a licence and its text, where a file with the text is given: then it is `other`.

    Raises ConfigError for an identifier that the hub does not know.
    """
    if given is None or given in LICENCES:
        return given, None
    file = Path(given)
    if not file.is_file():
        raise ConfigError(f"licence: {shown(given)!r} is neither a file nor an identifier{nearest(given, LICENCES)}")
    try:
        return "other", file.read_text(encoding="utf-8")
    except ValueError:
        raise ConfigError(f"licence: {shown(given)}: is not text") from None


def check_free(out: Path, *, force: bool) -> None:
    """Raise ConfigError unless a folder can be written: nothing is there, or, with `force`, an unchanged export."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out}: is a file, expected a folder")
    if not any(out.iterdir()):
        return
    if not force:
        raise ConfigError(f"{out} is there already and not empty; nothing was overwritten (--force replaces an export)")
    sums = read_sums(out)[0] if is_exported(out) else {}
    for file in sorted(p for p in out.rglob("*") if p.is_file() or p.is_symlink()):
        name = str(file.relative_to(out))
        ours = unedited(file) if name == CARD else name == SUMS and bool(sums)
        if not ours and (name not in sums or file.is_symlink() or digest(file) != sums[name]):
            raise ConfigError(f"{file}: is not as `mmdiff export` wrote it; nothing was overwritten")


@contextmanager
def _replacing(out: Path) -> Iterator[None]:
    """Within it, a folder that is there makes room for one that comes in its place; after an error it is back."""
    if not out.exists() or not any(out.iterdir()):
        yield
        return
    old = out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9}")
    out.rename(old)
    try:
        yield
    except BaseException:
        if not out.exists():
            old.rename(out)
        raise
    remove(old)


def _give_template(model: Any, task: Any) -> None:
    """Put the chat template of a task into the tokenizer, where it is Jinja: engines ask the tokenizer for it."""
    text = getattr(getattr(task, "template", None), "template", None)
    if isinstance(text, str):
        model.backbone.vocab.tokenizer.chat_template = text


def _write_defaults(model: Any, sampler: GenerationConfig, folder: Path) -> None:
    """Write generation_config.json, in transformers' words: others read ids and temperature there."""
    from transformers import GenerationConfig as Defaults

    facts = model.backbone.facts
    ends = list(facts.end_ids)
    fields: dict[str, Any] = {
        "eos_token_id": ends if len(ends) > 1 else facts.eos_id,
        "pad_token_id": facts.pad_id,
        "bos_token_id": facts.bos_id,
        "max_new_tokens": sampler.max_new_tokens,
    }
    if model.backbone.family == GEMMA:  # its class refuses all other fields
        text = json.dumps(fields | (gemma_defaults(sampler) or {}), indent=2, sort_keys=True)
        (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")
        return
    if sampler.temperature:
        drawn = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
        fields |= {name: value for name, value in drawn.items() if value is not None}
    Defaults(**fields, do_sample=sampler.temperature > 0).save_pretrained(folder)


def _read_back(model: Any, folder: Path) -> Mapping[str, Any]:
    """Returns what `inspect` finds in a folder. Raises ConfigError where the layout has lost something of the model."""
    found = inspect(folder)
    for what in ("missing", "unexpected", "problems"):
        if found[what]:
            raise ConfigError(f"export: {what} in the published layout of {found['family']}: {found[what][0]}")
    made = {key: value for key, value in model.backbone.node.items() if key in ("dtype", "attention", "reserve")}
    again = backbone_from_folder(folder, weights=False, **made)
    if again.facts != model.backbone.facts:
        differ = [name for name, value in vars(again.facts).items() if value != getattr(model.backbone.facts, name)]
        raise ConfigError(f"export: the published layout of {found['family']} has no field for {', '.join(differ)}")
    return found
