"""Scores, predictions and reports of a run, and of a run over a grid of settings; vectors of texts.

May import: canvas, config, data, model, protocols, runs, samplers, session.
"""
