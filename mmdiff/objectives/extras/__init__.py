"""Extras: further modules of a model (`model.extras`, `mmdiff.protocols.Extra`), and the objective of one.

May import: canvas, config, diffusion, objectives, protocols.
"""
