"""The verbs of `mmdiff vla` and its demonstrations. Nothing imports this room.

May import: all of tasks.vla.
"""

from .verbs import VERBS as VERBS
