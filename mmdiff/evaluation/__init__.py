"""Scores, predictions and reports of a run, and of a run over a grid of settings.

May import: config, data, model, protocols, runs, samplers, session.
"""
