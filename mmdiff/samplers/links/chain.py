"""The chain of what stands between the sampler and the model: guidance, caches, a verifier, an energy.

Each is a Denoise made of a Denoise. `sampler.denoise` lists them, the one nearest to the model first.
"""

from __future__ import annotations

from typing import Protocol

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.protocols import Denoise
from mmdiff.samplers.rules.rules import build_rule

from .caches import Cache, Prefix
from .guidance import Guidance


class Link(Protocol):
    """A node of `sampler.denoise`. It is frozen: what it keeps between steps belongs to the Denoise that it returns."""

    def wrap(self, denoise: Denoise, batch: Batch, vocab: Vocab) -> Denoise:
        """Returns a Denoise over `denoise`, for the canvases of `batch`."""
        ...


def chained(denoise: Denoise, batch: Batch, vocab: Vocab, config: GenerationConfig) -> Denoise:
    """Returns `denoise` with the links of `config.denoise` around it, and guidance around all where it has a scale.

    Raises ConfigError for what is no link, for two caches, and for guidance that is asked for twice.
    """
    links: list[Link] = [Prefix()] if config.prefix_cache else []
    links += [build_rule(node, f"sampler.denoise[{i}]", "wrap") for i, node in enumerate(config.denoise)]
    if config.guidance_scale:
        links.append(Guidance(config.guidance_scale))
    for kind, what in ((Cache, "caches"), (Guidance, "guidance")):
        names = [type(link).__qualname__ for link in links if isinstance(link, kind)]
        if len(names) > 1:
            raise ConfigError(f"sampler.denoise: {' and '.join(names)}: two {what} cannot be combined, expected one")
    for link in links:
        denoise = link.wrap(denoise, batch, vocab)
    return denoise
