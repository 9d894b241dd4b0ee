"""`mmdiff demo text`: a masked model of Python's own documentation, against a left-to-right twin, unigrams and gzip."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mmdiff.config import build, flatten, load_config
from mmdiff.config.settings import Config
from mmdiff.evaluation.report import write_report
from mmdiff.runs.folder import RUNS, Run
from mmdiff.session import Session, load
from mmdiff.tasks.background import in_background
from mmdiff.training.train import train

from .bits import Bits, causal_bits, gzip_bits, masked_bits, primed_bits, size_of, unigram_bits
from .data.documents import texts_of
from .task import PlainText

SAMPLES, INFILLS, GAP, AROUND = 4, 4, 12, 40  # AROUND: tokens on each side of a gap
NOTES = [
    "Text: the docstrings of Python's standard library and the topics of its help. Every tenth document is held out, "
    "drawn by its text. Both models have the same size, windows and steps.",
    "Bits per byte of the held-out documents. bound: an upper bound by the masked model, from exact counts of masked "
    "tokens; causal: -log2 p of the left-to-right model, exact; unigram: tokens by their frequency; gzip: -9, of the "
    "held-out text alone, with a window of 32 KiB, where the models see 128 tokens.",
]
LINES = {
    "bound": "masked model, upper bound",
    "causal": "left-to-right model of the same size and steps",
    "unigram": "tokens by their frequency",
    "gzip": "gzip -9",
    "gzip_primed": "zlib -9, training text as dictionary",
}


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Train both models side by side (or load them, when these runs are finished), measure, generate, write the report.

    Returns, in bits per byte of the held-out documents, `bound_bpb` with its standard error `bound_se` by the draws of
    masks, `causal_bpb`, `unigram_bpb`, `gzip_bpb` and `gzip_primed_bpb`; `heldout_bytes`; `samples`; `infills`, each
    with the text around its gap and what stood there; the `seconds` that this call took; and the `report`.
    """
    start = time.perf_counter()
    run, fit = Run(RUNS / str(config.name)), config.train.stages["fit"]
    alike = [f"name={config.name}-causal", *_changed(config)]
    causal = load_config("text-demo-causal", alike)
    with in_background(["train", "text-demo-causal", *alike, *(["--fresh"] if fresh else [])]):
        train(config, fresh=fresh)
    torch.set_num_threads(min(2, os.cpu_count() or 1))  # training left a core to the other model
    node = config.eval.data["heldout"]
    windows, seen = build(node, where="eval.data.heldout"), build(fit.data, where="train.stages.fit.data")
    texts = [text for _, text in texts_of(build(node["documents"], where="eval.data.heldout.documents"))]
    before = [text for _, text in texts_of(build(fit.data["documents"], where="train.stages.fit.data.documents"))]
    session, size = load(run.folder, task=PlainText), size_of(texts)
    other = load(RUNS / str(causal.name), task=PlainText)
    figures: dict[str, Bits] = {
        "bound": masked_bits(session.model, session.task, windows, size),
        "causal": causal_bits(other.model, other.task, windows, size),
        "unigram": unigram_bits(seen, windows, size, session.model.vocab.size),
        "gzip": gzip_bits(texts),
        "gzip_primed": primed_bits(texts, before),
    }
    samples = session.predict_many([{"text": ""}] * SAMPLES)
    infills = infilled(session, windows)
    rows = [{"question": "(nothing)", "answer": ""} for _ in samples]
    shown: dict[str, Sequence[tuple[Any, Any]]] = {
        "from nothing": [(row, {**made, "scores": {}}) for row, made in zip(rows, samples, strict=True)],
        "infilled": [
            ({"question": f"{one['before']} [...] {one['after']}", "answer": one["answer"]}, one) for one in infills
        ],
    }
    bpb = {name: round(found.bpb, 4) for name, found in figures.items()}
    report = write_report(run, title="Text by unmasking", results={"bits per byte": bpb}, examples=shown, notes=NOTES)
    out: dict[str, Any] = {f"{name}_bpb": value for name, value in bpb.items()}
    out |= {"bound_se": round(figures["bound"].se, 5), "heldout_bytes": size}
    out |= {"samples": [made["prediction"] for made in samples]}
    out["infills"] = [{name: one[name] for name in ("before", "prediction", "after", "answer")} for one in infills]
    out["seconds"] = round(time.perf_counter() - start, 1)
    run.finish(out)
    for name, line in LINES.items():
        print(f"{bpb[name]:6.3f}  {line}", file=sys.stderr)
    return {**out, "report": str(report)}


def infilled(session: Session[PlainText], windows: Any) -> list[dict[str, Any]]:
    """Returns predictions of gaps amid held-out windows, with the text on both sides and what stood in the gap."""
    vocab, out = session.model.vocab, []
    whole = [ids for i in range(len(windows)) if len(ids := windows[i]["pieces"][0]) >= GAP + 2 * AROUND]
    for ids in whole[:: max(1, len(whole) // INFILLS)][:INFILLS]:
        before, gap, after = ids[1:AROUND], ids[AROUND : AROUND + GAP], ids[AROUND + GAP : GAP + 2 * AROUND]
        text = [vocab.decode(before), len(gap), vocab.decode(after)]
        made = session.predict({"text": text}, early_stop=False, eos_policy="suppress", steps=GAP, temperature=0.0)
        out.append({"before": text[0], "after": text[2], "answer": vocab.decode(gap), **made, "scores": {}})
    return out


def _changed(config: Config) -> list[str]:
    """Returns as overrides what a command line changed in model and training, the objective left out."""
    packaged, here = (flatten(asdict(one)) for one in (load_config("text-demo"), config))
    keys = [key for key in here if key.startswith(("model.", "train.")) and ".objective" not in key]
    return [f"{key}={json.dumps(here[key])}" for key in keys if key not in packaged or packaged[key] != here[key]]
