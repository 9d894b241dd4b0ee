"""Editing by inversion: exact reconstruction, the algorithm written plainly over lists, ragged batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import MASK, VOCAB, V, by_query
from torch import Tensor
from toy import batch_of, model, samples

from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.step_noise import StepNoise
from mmdiff.errors import ConfigError, DataError
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.processes.inversion import Inverted

LENGTH = 12
LOGITS = 3 * torch.randn(2, V, V, generator=torch.Generator().manual_seed(0))


def logits_of(ids_RL: Tensor) -> Tensor:
    """(R, L, V): every position hears of its neighbours, of itself, and of the first id of the canvas."""
    left_RL, right_RL = ids_RL.roll(1, 1), ids_RL.roll(-1, 1)
    return LOGITS[0][ids_RL] + LOGITS[0][left_RL] - LOGITS[1][right_RL] + 0.3 * LOGITS[1][ids_RL[:, :1]]


@by_query
def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
    return logits_of(ids_RL)[predict_RL]


def text(seed: int, n: int = LENGTH) -> list[int]:
    return torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def edited(rows: list[Sample], steps: int, link: Inverted, **named: Any) -> Any:
    batch = collate(rows, VOCAB, index=list(range(3, 3 + len(rows))))
    config = generation_config(process=link, steps=steps, early_stop=False, seed=1, **named)
    return sample(denoise, batch, VOCAB, config)


@pytest.mark.parametrize("depth", [1.0, 0.5])
def test_with_all_of_the_residual_and_the_same_prompt_it_is_the_text_again(depth: float) -> None:
    rows: list[Sample] = [[Text([seed]), Target(text(seed))] for seed in range(20)]
    out = edited(rows, 6, Inverted(1.0, depth=depth, source="prompt"))
    assert out.targets() == [text(seed) for seed in range(20)]
    assert (out.calls, out.checks) == (6, 6) and (out.step_BL[:, 1:] == 6).all()
    assert edited(rows, 6, Inverted(0.0, depth=depth, source="prompt")).targets() != out.targets()


@pytest.mark.parametrize("source", ["prompt", "nothing"])
@pytest.mark.parametrize("keep", [(0.0, None), (0.5, 0.1), (0.85, 0.75), (0.8, None)])
def test_it_is_the_published_algorithm(keep: Any, source: Any) -> None:
    steps, depth, floor = 5, 0.75, 4.0
    words, prompt = text(7), 9
    noise = StepNoise(1, np.array([3]), np.array([0]), np.array([0]), torch.device("cpu"))
    turn = noise.table("order", LENGTH)[0].argsort().tolist()
    levels = [turn[: int(depth * LENGTH * t / steps + 1e-6)] for t in range(steps + 1)]
    allowed = [i for i in range(V) if i not in (MASK, VOCAB.slot_id)]

    def log_p(canvas: list[int], first: int) -> Tensor:
        full = torch.full((LENGTH, V), -torch.inf)
        full[:, allowed] = logits_of(torch.tensor([[first, *canvas]]))[0, 1:, allowed]
        return full.log_softmax(-1)

    residuals = []
    for t in range(1, steps + 1):
        x = [MASK if i in levels[t] else word for i, word in enumerate(words)]
        wanted = torch.full((LENGTH, V), -floor)
        wanted[range(LENGTH), words] = 0.0
        residuals.append(wanted - log_p(x, prompt if source == "prompt" else MASK).clamp(min=-1e4))
    x = [MASK if i in levels[steps] else word for i, word in enumerate(words)]
    for t in range(steps, 0, -1):
        first, last = keep[0], keep[0] if keep[1] is None else keep[1]
        share = first + (last - first) * (steps - t) / (steps - 1)
        guess = (log_p(x, prompt) + share * residuals[t - 1]).argmax(-1).tolist()
        x = [MASK if i in levels[t - 1] else word for i, word in enumerate(guess)]
    out = edited([[Text([prompt]), Target(words)]], steps, Inverted(*keep, depth=depth, floor=floor, source=source))
    assert out.targets() == [x] and x != words


@pytest.mark.parametrize(
    ("link", "named"),
    [
        (Inverted(0.04, 0.01), {}),
        (Inverted(0.1, depth=0.5), {"temperature": 0.8, "top_k": 5}),
        (Inverted(0.02, source="prompt"), {"guidance_scale": 0.5}),
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(link: Inverted, named: dict[str, Any]) -> None:
    m = model()

    def given(row: Sample) -> Sample:
        """The row with its targets filled."""
        ids = [m.vocab.encode(word)[0] for word in ("north", "east", "south", "west")]
        out: list[Any] = []
        for part in row:
            n = 0 if not isinstance(part, Target) else len(part.ids) if part.ids else int(part.length or 0)
            out.append(Target((ids * 3)[:n]) if n else part)
        return out

    rows = [given(row) for row in samples()]
    assert any(isinstance(part, Media) for part in rows[0])
    named = {"process": link, "steps": 4, "early_stop": False, "seed": 1, **named}
    before = batch_of(m, rows, [8, 3, 5, 4])
    together = m.generate(before, **named)
    assert together.ids_BL.tolist() != before.ids_BL.tolist()
    for b in range(4):
        alone = m.generate(batch_of(m, [rows[b]], [[8, 3, 5, 4][b]]), **named)
        assert alone.targets()[0] == together.targets()[b]
    exact = m.generate(before, process=Inverted(source="prompt"), steps=3, early_stop=False)
    assert exact.ids_BL.tolist() == before.ids_BL.tolist()


@pytest.mark.parametrize(
    ("named", "raises", "message"),
    [
        ({"steps": None}, ConfigError, "sampler.steps: Inverted takes as many steps back as forth"),
        ({"block_length": 2}, ConfigError, "sampler.block_length: Inverted"),
        ({"constraint": "a.B"}, ConfigError, "sampler.constraint: Inverted"),
        ({"threshold": 0.5}, ConfigError, "sampler.threshold: Inverted"),
        ({"row": [MASK, 2]}, DataError, "Inverted edits answers that are given whole"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    named: dict[str, Any], raises: type[Exception], message: str
) -> None:
    batch = collate([[Target(named.pop("row", [1, 2]))]], VOCAB)
    with pytest.raises(raises) as raised:
        sample(denoise, batch, VOCAB, generation_config(**{"process": Inverted(), "steps": 2, **named}))
    assert message in str(raised.value) and "\n" not in str(raised.value)
