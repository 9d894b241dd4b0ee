"""EleutherAI's lm-evaluation-harness: `python -m mmdiff.evals.lm_eval --model mmdiff --model_args pretrained=runs/x`.

All arguments are the harness's own (extra `harness`). Log-likelihoods are -bound (`mmdiff.model.likelihood`), so lower
bounds of log p; of a model with causal attention they are log p itself. The options of one question are scored with the
same random numbers, so that their differences are less noisy than they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from mmdiff.backbones import load_backbone
from mmdiff.canvas.batch import to_device
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.config.gate import trusting
from mmdiff.config.nodes import build
from mmdiff.config.settings import GenerationConfig
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood.elbo import Elbo
from mmdiff.model.published.described import read_config
from mmdiff.samplers.links.guidance import Guidance
from mmdiff.samplers.options import generation_config
from mmdiff.session import find_model

from .requests import Settings, batch_of, batched, cut, device_of, log_likelihoods, number, settings_of


@register_model("mmdiff")
class Harness(LM):
    """A run, a saved model or a folder of a published backbone, as the harness asks for it.

    levels: mask counts per text of the bound, and so forwards; a text of at most so many tokens is bounded exactly.
    estimator: the dotted path of another estimate of log p (`mmdiff.model.likelihood.orders.LeftToRight`). guidance: a
        scale of classifier-free guidance that likelihoods are computed under.
    greedy: whether `is_greedy` is found out, by one token per forward; else it is False, but under causal attention.
    batch_size: texts per forward. dtype: of a published backbone. trust: as in `mmdiff.session.load`.
    sampler: further settings of generation, over those of the run (`block_length=32,steps=128`).
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 8,
        levels: int = 16,
        estimator: str | None = None,
        guidance: float = 0.0,
        seed: int = 0,
        greedy: bool = False,
        max_new_tokens: int = 128,
        dtype: str = "float32",
        device: str | None = None,
        trust: bool = False,
        max_batch_size: int | None = None,
        **sampler: Any,
    ) -> None:
        super().__init__()
        self.batch_size = batch_of(batch_size, 8)
        self.seed, self.greedy = int(seed), greedy
        self.estimator = build({"target": estimator}) if estimator else Elbo(int(levels))
        self.links = [Guidance(float(guidance))] if guidance else []
        self.model, config = open_model(Path(pretrained), dtype, trust)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.model.to(device_of(chosen)).eval()
        self.sampler = generation_config(config, **{"max_new_tokens": int(max_new_tokens), **sampler})
        if isinstance(self.model.attention, Causal) and (estimator or guidance):
            raise ConfigError("estimator, guidance: a model with causal attention reads clean ids, expected neither")

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.vocab.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the text of a dialogue, by the tokenizer's own template."""
        text: str = self.model.vocab.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns (log p of the continuation given the context, whether greedy decoding gives it) of each request."""
        pairs = [self._pair(*request.args) for request in requests]
        index = [number(request, i) for i, request in enumerate(requests)]
        jobs = list(zip(pairs, index, strict=True))
        return batched(jobs, self._scored, lambda job: sum(map(len, job[0])), self.batch_size)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns log p of whole texts: windows of the context's length, each behind the token before it."""
        jobs, owners = [], []
        length = self.model.backbone.facts.max_length
        for i, request in enumerate(requests):
            ids = self.model.vocab.encode(request.args[0])
            windows = utils.get_rolling_token_windows(ids, self._first(), length - 1, 1)
            for n, window in enumerate(map(utils.make_disjoint_window, windows)):
                jobs.append((window, 1000 * i + n))
                owners.append(i)
        out = [0.0] * len(requests)
        scored = batched(jobs, self._scored, lambda job: sum(map(len, job[0])), self.batch_size)
        for owner, (logp, _) in zip(owners, scored, strict=True):
            out[owner] += logp
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the generated texts, each cut before the first of its stop strings."""
        jobs = []
        for i, request in enumerate(requests):
            context, named = request.args
            jobs.append((context, settings_of(named), number(request, i)))
        return batched(jobs, self._generated, lambda job: len(job[0]), self.batch_size)

    def _scored(self, jobs: Sequence[tuple[tuple[list[int], list[int]], int]]) -> list[tuple[float, bool]]:
        samples: list[Sample] = [[Text(context), Target(rest)] for (context, rest), _ in jobs]
        batch = collate(samples, self.model.vocab, index=[number for _, number in jobs])
        logp, greedy = log_likelihoods(self.model, batch, self.estimator, seed=self.seed, links=self.links)
        if greedy is not None or not self.greedy:
            return list(zip(logp, greedy or [False] * len(jobs), strict=True))
        empty: list[Sample] = [[Text(context), Target(length=len(rest))] for (context, rest), _ in jobs]
        config = replace(self.sampler, temperature=0.0, steps=None, early_stop=False)
        index = [number for _, number in jobs]
        batch = to_device(collate(empty, self.model.vocab, index=index), self.model.device)
        out = self.model.generate(batch, generation_config=config).targets()
        return [(one, ids == rest) for one, ids, ((_, rest), _) in zip(logp, out, jobs, strict=True)]

    def _generated(self, jobs: Sequence[tuple[str, Settings, int]]) -> list[str]:
        """jobs: context, what is asked of the generation, and what identifies its random numbers."""
        vocab, texts = self.model.vocab, [""] * len(jobs)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, (_, settings, _) in enumerate(jobs):
            alike.setdefault((settings.length or self.sampler.max_new_tokens, settings.sampling), []).append(i)
        for (length, sampling), some in alike.items():
            config = generation_config(self.sampler, **dict(sampling))
            most = max(self.model.backbone.facts.max_length - length, 1)
            contexts = [vocab.encode(jobs[i][0])[-most:] or [self._first()] for i in some]
            rows: list[Sample] = [[Text(ids), Target(length=length)] for ids in contexts]
            batch = to_device(collate(rows, vocab, index=[jobs[i][2] for i in some], side="left"), self.model.device)
            for i, ids in zip(some, self.model.generate(batch, generation_config=config).targets(), strict=True):
                texts[i] = cut(vocab.decode(vocab.until_end(ids)), jobs[i][1].stops)
        return texts

    def _pair(self, context: str, rest: str) -> tuple[list[int], list[int]]:
        """Returns the ids of both; white space at the context's end belongs to what follows, as tokenizers have it."""
        bare = context.rstrip()
        context, rest = bare, context[len(bare) :] + rest
        before = self.model.vocab.encode(context) if context else []
        after = self.model.vocab.encode(context + rest)[len(before) :]
        length = self.model.backbone.facts.max_length
        return (before or [self._first()])[-max(length - len(after), 1) :], after

    def _first(self) -> int:
        vocab = self.model.vocab
        return vocab.eos_id if vocab.bos_id is None else vocab.bos_id


def open_model(path: Path, dtype: str, trust: bool) -> tuple[MMDiff, GenerationConfig | None]:
    """Returns the model of a run, a saved model or a published folder, and the run's sampler settings."""
    try:
        where = find_model(path)
    except ConfigError:
        if path.is_dir() and not (path / "config.json").is_file():
            raise
        return MMDiff(load_backbone(path, dtype=dtype)), None
    with trusting(trust):
        named = read_config(where).get("sampler") or {}
        return MMDiff.from_pretrained(where, trust=trust), generation_config(None, **named)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the harness's own command line, in which `--model mmdiff` is known."""
    import sys

    from lm_eval.__main__ import cli_evaluate

    if arguments is not None:
        sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


if __name__ == "__main__":
    main()
