"""Bounds of noise that is no mask: replaced, inserted and expanded tokens, as `mmdiff.samplers.processes` undoes them.

May import: canvas, diffusion, objectives, protocols, samplers.
"""
