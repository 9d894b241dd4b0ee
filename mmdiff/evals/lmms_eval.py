"""lmms-eval, for pictures and sounds: `lmms-eval --model mmdiff --model_args pretrained=runs/x --tasks ...`.

All arguments are the harness's own (github.com/EvolvingLMMs-Lab/lmms-eval, extra `lmms`); it finds this model by the
entry point `lmms_eval.models`. Pictures and sounds of a question go into the row that the model's task reads, so that
templates and media are those of training. It is what lmms-eval calls a simple model, the one kind of which it asks
log-likelihoods, too; these are as in `mmdiff.evals.lm_eval`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.sample import Sample, Target
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.errors import ConfigError, DataError
from mmdiff.model.likelihood.elbo import Elbo
from mmdiff.samplers.options import generation_config
from mmdiff.session import load

from .requests import Settings, batch_of, batched, cut, device_of, log_likelihoods, number, settings_of

VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def manifest() -> Any:
    """Returns what lmms-eval registers: the name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmdiff", simple_class_path=f"{__name__}.Harness")


class Harness(lmms):
    """A run, a saved model or a published multimodal folder, as the harness asks for it.

    levels: mask counts per answer of the bound, and so forwards; answers of at most so many tokens are bounded exactly.
    greedy: whether `is_greedy` is found out, by one token per forward; else it is False, but under causal attention.
    batch_size: questions per forward. dtype: of the backbone. trust: as in `mmdiff.session.load`.
    sampler: further settings of generation, over those of the run (`block_length=32,steps=128`).
    Raises ConfigError, and DataError for media that the model's task does not read.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 1,
        levels: int = 16,
        seed: int = 0,
        greedy: bool = False,
        dtype: str | None = None,
        device: str | None = None,
        trust: bool = False,
        max_batch_size: int | None = None,
        **sampler: Any,
    ) -> None:
        super().__init__()
        self.batch_size = batch_of(batch_size, 1)
        self.levels, self.seed, self.greedy = int(levels), int(seed), greedy
        settings = [f"sampler.{name}={value}" for name, value in sampler.items()]
        self.session: Any = load(pretrained, *settings, dtype=dtype, trust=trust)
        if device is not None:
            self.session.model.to(device_of(device))
        self.session.model.eval()
        self.fields: Sequence[str] = getattr(self.session.task, "fields", ("image", "audio", "question", "answer"))

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Returns (-log p of an option and its end, whether greedy decoding gives it) of each request.

        lmms-eval takes the lowest option for the best, since its own models return losses. Of the answers of its other
        type of task, perplexities, it is log p (0.7.3 fails on such tasks, whatever the model). A pair alone would be
        made text of by its evaluator.
        """
        if "answer" not in self.fields:
            raise ConfigError(f"{type(self.session.task).__name__}: this task's rows have no answer to score")
        jobs = []
        for i, request in enumerate(requests):
            context, target, visuals, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            answer = target(doc) if callable(target) else target
            jobs.append(({**self._row(context, visuals(doc)), "answer": str(answer)}, number(request, i)))
        found = batched(jobs, self._scored, lambda job: len(job[0]["answer"]), self.batch_size)
        signs = [1.0 if callable(request.args[1]) else -1.0 for request in requests]
        pairs = [(sign * logp, greedy) for sign, (logp, greedy) in zip(signs, found, strict=True)]
        return [GenerationResult(text=pair) for pair in pairs]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns the predictions, each cut before the first of its stop strings."""
        jobs = []
        for i, request in enumerate(requests):
            context, named, visuals, doc_id, task, split = request.args
            row = self._row(context, visuals(self.task_dict[task][split][doc_id]))
            jobs.append((row, settings_of(named), number(request, i)))
        return batched(jobs, self._generated, lambda job: job[1].length or 0, self.batch_size)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("mmdiff answers one question at a time: tasks of several rounds are not run")

    def _row(self, context: str, visuals: Sequence[Any] | None) -> dict[str, Any]:
        """Returns the row of a question and its media; a task that asks nothing (a transcript's) has no question."""
        row: dict[str, Any] = {"question": context} if "question" in self.fields else {}
        for one in visuals or ():
            kind, data = medium(one)
            if kind not in self.fields:
                raise DataError(f"{type(self.session.task).__name__} reads no {kind}, which the task of lmms-eval has")
            row.setdefault(kind, []).append(data)
        return row

    def _scored(self, jobs: Sequence[tuple[dict[str, Any], int]]) -> list[tuple[float, bool]]:
        model, task = self.session.model, self.session.task
        samples: list[Sample] = [read_media(task.sample(row, model.vocab), model.readers) for row, _ in jobs]
        index = [number for _, number in jobs]
        batch = collate(samples, model.vocab, model.readers, index=index)
        logp, greedy = log_likelihoods(model, batch, Elbo(self.levels), seed=self.seed)
        if greedy is not None or not self.greedy:
            return list(zip(logp, greedy or [False] * len(jobs), strict=True))
        empty = [
            [Target(length=len(p.ids or ())) if isinstance(p, Target) else p for p in sample] for sample in samples
        ]
        masked = to_device(collate(empty, model.vocab, model.readers, index=index), model.device)
        settings = {"temperature": 0.0, "steps": None, "early_stop": False}
        found = model.generate(masked, generation_config=self.session.sampler, **settings).targets()
        expected = [[i for p in sample if isinstance(p, Target) for i in p.ids or ()] for sample in samples]
        return [(one, ids == ours) for one, ids, ours in zip(logp, found, expected, strict=True)]

    def _generated(self, jobs: Sequence[tuple[dict[str, Any], Settings, int]]) -> list[str]:
        model, texts = self.session.model, [""] * len(jobs)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, (_, settings, _) in enumerate(jobs):
            alike.setdefault((settings.length, settings.sampling), []).append(i)
        for (length, sampling), some in alike.items():
            task = copy.copy(self.session.task)
            if length and hasattr(task, "max_new_tokens"):
                task.max_new_tokens = length
            samples: list[Sample] = [read_media(task.prompt(jobs[i][0], model.vocab), model.readers) for i in some]
            batch = collate(samples, model.vocab, model.readers, index=[jobs[i][2] for i in some], side="left")
            config = generation_config(self.session.sampler, **dict(sampling))
            with torch.no_grad():
                out = model.generate(to_device(batch, model.device), generation_config=config)
            for i, ids in zip(some, out.targets(), strict=True):
                texts[i] = cut(str(task.parse(ids, model.vocab)), jobs[i][1].stops)
        return texts


def medium(one: Any) -> tuple[str, Any]:
    """Returns the kind of what a task of lmms-eval shows, `image` or `audio`, and what a row holds of it.

    Sounds are {"array", "sampling_rate"}, decoders of `datasets`, or paths. Raises DataError for a video.
    """
    if hasattr(one, "get_all_samples"):  # torchcodec's, of `datasets` from 4 on
        samples = one.get_all_samples()
        return "audio", {"array": samples.data.mean(0).numpy(), "sampling_rate": int(samples.sample_rate)}
    if isinstance(one, dict) and ("array" in one or "sampling_rate" in one):
        return "audio", {name: one[name] for name in ("array", "sampling_rate") if name in one}
    if isinstance(one, str) and one.lower().endswith(VIDEOS):
        raise DataError(f"{one}: a video, expected a picture or a sound")
    return ("audio" if isinstance(one, str) and one.lower().endswith(SOUNDS) else "image"), one
