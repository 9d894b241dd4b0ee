"""`mmdiff serve`: a run or a model behind a port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.errors import require

from .http.files import origin_of
from .http.guard import ErrorBody, Limits, is_local, read_token
from .http.listening import LIMITS, listen, run, settings

PORT = 8000  # vLLM's


def serve(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    rows: int = 64,
    waiting: int = 256,
    seconds: float = 600.0,
    limits: Limits = LIMITS,
    token_file: str | Path | None = None,
    dtype: str | None = None,
    beside: str | None = None,
    path: str = "/",
    task: type[Any] | None = None,
    error: ErrorBody | None = None,
    own: Mapping[str, Any] = {},
) -> None:
    """Serve a run or a model until Ctrl-C. port 0 takes a free one; the address is printed once requests are answered.

    rows, waiting, seconds, beside, error, own: see `mmdiff.serving.app.make_app`. token_file: see
    `mmdiff.serving.http.guard.read_token`. dtype: of the backbone. path: what is printed behind the address. task: the
    class that the task must be an instance of. Raises ConfigError for a port that is taken or an address that is none,
    MissingExtra.
    """
    for package in ("starlette", "uvicorn", "pydantic", "prometheus_client"):
        require(package, "serve")
    from mmdiff.session import load

    token = read_token(token_file)
    beside = None if beside is None else origin_of(beside)
    listening = listen(host, port)  # before the model is loaded, which may take minutes
    try:
        session: Any = load(folder, *overrides, task=task, dtype=dtype)
        from .app import make_app
        from .streams import error_body

        local, error = is_local(host), error or error_body
        bounds: dict[str, Any] = {"limits": limits, "rows": rows, "waiting": waiting, "seconds": seconds}
        app = make_app(session, token=token, local=local, beside=beside, error=error, own=own, **bounds)
        service = app.state.service
        try:
            config = settings(app, limits, error)
            run(app, listening, path=path, name=service.name, config=config, token=token)
        finally:
            service.batcher.close()
    finally:
        listening.close()
