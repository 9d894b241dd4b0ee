"""HTTP itself: who may ask, how long and how much (`guard`), ports, counters, and the description of routes.

May import: nothing.
"""
