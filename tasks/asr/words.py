"""The words of a transcript: how sure the model is of each, and when each was said.

Shape letters: T features of a clip, V vocabulary, P target positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.vocab import Vocab, literal
from mmdiff.errors import require

CONTEXT = 8  # words that are decoded again with every token, for its text may depend on what stands in front of it


@dataclass(frozen=True)
class Word:
    """A word with its first and last second in the clip, and the probability of its least sure token."""

    word: str
    start: float
    end: float
    confidence: float


def word_confidences(out: Generation, b: int, vocab: Vocab) -> list[float]:
    """Returns the probability of each word of row b: that of its least sure token."""
    position_P = out.target_BL[b].nonzero().squeeze(1)
    ends = {vocab.eos_id, *vocab.end_ids}
    ids, confidences = out.ids_BL[b, position_P].tolist(), out.confidence_BL[b, position_P].tolist()
    tokens = [(i, p) for i, p in zip(ids, confidences, strict=True) if i not in ends]
    sure: list[float] = []
    for begun, (_, p) in zip(words_begun((i for i, _ in tokens), vocab), tokens, strict=True):
        if begun:
            sure += [p] * begun
        elif sure:
            sure[-1] = min(sure[-1], p)
    return sure


def words_begun(ids: Iterable[int], vocab: Vocab) -> Iterable[int]:
    """Yields how many words each token begins in the text of all tokens so far.

    Only the last words are decoded with each token, so that the work grows with the number of tokens.
    """
    window: list[int] = []
    begins: list[int] = []  # of each of the last words, the token in the window that began it
    known = in_front = 0  # words so far, and those of them in front of the window
    for i in ids:
        window.append(i)
        count = in_front + len(vocab.decode(window).split())
        begun = max(0, count - known)
        known += begun
        begins += [len(window) - 1] * begun
        yield begun
        if len(begins) > 2 * CONTEXT:
            cut = begins[-CONTEXT]
            window, begins = window[cut:], [at - cut for at in begins[-CONTEXT:]]
            in_front = count - len(vocab.decode(window).split())


def word_times(log_p_TV: Tensor, text: str, vocab: Vocab, seconds: float) -> list[Word]:
    """Returns when each word of `text` was said, by forced alignment (torchaudio).

    log_p_TV: of the clip, by the CTC head. seconds: of the clip. The probability of a token is the mean over the
    features aligned with it; all features are taken to be equally long. The list is empty where the text does not fit
    into the clip. Raises DataError for words that the tokenizer does not know.
    """
    require("torchaudio", "audio")
    from torchaudio.functional import forced_align, merge_tokens

    words = text.split()
    pieces = [literal(word if i == 0 else f" {word}", vocab) for i, word in enumerate(words)]
    ids = [i for piece in pieces for i in piece]
    repeats = sum(a == b for a, b in zip(ids, ids[1:], strict=False))  # with a blank between them
    if not ids or len(ids) + repeats > len(log_p_TV):
        return []
    blank = vocab.mask_id
    path, score = forced_align(log_p_TV[None], torch.tensor([ids], dtype=torch.int32), blank=blank)
    spans = iter(merge_tokens(path[0], score[0].exp(), blank=blank))
    per_feature = seconds / len(log_p_TV)
    out = []
    for word, piece in zip(words, pieces, strict=True):
        of_word = [next(spans) for _ in piece]
        start, end = of_word[0].start * per_feature, of_word[-1].end * per_feature
        out.append(Word(word, round(start, 3), round(end, 3), min(float(s.score) for s in of_word)))
    return out
