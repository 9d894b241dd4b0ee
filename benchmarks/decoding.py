"""Decoding against the published procedures, in one run: time ratios, agreement of tokens, forwards.

    python benchmarks/decoding.py [--json [FILE]] [--png FILE] [--repeats 3] [--width 256] [--layers 4] [--device D]

The model is a random bidirectional Llama; the published procedures are written plainly below, on the same weights, with
transformers' own cache: LLaDA's loop, and Fast-dLLM's (arXiv 2505.22618) with its prefix and its dual cache. Figures:

    exact_ratio         LLaDA's time over ours, no cache, vocabulary 126,464; the same tokens
    prefix_ratio        our time over Fast-dLLM's with the prefix cache; the same tokens
    dual_ratio          our time over Fast-dLLM's with the dual cache; the same tokens
    fast_dllm_ratio     the larger of the two
    ragged16_ratio      our throughput on 16 rows of unequal prompts at once over Fast-dLLM's (dual) one by one,
                        vocabulary 126,464; the same tokens
    block_cache_ratio   a block-causal model's time without a cache over that with its exact cache; the same tokens
    prefix_agreement,   the share of tokens that an approximate cache has in common with no cache (random weights)
    dual_agreement

What grows with what: a step without a cache costs (canvas) x body + (canvas) x head in the published code, (canvas) x
body + (pending positions of the block) x head here; with the dual cache (block) x body. On a CPU the rows of a batch
share no memory traffic worth speaking of: `ragged16_ratio` there is what a step saves, not what a GPU would gain.
Times are CPU seconds of the one thread that works (wall seconds on another device), medians of runs in turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers.cache_utils import DynamicCache

from benchmarks.kit import Options, medians, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.backbones.forward import memory_argument
from mmdiff.canvas.patterns import BlockCausal, Full
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.model import MMDiff

BLOCK = 32
WANTED = {"exact_ratio": ">= 5", "fast_dllm_ratio": "<= 0.95", "ragged16_ratio": ">= 3", "block_cache_ratio": ">= 4"}


class Dual(DynamicCache):
    """Keys and values of the whole canvas; those of `place` are replaced, as Fast-dLLM's `replace_position` does."""

    place: slice | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **named: Any) -> Any:
        if self.place is None:
            return super().update(key_states, value_states, layer_idx, *args, **named)
        layer = self.layers[layer_idx]
        layer.keys[:, :, self.place], layer.values[:, :, self.place] = key_states, value_states  # type: ignore[index]
        return layer.keys, layer.values

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return (self.get_seq_length() or query_length) if self.place else self.get_seq_length() + query_length, 0


class Published:
    """LLaDA's loop with a quota per step, and Fast-dLLM's caches. x: (1, L), the mask id at the answer."""

    def __init__(self, model: MMDiff) -> None:
        self.model, self.vocab = model.backbone.model, model.vocab

    def cache(self, kept: DynamicCache) -> dict[str, Any]:
        return {memory_argument(type(self.model.base_model)): kept}

    def fill(self, x: Tensor, logits: Tensor, end: int, quota: int) -> None:
        """Commits the `quota` surest of the masked positions before `end`; logits and x are of the same positions."""
        logits[..., [self.vocab.mask_id, self.vocab.slot_id]] = -torch.inf
        x0 = logits.argmax(-1)
        sure = logits.double().softmax(-1).gather(-1, x0[..., None]).squeeze(-1)
        sure[x != self.vocab.mask_id] = -torch.inf
        sure[:, end:] = -torch.inf
        best = sure[0].topk(quota).indices
        x[0, best] = x0[0, best]

    def positions(self, first: int, last: int) -> Tensor:
        return torch.arange(first, last, device=self.model.device)[None]

    @torch.no_grad()
    def __call__(self, x: Tensor, length: int, quota: int, cache: str) -> Tensor:
        x, total = x.clone(), x.shape[1]
        for start in range(total - length, total, BLOCK):
            end, kept = start + BLOCK, Dual()
            for step in range(BLOCK // quota):
                if cache == "none":
                    self.fill(x, self.model(input_ids=x).logits, end, quota)
                elif step == 0:
                    kept.place = None
                    out = self.model(input_ids=x, use_cache=True, **self.cache(kept))
                    self.fill(x, out.logits, end, quota)
                    if cache == "prefix":
                        kept.crop(start - kept.get_seq_length())
                else:
                    last = total if cache == "prefix" else end
                    kept.place = slice(start, end) if cache == "dual" else None
                    part = x[:, start:last]
                    logits = self.model(
                        input_ids=part, use_cache=True, **self.cache(kept), position_ids=self.positions(start, last)
                    ).logits
                    self.fill(part, logits, BLOCK, quota)
                    if cache == "prefix":
                        kept.crop(start - kept.get_seq_length())
        return x[:, total - length :]


class Uncached(MMDiff):
    """Runs the whole canvas at every step."""

    def denoiser(self, batch: Any, **named: Any) -> Any:
        denoise = super().denoiser(batch, **named)
        return lambda query: denoise(replace(query, step=None))


def made(vocab: int, given: Any, attention: Any = None, kind: type[MMDiff] = MMDiff) -> MMDiff:
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"w{i}" for i in range(vocab - 4)])
    backbone = new_backbone(
        tokenizer=tokenizer, hidden_size=given.width, layers=given.layers, heads=max(given.width // 64, 1),
        init_std=0.08, dtype=given.dtype,
    )  # fmt: skip
    return kind(backbone, attention=attention or Full()).to(given.device).eval()


def canvas(model: MMDiff, prompts: list[int], length: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, min(model.vocab.size, 4000), (n,), generator=generator).tolist() for n in prompts]
    return collate([[Text(row), Target(length=length)] for row in rows], model.vocab, side="left")


def ours(model: MMDiff, batch: Any, length: int, quota: int, cache: str, **named: Any) -> Tensor:
    links = [] if cache in ("none", "exact") else [f"mmdiff.samplers.links.caches.{cache.title()}"]
    out = model.generate(
        batch,
        steps=length // quota,
        block_length=BLOCK,
        denoise=links,
        early_stop=False,
        confidence="vocabulary",
        **named,
    )
    return torch.tensor(out.targets())


def theirs(model: MMDiff, batch: Any, length: int, quota: int, cache: str) -> Tensor:
    """One row after the other, each without padding."""
    run = Published(model)
    rows = [ids_L[attend_L][None] for ids_L, attend_L in zip(batch.ids_BL, batch.attend_BL, strict=True)]
    return torch.cat([run(row.to(model.device), length, quota, cache).cpu() for row in rows])


def timed(device: str, repeats: int, *runs: Callable[[], Tensor]) -> tuple[list[float], list[Tensor]]:
    """Returns the median seconds of each run, of the one thread that works or of the device, and what each gave."""

    def clock() -> float:
        if device == "cpu":
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    return medians(*runs, repeats=repeats, clock=clock), [run() for run in runs]


def agreement(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


def measure(given: Any) -> dict[str, float]:
    time_of = partial(timed, given.device, given.repeats)
    out: dict[str, float] = {}
    model = made(126_464, given)
    batch = canvas(model, [128], 64)
    (a, b), (x, y) = time_of(lambda: theirs(model, batch, 64, 8, "none"), lambda: ours(model, batch, 64, 8, "none"))
    out |= {"exact_ratio": a / b, "exact_same_tokens": agreement(x, y)}
    ragged = canvas(model, [given.prompt // 2 + given.prompt // 32 * i for i in range(16)], 2 * BLOCK)
    (a, b), (x, y) = time_of(
        lambda: theirs(model, ragged, 2 * BLOCK, 8, "dual"), lambda: ours(model, ragged, 2 * BLOCK, 8, "dual")
    )
    out |= {"ragged16_ratio": a / b, "ragged16_same_tokens": agreement(x, y)}
    del model
    model = made(given.vocab, given)
    batch = canvas(model, [given.prompt], given.answer)
    plain = ours(model, batch, given.answer, 4, "none")
    for cache in ("prefix", "dual"):
        (a, b), (x, y) = time_of(
            partial(theirs, model, batch, given.answer, 4, cache), partial(ours, model, batch, given.answer, 4, cache)
        )
        out |= {
            f"{cache}_ratio": b / a,
            f"{cache}_same_tokens": agreement(x, y),
            f"{cache}_agreement": agreement(y, plain),
        }
        out[f"{cache}_seconds"] = b
    out["fast_dllm_ratio"] = max(out["prefix_ratio"], out["dual_ratio"])
    attention = BlockCausal(BLOCK, "targets")
    exact, none = made(given.vocab, given, attention), made(given.vocab, given, attention, Uncached)
    batch = canvas(exact, [given.prompt], 512)
    (a, b), (x, y) = time_of(lambda: ours(none, batch, 512, 4, "none"), lambda: ours(exact, batch, 512, 4, "exact"))
    return out | {"block_cache_ratio": a / b, "block_cache_same_tokens": agreement(x, y)}


def draw(figures: dict[str, float], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(list(WANTED), [figures[name] for name in WANTED])
    axes.bar_label(bars, [f"{figures[name]:.2f}  (wanted {WANTED[name]})" for name in WANTED], padding=3)
    axes.set_xlim(0, 1.5 * max(figures[name] for name in WANTED))
    axes.set_title("time ratios, see benchmarks/decoding.py")
    figure.savefig(file)


def main() -> None:
    options = Options(__doc__)
    options.add_argument("--png", type=Path, help="draw the ratios there")
    for name, value in (("repeats", 3), ("width", 256), ("layers", 4), ("prompt", 256), ("answer", 256)):
        options.number(f"--{name}", value)
    options.number("--vocab", 32_000)
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32")
    given = options.parse_args()
    torch.set_num_threads(1)
    figures = measure(given)
    print(f"width {given.width}, {given.layers} layers, medians of {given.repeats}, {given.device}, {given.dtype}")
    for name, value in figures.items():
        print(f"{name:24s} {value:8.3f}  {'wanted ' + WANTED[name] if name in WANTED else ''}")
    if given.png:
        draw(figures, given.png)
    write_figures(figures, given.json)


if __name__ == "__main__":
    main()
