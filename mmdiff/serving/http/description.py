"""What is served, as OpenAPI 3.1 has it: made of the classes that read the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdiff import __version__
from mmdiff.errors import require

require("pydantic", "serve")
from pydantic import BaseModel  # noqa: E402
from pydantic.json_schema import models_json_schema  # noqa: E402

REFUSALS = {
    "400": "A field is wrong, unknown or missing; the line says which.",
    "401": "Not the token of this server.",
    "404": "No such model.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "Another kind of body than expected.",
    "421": "Another host than this machine, where a local server listens.",
    "500": "A fault of the server; its log says more.",
    "503": "Busy, or not done in time.",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
FORM = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "response_format": {"enum": ["json", "text"]},
        "temperature": {"type": "number", "minimum": 0, "maximum": 100},
        "seed": {"type": "integer", "minimum": 0},
        "prompt": {"type": "string"},
        "language": {"type": "string", "maxLength": 0},
    },
}
GETS = {
    "/health": "What is served, and whether it answers.",
    "/v1/models": "The model, as OpenAI lists it.",
    "/openapi.json": "This description.",
}


def describe(model: str, posts: Mapping[str, tuple[type[BaseModel] | None, str]]) -> dict[str, Any]:
    """Returns the description of a server of one model. posts: path -> the class of its requests, None for a form, and
    a summary."""
    kinds = [kind for kind, _ in posts.values() if kind is not None]
    names, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    for schema in schemas["$defs"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"anyOf": [{"const": model}, {"type": "null"}]}
    paths: dict[str, Any] = {}
    for path, (kind, about) in posts.items():
        form, ref = "multipart/form-data", None if kind is None else names[(kind, "validation")]
        own_form = {**FORM, "properties": {**FORM["properties"], "model": {"const": model}}}  # type: ignore[dict-item]
        content = {form: {"schema": own_form}} if ref is None else {"application/json": {"schema": ref}}
        answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if path == "/v1/audio/transcriptions":
            answers["text/plain"] = {"schema": {"type": "string"}}
        elif kind is not None and "stream" in kind.model_fields:
            answers["text/event-stream"] = {}
        body = {"required": True, "content": content}
        paths[path] = {"post": {"summary": about, "requestBody": body, "responses": _responses(answers)}}
    for path, about in GETS.items():
        answers = {"application/json": {"schema": {"type": "object"}}}
        paths[path] = {"get": {"summary": about, "responses": _responses(answers)}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {"get": {"summary": "Counters for Prometheus.", "responses": _responses(text)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mmdiff", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _responses(answers: Mapping[str, Any]) -> dict[str, Any]:
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found = {status: {"description": about, "content": refused} for status, about in REFUSALS.items()}
    return {"200": {"description": "The answer.", "content": dict(answers)}, **found}
