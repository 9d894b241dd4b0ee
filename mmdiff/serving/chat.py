"""OpenAI's chats and completions: requests to canvases, canvases to responses, whole or as a stream of events.

Ordinary clients see committed text grow. With `drafts`, an event of a stream has the whole canvas as well.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .batching import Draft, Filled, Job
from .canvases import PromptCanvas, decoded, of_row, of_text
from .fields import ChatRequest, CompletionRequest, Generating, Message, seed_of, seeded_of, settings
from .http.guard import BadRequest
from .service import Service
from .streams import merged, streamed
from .texts import GrowingText, count, ended, log_probabilities, shown

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

JOBS = 64
"""Most canvases of one request."""
MEDIA = {"image_url": "image", "input_audio": "audio"}


def asked_chat(service: Service, request: ChatRequest) -> PromptCanvas:
    """Returns the canvas of a chat, for a task that reads messages, or turns with media. Raises BadRequest."""
    row: dict[str, Any]
    if "messages" in service.fields:
        row = {"messages": [_plain(n, one) for n, one in enumerate(request.messages)]}
        if request.tools and request.tool_choice != "none":
            row["tools"] = request.tools
    elif "conversations" in service.fields:
        if request.tools:
            raise BadRequest("tools: this model's task knows none", 400, "tools")
        row = _turns(request.messages, service)
    else:
        line = f"messages: {type(service.session.task).__name__} reads none; see POST /v1/completions and POST /predict"
        raise BadRequest(line, 400, "messages")
    new = request.max_completion_tokens or request.max_tokens
    if new is None and request.vllm_xargs is not None:
        new = request.vllm_xargs.diffusion_canvas_length
    return of_row(service.session, row, new=new, seeded=seeded_of(request.vllm_xargs), where="messages")


def _plain(n: int, message: Message) -> dict[str, Any]:
    """Returns a message of text only."""
    for part in message.content if isinstance(message.content, list) else []:
        if part.type != "text":
            raise BadRequest(f"messages.{n}.content: {part.type}: this model reads text only", 400, "messages")
    kept = message.model_dump(exclude_none=True, exclude={"content"})
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text or "" for part in content)
    return {**kept, "content": content} if content is not None else kept


def _turns(messages: Sequence[Message], service: Service) -> dict[str, Any]:
    """Returns a row of turns with media. What the system says stands in front of the first question."""
    turns: list[dict[str, str]] = []
    media: dict[str, list[bytes]] = {}
    before = ""
    for n, message in enumerate(messages):
        where = f"messages.{n}"
        parts = message.content
        if isinstance(parts, str) or parts is None:
            text = parts or ""
        else:
            text = "".join(_part(part, f"{where}.content.{i}", media, service) for i, part in enumerate(parts))
        if message.role in ("system", "developer") and not turns:
            before += f"{text.strip()}\n"
        elif message.role == "user":
            turns.append({"from": "human", "value": before + text})
            before = ""
        elif message.role == "assistant":
            turns.append({"from": "gpt", "value": text})
        else:
            raise BadRequest(f"{where}.role: {message.role!r} here: this model's task has no such turn", 400, where)
    if not turns or turns[-1]["from"] != "human":
        raise BadRequest("messages: the last is not the user's", 400, "messages")
    return {"conversations": turns, **media}


def _part(part: Any, where: str, media: dict[str, list[bytes]], service: Service) -> str:
    if part.type == "text":
        if part.text is None:
            raise BadRequest(f"{where}.text: missing", 400, where)
        return str(part.text)
    kind = MEDIA[part.type]
    if kind not in service.session.model.readers:
        known = ", ".join(sorted(service.session.model.readers)) or "text only"
        raise BadRequest(f"{where}: {part.type}: this model reads {known}", 400, where)
    found = getattr(part, part.type)
    if found is None:
        raise BadRequest(f"{where}.{part.type}: missing", 400, where)
    text = found.url if kind == "image" else found.data
    media.setdefault(kind, []).append(decoded(text, f"{where}.{part.type}"))
    return f"<{kind}>\n"


def asked_completions(service: Service, request: CompletionRequest) -> list[PromptCanvas]:
    """Returns the canvases of prompts. Raises BadRequest."""
    if request.echo:
        raise BadRequest("echo: true, expected false: the prompt is not repeated", 400, "echo")
    prompts: list[Any] = request.prompt if isinstance(request.prompt, list) else [request.prompt]
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    if not prompts:
        raise BadRequest("prompt: is empty", 400, "prompt")
    new = request.max_tokens or (request.vllm_xargs and request.vllm_xargs.diffusion_canvas_length) or 16
    seeded = seeded_of(request.vllm_xargs)
    if len(prompts) > 1 and seeded is not None:
        raise BadRequest("vllm_xargs: a canvas is for one prompt", 400, "vllm_xargs")
    return [of_text(service.session, one, new=new, suffix=request.suffix, seeded=seeded) for one in prompts]


async def chat(service: Service, http: Request) -> Response:
    """Answer POST /v1/chat/completions."""
    async with service.body(http, ChatRequest) as request:
        asked = [asked_chat(service, request)]
    return await _respond(service, http, request, asked, "chat.completion")


async def completions(service: Service, http: Request) -> Response:
    """Answer POST /v1/completions."""
    async with service.body(http, CompletionRequest) as request:
        asked = asked_completions(service, request)
    return await _respond(service, http, request, asked, "text_completion")


async def _respond(
    service: Service, http: Request, request: Generating, asked: list[PromptCanvas], kind: str
) -> Response:
    from starlette.responses import JSONResponse

    config = settings(request, service.session.sampler)
    seed, each = seed_of(request), request.n or 1
    asked = [one for one in asked for _ in range(each)]
    if len(asked) > JOBS:
        raise BadRequest(f"n: {len(asked)} answers, expected at most {JOBS} of one request", 400, "n")
    seeds = [(seed + i % each) % (1 << 63) for i in range(len(asked))]
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    jobs = await service.jobs(asked, config, seeds, drafts=request.stream)
    head = {
        "id": f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": None,
    }
    texts = [GrowingText(one, service.session.model.vocab, config, [s for s in stops if s]) for one in asked]
    if request.stream:
        body = _events(service, request, head, kind, jobs, texts, seed)
        return streamed(body, jobs)
    filled = await service.filled(http, jobs)
    choices = [_choice(service, request, kind, i, texts[i], one) for i, one in enumerate(filled)]
    return JSONResponse(
        {
            **head,
            "object": kind,
            "choices": choices,
            "usage": _usage(service, texts, filled),
            "diffusion": _facts(filled, seed),
        }
    )


def _choice(service: Service, request: Generating, kind: str, i: int, text: GrowingText, one: Filled) -> dict[str, Any]:
    vocab, draft = service.session.model.vocab, one.draft
    whole = text.whole(draft)
    reason = ended(draft, vocab, whole, text.uncut(draft.ids))
    logs = log_probabilities(draft, vocab) if getattr(request, "logprobs", None) else None
    if kind == "text_completion":
        of = (
            None
            if logs is None
            else {
                "tokens": [one["token"] for one in logs],
                "token_logprobs": [one["logprob"] for one in logs],
                "top_logprobs": None,
                "text_offset": _offsets([one["token"] for one in logs]),
            }
        )
        return {"index": i, "text": whole, "logprobs": of, "finish_reason": reason}
    message = {"role": "assistant", "content": whole, "refusal": None}
    of = None if logs is None else {"content": logs, "refusal": None}
    return {"index": i, "message": message, "logprobs": of, "finish_reason": reason}


def _offsets(tokens: Sequence[str]) -> list[int]:
    out, at = [], 0
    for token in tokens:
        out.append(at)
        at += len(token)
    return out


def _usage(service: Service, texts: Sequence[GrowingText], filled: Sequence[Filled]) -> dict[str, int]:
    vocab = service.session.model.vocab
    prompt = sum(text.asked.prompt for text in texts)
    new = sum(count(one.draft, vocab) for one in filled)
    service.numbers.tokens.labels("prompt").inc(prompt)
    service.numbers.tokens.labels("generated").inc(new)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _facts(filled: Sequence[Filled], seed: int) -> dict[str, Any]:
    """Returns what OpenAI has no name for: forwards, the seed, and how many canvases shared the batch."""
    return {
        "seed": seed,
        "forwards": max(one.forwards for one in filled),
        "batch": max(one.together for one in filled),
        "seconds": round(max(one.seconds for one in filled), 6),
    }


async def _events(
    service: Service,
    request: Generating,
    head: Mapping[str, Any],
    kind: str,
    jobs: Sequence[Job],
    texts: Sequence[GrowingText],
    seed: int,
) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of all answers, in the order in which they come."""
    vocab = service.session.model.vocab
    named = {**head, "object": "chat.completion.chunk" if kind.startswith("chat") else kind}
    usage = {"usage": None} if request.stream_options and request.stream_options.include_usage else {}

    def whole(draft: Draft) -> dict[str, Any]:
        return {"draft": shown(draft, vocab)} if request.drafts else {}

    def event(
        i: int, piece: str, reason: str | None = None, *, first: bool = False, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        if kind.startswith("chat"):
            delta = {**({"role": "assistant"} if first else {}), **({"content": piece} if piece or first else {})}
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": reason}
        else:
            choice = {"index": i, "text": piece, "logprobs": None, "finish_reason": reason}
        return {**named, "choices": [choice], **usage, **(more or {})}

    done: list[Filled] = []
    if kind.startswith("chat"):
        for i in range(len(jobs)):
            yield event(i, "", first=True)
    async for i, step in merged([service.steps(job) for job in jobs]):
        text = texts[i]
        if isinstance(step, Draft):
            piece = text.certain(step)
            if piece or request.drafts:
                yield event(i, piece, more=whole(step))
            continue
        done.append(step)
        piece = text.rest(step.draft)
        if piece or request.drafts:
            yield event(i, piece, more=whole(step.draft))
        reason = ended(step.draft, vocab, text.whole(step.draft), text.uncut(step.draft.ids))
        yield event(i, "", reason, more={"diffusion": _facts([step], seed)})
    counted = _usage(service, texts, done)
    if usage:
        yield {**named, "choices": [], "usage": counted}
