"""Noise: its schedule over time, mask rates of a step and how they are spread, which positions of a row are masked
(spans, rates per token), what a token becomes under other processes (transitions, mixtures), draws of tokens, and the
keys that make every draw reproducible.

May import: nothing.
"""
