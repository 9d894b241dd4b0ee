"""`mmdiff demo asr`: a weak recogniser hears, a diffusion model mends, and controls show that it listens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..config import build, load_config
from ..protocols import Row, Source
from ..report import curves
from ..run import RUNS, Run
from ..session import Session, load
from ..settings import Config
from ..train import train
from .asr_eval import figures
from .asr_report import write_asr_report
from .asr_eval import example
from .controls import Shuffled, Without
from .ctc import FirstPass, first_pass
from .speech import Commands, prepare
from .transcribe import Record, rtf, transcribe
from .vqa_demo import in_background

DRAFTS = "mmdiff.samplers.drafts."
SETS = ("clean", "noisy", "heldout_voice")
STANDALONE = "standalone"
RATIOS = (0.3, 0.5, 0.7)
STRATEGIES: Mapping[str, dict[str, Any]] = {
    **{f"random {r}": {"target": DRAFTS + "Random", "ratio": r} for r in RATIOS},
    **{f"low confidence {r}": {"target": DRAFTS + "LowConfidence", "ratio": r} for r in RATIOS},
    "leave one out 0.5": {"target": DRAFTS + "LowConfidence", "ratio": 0.5, "probe": "leave_one_out"},
    "semi-autoregressive 0.25": {"target": DRAFTS + "SemiAutoregressive", "ratio": 0.25},
    "semi-autoregressive 0.125": {"target": DRAFTS + "SemiAutoregressive", "ratio": 0.125},
}
NOTES = [
    "Commands spoken by espeak-ng: 49 voices in training, 28 others in the last column; noise of 5 dB. The first pass is "
    "what the encoder hears by CTC early in its training. The diffusion model writes from nothing (standalone), or is "
    "given the first pass as a draft, opens part of it, and writes that again.",
    "Which strategy is called the best was decided on a development set. The same strategy with the sound exchanged "
    "between rows, and in a model that was trained alike without sound, shows what the sound is worth.",
]


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Train (or take what is trained), mend the first pass by every strategy, write the report.

    Returns word error rates in percent: `first_pass`, `standalone`, `deliberation` (the best strategy, by the
    development set), `text_only`, `shuffled_audio`, each {clean, noisy, heldout_voice}; all `strategies`; the `best`;
    `encoder_ctc`, what the finished encoder hears; `forwards` an utterance and `rtf` of each way; `seconds`; `report`.
    """
    start = time.perf_counter()
    main, first, text = trained(config, fresh=fresh)
    sets = {name: FirstPass(build(node["rows"], where=name), str(first.folder)) for name, node in config.eval.data.items()}
    session = load(main.folder)
    development = {name: answered(session, sets["development"], node) for name, node in ways().items()}
    best = min(STRATEGIES, key=lambda name: figures(session.task, development[name])["wer"])
    records = {name: {way: answered(session, sets[name], node) for way, node in ways().items()} for name in SETS}
    controls = {
        "text_only": {name: answered(load(text.folder), Without(sets[name], ["audio"]), STRATEGIES[best]) for name in SETS},
        "shuffled_audio": {
            name: answered(session, Shuffled(sets[name], 5, fields=["audio", "duration"]), STRATEGIES[best])
            for name in SETS
        },
    }
    out: dict[str, Any] = {
        "first_pass": {name: percent(figures(session.task, records[name][best])["first_pass"]) for name in SETS},
        "encoder_ctc": {name: heard(session, sets[name]) for name in SETS},
    }
    table = {way: {name: percent(figures(session.task, records[name][way])) for name in SETS} for way in ways()}
    out[STANDALONE] = table.pop(STANDALONE)
    out["deliberation"] = table[best]
    for name, of_sets in controls.items():
        out[name] = {key: percent(figures(session.task, found)) for key, found in of_sets.items()}
    left_to_right = {name: answered(session, sets[name], None, block_length=1) for name in SETS[:1]}
    speeds = {way: rtf(records["clean"][way]) for way in ways()} | {"left to right": rtf(left_to_right["clean"])}
