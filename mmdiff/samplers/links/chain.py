"""The chain of what stands between the sampler and the model: guidance, caches, a verifier, an energy.

Most are a Denoise made of a Denoise. An energy or a verifier looks at the proposals of a step instead, and is the last.
`sampler.denoise` lists them, the one nearest to the model first.
"""

from __future__ import annotations

from typing import Protocol

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.protocols import Denoise
from mmdiff.samplers.rules.rules import build_rule
from mmdiff.samplers.step import Proposer

from .caches import Cache, Prefix
from .guidance import Guidance


class Link(Protocol):
    """A node of `sampler.denoise`. It is frozen: what it keeps between steps belongs to the Denoise that it returns.

    One with `nearest = True` stands nearest to the model, wherever it is listed.
    """

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        """Returns a Denoise over `denoise`, for the canvases of `batch`."""
        ...


class Choice(Protocol):
    """A node of `sampler.denoise` that chooses among proposals: an energy, a verifier. It is the last one."""

    def proposer(self, denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Proposer:
        """Returns what proposes tokens. denoise: the model itself, without any link. Raises ConfigError."""
        ...


def chained(denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig) -> tuple[Denoise, Proposer | None]:
    """Returns `denoise` with the links of `config.denoise` around it, and guidance around all where it has a scale;
    and the proposer, where the last node is one.

    Raises ConfigError for what is no link, for two caches, for guidance that is asked for twice, for a choice that is
    not the last, and for rules beside a link with `only_commits` that do anything else.
    """
    nodes = [build_rule(node, f"sampler.denoise[{i}]", "wrap|proposer") for i, node in enumerate(config.denoise)]
    choice: Choice | None = nodes.pop() if nodes and hasattr(nodes[-1], "proposer") else None
    for node in nodes:
        if hasattr(node, "proposer"):
            raise ConfigError(
                f"sampler.denoise: {type(node).__qualname__} chooses among proposals, expected as the last of the list"
            )
    proposer = None if choice is None else choice.proposer(denoise, batch, vocab, config)
    links: list[Link] = [Prefix()] if config.prefix_cache else []
    links += nodes
    if config.guidance_scale:
        links.append(Guidance(config.guidance_scale))
    for kind, what in ((Cache, "caches"), (Guidance, "guidance")):
        names = [type(link).__qualname__ for link in links if isinstance(link, kind)]
        if len(names) > 1:
            raise ConfigError(f"sampler.denoise: {' and '.join(names)}: two {what} cannot be combined, expected one")
    for link in links:
        if getattr(link, "only_commits", False) and (config.revise is not None or config.process is not None):
            raise ConfigError(
                f"sampler.denoise: {type(link).__qualname__} judges positions by logits of earlier steps, expected no "
                "sampler.revise and no sampler.process"
            )
    for link in sorted(links, key=lambda link: not getattr(link, "nearest", False)):
        denoise = link.wrap(denoise, batch, vocab)
    return denoise, proposer
