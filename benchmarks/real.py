"""Trained weights through the product: a causal model made a masked one, on text, in a chat and behind Whisper.

    MMDIFF_REAL_WEIGHTS=folder python benchmarks/real.py [logits text chat speech needle] [--json FILE]

The folder (runs/real, unless the variable says otherwise) holds `smollm2-135m`, SmolLM2-135M-Instruct as transformers
saves it (any causal model will do), and `whisper-base`. What is not there is skipped. Runs go to runs/; one that is
finished is taken as it is, so that the command may be given again. Some half an hour of one core, most of it training:

    logits  the causal model by mmdiff, against transformers' own: the largest difference of a logit
    text    bits per token and byte of held-out Python documentation, in windows of 64 tokens, after N steps of 256
            tokens on the rest: the model converted (`text-convert`: all weights, and adapters alone), and the same
            architecture from nothing; before any step; and exactly, by the causal model. Upper bounds, with the
            standard error of the draws of masks (`mmdiff.tasks.text.bits`)
    chat    an answer of the converted model, by unmasking, as it is
    speech  word error rates on spoken commands: Whisper's encoder, a window Q-Former and the converted model after some
            steps (`asr-whisper-convert`), also with the sound of another row; Whisper's own decoder; and what the
            Q-Former's slots spell before the language model has seen any (CTC, among the words of these commands)
    needle  the causal model's share of hidden facts that it finds (`mmdiff text needle`), by length and depth
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kit import Options, write_figures
from mmdiff import load, train
from mmdiff.backbones import load_backbone
from mmdiff.canvas.patterns import Causal
from mmdiff.config import build, load_config
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.evaluation.evaluate import evaluate
from mmdiff.model import MMDiff
from mmdiff.objectives.ctc import collapse, spelled
from mmdiff.session import Session
from mmdiff.tasks.asr.data.commands import Commands
from mmdiff.tasks.dialogue.controls import Shuffled
from mmdiff.tasks.text.bits import causal_bits, masked_bits
from mmdiff.tasks.text.data.needle import Needles, grid
from mmdiff.tasks.text.task import PlainText

WEIGHTS = Path(os.environ.get("MMDIFF_REAL_WEIGHTS", "runs/real"))
LM, WHISPER = WEIGHTS / "smollm2-135m", WEIGHTS / "whisper-base"
QUESTION = "What does a list comprehension do in Python?"
LENGTHS, DEPTHS = (256, 512, 1024, 2048), (0.0, 0.5, 1.0)
START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")

NOTHING = [
    "name=real-nothing",
    "model.backbone={target: mmdiff.backbones.new_backbone, family: llama, "
    f"tokenizer: {{target: mmdiff.model.build.tokenizer_in, folder: {LM}}}, hidden_size: 576, layers: 30, heads: 9, "
    "kv_heads: 3, intermediate_size: 1536, max_length: 8192, rope_theta: 100000.0, init_std: 0.04}",
    "train.stages.fit.anneal=0",
    "train.stages.fit.lr=6.0e-4",
]
ADAPTERS = [
    "name=real-lora",
    "train.stages.fit.params=[{match: backbone, lora: {r: 16, alpha: 32}}]",
    "train.stages.fit.lr=1.0e-3",
]
RUNS = {"all weights": ["name=real-full"], "from nothing": NOTHING, "adapters": ADAPTERS}


def trained(name: str, overrides: list[str]) -> Path:
    """Train a packaged configuration, unless that is done. Returns the run's folder."""
    os.environ.setdefault("MMDIFF_REAL_WEIGHTS", str(WEIGHTS))
    config = load_config(name, ["train.tensorboard=false", *overrides])
    train(config)
    return Path("runs") / str(config.name)


def causal_model() -> MMDiff:
    return MMDiff(load_backbone(LM), attention=Causal()).eval()


@torch.no_grad()
def logits() -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    ours, theirs = causal_model(), AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32).eval()
    texts = ("The capital of France is", "def fibonacci(n):\n    if n < 2:\n        return n\n    return", QUESTION)
    most, alike, rows = 0.0, 0, PlainText(max_new_tokens=1)
    for text in texts:
        batch = collate([rows.sample({"text": text}, ours.vocab)], ours.vocab)
        h_1LD = ours.hidden(batch.ids_BL, batch, {}, torch.zeros(1, dtype=torch.int64))
        a_LV, b_LV = ours.backbone.head(h_1LD)[0], theirs(batch.ids_BL).logits[0]
        most = max(most, float((a_LV[:, : b_LV.shape[1]] - b_LV).abs().max()))
        alike += int((a_LV[:, : b_LV.shape[1]].argmax(1) == b_LV.argmax(1)).all())
    return {"largest_difference": most, "deviation": float(b_LV.std()), "same_tokens": f"{alike} of {len(texts)}"}


def text(windows: int, steps: int, runs: list[str]) -> dict[str, Any]:
    node = load_config("text-convert").eval.data["heldout"]
    every, task = build(node, where="eval.data.heldout"), PlainText()
    rows = [every[n * len(every) // windows] for n in range(windows)]
    start = causal_model()
    targets = [ids[1:] for row in rows for ids in row["pieces"]]
    size = sum(len(start.vocab.decode([i for i in ids if i != start.vocab.eos_id]).encode()) for ids in targets)
    tokens = sum(map(len, targets))
    of_bytes = {"causal, exact": causal_bits(start, task, rows, size, batch_size=8)}
    start.attention = MMDiff(start.backbone).attention
    of_bytes["before any step"] = masked_bits(start, task, rows, size, batch_size=8)
    del start
    for name in runs:
        folder = trained("text-convert", [*RUNS[name], f"train.stages.fit.steps={steps}"])
        of_bytes[name] = masked_bits(load(folder).model, task, rows, size, batch_size=8)
    return {
        "windows": windows,
        "tokens": tokens,
        "bytes": size,
        "bits_per_byte": {name: round(bits.bpb, 3) for name, bits in of_bytes.items()},
        "standard_error": {name: round(bits.se, 3) for name, bits in of_bytes.items()},
        "bits_per_token": {name: round(bits.bpb * size / tokens, 3) for name, bits in of_bytes.items()},
    }


def chat(steps: int) -> dict[str, Any]:
    folder = trained("text-convert", ["name=real-full", f"train.stages.fit.steps={steps}"])
    task = "task={target: mmdiff.tasks.text.chat.Chat, max_new_tokens: 48}"
    session = load(folder, task, "sampler.steps=48", "sampler.temperature=0", "sampler.block_length=16")
    found = session.predict_many([{"messages": [{"role": "user", "content": QUESTION}]}])[0]
    return {"question": QUESTION, "answer": found["prediction"], "forwards": found["forwards"]}


def speech(steps: int, text_steps: int) -> dict[str, Any]:
    backbone = Path("runs/converted-backbone")
    if not (backbone / "config.json").is_file():
        full = trained("text-convert", ["name=real-full", f"train.stages.fit.steps={text_steps}"])
        load(full).model.backbone.save_pretrained(backbone, original_format=True)
    folder = trained("asr-whisper-convert", ["name=real-speech", f"train.stages.tune.steps={steps}"])
    first = sorted((folder / "checkpoints").glob("step-*"))
    session, node = load(folder), load_config("asr-whisper-convert").eval.data["clean"]
    rows: Commands = build(node, where="eval.data.clean")
    figures, records = evaluate(session, rows, name="clean", batch_size=20)
    swapped, _ = evaluate(session, Shuffled(rows, 5, ["audio", "duration"]), name="swapped", batch_size=20)
    own = whisper(rows)
    theirs = session.task.score_all([{**rows[n], "prediction": own[n]} for n in range(len(rows))])  # type: ignore[attr-defined]
    return {
        "utterances": len(rows),
        "wer": {
            "after these steps": round(figures["wer"], 3),
            "with another row's sound": round(swapped["wer"], 3),
            "Whisper's decoder": round(theirs["wer"], 3),
            **({"spelled by the slots": round(spelled_wer(first[0], rows, session), 3)} if len(first) > 1 else {}),
        },
        "examples": [[rows[n]["text"], records[n]["prediction"], own[n]] for n in range(4)],
    }


@torch.no_grad()
def spelled_wer(folder: Path, rows: Commands, session: Session) -> float:
    """Returns the error of greedy CTC paths of the slots, among the tokens of the rows' transcripts and the blank."""
    model: MMDiff = load(folder).model
    vocab, paths = model.vocab, []
    batches = [collate([session.task.sample(rows[n], vocab)], vocab, model.readers) for n in range(len(rows))]
    words = {i for batch in batches for i in batch.ids_BL[batch.target_BL].tolist()} - {vocab.eos_id, *vocab.end_ids}
    id_K = torch.tensor([*sorted(words), vocab.mask_id])
    for batch in batches:
        log_p_1TK, _ = spelled(model, "audio", batch, id_K)
        paths.append(vocab.decode(collapse(id_K[log_p_1TK[0].argmax(-1)], vocab.mask_id)))
    scored = [{**rows[n], "prediction": text} for n, text in enumerate(paths)]
    return float(session.task.score_all(scored)["wer"])  # type: ignore[attr-defined]


@torch.no_grad()
def whisper(rows: Commands, longest: int = 32) -> list[str]:
    """Returns transcripts by transformers' Whisper, greedy, of windows of 30 s as it was trained on."""
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(WHISPER, dtype=torch.float32).eval()
    words, read = Tokenizer.from_file(str(WHISPER / "tokenizer.json")), WhisperFeatureExtractor.from_pretrained(WHISPER)
    begin, end = [words.token_to_id(token) for token in START], words.token_to_id("<|endoftext|>")
    out = []
    for n in range(len(rows)):
        sound = rows[n]["audio"]
        mel = read(sound["array"], sampling_rate=sound["sampling_rate"], return_tensors="pt").input_features
        heard, ids = model.model.encoder(mel), list(begin)
        while len(ids) < longest + len(begin):
            made = int(model(encoder_outputs=heard, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if made == end:
                break
            ids.append(made)
        out.append(words.decode(ids[len(begin) :]).strip())
    return out


def needle(count: int) -> dict[str, Any]:
    model = causal_model()
    rows = Needles(model.vocab.tokenizer, lengths=LENGTHS, depths=DEPTHS, count=count)
    sampler = GenerationConfig(temperature=0.0, block_length=1, early_stop=False)
    _, records = evaluate(Session(model, PlainText(), sampler, LM), rows, name="needle", batch_size=1)
    return {"found": {str(n): {f"{d:g}": share for d, share in own.items()} for n, own in grid(rows, records).items()}}


def show(name: str, value: Any, indent: int = 0) -> None:
    if isinstance(value, dict):
        print(f"{' ' * indent}{name}")
        for key, inner in value.items():
            show(key, inner, indent + 2)
    else:
        print(f"{' ' * indent}{name:24}  {value}")


def main() -> None:
    parts = ("logits", "text", "chat", "speech", "needle")
    options = Options(__doc__)
    options.add_argument("parts", nargs="*", choices=[[], *parts], help="default: all")
    options.number("--steps", 150, "of the text, 256 tokens each")
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="of the text")
    options.number("--speech-steps", 210, "of 16 utterances each, behind the alignment")
    options.number("--windows", 24, "held-out windows of the bounds")
    options.number("--needles", 1, "rows per length and depth")
    given = options.parse_args()
    torch.set_num_threads(1)
    calls = {
        "logits": logits,
        "text": lambda: text(given.windows, given.steps, given.runs),
        "chat": lambda: chat(given.steps),
        "speech": lambda: speech(given.speech_steps, given.steps),
        "needle": lambda: needle(given.needles),
    }
    there = Path(given.json) if given.json else None  # the figures of parts that are not measured now stay
    found = json.loads(there.read_text()) if there and there.is_file() else {}
    for name in given.parts or parts:
        missing = [folder for folder in (LM, *([WHISPER] if name == "speech" else [])) if not folder.is_dir()]
        if missing:
            print(f"{name}: skipped, there is no folder {missing[0]} (set MMDIFF_REAL_WEIGHTS)")
            continue
        start = time.process_time()
        found[name] = {**calls[name](), "cpu_seconds": round(time.process_time() - start, 1)}
        show(name, found[name])
        if given.json:
            write_figures(found, given.json)
    if given.json == "":
        write_figures(found, given.json)


if __name__ == "__main__":
    main()
