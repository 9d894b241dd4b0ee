"""Robots: record and convert demonstrations, describe and replay them, and run a policy, here or as a server.

May import: the core, commands, tasks.background, tasks.vla. Nothing imports this room.
"""

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
