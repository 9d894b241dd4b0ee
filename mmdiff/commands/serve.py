"""`mmdiff serve`: a run or a model behind a port."""

from __future__ import annotations

from pathlib import Path

from mmdiff.errors import UserError

from .arguments import AtLeast0, AtLeast1, Output, Positive, overrides_of


def serve(
    run: str,
    /,
    *words: str,
    host: str = "127.0.0.1",
    port: AtLeast0 = 8000,
    rows: AtLeast1 = 64,
    waiting: AtLeast1 = 256,
    seconds: Positive = 600.0,
    body: AtLeast1 = 32,
    token_file: Path | None = None,
    dtype: str | None = None,
    beside: str | None = None,
) -> Output:
    """Answer over HTTP with a run or a model, until Ctrl-C: OpenAI's routes, rows of any task, a page at /.

    Args:
        run: a run, a checkpoint in it, a saved model or a published folder.
        words: settings as dotted.key=value.
        host: the address to listen at.
        port: the port to listen at; 0: a free one.
        rows: requests that are computed together at most.
        waiting: requests that may wait for their turn; the next is refused.
        seconds: the longest that a request may take.
        body: the largest body of a request, in MiB.
        token_file: a file with the token that requests must bear (default: MMDIFF_TOKEN of the environment).
        dtype: of the backbone: float32 | bfloat16 (default: as it was saved).
        beside: the address of another server: the pages of both may ask both, to compare two runs.
    """
    others, overrides = overrides_of(words)
    if others:
        raise UserError(f"serve: {others[0]!r:.80} is not a setting (dotted.key=value)")
    from mmdiff.serving.http.guard import Limits
    from mmdiff.serving.server import serve as answer

    limits = Limits(body=body << 20, in_all=max(64, 2 * body) << 20)
    bounds = {"rows": rows, "waiting": waiting, "seconds": seconds, "limits": limits}
    answer(run, overrides, host=host, port=port, token_file=token_file, dtype=dtype, beside=beside, **bounds)  # type: ignore[arg-type]
    return {}, ""
