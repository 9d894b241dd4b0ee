"""Sample, infill, design, score, embed and evaluate proteins, with a run, or with ESM-2, DSM or DPLM as published.

May import: the core, commands, tasks.protein. Nothing imports this room.
"""

from .verbs import VERBS as VERBS
