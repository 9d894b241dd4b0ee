"""`mmdiff serve`: a run or a model behind a port."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdiff.errors import require

from .http.files import origin_of
from .http.guard import Limits, is_local, read_token
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
) -> None:
    """Serve a run or a model until Ctrl-C. port 0 takes a free one; the address is printed once requests are answered.

    rows, waiting, seconds, beside: see `mmdiff.serving.app.make_app`. token_file: see
    `mmdiff.serving.http.guard.read_token`. dtype: of the backbone. Raises ConfigError for a port that is taken or an
    address that is none, MissingExtra.
    """
    for package in ("starlette", "uvicorn", "pydantic", "prometheus_client"):
        require(package, "serve")
    from mmdiff.session import load

    token = read_token(token_file)
    beside = None if beside is None else origin_of(beside)
    listening = listen(host, port)  # before the model is loaded, which may take minutes
    try:
        session = load(folder, *overrides, dtype=dtype)
        from .app import make_app
        from .streams import error_body

        local = is_local(host)
        bounds: dict[str, Any] = {"limits": limits, "rows": rows, "waiting": waiting, "seconds": seconds}
        app = make_app(session, token=token, local=local, beside=beside, **bounds)
        service = app.state.service
        try:
            run(
                app,
                listening,
                path="/",
                name=service.name,
                config=settings(app, limits, error_body),
                token=token,
            )
        finally:
            service.batcher.close()
    finally:
        listening.close()
