"""Verbs that give a model to others."""

from __future__ import annotations

from pathlib import Path

from .arguments import Output, Verb, table


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


VERBS: dict[str, Verb] = {"export": export}
