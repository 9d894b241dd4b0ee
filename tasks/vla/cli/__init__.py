"""The verbs of `mmdiff vla` and its demonstrations. Nothing imports this room.

May import: the core, commands, tasks.background, tasks.vla.
"""

from .verbs import VERBS as VERBS
