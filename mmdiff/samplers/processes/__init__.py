"""Noise processes: what noise does to a token in training, and how a generation undoes it.

May import: canvas, diffusion, samplers.
"""
