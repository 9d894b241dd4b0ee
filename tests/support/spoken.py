"""A tiny model that hears, with random weights so large that sound and words matter; clips; a tokenizer of bytes; crops
of unequal length for tests of connectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdiff.backbones import new_backbone
from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.connectors.merge import FrameStack
from mmdiff.encoders.speech import SpeechConv
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.objectives.heads import WordHead

WORDS = [*"zero one two three four five six seven eight nine call transcribe".split()]
VOCAB = Vocab(tokenizer=word_tokenizer(WORDS), size=20, mask_id=2, eos_id=1, pad_id=0, slot_id=2)
RATE = 16000


def ids(text: str) -> list[int]:
    return [4 + WORDS.index(word) for word in text.split()]


def planted(path: Sequence[int], sure: float | Sequence[float] = 0.9, size: int = VOCAB.size) -> Tensor:
    """Log-probabilities (T, V): each feature is `sure` of its id, and all others are as likely as each other."""
    p_T = torch.as_tensor(sure).expand(len(path)).clone()
    p_TV = ((1 - p_T) / (size - 1))[:, None].repeat(1, size)
    p_TV[torch.arange(len(path)), torch.tensor(path)] = p_T
    return p_TV.log()


def model(*, head: bool = True, seconds: float = 30.0) -> MMDiff:
    torch.manual_seed(0)
    back = new_backbone(tokenizer=word_tokenizer(WORDS), hidden_size=32, layers=2, heads=2)
    heads = {"audio": WordHead(width_in=32, vocab_size=back.vocab.size)} if head else {}
    encoder = SpeechConv(width=32, layers=1, heads=2, seconds=seconds)
    out = MMDiff(back, {"audio": encoder}, {"audio": FrameStack(32, 32, 2)}, heads)
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)
    return out


def saved(folder: Path, *, head: bool = True, **task: Any) -> str:
    """A folder that `mmdiff.load` takes; task: arguments of ASR."""
    node = {"target": "mmdiff.tasks.asr.ASR", "answer_length": 6, "instruction": "transcribe", **task}
    save_model(model(head=head), folder, extra={"task": node, "sampler": {"steps": 6}})
    return str(folder)


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    """A tone that comes and goes, and some noise."""
    rng = np.random.default_rng(seed)
    time_S = np.arange(round(seconds * RATE)) / RATE
    tone_S = np.sin(2 * np.pi * rng.uniform(200, 3000) * time_S) * np.sin(2 * np.pi * rng.uniform(1, 4) * time_S)
    return (0.3 * tone_S + 0.05 * rng.standard_normal(len(time_S))).astype(np.float32)


def row(seconds: float, seed: int = 0, **fields: Any) -> dict[str, Any]:
    return {"audio": {"array": wave(seconds, seed), "sampling_rate": RATE}, "duration": seconds, **fields}


def write_wave(path: Path, seconds: float, seed: int = 0) -> str:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave(seconds, seed), RATE)
    return str(path)


def letters() -> Vocab:
    """A tokenizer of bytes: a word is as many ids as it has letters, and the space in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", mask_token="<mask>"
    )
    return Vocab(tokenizer=tokenizer, size=len(names), mask_id=2, eos_id=1, pad_id=0, slot_id=2)


# Connectors: features, what lies behind their ends, one check for all

CROP = Item(torch.zeros(1, 1))


def media(tokens: Sequence[int] | None, crops: int = 0) -> MediaBatch:
    """One item per crop. tokens: features of each; None: `crops` crops, all full."""
    n = crops if tokens is None else len(tokens)
    return MediaBatch(torch.zeros(n, 1), [1] * n, [()] * n, tokens=None if tokens is None else list(tokens))


def filled(crops: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """(N, T, E): crops (T, E) of unequal length, filled up with `value`."""
    return nn.utils.rnn.pad_sequence(list(crops), batch_first=True, padding_value=value)


@torch.no_grad()
def check_lengths(connector: Any, width: int, lengths: Sequence[int] = range(1, 201)) -> None:
    """`slots` is what `forward` makes; batch mates, and what fills a crop up, change nothing."""
    torch.manual_seed(0)
    connector.eval()
    tokens = [lengths[i] for i in torch.randperm(len(lengths))]
    crops = [torch.randn(n, width) for n in tokens]
    alone = [connector(crop[None], media(None, 1)) for crop in crops]
    counts = [connector.slots(n, CROP) for n in tokens]
    assert [len(out) for out in alone] == counts
    assert all(counts)
    for value in (0.0, 100.0):
        together = connector(filled(crops, value), media(tokens))
        for n, out, expected in zip(tokens, together.split(counts), alone, strict=True):
            assert torch.allclose(out, expected, atol=1e-5), n
    three = Item(torch.zeros(3, 1))
    assert connector.slots(7, three) == 3 * connector.slots(7, CROP)
