"""Scores, predictions and reports of a run; vectors of texts.

May import: canvas, config, data, model, protocols, runs, session.
"""
