"""The fields of requests, and how they become settings of a generation. Unknown fields are refused.

Names are OpenAI's; those of diffusion are what engines call them: `max_denoising_steps`, `block_length`, `threshold`,
and vLLM's `vllm_xargs`.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest, require
from mmdiff.samplers.options import generation_config

from .canvases import Seeded
from .http.guard import BadRequest, short

require("pydantic", "serve")
from pydantic import BaseModel, ConfigDict, Field, ValidationError  # noqa: E402

M = TypeVar("M", bound="Fields")

VALUES = 4_000_000  # numbers, lists and objects of a body; a 1280 x 720 picture in nested lists has 3.7 million
LONGEST = 1 << 17  # positions that can be asked for
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Length = Annotated[int, Field(ge=1, le=LONGEST)]
Count = Annotated[int, Field(ge=1, le=32)]
Id = Annotated[int, Field(ge=-1, lt=1 << 31)]


class Fields(BaseModel):
    """An object of a request: a field that is not named is refused, and no type is made another."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Xargs(Fields):
    """vLLM's names. A seed canvas holds the ids of the whole answer; what is neither pinned nor, without pins, another
    id than the mask, is predicted."""

    diffusion_seed_canvas: list[Id] | None = None
    diffusion_pinned: list[int] | None = None
    diffusion_canvas_length: Length | None = None
    diffusion_max_steps: Length | None = None


class JsonSchema(Fields):
    """`json_schema` of a response format, as OpenAI has it."""

    name: str = "answer"
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """`response_format`: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Fields):
    """`stream_options`: whether the last event of a stream counts tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(Fields):
    """What chats, completions and predictions share."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    seed: Seed | None = None
    stream: bool = False
    drafts: bool = Field(False, description="with `stream`: the canvas after every step")
    max_denoising_steps: Length | None = Field(None, description="forwards over the whole canvas")
    block_length: Length | None = Field(None, description="target positions per block")
    threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="commit every position that is at least so sure"
    )
    remasking: Literal["low_confidence", "random", "margin", "entropy", "left_to_right"] | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    user: str | None = Field(None, description="is not read")


class Generating(Sampling):
    """What chats and completions share."""

    max_tokens: Length | None = None
    n: Count | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    vllm_xargs: Xargs | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0, description="0 only")] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0, description="0 only")] | None = None


class ImageUrl(Fields):
    """A picture inside a message, as a data URL."""

    url: str = Field(description="data:image/png;base64,... Nothing is fetched.")
    detail: Literal["auto", "low", "high"] | None = None


class InputAudio(Fields):
    """A sound inside a message, as base64."""

    data: str = Field(description="base64 of a WAV, FLAC, OGG or MP3 file")
    format: str = "wav"


class Part(Fields):
    """A part of a message: text, a picture or a sound."""

    type: Literal["text", "image_url", "input_audio"]
    text: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None


class Message(Fields):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: None = None


class ChatRequest(Generating):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Length | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0, description="0 only")] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None


class CompletionRequest(Generating):
    """POST /v1/completions. With `suffix` the positions between it and the prompt are filled."""

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = Field(None, json_schema_extra={"anyOf": [{"const": False}, {"type": "null"}]})
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1, description="1 only")] | None = None


class PredictRequest(Sampling):
    """POST /predict: a row of the task, as `mmdiff generate` takes it; media are base64 of files."""

    row: dict[str, Any]
    max_tokens: Length | None = None
    canvas: list[Id] | None = Field(None, description="ids at the target positions; those of the mask are predicted")
    pinned: list[int] | None = Field(None, description="the positions of `canvas` that stay; none: all but the masked")


class EmbeddingRequest(Fields):
    """POST /v1/embeddings."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last", "first"] = "mean"
    length: Length = Field(512, description="tokens of a text that are read")
    user: str | None = None


class ScoreRequest(Fields):
    """POST /score: log p of completions behind a prompt, or of the answers of rows; in nats."""

    prompt: str = ""
    completions: Annotated[list[str], Field(min_length=1, max_length=256)] | None = None
    rows: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=256)] | None = None
    model: str | None = None
    levels: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="noise levels of one estimate")
    repeats: Annotated[int, Field(ge=2, le=256)] = Field(4, description="estimates, whose spread is the standard error")
    seed: Seed = 0


def read(body: bytes | bytearray, kind: type[M]) -> M:
    """Returns a body as an object of its kind. Raises BadRequest with the field that is wrong."""
    if (count := sum(map(body.count, b",[{"))) > VALUES:  # an empty list takes 56 bytes
        raise BadRequest(f"body: {count:,} values, expected at most {VALUES:,}; send media as base64 of files", 413)
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no text, and endless numbers
        why = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BadRequest(f"body: not JSON ({why[:120]})", 400) from None
    if not isinstance(found, dict):
        raise BadRequest(f"body: {short(found)}, expected a JSON object", 400)
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise refusal(error, kind) from None
    except RecursionError:
        raise BadRequest("body: nested too deeply", 400) from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def refusal(error: ValidationError, kind: type[BaseModel]) -> BadRequest:
    """Returns the first error in one line, unknown fields before all others."""
    found = error.errors(include_url=False, include_context=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    where = ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part))
    if first["type"] == "extra_forbidden":
        known = kind.model_fields if len(first["loc"]) == 1 else ()
        return BadRequest(f"{short_name(where)}: no such field{nearest(where, known)}", 400, where[:80])
    if first["type"] == "missing":
        return BadRequest(f"{where}: missing", 400, where)
    expected = first["msg"].replace("Input should be", "expected")
    return BadRequest(f"{short_name(where)}: {short(first['input'])}, {expected}", 400, where[:80])


def short_name(name: str) -> str:
    """Returns a name as an error shows it."""
    return name if len(name) <= 80 else f"{name[:60]}..."


def seed_of(request: Any) -> int:
    """Returns the seed of a request, or one that nobody chose."""
    return secrets.randbits(31) if request.seed is None else int(request.seed)


def settings(request: Sampling, base: GenerationConfig) -> GenerationConfig:
    """Returns the settings of a session with those of a request over them. Raises BadRequest."""
    names = {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "max_denoising_steps": "steps",
        "block_length": "block_length",
        "threshold": "threshold",
        "remasking": "remasking",
        "guidance_scale": "guidance_scale",
    }
    given = {ours: value for theirs, ours in names.items() if (value := getattr(request, theirs)) is not None}
    if isinstance(request, Generating):
        if (xargs := request.vllm_xargs) is not None and xargs.diffusion_max_steps is not None:
            given["steps"] = xargs.diffusion_max_steps
        if (node := _grammar(request.response_format)) is not None:
            given["constraint"] = node
    try:
        return generation_config(base, **given) if given else base
    except ConfigError as error:
        raise BadRequest(str(error).replace("sampler.", ""), 400) from None


def _grammar(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    if response_format is None or response_format.type == "text":
        return None
    schema: Any = {"type": "object"}
    if response_format.type == "json_schema":
        if response_format.json_schema is None:
            raise BadRequest("response_format.json_schema: missing", 400, "response_format")
        schema = response_format.json_schema.json_schema
    return {"target": "mmdiff.samplers.grammars.schema.Schema", "schema": json.dumps(schema)}


def seeded_of(xargs: Xargs | None) -> Seeded | None:
    """Returns the canvas of `vllm_xargs`. Raises BadRequest for pins without one, and for another length."""
    if xargs is None or (xargs.diffusion_seed_canvas is None and xargs.diffusion_pinned is None):
        return None
    ids, name = xargs.diffusion_seed_canvas, "vllm_xargs.diffusion_seed_canvas"
    if ids is None:
        raise BadRequest("vllm_xargs.diffusion_pinned: needs a diffusion_seed_canvas", 400, "vllm_xargs")
    if not ids:
        raise BadRequest(f"{name}: is empty", 400, "vllm_xargs")
    if (length := xargs.diffusion_canvas_length) is not None and length != len(ids):
        raise BadRequest(f"{name}: {len(ids)} ids, expected diffusion_canvas_length, {length}", 400, "vllm_xargs")
    return Seeded(ids, xargs.diffusion_pinned)
