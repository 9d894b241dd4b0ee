"""The verbs of `mmdiff vla`, by name."""

from __future__ import annotations

from mmdiff.commands.arguments import Verb

from .datasets import codec, convert, data, record, stats
from .policies import act, evaluate, replay, serve

VERBS: dict[str, Verb] = {
    "record": record,
    "convert": convert,
    "data": data,
    "stats": stats,
    "codec": codec,
    "replay": replay,
    "eval": evaluate,
    "act": act,
    "serve": serve,
}
