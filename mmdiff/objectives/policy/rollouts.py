"""Rollouts: what the model makes of prompts, with what each is worth, as a batch to train on.

They come from the one sampler, by the settings that the run predicts with: a policy is trained as it is used.

Shape letters: B generations, G prompts, N generations of each, L canvas length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.stream import row_name
from mmdiff.errors import ConfigError, located
from mmdiff.objectives.noising.change import widened
from mmdiff.protocols import Row, Task

from .advantage import Advantage
from .reward import Reward, checked

Rows = Callable[[int], tuple[Row, Task, str]]
"""A sample's row, its task, and the name of its source, by its global index."""


@dataclass
class Rollouts:
    """B generations, prompt by prompt.

    batch: their canvases, finished; targets are what was generated, with the step at which each was committed. Those of
        one prompt have its index, so that they are scored under the same masks.
    scored_BL: bool, targets up to the first end id. advantage_B, reward_B: fp32.
    step: of the run, at which they were made. old: what each position added to the estimate of log p then, (B, L) by
        step of their use; empty where they are used once.
    """

    batch: Batch
    scored_BL: Tensor
    advantage_B: Tensor
    reward_B: Tensor
    step: int
    old: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batch)


def rolled_out(
    model: Any,
    batch: Batch,
    rows: Rows,
    config: GenerationConfig,
    *,
    size: int,
    reward: Reward,
    advantage: Advantage,
    step: int,
) -> Rollouts:
    """Returns `size` generations of each prompt. batch: of prompts, on the CPU.

    Raises ConfigError for a sampler that deletes or inserts positions, and for a reward that is no finite number.
    """
    vocab = model.vocab
    wide = widened(batch, torch.arange(len(batch)).repeat_interleave(size))
    wide.index_B = wide.index_B * size + torch.arange(size).repeat(len(batch))
    made = model.generate(wide, generation_config=config)
    ids_BL, step_BL = made.ids_BL.cpu(), made.step_BL.cpu().long()
    if ids_BL.shape != wide.ids_BL.shape:
        raise ConfigError("sampler.process: inserts or deletes positions; a policy is trained where they stay")
    generated_BL = wide.target_BL & (wide.ids_BL == vocab.mask_id)
    worth = []
    for b, ids_L in enumerate(ids_BL):
        row, task, name = rows(int(batch.index_B[b // size]))
        with located(row_name(name, b // size) if row.get("where") is None else row["where"]):
            prediction = task.parse(ids_L[wide.target_BL[b]].tolist(), vocab)
            worth.append(checked(reward(prediction, row, task), type(reward).__name__))
    reward_B = torch.tensor(worth, dtype=torch.float64)
    done = replace(
        wide,
        ids_BL=ids_BL,
        target_BL=generated_BL,
        step_BL=step_BL.masked_fill(~generated_BL, -1),
        index_B=batch.index_B.repeat_interleave(size),
    )
    return Rollouts(
        done, scored(ids_BL, generated_BL, vocab), advantage(reward_B.view(-1, size)).flatten().float(),
        reward_B.float(), step,
    )  # fmt: skip


def scored(ids_BL: Tensor, generated_BL: Tensor, vocab: Vocab) -> Tensor:
    """Returns bool (B, L), what was generated up to the first end id of each run of targets, that id included."""
    end_BL = torch.isin(ids_BL, torch.tensor([vocab.eos_id, *vocab.end_ids])) & generated_BL
    before_BL = end_BL.cumsum(1) - end_BL.long()
    begins_BL = generated_BL & ~torch.nn.functional.pad(generated_BL, (1, 0))[:, :-1]
    base_BL = torch.where(begins_BL, before_BL, -1).cummax(1).values
    return generated_BL & (before_BL <= base_BL)
