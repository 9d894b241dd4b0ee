"""The application: routes, errors of one form, what is counted, and the description of all of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from mmdiff.config import locate
from mmdiff.errors import require
from mmdiff.session import Session

from . import chat, rest
from .batching import Batcher
from .fields import ChatRequest, CompletionRequest, EmbeddingRequest, Fields, PredictRequest, ScoreRequest
from .http.description import describe
from .http.files import allow_pages_of, origin_of, page
from .http.guard import CLOSE, BadRequest, Bodies, ErrorBody, Gate, Limits
from .http.listening import LIMITS
from .service import GONE, Service, name_of
from .streams import error_body

if TYPE_CHECKING:
    from pydantic import BaseModel
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

UNREAD = (408, 413, 415, 503)  # statuses of requests whose client may be sending still
POSTS: Mapping[str, tuple[Callable[[Service, Any], Awaitable[Any]], type[Fields] | None, str]] = {
    "/v1/chat/completions": (chat.chat, ChatRequest, "The next message of a chat."),
    "/v1/completions": (chat.completions, CompletionRequest, "What follows a prompt, or stands in front of a suffix."),
    "/v1/embeddings": (rest.embeddings, EmbeddingRequest, "Vectors of texts."),
    "/v1/audio/transcriptions": (rest.transcriptions, None, "The transcript of a file of sound."),
    "/predict": (rest.predict, PredictRequest, "The prediction of a row of the task."),
    "/score": (rest.score, ScoreRequest, "Log-likelihoods."),
}
log = logging.getLogger(__name__)


def make_app(
    session: Session[Any],
    *,
    limits: Limits = LIMITS,
    rows: int = 64,
    waiting: int = 256,
    seconds: float = 600.0,
    token: str | None = None,
    local: bool = False,
    beside: str | None = None,
    error: ErrorBody = error_body,
    own: Mapping[str, Any] = {},
) -> Starlette:
    """Returns the application that answers with a session.

    rows: most canvases of a batch. waiting: most that wait. seconds: the longest that a request may take. token, local:
    see `mmdiff.serving.http.guard.Gate`. beside: the address of another server, which the page may ask, and whose page
    may ask this one. A task may bring routes of its own: `served` names a function of (app, service, **own) -> what
    /health says besides, and of each route, for the description, the class of its body and a summary. error: the form
    of errors. Raises ConfigError for an address that is none.
    """
    require("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response

    asks = [] if beside is None else [origin_of(beside)]
    pages = page("mmdiff.serving/page", asks)
    batcher = Batcher(session.model, rows=rows, waiting=waiting)
    service = Service(session, batcher, Bodies(limits), name_of(session.folder), seconds, error)
    app = Starlette()
    app.state.service = service

    async def health(service: Service, http: Request) -> Response:
        return JSONResponse({**facts, "uptime": round(time.time() - service.began, 3)})

    async def models(service: Service, http: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(service: Service, http: Request) -> Response:
        service.check_model(http.path_params["name"])
        return JSONResponse(card)

    async def metrics(service: Service, http: Request) -> Response:
        return Response(service.numbers.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def file(service: Service, http: Request) -> Response:
        found = pages[http.url.path]
        return Response(found.body, media_type=found.kind, headers=dict(found.headers))

    async def openapi(service: Service, http: Request) -> Response:
        return JSONResponse(described)

    async def problem(http: Request, raised: Exception) -> Response:
        assert isinstance(raised, HTTPException)
        where = f"{http.method} {http.url.path}"[:80]
        line = f"{where}: {raised.detail}; GET /openapi.json describes what is served"
        return JSONResponse(error(line, raised.status_code), raised.status_code, raised.headers)

    card = {"id": service.name, "object": "model", "created": int(service.began), "owned_by": "mmdiff"}
    facts: dict[str, Any] = {
        "status": "ok",
        "model": service.name,
        "task": type(session.task).__name__,
        "fields": list(service.fields),
        "media": sorted(session.model.readers),
        "parameters": sum(p.numel() for p in session.model.parameters()),
        "sampler": {k: v for k, v in vars(session.sampler).items() if isinstance(v, int | float | str | None)},
        "mask_id": session.model.vocab.mask_id,
        "end_ids": sorted({session.model.vocab.eos_id, *session.model.vocab.end_ids}),
        "special_ids": sorted(getattr(session.model.vocab.tokenizer, "all_special_ids", ())),
        "max_body": limits.body,
        "beside": asks[0] if asks else None,
    }
    gets = {"/health": health, "/v1/models": models, "/v1/models/{name}": model, "/metrics": metrics}
    gets |= {"/openapi.json": openapi, **dict.fromkeys(pages, file)}
    for path, answer in gets.items():
        app.add_route(path, guarded(service, path, answer), ["GET"])
    for path, (answer_post, *_) in POSTS.items():
        app.add_route(path, guarded(service, path, answer_post), ["POST"])
    posts: dict[str, tuple[type[BaseModel] | None, str]] = {
        path: (kind, about) for path, (_, kind, about) in POSTS.items()
    }
    if (served := getattr(session.task, "served", None)) is not None:
        more, own_posts = locate(served, "served")(app, service, **own)
        facts |= more
        posts |= own_posts
    described = describe(service.name, posts)
    app.add_exception_handler(HTTPException, problem)  # no such path, no such method
    app.add_middleware(Gate, bodies=service.bodies, token=token, local=local, error=error, free=pages)
    if asks:
        allow_pages_of(app, asks[0])
    return app


def guarded(
    service: Service, path: str, answer: Callable[[Service, Any], Awaitable[Any]]
) -> Callable[[Request], Awaitable[Response]]:
    """Returns a route's function that turns errors into responses, and is counted."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse

    async def route(http: Request) -> Response:
        began = time.perf_counter()
        response: Any
        try:
            response = await answer(service, http)
        except BadRequest as error:
            headers = CLOSE if error.status in UNREAD else None
            response = JSONResponse(service.error(str(error), error.status, error.param), error.status, headers)
        except ClientDisconnect:
            response = JSONResponse(service.error("client: gone", GONE), GONE)
        except Exception:
            log.exception("%s failed", path)
            response = JSONResponse(service.error("internal error; see the server's log", 500), 500)
        service.numbers.requests.labels(path, str(response.status_code)).inc()
        service.numbers.seconds.labels(path).observe(time.perf_counter() - began)
        return response

    return route
