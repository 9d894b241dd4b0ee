"""The verbs of `mmdiff protein`: arguments, input files, results. Nothing imports this room.

May import: all of tasks.protein.
"""

from .verbs import VERBS as VERBS
