"""Robots: record and convert demonstrations, describe and replay them, and run a policy, here or as a server.

May import: the core, commands, tasks.background, tasks.vla. Nothing imports this room.
"""

from .verbs import VERBS as VERBS
