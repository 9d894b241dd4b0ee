"""The smallest application: a patch of light in one of four corners, the corner's name twice. Parts for the tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdiff.backbones import Backbone, new_backbone
from mmdiff.canvas.batch import Batch, MediaBatch
from mmdiff.canvas.pattern import Pattern
from mmdiff.canvas.sample import Item, Media, Part, Sample, Target, Text
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.config.saveable import saveable
from mmdiff.config.settings import Config, ModelConfig, StageConfig, TrainConfig
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.errors import DataError
from mmdiff.model import MMDiff
from mmdiff.parts import part

WORDS = ["where", "north", "east", "south", "west"]


@part
def backbone(width: int = 32, layers: int = 2) -> Backbone:
    return new_backbone(tokenizer=word_tokenizer(WORDS), hidden_size=width, layers=layers, heads=2)


@part
class Corners:
    """Rows; `length` answers repeat the word that often."""

    def __init__(self, n: int = 64, seed: int = 0, lengths: Sequence[int] = (2,)) -> None:
        self.n, self.seed, self.lengths = n, seed, tuple(lengths)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        corner = int(rng.integers(4))
        image = rng.normal(0, 0.1, (1, 8, 8)).astype(np.float32)
        image[:, 4 * (corner // 2) :, 4 * (corner % 2) :][:, :4, :4] += 1
        answer = " ".join([WORDS[1 + corner]] * self.lengths[index % len(self.lengths)])
        return {"image": image, "question": "where", "answer": answer, "kind": WORDS[1 + corner]}


@part
class Where:
    """The task; image=False leaves the picture out."""

    def __init__(self, image: bool = True) -> None:
        self.image = image

    def _context(self, row: Any, vocab: Vocab) -> list[Any]:
        media = [Media("image", row["image"])] if self.image else []
        return [*media, Text(vocab.encode(row["question"]))]

    def sample(self, row: Any, vocab: Vocab) -> Sample:
        return [*self._context(row, vocab), Target(vocab.encode(row["answer"]))]

    def prompt(self, row: Any, vocab: Vocab) -> Sample:
        if not row["answer"].split():
            raise DataError("answer: is empty, expected as many words as are asked for")
        return [*self._context(row, vocab), Target(length=len(row["answer"].split()))]

    def parse(self, ids: Sequence[int], vocab: Vocab) -> str:
        return vocab.decode(ids)

    def score(self, prediction: str, row: Any) -> dict[str, float]:
        return {"exact": float(prediction == row["answer"])}


@saveable
class Patches(nn.Module):
    """(N, 1, 8, 8) -> (N, 4, 16); dropout shows whether a frozen tower is left in training mode."""

    width, tokens = 16, 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 4, 4)
        self.drop = nn.Dropout(0.5)

    def read(self, data: Any) -> Item:
        return Item(torch.as_tensor(data)[None])

    def forward(self, values_N: Tensor) -> Tensor:
        out: Tensor = self.drop(self.conv(values_N)).flatten(2).transpose(1, 2)
        return out

    def gradient_checkpointing(self, on: bool) -> None: ...


@saveable
class Project(nn.Module):
    def __init__(self, *, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        out: Tensor = self.linear(features_NTE).flatten(0, 1)
        return out


def config(name: str = "toy", *, image: bool = True, **train: Any) -> Config:
    """A run of one stage. `train`: fields of TrainConfig; `stage`: a dictionary of StageConfig's."""
    stage: dict[str, Any] = train.pop("stage", {})
    stages = train.pop("stages", None)
    first = StageConfig(
        **{
            "steps": 6,
            "batch_size": 4,
            "lr": 1e-2,
            "data": {"target": "toy.Corners"},
            "objective": {"target": "mmdiff.objectives.denoise.Denoise"},
            **stage,
        }
    )
    return Config(
        name=name,
        model=ModelConfig(
            backbone={"target": "toy.backbone"},
            encoders={"image": {"target": "toy.Patches"}} if image else {},
            connectors={"image": {"target": "toy.Project"}} if image else {},
        ),
        task={"target": "toy.Where", "image": image},
        train=TrainConfig(
            **{"stages": stages or {"only": first}, "save_every": 2, "log_every": 1, "tensorboard": False, **train}
        ),
    )


def model(attention: Pattern | None = None, image: bool = True) -> MMDiff:
    """A model with random weights that say something, and a picture where `image`."""
    torch.manual_seed(0)
    media = {"image": Patches()} if image else {}
    connectors = {"image": Project(width_in=16, width_out=32)} if image else {}
    m = MMDiff(backbone(), media, connectors, attention=attention).eval()
    for p in m.backbone.parameters():  # weights that say something: neighbours matter, and so does what is committed
        p.data.mul_(6.0 if p.ndim == 2 else 1.0)
    return m


def samples() -> list[Sample]:
    """Ragged rows: a picture and a target, two spans, targets with given words alone and behind a context."""
    image = Media("image", torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3)))
    return [
        [image, Text([4, 5, 6]), Target(length=9)],
        [Text([4]), Target(length=4), Text([8, 8]), Target(length=5)],
        [Target([0, 0, 0, 7, 0, 0, 5, 0, 0, 0])],
        [Text([4, 5]), image, Target([0, 0, 7, 0, 0, 8, 0])],
    ]


def batch_of(m: MMDiff, rows: list[Sample], index: list[int] | None = None, side: str = "left") -> Batch:
    def filled(part: Any) -> Any:
        given = part.ids if isinstance(part, Target) and part.ids else None
        return part if given is None else Target([i or m.vocab.mask_id for i in given])

    read = [read_media([filled(part) for part in row], m.readers) for row in rows]
    return collate(read, m.vocab, m.readers, index=index, side=side)  # type: ignore[arg-type]


MARKS = "<|startoftext|> <|endoftext|> <|mdm_mask|> <|start_header_id|> <|end_header_id|> <|eot_id|>".split()


def chat_vocab(text: Sequence[str], size: int) -> Vocab:
    """Byte-level BPE with LLaDA's special tokens, trained on enough of `text` that it merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [*text] * 5,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False, min_frequency=2
        ),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
    )
    eos, mask = made.eos_token_id, made.mask_token_id
    return Vocab(made, len(made), mask_id=mask, eos_id=eos, pad_id=eos, slot_id=mask, end_ids=(eos,))


def flat(parts: Iterable[Part]) -> list[Any]:
    """Ids in order, media as what they hold."""
    out: list[Any] = []
    for piece in parts:
        out += [piece.data] if isinstance(piece, Media) else list(piece.ids or [])
    return out


def _one_of(world: int, rank: int, port: int, config: Config) -> None:
    os.environ |= {
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from accelerate.state import AcceleratorState, GradientState

    from mmdiff import train

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.stderr = open(f"rank{rank}.log", "w")
    try:
        train(config)
        torch.distributed.barrier()  # the first rank holds the store that the others still talk to
        torch.distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise


def in_processes(world: int, config: Config) -> None:
    """Train a configuration in `world` processes; what each says is in rank0.log and so on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        multiprocessing.get_context("fork").Process(target=_one_of, args=(world, rank, port, config))
        for rank in range(world)
    ]
    for child in children:
        child.start()
    for rank, child in enumerate(children):
        child.join(60)
        assert child.exitcode == 0, Path(f"rank{rank}.log").read_text()[-3000:]
