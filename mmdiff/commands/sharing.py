"""Verbs that give a model, or its predictions, to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mmdiff.errors import UserError, nearest

from .arguments import AtLeast1, Output, Verb, table


def export(
    run: str,
    /,
    *words: str,
    out: Path,
    engine: Annotated[str, Parameter(name="--for")] = "hub",
    tower: Path | None = None,
    merge: bool = False,
    force: bool = False,
    licence: str | None = None,
) -> Output:
    """Write a run or a saved model as a folder of the hub: weights under published names, tokenizer, card, licence.

    Args:
        run: a run, a checkpoint in it or a saved model.
        words: settings of `sampler` and `task` as dotted.key=value.
        out: the new folder.
        engine: hub | sglang | vllm | lmdeploy: with the files of that engine; the command that serves it is printed.
        tower: a published DiffusionGemma, whose vision tower engines ask for.
        merge: add LoRA factors to the weights that they change.
        force: replace a folder that an export wrote, and that nobody changed.
        licence: its identifier on the hub, such as apache-2.0, or a file with its text.
    """
    from mmdiff.sharing.export import export as write

    found = write(run, out, overrides=words, engine=engine, tower=tower, merge=merge, force=force, licence=licence)
    return table(found)


def push(
    run: str,
    repo: str,
    /,
    *,
    private: bool = False,
    endpoint: str | None = None,
    merge: bool = False,
    force: bool = False,
    licence: str | None = None,
    message: str | None = None,
) -> Output:
    """Write a run or a saved model to a repository of the hub, as `mmdiff export` lays it out.

    The token is HF_TOKEN's, or that of `hf auth login`.

    Args:
        run: a run, a checkpoint in it, a saved model, or a folder that was exported.
        repo: OWNER/NAME; it is made where it is not there.
        private: a new repository is private.
        endpoint: the address of another hub (default: HF_ENDPOINT, or huggingface.co).
        merge: add LoRA factors to the weights that they change.
        force: also a run that is not finished, or that diverged.
        licence: its identifier on the hub, such as apache-2.0, or a file with its text.
        message: of the commit.
    """
    from mmdiff.sharing.push import push as write

    found = write(
        run,
        repo,
        private=private,
        endpoint=endpoint,
        merge=merge,
        force=force,
        licence=licence,
        message=message,
    )
    return table(found)


def predict(
    run: str,
    rows: str,
    /,
    *words: str,
    out: Path,
    batch_size: AtLeast1 = 16,
    limit: AtLeast1 | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    ray: str | None = None,
    workers: AtLeast1 = 2,
) -> Output:
    """Predict files of rows: a line of JSON per row, in their order. An interrupted command resumes.

    Args:
        run: a run, a checkpoint in it or a saved model.
        rows: JSON lines, Parquet or tar shards: a file, a pattern in quotes, or a folder of `datasets`.
        words: settings of `sampler` and `task` as dotted.key=value.
        out: the file of predictions.
        batch_size: rows of a forward.
        limit: only the first rows.
        on_error: stop at a row that cannot be used, or skip it and say so.
        ray: address of a cluster of Ray, or "local" for workers on this machine (default: this process alone).
        workers: processes of Ray, each with the model.
    """
    from mmdiff.evaluation.predict import predict as run_all

    found = run_all(
        run,
        rows,
        out,
        overrides=words,
        batch_size=batch_size,
        limit=limit,
        on_error=on_error,
        ray=ray,
        workers=workers,
    )
    return table(found)


def bench(run: str = "", /, *words: str, suite: str | None = None, limit: AtLeast1 | None = None) -> Output:
    """Call the harnesses of a suite with a run, as one table with standard errors; without a run, list the suites.

    Args:
        run: a run, a checkpoint in it or a saved model.
        words: settings of entries as ENTRY.key=value.
        suite: a packaged suite, or a .yaml file.
        limit: rows per task.
    """
    from mmdiff.evaluation.bench import bench as call_all
    from mmdiff.evaluation.bench import suites, table_of

    if not run or suite is None:
        if run:
            raise UserError(f"--suite is missing{nearest('', suites())}")
        return {"suites": suites()}, "\n".join(f"{name:10}  {line}" for name, line in suites().items())
    found = call_all(run, suite, limit=limit, overrides=words)
    return found, f"{table_of(found)}\n\n{found['table']}"


VERBS: dict[str, Verb] = {"export": export, "push": push, "predict": predict, "bench": bench}
