"""What speech costs against the plain way, in ratios of one run (one torch thread, CPU seconds, medians).

    batch   utterances of unequal length decoded at once, against one by one. On one core the gain is calls saved, and
            falls as the model widens; on an accelerator it grows until the batch fills it.
    decode  waveform to transcript, an utterance at a time, against left to right, one word a forward: with the same
            backbone (block_length=1), and with a causal one of its size that keeps a cache. Left to right takes a
            forward for each word, diffusion `steps`, or what its unsure words need. Without a cache a forward grows
            with the canvas, slots and positions; with one it does not.
    order   batches by duration, against the order of the file, both up to `SECONDS` of sound with their padding: an
            encoder and two forwards. Grows with the spread of durations.
    mel     `LogMel`, against transformers' extractor, which fills a clip up to 30 s. Grows with 30 s over the clip.
    trim    a forward of the backbone with the slots of the sound, against those of all 1500 features of Whisper's
            window. Grows with 30 s over the clip; the encoder costs the same in both.

Weights are random, and with them the forwards of a threshold and the end of a transcript would be chance. So in
`decode` logits are computed, then replaced: the true words, of probability 0.99 at once at a share of the positions and
behind the end, elsewhere 0.5 until both neighbours stand. A share of 0.5 needs about the forwards that `mmdiff demo
asr` does (`--run runs/demo-asr` counts them); 0.94 is that of arXiv 2605.29613 on LibriSpeech. What few steps cost in
errors is not measured here.

Run: python benchmarks/asr.py [--json]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import kit
from mmdiff.backbones import new_backbone
from mmdiff.backbones.forward import memory_argument
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.query import Prediction, Query
from mmdiff.canvas.sample import Target
from mmdiff.connectors.merge import FrameStack
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.encoders.media.mel import LogMel
from mmdiff.encoders.speech import SpeechConv
from mmdiff.encoders.whisper import Whisper
from mmdiff.model import MMDiff
from mmdiff.protocols import Denoise, Row
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.session import load
from mmdiff.tasks.asr.data.commands import RATE, Commands
from mmdiff.tasks.asr.data.grammar import tokenizer
from mmdiff.tasks.asr.data.manifests import by_duration
from mmdiff.tasks.asr.task import ASR

WIDTH, LAYERS, REPEATS, SECONDS = 256, 6, 3, 40.0
TASK = ASR(12, instruction="transcribe")
RATIOS: dict[str, dict[str, float]] = {}  # of each part and way, to its first one: what `--json` writes
LEFT_TO_RIGHT, STEPS_12, STEPS_4, THRESHOLD = {"block_length": 1}, {"steps": 12}, {"steps": 4}, {"threshold": 0.9}


def recogniser(encoder: Any, factor: int) -> MMDiff:
    backbone = new_backbone(
        tokenizer=tokenizer(), hidden_size=WIDTH, layers=LAYERS, heads=4, rope_theta=10_000.0, init_std=WIDTH**-0.5
    )
    return MMDiff(backbone, {"audio": encoder}, {"audio": FrameStack(encoder.width, WIDTH, factor, out_norm=1.0)})


def prepared(model: MMDiff, rows: Sequence[Row], task: ASR = TASK) -> Batch:
    return collate([task.prompt(row, model.vocab) for row in rows], model.vocab, model.readers, side="left")


medians = partial(kit.medians, repeats=REPEATS)  # CPU seconds: on one thread, the time of an idle machine, more or less


def line(what: str, way: str, figures: str, gain: float = 1.0, note: str = "") -> None:
    RATIOS.setdefault(what or list(RATIOS)[-1], {})[way] = gain
    print(f"{what:8}{way:30}{figures:36}{gain:5.2f}x  {note}".rstrip(), flush=True)


def batching(model: MMDiff, rows: Sequence[Row]) -> None:
    """With random weights and nothing planted: what fills a row up would move probabilities, then words."""
    said: dict[str, list[list[int]]] = {}
    sure: dict[str, Tensor] = {}

    def decode(name: str, batches: list[Batch]) -> None:
        outs = [model.generate(batch, steps=12, early_stop=False) for batch in batches]
        said[name] = [ids for out in outs for ids in out.targets()]
        sure[name] = torch.cat([out.confidence_BL[out.target_BL] for out in outs])

    alone, together = [prepared(model, [row]) for row in rows], [prepared(model, rows)]
    slow, fast = medians(partial(decode, "alone", alone), partial(decode, "together", together))
    n, equal = len(rows), sum(a == b for a, b in zip(said["alone"], said["together"], strict=True))
    apart = (sure["alone"] - sure["together"]).abs().max()
    line("batch", "one by one", f"{n / slow:.1f} utterances/s")
    line("", f"{n} at once", f"{n / fast:.1f} utterances/s", slow / fast, f"{equal} of {n} equal, within {apart:.0e}")


def planted(denoise: Denoise, truth_BL: Tensor, sure_BL: Tensor, mask_id: int) -> Denoise:
    def denoise_planted(query: Query) -> Prediction:
        logits_PV = torch.zeros_like(denoise(query).logits_PV)
        stands_RL = pad(query.ids_RL != mask_id, (1, 1), value=True)
        sure_RL = sure_BL[query.row_R] | (stands_RL[:, :-2] & stands_RL[:, 2:])
        odds_P = torch.where(sure_RL[query.at()], 99.0, 1.0) * (logits_PV.shape[1] - 1)
        truth_P1 = truth_BL[query.row_R][query.at()][:, None]
        return Prediction(logits_PV.scatter_(1, truth_P1, odds_P.log()[:, None]))

    return denoise_planted


def diffusion(model: MMDiff, task: ASR, rows: Sequence[Row], share: float, named: dict[str, Any]) -> int:
    """Forwards. Raises SystemExit for a transcript other than the planted one."""
    vocab, rng, forwards = model.vocab, np.random.default_rng(0), 0
    for row in rows:
        batch, truth_BL = prepared(model, [row], task), words(model, task, row)[None]
        sure_BL = torch.from_numpy(rng.random(truth_BL.shape) < share) | (truth_BL == vocab.eos_id)
        before = batch.target_BL.shape[1] - truth_BL.shape[1], 0  # the transcript is the end of the canvas
        denoise = planted(model.denoiser(batch), pad(truth_BL, before), pad(sure_BL, before), vocab.mask_id)
        out = sample(denoise, batch, vocab, generation_config(**named))
        if out.targets() != truth_BL.tolist():
            raise SystemExit(f"{named}: not the planted transcript of {row['text']!r}")
        forwards += out.calls
    return forwards


@torch.inference_mode()
def causal(model: MMDiff, llama: Any, task: ASR, rows: Sequence[Row]) -> int:
    """Forwards of a model with a cache: slots and instruction, then word after word, and the end."""
    forwards, name = 0, memory_argument(type(llama.model))
    for row in rows:
        batch, truth, cache = prepared(model, [row], task), words(model, task, row), None
        text_TD = model.backbone.embed(batch.ids_BL[(batch.slots["audio"] < 0) & ~batch.target_BL])
        x_1TD = torch.cat([model.encode(batch.media)["audio"], text_TD])[None]
        for i in [*truth[truth != model.vocab.eos_id], truth[-1]]:
            out = llama(inputs_embeds=x_1TD, use_cache=True, logits_to_keep=1, **{name: cache})
            x_1TD, cache, forwards = llama.get_input_embeddings()(i[None, None]), getattr(out, name), forwards + 1
    return forwards


def words(model: MMDiff, task: ASR, row: Row) -> Tensor:
    """The transcript, filled up with EOS."""
    return torch.tensor([p.ids for p in task.sample(row, model.vocab) if isinstance(p, Target)][0])


def decoding(model: MMDiff, rows: Sequence[Row], positions: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    task = ASR(positions, instruction="transcribe")
    llama = LlamaForCausalLM(LlamaConfig.from_dict(model.backbone.model.config.to_dict())).eval()
    ways: dict[str, Callable[[], int]] = {
        "left to right, no cache": partial(diffusion, model, task, rows, 1.0, LEFT_TO_RIGHT),
        "left to right, causal, cached": partial(causal, model, llama, task, rows),
        "12 steps": partial(diffusion, model, task, rows, 0.5, {**STEPS_12, "early_stop": False}),
        "4 steps": partial(diffusion, model, task, rows, 0.5, {**STEPS_4, "early_stop": False}),
        "threshold 0.9, share 0.5": partial(diffusion, model, task, rows, 0.5, THRESHOLD),
        "threshold 0.9, share 0.94": partial(diffusion, model, task, rows, 0.94, THRESHOLD),
    }
    forwards, spent = [way() / len(rows) for way in ways.values()], medians(*ways.values())
    sound, said = sum(row["duration"] for row in rows), sum(len(row["text"].split()) for row in rows)
    slots = sum(int((prepared(model, [row]).slots["audio"] >= 0).sum()) for row in rows)
    means = "{:.1f} s of sound, {:.0f} slots, {:.1f} words".format(*(x / len(rows) for x in (sound, slots, said)))
    RATIOS[f"decode {positions}"] = {}
    print(f"decode  {means}, {positions} positions:")
    for name, n, seconds in zip(ways, forwards, spent, strict=True):
        figures = f"RTF {seconds / sound:.4f}  {n:4.1f} forwards"
        line("", name, figures, spent[0] / seconds, f"forwards {forwards[0] / n:.2f}x")


def trained(folder: str, rows: Sequence[Row]) -> None:
    session = load(folder)
    for named in (LEFT_TO_RIGHT, STEPS_12, STEPS_4, THRESHOLD):
        predictions = session.predict_many(rows, **{"steps": None, **named})
        print(f"run     {named}: {sum(out['forwards'] for out in predictions) / len(predictions):.1f} forwards")


def ordering(model: MMDiff, rows: Sequence[Row]) -> None:
    samples = [read_media(TASK.prompt(row, model.vocab), model.readers) for row in rows]
    seconds, filed = [row["duration"] for row in rows], [[0]]
    for i in range(1, len(rows)):
        fits = (len(filed[-1]) + 1) * max(seconds[k] for k in [*filed[-1], i]) <= SECONDS
        filed = [*filed[:-1], [*filed[-1], i]] if fits else [*filed, [i]]
    plans = {"order of the file": filed, "by duration": by_duration(rows, SECONDS)}

    def decode(plan: list[list[int]]) -> None:
        for index in plan:
            batch = collate([samples[i] for i in index], model.vocab, model.readers, side="left")
            model.generate(batch, steps=2, early_stop=False)

    spent = medians(*(partial(decode, plan) for plan in plans.values()))
    for i, (name, plan) in enumerate(plans.items()):
        padding = 1 - sum(seconds) / sum(len(index) * max(seconds[k] for k in index) for index in plan)
        line("" if i else "order", name, f"{len(plan)} batches, {padding:.0%} padding", spent[0] / spent[i])


def features(row: Row) -> None:
    from transformers import WhisperFeatureExtractor

    wave = torch.from_numpy(np.resize(row["audio"]["array"], 2 * RATE))
    plain, ours = partial(WhisperFeatureExtractor(), sampling_rate=RATE, return_tensors="pt"), LogMel()
    slow, fast = medians(lambda: [plain(wave.numpy()) for _ in range(20)], lambda: [ours(wave) for _ in range(20)])
    mel_CT = ours(wave)
    apart = (plain(wave.numpy())["input_features"][0, :, : mel_CT.shape[1]] - mel_CT).abs().max()
    line("mel", "filled up to 30 s", f"{slow * 50:.2f} ms for 2 s of sound")
    line("", "the 2 s alone", f"{fast * 50:.2f} ms", slow / fast, f"features within {apart:g}")


def trimming(row: Row) -> None:
    small = {"d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "encoder_layers": 1}
    models = [recogniser(Whisper(config=small, trim=trim), factor=4).eval() for trim in (False, True)]
    batches = [prepared(model, [row]) for model in models]
    forwards = [
        partial(model.denoiser(batch), Query(batch.ids_BL, batch.target_BL, torch.arange(1)))
        for model, batch in zip(models, batches, strict=True)
    ]
    spent = medians(*(lambda forward=forward: [forward() for _ in range(5)] for forward in forwards))
    for name, batch, s in zip(("all 1500 features", f"those of {row['duration']:.1f} s"), batches, spent, strict=True):
        slots = int((batch.slots["audio"] >= 0).sum())
        line("trim" if s is spent[0] else "", name, f"{slots} slots, {s * 200:.1f} ms a forward", spent[0] / s)


def joined(rows: Sequence[Row]) -> Row:
    """One after the other, as one utterance."""
    wave = np.concatenate([row["audio"]["array"] for row in rows])
    said = " ".join(row["text"] for row in rows)
    return {"audio": {"array": wave, "sampling_rate": RATE}, "text": said, "duration": len(wave) / RATE}


def main() -> None:
    options = kit.Options(__doc__)
    options.add_argument("--run", help="a trained run, whose forwards are counted as well")
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = Commands(n=200, seed=3)
    rows = [source[i] for i in range(len(source))]
    model = recogniser(SpeechConv(), factor=2).eval()
    batching(model, rows[:16])
    decoding(model, rows[:8], 12)
    decoding(model, [joined(rows[i : i + 6]) for i in (0, 6, 12)], 64)
    if given.run:
        trained(given.run, rows)
    ordering(model, rows)
    features(rows[0])
    trimming(rows[0])
    kit.write_figures(RATIOS, given.json)


if __name__ == "__main__":
    main()
