"""What proteins cost against the plain way, in ratios of one run (one torch thread, CPU and wall seconds, medians).

    generate  sequences of many lengths in one call of `generate`, in batches of so many positions, against a call per
              sequence. Noise is a row's own, so the sequences must be the same. On one core the gain is calls saved: it
              falls as the model widens, and padding, its mask and larger tensors take some back.
    dsm       the same sequences by a plain reading of DSM's published procedure: batches in the order of the input,
              padded to the longest, logits and float64 noise at all positions for all 33 ids. First at equal steps; the
              ratio grows with the spread of lengths within a batch. Then at DSM's own count of steps, which divides
              the masks of the whole batch: forwards grow with the batch, while a row needs no more than it has masks.
              Those seconds are forwards times the mean of a forward at equal steps. Two things are put right in the
              plain code: it has the right attention mask, and draws no mask, which would cost it one forward more.
    encode    sequences to ids by a table, against transformers' tokenizer. Grows with nothing: both go by residue.
    score     all single mutants of a protein by masked marginals, and its pseudo-perplexity: one masked canvas a
              forward, against many. A forward per mutant computes every site 19 times.
    embed     means over residues, in batches of so many positions, against batches of 32 in the order of the input.
              Ours writes them to files, plain keeps them. Grows with the spread of lengths.

Times, positions and logits depend on no weight, so weights are random. `positions` are those of all forwards, padding
counted; `logits` the most that exist at one time.

Run: python benchmarks/protein.py [--rows 256] [--steps 20] [--repeats 3] [--json]
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kit import Options, write_figures
from mmdiff.backbones import new_backbone
from mmdiff.backbones.families.esm import tokenizer
from mmdiff.config.settings import GenerationConfig
from mmdiff.model import MMDiff
from mmdiff.parts.ranges import AtLeast0
from mmdiff.protocols import Row
from mmdiff.session import Session
from mmdiff.tasks.protein.design.generate import generate
from mmdiff.tasks.protein.embed.embeddings import Embeddings, embed
from mmdiff.tasks.protein.residues import CANONICAL, Residues
from mmdiff.tasks.protein.score.mutants import score_mutants
from mmdiff.tasks.protein.score.sequences import score_sequences
from mmdiff.tasks.protein.task import Protein

BATCH, DIVISOR = 32, 10  # of DSM
BUDGETS = (1024, 4096, 16384)
SHORT, LONG = 50, 400
RATIOS: dict[str, dict[str, float]] = {}  # of each part and way, to its first one: what `--json` writes


@dataclass(frozen=True)
class Size:
    """A model, and how much of the work fits into a benchmark with it."""

    width: int
    layers: int
    heads: int
    rows: int
    plain_rows: int
    steps: int
    residues: int  # of the protein that is scored

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"


def session(size: Size) -> Session:
    torch.manual_seed(0)
    backbone = new_backbone(
        family="esm", tokenizer=tokenizer(), hidden_size=size.width, layers=size.layers, heads=size.heads,
        max_length=1024, init_std=size.width**-0.5,
    )  # fmt: skip
    return Session(MMDiff(backbone).eval(), Protein(), GenerationConfig(temperature=1.0, remasking="random"), Path())


def rows(n: int) -> list[Row]:
    lengths = np.random.default_rng(0).integers(SHORT, LONG + 1, n)
    return [{"id": str(i), "sequence": "_" * int(length), "seed": i} for i, length in enumerate(lengths)]


def chains(n: int, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(CANONICAL), length)) for length in rng.integers(SHORT, LONG + 1, n)]


# Measuring -----------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """Of a model, while it is watched. positions: of all forwards, padding counted. logits: most in one call."""

    forwards: int = 0
    positions: int = 0
    logits: int = 0


@contextmanager
def watched(model: MMDiff) -> Iterator[Work]:
    work, esm = Work(), model.backbone.model

    def body(module: Any, args: Any, named: dict[str, Any]) -> None:
        work.forwards += 1
        work.positions += named["inputs_embeds"].shape[:2].numel()

    def head(module: Any, args: tuple[Tensor]) -> None:
        work.logits = max(work.logits, args[0].shape[:-1].numel() * model.vocab.size)

    hooks = [esm.esm.register_forward_pre_hook(body, with_kwargs=True), esm.lm_head.register_forward_pre_hook(head)]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Run:
    cpu: float
    wall: float
    work: Work
    result: Any


def in_turn(model: MMDiff | None, repeats: int, *functions: Callable[[], Any]) -> list[Run]:
    """Median seconds of each, measured in turn, so that all meet the same machine. Progress bars are not shown."""
    times: list[list[tuple[float, float]]] = [[] for _ in functions]
    found: dict[int, tuple[Work, Any]] = {}
    for _ in range(repeats):
        for k, function in enumerate(functions):
            with redirect_stderr(io.StringIO()), watched(model) if model else nothing() as work:
                cpu, wall = time.process_time(), time.perf_counter()
                result = function()
                times[k].append((time.process_time() - cpu, time.perf_counter() - wall))
            found[k] = work, result
    medians = [[statistics.median(x) for x in zip(*kept, strict=True)] for kept in times]
    return [Run(*medians[k], *found[k]) for k in range(len(functions))]


@contextmanager
def nothing() -> Iterator[Work]:
    yield Work()


def part(name: str, about: str) -> None:
    RATIOS[f"{name} {about.partition(':')[0]}" if name != "encode" else name] = {}
    print(f"{name:10}{about}", flush=True)


def line(way: str, run: Run, base: Run, note: str = "", share: float = 1.0) -> None:
    """share: of the work that was measured; seconds are those of all of it."""
    cpu, wall = run.cpu / share, run.wall / share
    RATIOS[list(RATIOS)[-1]][way] = base.cpu / cpu
    print(f"  {way:34}{cpu:8.2f} s cpu{wall:8.2f} s  {base.cpu / cpu:6.2f}x  {note}".rstrip(), flush=True)


def work(run: Run) -> str:
    return f"{run.work.forwards} forwards, {run.work.positions / 1e3:.0f}k positions"


# Generation ----------------------------------------------------------------------------------------------------------


def batching(model: Session, size: Size, repeats: int) -> None:
    prompts = rows(size.rows)
    sums = f"{size.rows} sequences of {SHORT}-{LONG} residues, {size.steps} steps"
    part("generate", f"{size}: {sums}")
    call = partial(generate, model, guard=None, steps=size.steps)
    ways: list[Callable[[], Any]] = [lambda: [record for row in prompts for record in call([row])]]
    ways += [partial(call, prompts, tokens=tokens) for tokens in BUDGETS]
    alone, *together = in_turn(model.model, repeats, *ways)
    line("a call each", alone, alone, work(alone))
    for tokens, run in zip(BUDGETS, together, strict=True):
        pairs = zip(alone.result, run.result, strict=True)
        equal = sum(a["sequence"] == b["sequence"] and a["steps"] == b["steps"] for a, b in pairs)
        padding = 1 - alone.work.positions / run.work.positions
        note = f"{work(run)}, {padding:.1%} padding, {equal} of {size.rows} equal"
        line(f"one call, batches of {tokens} positions", run, alone, note)


def published(model: Session, size: Size, repeats: int) -> None:
    prompts = rows(size.plain_rows)
    n = -(-len(prompts) // BATCH)
    part("dsm", f"{size}: {len(prompts)} sequences, {n} batches of {BATCH}, {size.steps} steps")
    groups = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
    ids = [[canvas(model, row) for row in group] for group in groups]
    sampler = {"guard": None, "steps": size.steps, "remasking": "low_confidence", "tokens": BUDGETS[0]}
    rng, no_mask = torch.Generator().manual_seed(0), [model.model.vocab.mask_id]
    plain, ours = in_turn(
        model.model,
        repeats,
        lambda: [row for group in ids for row in dsm(model.model, group, size.steps, 1.0, rng, no_mask)],
        lambda: generate(model, prompts, **sampler),
    )
    v = model.model.vocab.size
    line("plain", plain, plain, f"{work(plain)}, logits and noise {plain.work.logits * 16 / 1e6:.2f} MB")
    most = ours.work.logits * 4 + (LONG + 2) * v * 8  # the noise of one row exists at a time
    saved = f"positions {plain.work.positions / ours.work.positions:.2f}x"
    line(
        f"ours, batches of {BUDGETS[0]} positions",
        ours,
        plain,
        f"{work(ours)}, logits and noise {most / 1e6:.2f} MB; {saved}",
    )
    steps = [published_steps([row.count(model.model.vocab.mask_id) for row in group]) for group in ids]
    share = plain.work.forwards / sum(steps)
    positions = sum(s * len(group) * max(map(len, group)) for s, group in zip(steps, ids, strict=True))
    ratio = f"{positions / ours.work.positions:.0f}x ours"
    apart = f"{sum(steps)} forwards, {positions / 1e3:.0f}k positions: {ratio}; seconds scaled"
    line(f"plain, masks of a batch // {DIVISOR} steps", plain, plain, apart, share)
    agreement(model, prompts[:8], ids[0][:8], {**sampler, "temperature": 0.0})


def agreement(model: Session, prompts: Sequence[Row], ids: Sequence[Sequence[int]], greedy: dict[str, Any]) -> None:
    """At temperature 0 both must give the same; in float64, so that rounding does not decide between near equals."""
    vocab = model.model.vocab
    banned = [i for i in range(vocab.size) if i not in Residues(vocab).encode(CANONICAL)]
    model.model.double()
    with redirect_stderr(io.StringIO()):
        ours = [record["sequence"] for record in generate(model, prompts, **greedy)]
    plain = dsm(model.model, ids, greedy["steps"], 0.0, torch.Generator(), banned)
    model.model.float()
    equal = sum(model.task.parse(row[1:-1], vocab) == sequence for row, sequence in zip(plain, ours, strict=True))
    print(f"  at temperature 0, plain kept to the 20 residues: {equal} of {len(ours)} sequences equal", flush=True)


def canvas(model: Session, row: Row) -> list[int]:
    return [int(i) for part in model.task.prompt(row, model.model.vocab) for i in getattr(part, "ids", None) or ()]


def published_steps(masks: Sequence[int], divisor: int = DIVISOR) -> int:
    """Forwards of a batch, as DSM counts them: by the masks of all its rows."""
    return max(1, sum(masks) // divisor)


@torch.inference_mode()
def dsm(
    model: MMDiff, canvases: Sequence[Sequence[int]], steps: int, temperature: float, rng: torch.Generator,
    banned: Sequence[int] = (),
) -> list[list[int]]:  # fmt: skip
    """One batch by the published procedure (arXiv 2506.08293): in every step logits and noise of all positions, and of
    each row the most probable of its even share. banned: ids that are not committed; none in the published code."""
    mask_id, longest = model.vocab.mask_id, max(map(len, canvases))
    ids_BL = torch.tensor([[*row, *[model.vocab.pad_id] * (longest - len(row))] for row in canvases])
    attend_BL = torch.tensor([[i < len(row) for i in range(longest)] for row in canvases])
    masks_B = (ids_BL == mask_id).sum(1)

    def step(quota_B: Sequence[int]) -> None:
        logits_BLV = model.backbone(ids_BL, attend_BL)
        logits_BLV[..., list(banned)] = -torch.inf
        exact_BLV = logits_BLV.double()
        if temperature:
            noise_BLV = -torch.rand(exact_BLV.shape, dtype=torch.float64, generator=rng).log()
            new_BL = (exact_BLV.exp() / noise_BLV**temperature).argmax(-1)
        else:
            new_BL = logits_BLV.argmax(-1)
        sure_BL = exact_BLV.softmax(-1).gather(-1, new_BL[..., None]).squeeze(-1)
        sure_BL[ids_BL != mask_id] = -torch.inf
        for b, quota in enumerate(quota_B):
            best = sure_BL[b].topk(quota).indices
            ids_BL[b, best] = new_BL[b, best]

    for k in range(steps):
        step((masks_B // steps + (k < masks_B % steps)).tolist())
    if (left_B := (ids_BL == mask_id).sum(1)).any():  # masks can be drawn, too
        step(left_B.tolist())
    return [ids_L[:n].tolist() for ids_L, n in zip(ids_BL, map(len, canvases), strict=True)]


# Encoding, scores, embeddings ----------------------------------------------------------------------------------------


def encoding(n: int, repeats: int) -> None:
    sequences, slow = chains(n), tokenizer()
    some = sequences[: max(1, n // 20)]
    part("encode", f"{n} sequences of {SHORT}-{LONG} residues; the tokenizer {len(some)}, seconds scaled")
    residues = Residues(new_backbone(family="esm", tokenizer=slow, hidden_size=4, layers=1, heads=1).vocab)
    plain, single, ours = in_turn(
        None,
        repeats,
        lambda: slow(some, add_special_tokens=False)["input_ids"],
        lambda: [residues.encode(sequence) for sequence in sequences],
        lambda: residues.encode_many(sequences),
    )
    base = Run(plain.cpu * n / len(some), plain.wall * n / len(some), plain.work, None)
    line("EsmTokenizer", base, base, f"{plain.cpu / len(some) * 1e3:.2f} ms a sequence")
    for way, run in (("encode, one by one", single), ("encode_many", ours)):
        equal = sum(ids.tolist() == theirs for ids, theirs in zip(run.result, plain.result, strict=False))
        line(way, run, base, f"{run.cpu / n * 1e6:.1f} us a sequence, {equal} of {len(some)} equal")


def scoring(model: Session, size: Size, repeats: int) -> None:
    wild = "".join(np.random.default_rng(2).choice(list(CANONICAL), size.residues))
    mutants = [f"{old}{i + 1}{new}" for i, old in enumerate(wild) for new in CANONICAL if new != old]
    some = mutants[:: max(1, len(mutants) // 40)]
    row = {"id": "wild", "sequence": wild}
    part("score", f"{size}: a protein of {size.residues} residues")
    run = in_turn(
        model.model,
        repeats,
        lambda: [score_mutants(model, wild, [mutant], tokens=1)[0] for mutant in some],
        lambda: score_mutants(model, wild, mutants, tokens=1),
        lambda: score_mutants(model, wild, mutants),
        lambda: list(score_sequences(model, [row], methods=["pseudo_perplexity"], tokens=1)),
        lambda: list(score_sequences(model, [row], methods=["pseudo_perplexity"])),
    )
    share = len(some) / len(mutants)
    base = Run(run[0].cpu / share, run[0].wall / share, run[0].work, None)
    scored = dict(zip(mutants, run[2].result, strict=True))
    apart = max(abs(scored[name] - score) for name, score in zip(some, run[0].result, strict=True))
    note = f"{len(mutants)} forwards; {len(some)} measured, seconds scaled"
    line("marginals, a forward per mutant", base, base, note)
    line("a forward per site", run[1], base, work(run[1]))
    line("sites together", run[2], base, f"{work(run[2])}, within {apart:.0e} nats; {run[1].cpu / run[2].cpu:.2f}x")
    one, many = (r.result[0]["pseudo_perplexity"] for r in run[3:])
    line("pseudo-perplexity, a forward each", run[3], run[3], work(run[3]))
    line("together", run[4], run[3], f"{work(run[4])}, within {abs(one - many):.0e}")


@torch.inference_mode()
def fixed(model: MMDiff, sequences: Sequence[str]) -> Tensor:
    """(n, D): means over residues, 32 sequences at a time as they come."""
    residues, out = Residues(model.vocab), []
    for i in range(0, len(sequences), BATCH):
        chosen = map(residues.encode, sequences[i : i + BATCH])
        group = [[model.vocab.bos_id, *ids.tolist(), model.vocab.eos_id] for ids in chosen]
        longest = max(map(len, group))
        ids_BL = torch.tensor([[*ids, *[model.vocab.pad_id] * (longest - len(ids))] for ids in group])
        attend_BL = torch.tensor([[k < len(ids) for k in range(longest)] for ids in group])
        h_BLD = model.backbone.hidden(model.backbone.embed(ids_BL, attend_BL), attend_BL)
        out += [h_LD[1 : len(ids) - 1].mean(0) for h_LD, ids in zip(h_BLD, group, strict=True)]
    return torch.stack(out)


def embedding(model: Session, size: Size, repeats: int) -> None:
    sequences = chains(size.rows)
    records = [{"id": str(i), "sequence": sequence} for i, sequence in enumerate(sequences)]
    part("embed", f"{size}: {len(records)} sequences of {SHORT}-{LONG} residues")
    with tempfile.TemporaryDirectory() as folder:
        names = iter(range(10**6))

        def ours(tokens: int) -> Path:
            where = Path(folder) / str(next(names))
            embed(model, records, where, tokens=tokens)
            return where

        plain, *budgets = in_turn(
            model.model, repeats, lambda: fixed(model.model, sequences), *(partial(ours, tokens) for tokens in BUDGETS)
        )
        real = sum(map(len, sequences)) + 2 * len(sequences)
        padding = 1 - real / plain.work.positions
        line(f"batches of {BATCH} in the order given", plain, plain, f"{work(plain)}, {padding:.1%} padding")
        for tokens, run in zip(BUDGETS, budgets, strict=True):
            there = Embeddings(run.result)
            vectors = torch.stack([torch.as_tensor(there[i]) for i in range(len(there))])
            apart = (vectors - plain.result).abs().max()
            note = f"{work(run)}, {1 - real / run.work.positions:.1%} padding, within {apart:.0e}"
            line(f"batches of {tokens} positions", run, plain, note)


def main() -> None:
    options = Options(__doc__)
    options.number("--rows", 256, "sequences for the small model")
    options.number("--steps", 20, "of the small model")
    options.number("--large-rows", 32, "for a model of ESM-2 8M's shape; 0: none", of=AtLeast0)
    options.number("--large-steps", 2)
    options.number("--sequences", 10_000, "that are encoded")
    options.number("--repeats", 1)
    given = options.parse_args()
    torch.set_num_threads(1)
    small = Size(64, 2, 4, given.rows, min(64, given.rows), given.steps, 100)
    large = Size(320, 6, 20, given.large_rows, given.large_rows, given.large_steps, 40)
    print("one thread, random weights; ratios are of CPU seconds, the first line of a part is 1", flush=True)
    encoding(given.sequences, max(3, given.repeats))
    for size in (small, large):
        if not size.rows:
            continue
        model = session(size)
        with redirect_stderr(io.StringIO()):
            generate(model, rows(2), guard=None, steps=1)  # what is done once
        batching(model, size, given.repeats)
        published(model, size, given.repeats)
        scoring(model, size, max(3, given.repeats))
        embedding(model, size, given.repeats)
    write_figures(RATIOS, given.json)


if __name__ == "__main__":
    main()
