"""Robots: record and convert demonstrations, look at and replay them, and let a run act, here or as a server.

May import: the core, commands, tasks.background, tasks.vla. Nothing imports this room.
"""

from .verbs import VERBS as VERBS
