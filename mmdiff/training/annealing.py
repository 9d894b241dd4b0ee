"""Attention mask annealing: a causal language model is made bidirectional step by step (DiffuLLaMA, arXiv 2410.17891).

At step s of a stage with `anneal: N`, a position sees itself, all before it, and each later one with probability
r = min(1, (s + 1) / N) (section 3.3, and `anneal_steps` in the authors' training code). The draw is a function of seed,
step and sample: batch size, copies, padding and where a run was resumed do not change it. The authors draw one mask for
all samples of a batch. A saved model attends as it is configured, to all positions: bounds and generations of a model
that is still being annealed are those of full attention.
"""

from __future__ import annotations

from dataclasses import replace

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import Full, PartlyCausal
from mmdiff.diffusion.keys import WORD_32, NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.protocols import Model


def check_annealing(steps: int, model: Model, where: str) -> None:
    """Raise ConfigError where a model that does not attend to all positions is to be annealed to do so."""
    if steps and model.attention != Full():
        raise ConfigError(f"{where}.anneal: {steps}: it ends in Full attention, but the model has {model.attention}")


def annealed(batch: Batch, key: NoiseKey, step: int, steps: int) -> Batch:
    """Returns the batch with the attention of a step; as it is behind the last step of annealing, and without any.

    key: of this step of the run. step: of the stage, from 0. steps: of annealing; the last has full attention.
    """
    if step + 1 >= steps:
        return batch
    return replace(batch, attention=PartlyCausal((step + 1) / steps, key.fold("attention").integer(WORD_32 + 1)))
