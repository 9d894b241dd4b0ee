"""Objectives of whole answers: which of two is preferred, what reward a generation has, and the model before training.

May import: canvas, config, data, diffusion, model, objectives, protocols, samplers.
"""
