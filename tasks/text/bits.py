"""Bits per byte of held-out text: by the bound of a masked model, a left-to-right model, frequencies of tokens, gzip.

All count the same bytes, UTF-8, and all tokens of the documents, their ends included. Models see a window at a time.

Shape letters: P predicted tokens, W windows, V vocabulary.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.data.collate import collate
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import bound, next_token
from mmdiff.protocols import Source, Task

DICTIONARY = 1 << 15  # bytes that zlib looks back


@dataclass(frozen=True)
class Bits:
    """bpb: bits per byte. se: its standard error by the draws of masks, for these texts; 0 where nothing is drawn."""

    bpb: float
    se: float = 0.0


def masked_bits(
    model: MMDiff, task: Task, windows: Source, size: int, *, levels: int = 2, batch_size: int = 32
) -> Bits:
    """Returns the upper bound by a masked model: ELBO by exact counts of masked tokens (arXiv 2406.03736).

    size: bytes of the texts. levels: counts per window and estimate. Two estimates with own draws are averaged; a
    quarter of their squared difference, summed over windows, estimates the variance.
    """
    nats_2W: list[list[float]] = [[], []]
    with evaluating(model):
        for batch in batches(model, task, windows, batch_size, "masked bound"):
            for seed, nats_W in enumerate(nats_2W):
                nats_W += bound(model, batch, levels=levels, seed=seed).nll_B.tolist()
    first_W, second_W = map(np.array, nats_2W)
    unit = 1 / (size * math.log(2))
    return Bits(
        float((first_W + second_W).sum() / 2 * unit), float(math.sqrt(((first_W - second_W) ** 2).sum()) / 2 * unit)
    )


@torch.no_grad()
def causal_bits(model: MMDiff, task: Task, windows: Source, size: int, *, batch_size: int = 32) -> Bits:
    """Returns -log2 p per byte of a model whose attention is causal: exact, one forward. size: bytes of the texts."""
    total = 0.0
    with evaluating(model):
        for batch in batches(model, task, windows, batch_size, "left to right"):
            total += float(next_token(model, to_device(batch, model.device))[0].double().sum())
    return Bits(total / (size * math.log(2)))


def unigram_bits(train: Source, heldout: Source, size: int, vocab_size: int) -> Bits:
    """Returns bits per byte where every token is coded by its frequency in the training windows, one added to each.

    What a model of the same tokens reaches that learns nothing of their order. size: bytes of the held-out texts.
    """
    count_V = np.bincount(np.array(list(_predicted(train))), minlength=vocab_size) + 1.0
    bits_V = -np.log2(count_V / count_V.sum())
    return Bits(float(bits_V[np.array(list(_predicted(heldout)))].sum()) / size)


def gzip_bits(texts: Sequence[str]) -> Bits:
    """Returns the size of `gzip -9` of the texts in one file, a zero byte behind each."""
    raw = b"".join(text.encode() + b"\0" for text in texts)
    return Bits(8 * len(gzip.compress(raw, 9, mtime=0)) / size_of(texts))


def primed_bits(texts: Sequence[str], before: Sequence[str]) -> Bits:
    """Returns the same by zlib with the last 32 KiB of the training texts as preset dictionary, all that it can use."""
    coder = zlib.compressobj(9, zdict=b"\0".join(text.encode() for text in before)[-DICTIONARY:])
    coded = coder.compress(b"".join(text.encode() + b"\0" for text in texts)) + coder.flush()
    return Bits(8 * len(coded) / size_of(texts))


def size_of(texts: Sequence[str]) -> int:
    """Returns the bytes of the texts in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def batches(model: MMDiff, task: Task, windows: Source, batch_size: int, name: str) -> Iterator[Batch]:
    """Yields the canvases of windows, with the target ids on them, under their own numbers."""
    for first in tqdm(range(0, len(windows), batch_size), desc=name, leave=False):
        index = range(first, min(first + batch_size, len(windows)))
        yield collate([task.sample(windows[i], model.vocab) for i in index], model.vocab, index=index)


def _predicted(windows: Source) -> Iterator[int]:
    for i in range(len(windows)):
        for _, *rest in windows[i]["pieces"]:
            yield from rest
