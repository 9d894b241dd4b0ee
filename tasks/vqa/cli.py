"""Questions about pictures or sounds with a trained run: the likeliest of several answers.

`mmdiff generate` gives a prediction in the model's own words.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from mmdiff.commands.arguments import Output, Verb, row_of
from mmdiff.commands.cli import table


def choose(run: str, /, *words: str, option: list[str], normalise: Literal["sum", "token"] = "sum") -> Output:
    """Choose the likeliest of several answers: question="Who speaks?" audio=clip.wav --option "a child" --option ...

    Args:
        run: a run, a checkpoint in it or a saved model.
        words: fields of the row as key=text or key:=JSON, and settings as dotted.key=value.
        option: a possible answer; given once per answer.
        normalise: what options are compared by: the log-likelihood of the whole answer, or its mean per token.
    """
    row, overrides = row_of(words)
    from mmdiff.session import load
    from mmdiff.tasks.dialogue.choice import choose as likeliest

    return table(asdict(likeliest(load(run, *overrides), row, option, normalise=normalise)))


VERBS: dict[str, Verb] = {"choose": choose}
