"""Score: which proposals are committed first. Shape letters: P predicted positions of a step, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.parts import part

from .state import Proposal


@part
class LowConfidence:
    """The score is the probability of the proposed token: the least confident stay masked (LLaDA, arXiv 2502.09992).

    With a temperature the order then depends on what was drawn, so one position per step no longer samples the model's
    joint distribution; `Random` does.
    """

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        return proposal.confidence_P


@part
class Random:
    """The score is a random number: positions are committed in random order."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        return proposal.noise.uniform("order")


@part
class Margin:
    """The score is the probability of the best token minus that of the second best (arXiv 2502.06768)."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        top_P2 = (logits_PV.topk(2, dim=-1).values - logits_PV.logsumexp(-1, keepdim=True)).exp()
        return top_P2[:, 0] - top_P2[:, 1]


@part
class NegativeEntropy:
    """The score is the sum of p log p, in nats: 0 where the model is certain, negative elsewhere (Dream)."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        log_p_PV = logits_PV.log_softmax(-1)
        return (log_p_PV.exp() * log_p_PV.masked_fill(log_p_PV == -torch.inf, 0.0)).sum(-1)
