"""Actions to action tokens and back: normalisation to [-1, 1], bins, DCT, FAST.

May import: config.
"""
