"""The sum over forwards that every estimate of log p is.

Shape letters: B samples, L canvas length, P scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.patterns import block_numbers
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff

from .elbo import Elbo
from .passes import Estimator, Targets
from .score import guided_scorer, score_by, score_masked


@dataclass
class Bound:
    """Estimates of -log p in nats, with the number of target positions they cover.

    nll_BL: what each position adds, 0 where none is scored.
    """

    nll_B: Tensor  # float64
    positions_B: Tensor
    nll_BL: Tensor  # float64


def bound(model: MMDiff, batch: Batch, *, levels: int = 16, seed: int = 0) -> Bound:
    """Returns an upper bound of -log p(targets | rest), in nats per sample: `mmdiff.model.likelihood.elbo.Elbo`.

    Masks depend on (seed, sample) only: the same rows always give the same figure. batch: on the CPU.
    """
    return estimate(model, batch, Elbo(levels), seed=seed)


@torch.no_grad()
def estimate(model: MMDiff, batch: Batch, estimator: Estimator, *, seed: int = 0, links: Sequence[Any] = ()) -> Bound:
    """Returns an estimate of -log p(targets | rest), in nats per sample.

    Random numbers depend on (seed, sample) only: of another model, of another option under the same index, or with
    links and without, the same masks are drawn, so that noise cancels in a difference.

    links: what stands between model and estimate, such as `mmdiff.samplers.links.guidance.Guidance`; a bound holds for
    what these make of the model's conditionals. batch: on the CPU.
    Raises ConfigError for scores that are not numbers, and for links with a model of several blocks of targets.
    """
    several = model.attention.exact_prefix and not model.attention.one_target_block
    blockwise = several and bool(getattr(estimator, "blockwise", False))
    if blockwise and links:
        raise ConfigError(f"links: {model.attention} has several blocks of targets, expected no links")
    block_BL = block_numbers(model.attention, batch).numpy() if blockwise else None
    targets, power = Targets.of(batch, model.vocab, block_BL), float(getattr(estimator, "power", 0))
    on_device = to_device(batch, model.device)
    features = {} if links else model.encode(on_device.media)
    denoise = guided_scorer(model, on_device, links) if links else None
    total_BL = torch.zeros(batch.ids_BL.shape, dtype=torch.float64)
    for one in estimator.passes(targets, NoiseKey(seed, stream="bound")):
        weight_BL, hidden_BL = torch.from_numpy(one.weight_BL), torch.from_numpy(one.hidden_BL).to(model.device)
        scored_BL = (weight_BL != 0).to(model.device)
        if denoise is None:
            hide = {"hidden_BL": hidden_BL, "blockwise": blockwise}
            nll_P = score_masked(model, on_device, features, scored_BL, **hide)[0].nll_P  # type: ignore[arg-type]
        else:
            ids_BL = on_device.ids_BL.masked_fill(hidden_BL, model.vocab.noise_id)
            nll_P = score_by(denoise, on_device, ids_BL, scored_BL)
        here_BL, nll_P = scored_BL.cpu(), nll_P.double().cpu()
        total_BL[here_BL] += weight_BL[here_BL] * ((-power * nll_P).exp() if power else nll_P)
    if power:
        total_BL = torch.where(total_BL > 0, -total_BL.log() / power, 0.0)
    return Bound(total_BL.sum(1), torch.from_numpy(targets.target_BL.sum(1)), total_BL)
