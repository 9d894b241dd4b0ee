"""Verbs that give a model to others."""

from __future__ import annotations

from pathlib import Path

from .arguments import Output, Verb, table
from .batches import predict


def export(run: str, /, *, out: Path, merge: bool = False, force: bool = False, licence: str | None = None) -> Output:
    """Write a run or a saved model as a folder of the hub: weights under published names, tokenizer, card, licence.

    Args:
        run: a run, a checkpoint in it or a saved model.
        out: the new folder.
        merge: add LoRA factors to the weights that they change.
        force: replace a folder that an export wrote, and that nobody changed.
        licence: its identifier on the hub, such as apache-2.0, or a file with its text.
    """
    from mmdiff.sharing.export import export as write

    return table(write(run, out, merge=merge, force=force, licence=licence))


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


VERBS: dict[str, Verb] = {"export": export, "push": push, "predict": predict}
