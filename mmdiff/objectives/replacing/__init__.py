"""Bounds of noise that is no mask: replaced, inserted and expanded tokens, as `mmdiff.samplers.processes` undoes them.

May import: canvas, config, diffusion, objectives, protocols, samplers.
"""
