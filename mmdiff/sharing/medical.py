"""The items of MI-CLAIM-GEN, the checklist for generative models in clinical research, in a model card.

Source: Miao et al., "The Minimum Information about CLinical Artificial Intelligence Checklist for Generative Modeling
Research" (arXiv 2403.02558, Table 1), by the form that its authors publish in the repository BMiao10/MI-CLAIM-GEN. The
words here are shorter than theirs. An item is filled in from what a card knows, by a section of it, or by a person:

    # clinical.yaml
    problem: Findings that a radiologist would want to see first in chest films of an emergency department.
    tier: 2B
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, nearest
from mmdiff.files import read_text, yaml_of

from .markdown import UNKNOWN, plain

TIERS = ("1", "2A", "2B", "3")
"""Tiers of transparency: code and data; code with synthetic data; code alone; neither."""
BYTES = 1024**2
MISSING = r"(?m)^Not reported, or in part: ([\w, ]+)\.$"


@dataclass(frozen=True)
class Item:
    """An item of the checklist. asks: what is to be reported. section: of a card, which holds what is known of it.
    lacks: what that section does not say, and a person has to; empty: nothing."""

    part: str
    asks: str
    section: str | None = None
    lacks: str = ""


DESIGN, RESOURCES = "Study design (part 1)", "Resources and optimization (part 2)"
EVALUATION, EXAMINATION = "Performance and evaluation (parts 3 and 4)", "Examination of the model (part 5)"
REPRODUCIBILITY = "Reproducibility (part 6)"
ITEMS: Mapping[str, Item] = {
    "problem": Item(DESIGN, "the clinical problem that the model is for"),
    "question": Item(DESIGN, "the research question"),
    "cohort": Item(DESIGN, "how the cohort was selected, and the design, so that others can repeat it"),
    "labels": Item(DESIGN, "how labels were made: guidelines, experience of annotators, their agreement"),
    "output": Item(
        DESIGN, "whether the output is categorical, continuous or unstructured", "Use", "which of the three"
    ),
    "characteristics": Item(DESIGN, "who is in the cohorts, and how they stand for real clinical settings"),
    "components": Item(
        RESOURCES, "base model, embeddings, retrieval and other tools", "Base", "tools around the model"
    ),
    "sources": Item(RESOURCES, "where all data come from, and their first format", "Data", "the origin of the files"),
    "preprocessing": Item(RESOURCES, "what was done to the data, randomization among it", "Data", "steps before these"),
    "independence": Item(RESOURCES, "that training, validation and test sets are apart, by patient"),
    "baseline": Item(EVALUATION, "the state of the art that it is compared with"),
    "comparison": Item(EVALUATION, "the difference from that, with its statistical significance"),
    "metrics": Item(
        EVALUATION, "overlap, semantic accuracy or clinical utility, and why", "Metrics", "why these figures"
    ),
    "raters": Item(EVALUATION, "evaluation by people, if any: guidelines, experience, agreement"),
    "errors": Item(EXAMINATION, "interpretability and analyses of errors, undetected failures among them"),
    "risk": Item(EXAMINATION, "the risk that these have shown", "Limits", "what harm an error does"),
    "bias": Item(EXAMINATION, "biases, privacy, security: what was discussed, identified, mitigated"),
    "shift": Item(EXAMINATION, "other distributions than that of training, and what they do to the figures"),
    "deployment": Item(EXAMINATION, "how it is to be evaluated once it is in use"),
    "tier": Item(REPRODUCIBILITY, "the tier of transparency: 1, 2A, 2B or 3"),
    "compute": Item(REPRODUCIBILITY, "hyperparameters, hardware, cost, time", "Recipe", "hardware and cost"),
    "card": Item(REPRODUCIBILITY, "a clinical model card", "this card"),
    "weights": Item(
        REPRODUCIBILITY, "where the weights are released, if they are, and on what terms", "Licence", "where"
    ),
}


def read_items(file: Path) -> dict[str, str]:
    """Returns what a person reports, by the name of the item, from a file of YAML.

    Raises ConfigError, in one line, for a name that the checklist lacks, for what is no text, and for another tier.
    """
    content = yaml_of(read_text(file, BYTES), str(file))
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected items by name, {{problem: ...}}, found {type(content).__name__}")
    out = {}
    for name, value in content.items():
        if name not in ITEMS:
            raise ConfigError(f"{file}: {str(name)[:80]}: no item of MI-CLAIM-GEN{nearest(str(name), ITEMS)}")
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ConfigError(f"{file}: {name}: {type(value).__name__}, expected text")
        out[name] = str(value).strip()
    if (tier := out.get("tier")) is not None and tier not in TIERS:
        raise ConfigError(f"{file}: tier: {tier[:80]!r}, expected {', '.join(TIERS)}{nearest(tier, TIERS)}")
    return out


def missing_items(known: Collection[str], given: Mapping[str, Any]) -> list[str]:
    """Returns the names of items that are not reported, or in part. known: sections of a card that say something."""
    return [name for name, item in ITEMS.items() if name not in given and (item.lacks or not _section(item, known))]


def medical_text(known: Collection[str], given: Mapping[str, str]) -> str:
    """Returns the section of a card: a table per part of the checklist. Arguments are those of `missing_items`."""
    lines = ["The items of MI-CLAIM-GEN (Miao et al., arXiv 2403.02558, Table 1)."]
    for part in dict.fromkeys(item.part for item in ITEMS.values()):
        lines += ["", f"### {part}", "", "| item | to report | |", "|---|---|---|"]
        for name, item in ITEMS.items():
            if item.part == part:
                lines.append(f"| {name} | {item.asks} | {_answer(item, known, given.get(name))} |")
    missing = missing_items(known, given)
    lines += ["", f"Not reported, or in part: {', '.join(missing)}." if missing else "All items are reported."]
    return "\n".join(lines)


def _section(item: Item, known: Collection[str]) -> str | None:
    return item.section if item.section in (*known, "this card") else None


def _answer(item: Item, known: Collection[str], given: str | None) -> str:
    section = _section(item, known)
    here = ["this card"] if section == "this card" else [f"see {section}"] if section else []
    if given is not None:
        return "; ".join([plain(given), *here])
    return "; ".join([*here, f"{item.lacks}: {UNKNOWN}" if here else UNKNOWN] if item.lacks or not here else here)
