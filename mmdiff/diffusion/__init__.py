"""The noise process: schedules, mask rates, and the keys that make every draw reproducible.

May import: config.
"""
