"""Rows of any task, likelihoods, embeddings and transcripts."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.canvas.vocab import literal, start_of
from mmdiff.config import locate
from mmdiff.data.collate import collate
from mmdiff.data.fields import check_row
from mmdiff.data.stream import read_media
from mmdiff.errors import DataError, nearest
from mmdiff.evaluation.embed import embed_texts
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import estimate, next_token
from mmdiff.model.likelihood.elbo import Elbo

from .batching import Draft, Job
from .canvases import PromptCanvas, Seeded, of_row, without_paths
from .fields import EmbeddingRequest, PredictRequest, ScoreRequest, seed_of, settings
from .http.guard import BadRequest
from .service import Service
from .streams import streamed
from .texts import shown

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

TEXTS = 2048
"""Most texts of one request for embeddings."""


async def predict(service: Service, http: Request) -> Response:
    """Answer POST /predict: the prediction of a row of the task, whatever it is."""
    from starlette.responses import JSONResponse

    async with service.body(http, PredictRequest) as request:
        seeded = None if request.canvas is None else Seeded(request.canvas, request.pinned)
        if seeded is None and request.pinned is not None:
            raise BadRequest("pinned: needs a `canvas`", 400, "pinned")
        asked = of_row(service.session, request.row, new=request.max_tokens, seeded=seeded)
    config, seed = settings(request, service.session.sampler), seed_of(request)
    (job,) = await service.jobs([asked], config, [seed], drafts=request.stream and request.drafts)
    if request.stream:
        return streamed(_steps(service, job, asked, seed), [job])
    (filled,) = await service.filled(http, [job])
    vocab = service.session.model.vocab
    facts = {"forwards": filled.forwards, "batch": filled.together, "seconds": round(filled.seconds, 6), "seed": seed}
    prediction = plain(asked.parse(filled.draft.ids, vocab))
    return JSONResponse({"prediction": prediction, **facts, "canvas": shown(filled.draft, vocab)})


async def _steps(service: Service, job: Job, asked: PromptCanvas, seed: int) -> AsyncIterator[dict[str, Any]]:
    vocab = service.session.model.vocab
    async for step in service.steps(job):
        if isinstance(step, Draft):
            yield {"draft": shown(step, vocab)}
        else:
            facts = {"forwards": step.forwards, "batch": step.together, "seconds": round(step.seconds, 6), "seed": seed}
            prediction = plain(asked.parse(step.draft.ids, vocab))
            yield {"prediction": prediction, **facts, "canvas": shown(step.draft, vocab)}


def plain(prediction: Any) -> Any:
    """Returns a prediction as JSON has it: arrays as lists."""
    return prediction.tolist() if isinstance(prediction, np.ndarray | torch.Tensor) else prediction


async def embeddings(service: Service, http: Request) -> Response:
    """Answer POST /v1/embeddings."""
    from starlette.responses import JSONResponse

    async with service.body(http, EmbeddingRequest) as request:
        texts = [request.input] if isinstance(request.input, str) else request.input
    if not 1 <= len(texts) <= TEXTS:
        raise BadRequest(f"input: {len(texts)} texts, expected 1 to {TEXTS}", 400, "input")
    session, tokens = service.session, 0
    own = getattr(session.task, "vectors", None)
    if own is not None:  # texts of another kind, sequences of residues
        function = locate(own, "vectors")
        tokens = sum(map(len, texts))
        vectors_ND = await service.call(http, lambda: function(session, texts, request.pooling))
    else:
        for n, text in enumerate(texts):
            try:
                tokens += len(literal(text, session.model.vocab)[: request.length])
            except DataError as error:
                raise BadRequest(f"input.{n}: {error}", 400, "input") from None
        how: dict[str, Any] = {"pooling": request.pooling, "length": request.length}
        vectors_ND = await service.call(http, lambda: embed_texts(session.model, texts, **how))
    data = [
        {"object": "embedding", "index": n, "embedding": _vector(v, request.encoding_format)}
        for n, v in enumerate(vectors_ND)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "model": service.name, "data": data, "usage": usage})


def _vector(v_D: np.ndarray, how: str) -> Any:
    return v_D.tolist() if how == "float" else base64.b64encode(v_D.astype("<f4").tobytes()).decode()


async def score(service: Service, http: Request) -> Response:
    """Answer POST /score: log p in nats, exact of a causal model, else a lower bound with its standard error."""
    from starlette.responses import JSONResponse

    async with service.body(http, ScoreRequest) as request:
        samples = _scored(service, request)
    readers = service.session.model.readers
    try:
        samples = [read_media(sample, readers) for sample in samples]
    except DataError as error:
        raise BadRequest(str(error), 400) from None
    found = await service.call(http, lambda: scores(service, samples, request))
    return JSONResponse({"model": service.name, "scores": found})


def _scored(service: Service, request: ScoreRequest) -> list[Sample]:
    """Returns the canvases whose targets are scored. Raises BadRequest."""
    session = service.session
    vocab = session.model.vocab
    if (request.rows is None) == (request.completions is None):
        raise BadRequest("completions: expected either completions or rows", 400, "completions")
    out: list[Sample] = []
    given: Sequence[Any] = request.completions or request.rows or []
    for n, one in enumerate(given):
        where = f"rows.{n}" if request.rows is not None else f"completions.{n}"
        try:
            if isinstance(one, str):
                ids = literal(one, vocab)
                if not ids:
                    raise DataError("has no tokens")
                out.append([Text([start_of(vocab), *literal(request.prompt, vocab)]), Target(ids)])
            else:
                check_row(one, getattr(session.task, "fields", None), strict=True)
                out.append(without_paths(session.task.sample(one, vocab), session.model.encoders))
        except BadRequest:
            raise
        except DataError as error:
            raise BadRequest(f"{where}: {error}", 400, where) from None
    return out


def scores(service: Service, samples: Sequence[Sample], request: ScoreRequest) -> list[dict[str, Any]]:
    """Returns the log-likelihood of the targets of each sample, one by one, so that none depends on the others."""
    model = service.session.model
    out: list[dict[str, Any]] = []
    for sample in samples:
        batch = collate([sample], model.vocab, model.readers, index=[0])
        n = int(batch.target_BL.sum())
        with evaluating(model), torch.no_grad():
            if isinstance(model.attention, Causal):
                nll_P = next_token(model, to_device(batch, model.device))[0]
                out.append(_log_p(float(-nll_P.double().sum()), 0.0, n, exact=True))
                continue
            seeds = range(request.seed, request.seed + request.repeats)
            each = [-estimate(model, batch, Elbo(request.levels), seed=s).nll_B[0].item() for s in seeds]
        # one copy for each count: nothing is left to chance but which positions are masked
        spread = float(np.std(each, ddof=1) / len(each) ** 0.5)
        out.append(_log_p(float(np.mean(each)), spread, n, exact=n == 1))
    return out


def _log_p(value: float, error: float, n: int, *, exact: bool) -> dict[str, Any]:
    return {"log_likelihood": value, "standard_error": error, "tokens": n, "kind": "exact" if exact else "lower_bound"}


async def transcriptions(service: Service, http: Request) -> Response:
    """Answer POST /v1/audio/transcriptions: a form with a file of sound."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException
    from starlette.requests import Request as Form
    from starlette.responses import JSONResponse, PlainTextResponse

    async with service.bodies.read(http, "multipart/form-data") as raw:
        body = bytes(raw)
    if "boundary=" not in http.headers["content-type"]:
        raise BadRequest("content-type: multipart/form-data without a boundary", 400)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    known = ("file", "model", "response_format", "temperature", "seed", "prompt", "language")
    fields: dict[str, Any] = {}
    try:
        async with Form(http.scope, receive).form(max_files=1, max_fields=16, max_part_size=1 << 20) as form:
            for name, value in form.multi_items():
                if name not in known:
                    raise BadRequest(f"{name[:80]}: no such field{nearest(name[:80], known)}", 400, name[:80])
                fields[name] = await value.read() if isinstance(value, UploadFile) else value
    except (MultiPartException, KeyError, ValueError) as error:
        raise BadRequest(f"body: no form ({str(getattr(error, 'message', error))[:120]})", 400) from None
    if not isinstance(fields.get("file"), bytes) or not fields["file"]:
        raise BadRequest("file: missing, expected a file of sound", 400, "file")
    service.check_model(fields.get("model"))
    how = fields.get("response_format", "json")
    if how not in ("json", "text"):
        raise BadRequest(f"response_format: {how!r:.40}, expected json or text", 400, "response_format")
    row: dict[str, Any] = {"audio": fields["file"]}
    if "question" in service.fields:
        row["question"] = fields.get("prompt") or "Transcribe the audio."
    elif fields.get("prompt"):
        raise BadRequest("prompt: this model's task takes none", 400, "prompt")
    if fields.get("language"):
        raise BadRequest("language: this model is not told the language", 400, "language")
    if "audio" not in service.fields:
        raise BadRequest(f"file: {type(service.session.task).__name__} hears nothing", 400, "file")
    asked = of_row(service.session, row, where="file")
    request = PredictRequest.model_construct(row={}, **_numbers(fields))
    config = settings(request, service.session.sampler)
    (filled,) = await service.filled(http, await service.jobs([asked], config, [seed_of(request)]))
    text = str(asked.parse(filled.draft.ids, service.session.model.vocab))
    return PlainTextResponse(text + "\n") if how == "text" else JSONResponse({"text": text})


def _numbers(fields: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, kind, low, high in (("temperature", float, 0, 100), ("seed", int, 0, (1 << 63) - 1)):
        if name in fields:
            try:
                value = kind(fields[name])
                if not low <= value <= high:
                    raise ValueError
            except (ValueError, TypeError):
                line = f"{name}: {fields[name]!r:.40}, expected a number from {low} to {high}"
                raise BadRequest(line, 400, name) from None
            out[name] = value
    return out
