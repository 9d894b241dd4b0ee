"""Extras: further modules of a model (`model.extras`, `mmdiff.protocols.Extra`), and objectives of some.

May import: canvas, config, diffusion, objectives, protocols, samplers.
"""
