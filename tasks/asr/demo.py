"""`mmdiff demo asr`: a diffusion model corrects a weak recogniser, and controls show that it uses the sound."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmdiff.config import build
from mmdiff.config.settings import Config, ModelConfig
from mmdiff.evaluation.page import evenly
from mmdiff.evaluation.report import curves
from mmdiff.protocols import Source
from mmdiff.runs.folder import RUNS, Run
from mmdiff.session import Session, load
from mmdiff.tasks.background import in_background
from mmdiff.tasks.dialogue.controls import Shuffled, Without
from mmdiff.training.train import train

from .ctc import first_pass
from .data.commands import prepare
from .metrics import corpus, word_errors
from .records import Record, rtf
from .report import Example, example, write_asr_report
from .task import ASR
from .transcribe import transcribe

SETS = ("clean", "noisy", "heldout_voice")
DEVELOPMENT = "development"
DRAFTS = "mmdiff.samplers.deliberation."
STANDALONE = {"standalone": None}
STRATEGIES: Mapping[str, dict[str, Any]] = {
    **{f"random {r}": {"target": DRAFTS + "MaskRandom", "ratio": r} for r in (0.3, 0.5, 0.7)},
    **{f"low confidence {r}": {"target": DRAFTS + "MaskLeastConfident", "ratio": r} for r in (0.3, 0.5, 0.7)},
    "leave one out 0.5": {"target": DRAFTS + "MaskLeastConfident", "ratio": 0.5, "probe": "leave_one_out"},
    "semi-autoregressive 0.25": {"target": DRAFTS + "MaskChunks", "ratio": 0.25},
    "semi-autoregressive 0.125": {"target": DRAFTS + "MaskChunks", "ratio": 0.125},
}
NOTES = [
    "Commands spoken by espeak-ng: 49 voices in training, 28 others in the last column; noise of 5 dB in the second. "
    "The first pass is the encoder's CTC transcript early in its training. The diffusion model transcribes from "
    "nothing (standalone), or is given the first pass as a draft, masks a part of it again, and predicts that anew.",
    "The best strategy is chosen on a development set. Text only: the same strategy in a model that was trained alike "
    "without sound. Shuffled: each draft with the sound of another row.",
]


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Train (or load what is trained), correct the first pass by every strategy, write the report.

    Returns word error rates in percent: `first_pass`, `standalone`, `deliberation` (the `best` strategy on the
    development set), `text_only`, `shuffled_audio`, `encoder_ctc` (by the head of the finished encoder), each {clean,
    noisy, heldout_voice}; `strategies`, all of them; `reduction`, relative, of the best; `forwards` per utterance and
    `rtf` by strategy on the clean set; `seconds`; `report`.
    """
    start = time.perf_counter()
    main, first, text = trained(config, fresh=fresh)
    torch.set_num_threads(min(4, os.cpu_count() or 1))  # training left the other cores to data and control
    session, weak = load(main.folder, "task.draft=true", task=ASR), load(first.folder, task=ASR)
    rows = {name: with_first_pass(weak, build(node["rows"], where=name)) for name, node in config.eval.data.items()}
    ways = {**STANDALONE, **STRATEGIES}
    choice = {way: wer(session, transcribed(session, rows[DEVELOPMENT], STRATEGIES[way])) for way in STRATEGIES}
    best = min(choice, key=lambda way: choice[way])
    records = {way: {name: transcribed(session, rows[name], draft) for name in SETS} for way, draft in ways.items()}
    text_only = load(text.folder, "task.draft=true", task=ASR)
    controls = {
        "text_only": {name: transcribed(text_only, Without(rows[name], ["audio"]), STRATEGIES[best]) for name in SETS},
        "shuffled_audio": {
            name: transcribed(session, Shuffled(rows[name], 5, ["audio", "duration"]), STRATEGIES[best])
            for name in SETS
        },
    }
    one_by_one = transcribed(session, rows["clean"], None, block_length=1)
    rates = {way: {name: wer(session, of[name]) for name in SETS} for way, of in {**records, **controls}.items()}
    texts = {name: [row["text"] for row in rows[name]] for name in SETS}
    before = {name: errors(texts[name], [row["hypothesis"] for row in rows[name]]) for name in SETS}
    ctc = {name: errors(texts[name], first_pass(session.model, rows[name])) for name in SETS}
    speed = {way: rtf(of["clean"]) for way, of in records.items()} | {"left to right": rtf(one_by_one)}
    out: dict[str, Any] = {
        "first_pass": before,
        "standalone": rates["standalone"],
        "deliberation": rates[best],
        "text_only": rates["text_only"],
        "shuffled_audio": rates["shuffled_audio"],
        "encoder_ctc": ctc,
        "best": best,
        "reduction": {name: round(1 - rates[best][name] / before[name], 3) for name in SETS},
        "strategies": {way: rates[way] for way in STRATEGIES},
        "forwards": {way: round(of["forwards"], 2) for way, of in speed.items()},
        "rtf": {way: round(of["total"], 5) for way, of in speed.items()},
    }
    table = {"first pass (CTC)": before, **{way: rates[way] for way in ways}}
    table |= {"text only": rates["text_only"], "shuffled sound": rates["shuffled_audio"]}
    shown = {f"{best}, {name}": shown_of(session, rows[name], records[best][name]) for name in SETS}
    report = write_asr_report(
        main.folder / "report.html",
        title="Deliberation by masked diffusion",
        table=table,
        examples=shown,
        notes=NOTES,
        curves=curves(main.metrics),
    )
    out["seconds"] = round(time.perf_counter() - start, 1)
    main.finish(out)
    print_table(table, best, speed)
    return {**out, "report": str(report)}


def trained(config: Config, *, fresh: bool) -> tuple[Run, Run, Run]:
    """Returns the runs of the model, of its encoder after the stage `first`, and of the model without sound.

    Each is trained unless it is already.
    """
    stages = dict(config.train.stages)
    for source in (stages["tune"].data, stages["tune"].eval, *(node["rows"] for node in config.eval.data.values())):
        prepare(build(source, where="rows"))
    early = {"first": stages.pop("first")}
    name = str(config.name)
    first = replace(config, name=f"{name}-first", train=replace(config.train, stages=early))
    weights = str(RUNS / str(first.name) / "model")
    main = replace(config, model=ModelConfig(weights=weights), train=replace(config.train, stages=stages))
    alike = [f"name={name}-text", f"train.seed={config.train.seed}", f"train.stages.tune.steps={stages['tune'].steps}"]
    with in_background(["train", "asr-demo-text", *alike, *(["--fresh"] if fresh else [])]):
        train(first, fresh=fresh)
        train(main, fresh=fresh)
    return Run(RUNS / name), Run(RUNS / str(first.name)), Run(RUNS / f"{name}-text")


def with_first_pass(weak: Session[ASR], rows: Source) -> list[dict[str, Any]]:
    """Returns the rows with the CTC transcript of the early encoder as their hypothesis."""
    every = [rows[i] for i in range(len(rows))]
    return [{**row, "hypothesis": text} for row, text in zip(every, first_pass(weak.model, every), strict=True)]


def transcribed(session: Session[ASR], rows: Source, draft: Mapping[str, Any] | None, **named: Any) -> list[Record]:
    """Returns the records of a strategy, or without a draft those of transcripts from nothing."""
    if draft is None:
        rows = Without(rows, ["hypothesis"])
    return transcribe(session, rows, draft=draft, **named)


def wer(session: Session[ASR], records: list[Record]) -> float:
    """Returns the word error rate of transcripts, in percent."""
    return errors(*zip(*(session.task.pair(r, r["pred_text"]) for r in records), strict=True))


def shown_of(session: Session[ASR], rows: list[dict[str, Any]], records: list[Record]) -> list[Example]:
    """Returns twelve utterances for the report, spread over the set."""
    numbered = [{"index": i, **record} for i, record in enumerate(records)]
    return [example(session.task, rows[r["index"]], r, session.model.vocab) for r in evenly(numbered, 12)]


def errors(texts: Sequence[str], predictions: Sequence[str]) -> float:
    """Returns the word error rate of a set in percent."""
    return round(100 * corpus([word_errors(*pair) for pair in zip(texts, predictions, strict=True)])["wer"], 2)


def print_table(table: Mapping[str, Mapping[str, float]], best: str, speed: Mapping[str, Mapping[str, float]]) -> None:
    """Print word error rates in percent, forwards per utterance and real-time factors on stderr."""
    print(f"{'':28}{''.join(f'{name:>15}' for name in SETS)}{'forwards':>10}{'rtf':>9}", file=sys.stderr)
    for way, of_sets in table.items():
        line = f"{way + (' *' if way == best else ''):28}" + "".join(f"{of_sets[name]:15.2f}" for name in SETS)
        if way in speed:
            line += f"{speed[way]['forwards']:10.1f}{speed[way]['total']:9.4f}"
        print(line, file=sys.stderr)
