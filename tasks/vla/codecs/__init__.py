"""Actions to action tokens and back: normalisation to [-1, 1], bins, codes apart by dimension, DCT, FAST.

May import: config.
"""
